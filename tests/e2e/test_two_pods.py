"""Sidecars in real network namespaces: real rules, real certificates, unmodified applications."""

from __future__ import annotations

import dataclasses
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs.credentials import ALPN_HTTP1, ALPN_TCP
from examples.two_pods.load import FreshHttp, FreshTcp, KeptHttp, Load
from examples.two_pods.netns import Capture, wait_for
from examples.two_pods.scene import ROOT, Http, Pod, Scene
from mesh_api.sidecar import Inbound, MtlsMode, Protocol
from mesh_api.traffic import Subset, Timeouts, WeightedTarget
from tests.support.mesh import TestCa
from tests.support.netns import App, credentials, mesh_tls, outcome, read_all, read_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

MARKER = b"plaintext-marker-0815"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_PLACES = (Path("/run/netns"), Path("/etc/netns"), Path("/tmp"))
STRICT = Inbound(mtls=MtlsMode.STRICT)


def start(scene: Scene) -> None:
    """Services, sidecars and the two usual applications."""
    server, outsider = scene["server"], scene["outsider"]
    scene.service("web", 80, [server], 8080)
    scene.service("web", 81, [server], 8080, Protocol.HTTP)
    scene.service("mail", 25, [server], 2525, Protocol.TCP)
    scene.service("mail", 26, [server], 2525)
    scene.service("raw", 90, [server], 9090)
    scene.service("raw", 91, [server], 9091, Protocol.TCP)
    # A Service whose only pod claims to be in the mesh; tests play its sidecar.
    fake = dataclasses.replace(outsider, meshed=True)
    scene.service("fake", 92, [fake], 9092, Protocol.TCP)
    scene.service("fake", 93, [fake], 9093, Protocol.HTTP)
    scene.service("plain", 80, [outsider], 8080)
    scene.start()
    scene.application(server, "web", 8080)
    scene.application(server, "greeter", 2525)
    scene.application(outsider, "web", 8080)


def pods() -> list[Pod]:
    return [Pod("client"), Pod("server"), Pod("outsider", meshed=False)]


@pytest.fixture(scope="module", params=[(4,), (6,), (4, 6)], ids=["ipv4", "ipv6", "dual"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with Scene(pods(), request.param) as scene:
        start(scene)
        yield scene


@pytest.fixture(scope="module")
def dual() -> Iterator[Scene]:
    with Scene(pods(), (4, 6)) as scene:
        start(scene)
        yield scene


@pytest.fixture
def strict(scene: Scene) -> Iterator[Scene]:
    server = scene["server"]
    server.inbound = STRICT
    scene.apply(server)
    yield scene
    server.inbound = Inbound()
    scene.apply(server)


def vips(scene: Scene, name: str, port: int) -> tuple[str, ...]:
    return scene.services[name, port].addresses


def greeted(pod: Pod, ip: str, port: int) -> bytes:
    with pod.connect(ip, port) as sock:
        greeting = read_until(sock, b"\r\n")
        sock.sendall(b"one\ntwo\n")
        sock.shutdown(socket.SHUT_WR)
        return greeting + read_all(sock)


# -- every address family ----------------------------------------------------------------------------------


def test_http_by_service_and_by_pod_address(scene: Scene) -> None:
    client, server = scene["client"], scene["server"]
    before = server.metric(
        "triomesh_requests_total", direction="inbound", mtls="true", source=client.identity
    )
    targets = [(ip, port) for port in (80, 81) for ip in vips(scene, "web", port)]
    targets += [(ip, 8080) for ip in server.addresses]
    for ip, port in targets:
        reply = client.get(ip, port, "/hello")
        assert (reply.status, reply.body) == (200, b"server /hello\n"), (ip, port)
    after = server.metric("triomesh_requests_total", direction="inbound", mtls="true", source=client.identity)
    assert after - before == len(targets)


def test_large_bodies(scene: Scene) -> None:
    body = os.urandom(3_000_000)
    reply = scene["client"].get(vips(scene, "web", 80)[0], 80, body=body)
    assert reply.status == 200
    assert reply.body == body


def test_an_unmodified_client_by_name(scene: Scene) -> None:
    assert scene["client"].run(*scene.client_program("http://web/by-name")) == "server /by-name"


@pytest.mark.parametrize("port", [25, 26], ids=["declared", "undeclared"])
def test_server_speaks_first(scene: Scene, port: int) -> None:
    expected = b"220 server at your service\r\nONE\nTWO\n"
    for ip in vips(scene, "mail", port):
        assert greeted(scene["client"], ip, port) == expected
    for ip in scene["server"].addresses:
        assert greeted(scene["client"], ip, 2525) == expected


def test_server_speaks_first_to_a_pod_outside_the_mesh(scene: Scene) -> None:
    for ip in (*vips(scene, "mail", 25), *scene["server"].addresses):
        port = 25 if ip in vips(scene, "mail", 25) else 2525
        assert greeted(scene["outsider"], ip, port).startswith(b"220 server")


def test_strict_puts_no_plaintext_on_the_wire(strict: Scene) -> None:
    client, server = strict["client"], strict["server"]
    path = "/" + MARKER.decode()
    with Capture(strict.node, server.link) as wire:
        for ip in vips(strict, "web", 80):
            assert client.get(ip, 80, path).body == b"server " + path.encode() + b"\n"
            assert client.get(ip, 80, body=MARKER * 1000).body == MARKER * 1000
        for ip in server.addresses:
            assert client.get(ip, 8080, path).status == 200
        for ip in vips(strict, "mail", 25):
            with client.connect(ip, 25) as sock:
                sock.sendall(MARKER + b"\n")
                sock.shutdown(socket.SHUT_WR)
                assert read_all(sock).endswith(MARKER.upper() + b"\n")
    sent = [b"".join(wire.payloads(port)) for port in (8080, 2525)]
    for data in sent:
        assert len(data) > 500
        assert MARKER not in data
        assert MARKER.upper() not in data
        assert b"220 server" not in data


def test_strict_refuses_plaintext_and_permissive_takes_it(scene: Scene) -> None:
    outsider, server = scene["outsider"], scene["server"]
    targets = [(ip, 80) for ip in vips(scene, "web", 80)] + [(ip, 8080) for ip in server.addresses]
    for ip, port in targets:
        assert outsider.get(ip, port).status == 200
    server.inbound = STRICT
    scene.apply(server)
    try:
        before = server.metric("triomesh_refused_total", direction="inbound", reason="plaintext")
        for ip, port in targets:
            assert outcome(outsider, ip, port) == "reset"
        after = server.metric("triomesh_refused_total", direction="inbound", reason="plaintext")
        assert after - before == len(targets)
        # Nothing is said to a caller that nobody knows, not even a greeting.
        with outsider.connect(server.ip, 2525) as sock:
            assert not select.select([sock], [], [], 0.3)[0]
    finally:
        server.inbound = Inbound()
        scene.apply(server)


def test_a_pod_calls_itself(scene: Scene) -> None:
    server = scene["server"]
    for ip in vips(scene, "web", 80):
        assert server.get(ip, 80).body == b"server /\n"
    for ip in server.addresses:
        assert server.get(ip, 8080).body == b"server /\n"
    assert server.get("127.0.0.1", 8080).body == b"server /\n"
    assert server.run(*scene.client_program("http://web/me")) == "server /me"
    for ip in vips(scene, "mail", 25):
        assert greeted(server, ip, 25).startswith(b"220 server")


@pytest.mark.parametrize("port", [15000, 15001, 15006])
def test_ports_of_the_sidecar_are_closed_to_other_pods(scene: Scene, port: int) -> None:
    server = scene["server"]
    for ip in server.addresses:
        before = server.metric("triomesh_refused_total", direction="inbound", reason="own-port")
        assert outcome(scene["outsider"], ip, port) in ("reset", b"")
        answer = outcome(scene["client"], ip, port)
        # The caller's own sidecar explains; the server's gives nothing away.
        assert answer in ("reset", b"") or (b" 503 " in answer and b"side=client" in answer), answer  # type: ignore[operator]
        after = server.metric("triomesh_refused_total", direction="inbound", reason="own-port")
        assert after - before >= 2


def test_metrics_and_health_are_open_to_other_pods(scene: Scene) -> None:
    for pod in (scene["outsider"], scene["client"]):
        for ip in scene["server"].addresses:
            reply = pod.get(ip, 15020, "/metrics")
            assert reply.status == 200
            assert b"triomesh_requests_total" in reply.body
            assert pod.get(ip, 15021, "/healthz/ready").status == 200
            assert pod.get(ip, 15020, "/config_dump").status == 404
            assert pod.get(ip, 15021, "/quit").status == 404


def test_a_loopback_only_port_stays_private(scene: Scene) -> None:
    server = scene["server"]
    with App(server, 9999, lambda conn: conn.sendall(b"private"), "127.0.0.1") as app:
        with server.connect("127.0.0.1", 9999) as sock:
            assert read_all(sock) == b"private"
        for pod in (scene["outsider"], scene["client"]):
            for ip in server.addresses:
                assert outcome(pod, ip, 9999, b"\x00\x01binary\xff") in ("reset", b"")
        assert app.accepted == 1


def test_calls_out_of_the_mesh_are_plaintext(scene: Scene) -> None:
    client, outsider = scene["client"], scene["outsider"]
    with Capture(scene.node, outsider.link) as wire:
        for ip in vips(scene, "plain", 80):
            assert client.get(ip, 80, "/" + MARKER.decode()).headers["x-served-by"] == "outsider"
        for ip in outsider.addresses:
            assert client.get(ip, 8080, "/" + MARKER.decode()).headers["x-served-by"] == "outsider"
    assert MARKER in b"".join(wire.payloads(8080))


def test_last_bytes_and_fin_in_one_segment(scene: Scene) -> None:
    got: list[bytes] = []

    def handle(conn: socket.socket) -> None:
        data = read_all(conn)
        got.append(data)
        conn.send(data[::-1], socket.MSG_MORE)
        conn.shutdown(socket.SHUT_WR)
        read_all(conn)

    with App(scene["server"], 9091, handle):
        for size in (1, 700, 16_384, 16_385, 60_000) * 6:
            sent = os.urandom(size)
            with scene["client"].connect(vips(scene, "raw", 91)[0], 91) as sock:
                assert sock.send(sent, socket.MSG_MORE) == size
                sock.shutdown(socket.SHUT_WR)
                back = read_all(sock)
            assert got.pop() == sent
            assert back == sent[::-1]


# -- once ------------------------------------------------------------------------------------------------


def test_http2_settings_do_not_pin_a_silent_client_to_tcp(dual: Scene) -> None:
    client = dual["client"]
    ip = vips(dual, "raw", 90)[0]
    spoke = threading.Event()

    def handle(conn: socket.socket) -> None:
        if not select.select([conn], [], [], 0.05)[0]:
            conn.sendall(SETTINGS)
            spoke.set()
        first = conn.recv(65536)
        if first.startswith(b"GET "):
            conn.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        else:
            read_all(conn)

    def verdicts(verdict: str) -> float:
        return client.metric("triomesh_detect_total", direction="outbound", verdict=verdict)

    with App(dual["server"], 9090, handle):
        before = verdicts("http1"), verdicts("server-first")
        for _ in range(2):
            spoke.clear()
            with client.connect(ip, 90) as sock:
                assert spoke.wait(5)
                assert not select.select([sock], [], [], 0.1)[0], (
                    "SETTINGS reached a client that may speak HTTP/1"
                )
                sock.sendall(b"GET / HTTP/1.1\r\nhost: raw\r\nconnection: close\r\n\r\n")
                answer = read_all(sock)
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            assert answer.endswith(b"ok")
        assert (verdicts("http1"), verdicts("server-first")) == (before[0] + 2, before[1])
        spoke.clear()
        with client.connect(ip, 90) as sock:
            assert spoke.wait(5)
            sock.sendall(PREFACE)
            assert sock.recv(100)[3] == 4, "the sidecar's own SETTINGS"


def test_truncated_tls_from_a_client_resets_the_application(dual: Scene) -> None:
    server, outsider = dual["server"], dual["outsider"]
    mesh = credentials(dual, outsider)
    ends: list[object] = []

    def handle(conn: socket.socket) -> None:
        try:
            ends.append(read_all(conn))
        except ConnectionResetError as exc:
            ends.append(type(exc))

    with App(server, 9091, handle):
        before = server.metric("triomesh_tcp_connections_closed_total", direction="inbound", flag="DC")
        for clean in (True, False):
            with mesh_tls(outsider.connect(server.ip, 9091), mesh.client[ALPN_TCP]) as tls:
                tls.sendall(b"half a mess")
                if clean:
                    tls.unwrap().close()
                else:
                    tls.shutdown(socket.SHUT_WR)  # FIN, no close_notify
                wait_for(lambda clean=clean: len(ends) == (1 if clean else 2), "the application's end")
        assert ends == [b"half a mess", ConnectionResetError]
        after = server.metric("triomesh_tcp_connections_closed_total", direction="inbound", flag="DC")
        assert after - before == 1


def test_truncated_tls_from_a_server_is_an_error(dual: Scene) -> None:
    client, outsider = dual["client"], dual["outsider"]
    mesh = credentials(dual, outsider)
    alpns: list[str | None] = []

    def handle(conn: socket.socket) -> None:
        with mesh_tls(conn, mesh.server, server=True) as tls:
            alpns.append(tls.selected_alpn_protocol())
            tls.recv(65536)
            if alpns[-1] == ALPN_HTTP1:
                tls.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhalf a mess")
            else:
                tls.sendall(b"half a mess")
            tls.shutdown(socket.SHUT_RDWR)  # FIN, no close_notify

    for port, target in ((92, 9092), (93, 9093)):
        with App(outsider, target, handle), client.connect(vips(dual, "fake", port)[0], port) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nhost: fake\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                read_all(sock)
    assert alpns == [ALPN_TCP, ALPN_HTTP1]


def test_another_identity_than_expected_gets_no_byte(dual: Scene) -> None:
    client, outsider = dual["client"], dual["outsider"]
    mesh = credentials(dual, dual["server"])
    got: list[bytes] = []

    def handle(conn: socket.socket) -> None:
        with mesh_tls(conn, mesh.server, server=True) as tls:
            got.append(tls.recv(65536))

    with App(outsider, 9093, handle):
        reply = client.get(vips(dual, "fake", 93)[0], 93)
    assert reply.status == 503
    assert "flag=UF" in reply.error
    assert not any(got)


def test_strict_takes_no_certificate_of_another_ca(dual: Scene) -> None:
    server, outsider = dual["server"], dual["outsider"]
    stranger = TestCa().credentials("client")
    mesh = credentials(dual, outsider)
    before = server.metric("triomesh_handshakes_total", side="server", result="failed")
    # With TLS 1.3 a client learns of the refusal when it first reads.
    for context in (stranger.client[ALPN_TCP], ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([ALPN_TCP])
        sock = outsider.connect(server.ip, 2525)
        with pytest.raises(OSError), mesh_tls(sock, context) as tls:  # noqa: PT011, PT012 - alert or reset
            assert not tls.recv(100)
            raise ConnectionResetError
        sock.close()
    after = server.metric("triomesh_handshakes_total", side="server", result="failed")
    assert after - before == 2
    with mesh_tls(outsider.connect(server.ip, 2525), mesh.client[ALPN_TCP]) as tls:
        assert tls.recv(100).startswith(b"220 server")


def test_configuration_changes_close_no_connection(dual: Scene) -> None:
    client, server = dual["client"], dual["server"]
    web, raw = dual.services["web", 80], dual.services["raw", 91]

    def echo(conn: socket.socket) -> None:
        while data := conn.recv(65536):
            conn.sendall(data)

    with (
        App(server, 9091, echo) as app,
        client.connect(raw.ip, 91) as kept,
        Load([KeptHttp(client, web.ip, 80) for _ in range(4)]) as load,
    ):
        for number in range(5):
            done = load.ok
            web.timeouts = raw.timeouts = Timeouts(connect_s=1.5 + number)
            web.subsets = {"all": Subset(labels={})} if number % 2 else {}
            web.split = (WeightedTarget(subset="all"),) if number % 2 else ()
            server.inbound = Inbound(port_mtls={"8080": MtlsMode.STRICT} if number % 2 else {})
            dual.apply()
            kept.sendall(b"%d" % number)
            assert kept.recv(10) == b"%d" % number
            wait_for(lambda done=done: load.ok > done + 20 or load.failures, "requests go on")
    server.inbound, web.timeouts, raw.timeouts = Inbound(), Timeouts(), Timeouts()
    web.subsets, web.split = {}, ()
    dual.apply()
    assert not load.failures
    assert load.dialled == 4
    assert app.accepted == 1


def test_a_configuration_that_cannot_be_used_changes_nothing(dual: Scene) -> None:
    client = dual["client"]
    good = client.config.read_bytes()
    before = client.metric("triomesh_config_updates_total", result="rejected")
    client.config.write_bytes(b'{"workload": 1}')
    wait_for(
        lambda: client.metric("triomesh_config_updates_total", result="rejected") > before,
        "the refusal counted",
    )
    assert client.get(vips(dual, "web", 80)[0], 80).status == 200
    client.config.write_bytes(good)


def test_sidecar_killed_and_restarted(dual: Scene) -> None:
    client, server = dual["client"], dual["server"]
    ip = vips(dual, "web", 80)[0]
    assert server.sidecar is not None
    with client.connect(vips(dual, "mail", 25)[0], 25) as mail:
        assert read_until(mail, b"\r\n").startswith(b"220 ")
        server.sidecar.kill()
        server.sidecar.wait()
        with pytest.raises(ConnectionResetError):
            read_all(mail)
    reply = client.get(ip, 80)
    assert reply.status == 503
    assert "flag=UF; side=client" in reply.error
    dual.start_sidecar(server)
    wait_for(lambda: client.get(ip, 80).status == 200, "requests work again", 5)
    assert client.get(server.ip, 8080).status == 200


def test_client_sidecar_killed_and_restarted(dual: Scene) -> None:
    client = dual["client"]
    ip = vips(dual, "web", 80)[0]
    assert client.sidecar is not None
    client.sidecar.kill()
    client.sidecar.wait()
    # Fails closed: nothing goes past a sidecar that is down.
    assert outcome(client, ip, 80) == "reset"
    dual.start_sidecar(client)
    assert client.get(ip, 80).status == 200


def test_sigterm_drains(dual: Scene) -> None:
    client, server = dual["client"], dual["server"]
    outsider = dual["outsider"]
    asked, release = threading.Event(), threading.Event()

    def handle(conn: socket.socket) -> None:
        read_until(conn, b"\r\n\r\n")
        asked.set()
        release.wait(10)
        conn.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
        read_all(conn)

    process = server.sidecar
    assert process is not None
    with App(server, 9090, handle), client.connect(vips(dual, "raw", 90)[0], 90) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nhost: raw\r\n\r\n")
        assert asked.wait(5)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: any(line.get("event") == "draining" for line in server.log_lines()), "the drain", 5)
        # What still comes is served, and asked to go elsewhere next time.
        meanwhile = Http(outsider, server.ip, 8080)
        reply = meanwhile.fetch()
        meanwhile.close()
        assert outsider.get(server.ip, 15021, "/healthz/ready").status == 503
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert process.poll() is None
        release.set()
        assert read_until(slow, b"late").startswith(b"HTTP/1.1 200 ")
    assert process.wait(10) == 0
    dual.start_sidecar(server)
    assert client.get(vips(dual, "web", 80)[0], 80).status == 200


def test_another_user_than_the_rules_let_pass_is_refused(dual: Scene) -> None:
    pod = Pod("x", netns=dual["client"].netns)
    command = pod.command(dual.python, "-m", "mesh_proxy", uid=1000)
    import subprocess

    environment = {
        "TRIOMESH_CONFIG_FILE": "/c",
        "TRIOMESH_CA_SOCKET": "/s",
        "PYTHONPATH": str(dual.dir / "lib"),
    }
    environment["PATH"] = os.environ["PATH"]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "expected to run as uid 1337, this is uid 1000" in done.stderr


def test_a_second_sidecar_in_the_pod_is_refused(dual: Scene) -> None:
    client = dual["client"]
    first = client.sidecar
    dual.start_sidecar(client, wait=False)
    second, client.sidecar = client.sidecar, first
    assert second is not None
    assert second.wait(10) == 2
    assert client.get(vips(dual, "web", 80)[0], 80).status == 200


def test_certificates_rotate_under_load() -> None:
    with Scene(pods(), (4,), leaf_lifetime="4s") as scene:
        start(scene)
        client, server = scene["client"], scene["server"]
        web, mail = scene.services["web", 80], scene.services["mail", 25]
        server.inbound = STRICT
        scene.apply(server)

        def renewals(pod: Pod) -> float:
            return pod.metric("triomesh_certificate_renewals_total", result="ok")

        before = renewals(client), renewals(server)
        with (
            Load([KeptHttp(client, web.ip, 80) for _ in range(2)]) as kept,
            Load([FreshHttp(client, web.ip, 80)]) as fresh,
            Load([FreshTcp(client, mail.ip, 25)]) as tcp,
        ):
            wait_for(
                lambda: renewals(client) >= before[0] + 4 and renewals(server) >= before[1] + 4,
                "four renewals on either side",
                25,
                every=0.2,
            )
        assert not kept.failures + fresh.failures + tcp.failures
        assert kept.dialled == 2
        assert min(kept.ok, fresh.ok, tcp.ok) > 50
        for pod in (client, server):
            assert pod.metric("triomesh_certificate_renewals_total", result="failed") == 0


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_both_iptables_back_ends(backend: str) -> None:
    with Scene(pods(), (4, 6), backend=backend) as scene:  # type: ignore[arg-type]
        start(scene)
        client, server = scene["client"], scene["server"]
        server.inbound = STRICT
        scene.apply(server)
        assert f"iptables-{backend}" in scene.netinit_said["client"]
        for ip in vips(scene, "web", 80):
            assert client.get(ip, 80).status == 200
            assert server.get(ip, 80).status == 200
            assert outcome(scene["outsider"], ip, 80) == "reset"
        for ip in vips(scene, "mail", 26):
            assert greeted(client, ip, 26).startswith(b"220 server")


def test_nothing_is_left_behind() -> None:
    scene = Scene([Pod("client")])
    place = scene.dir
    try:
        with scene:
            place = scene.dir
            scene.start()
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    process = scene["client"].sidecar
    assert process is not None
    assert process.poll() is not None
    assert not place.exists()
    for name in (scene.node, scene["client"].netns):
        assert not os.path.exists(f"/run/netns/{name}")
        assert not os.path.exists(f"/etc/netns/{name}")


_KILLED = """
import os, signal
from examples.two_pods.scene import Pod, Scene
with Scene([Pod("client")]) as scene:
    scene.start()
    print(scene.name, scene["client"].sidecar.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_run_leaves_can_be_removed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    name, pid = done.stdout.split()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the sidecar ended with its scene", 5)
    left = [path for place in _PLACES for path in place.glob(f"{name}-*")]
    assert left
    for _ in range(2):
        command = [sys.executable, "-m", "examples.two_pods", "--cleanup"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, "")
    assert not any(path.exists() for path in left)


def test_the_demo_needs_root() -> None:
    command = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-B", "-c"]
    check = "import sys; sys.argv = ['x']; import examples.two_pods.__main__ as m; sys.exit(m.main())"
    done = subprocess.run([*command, check], cwd=ROOT, capture_output=True, text=True, timeout=30)
    if "Permission denied" in done.stderr or "No module" in done.stderr:
        pytest.skip("this checkout is not readable for other users")
    assert done.returncode == 2
    assert done.stderr == "two_pods: this needs root, to make network namespaces\n"
