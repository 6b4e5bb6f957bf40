"""Servers and clients as Debian has them, a sidecar on each side: MariaDB, Redis and OpenSMTPD.

MariaDB and SMTP servers speak first. Every server has a port that is declared and one that is not.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.two_pods.netns import Capture, wait_for
from examples.two_pods.scene import APP_UID, Pod, Scene
from mesh_api.sidecar import Inbound, MtlsMode, Protocol
from mesh_api.traffic import Timeouts

PROGRAMS = ("mariadbd", "mariadb", "redis-server", "redis-cli", "smtpd", "swaks")
_missing = [name for name in PROGRAMS if shutil.which(name) is None]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}"),
]

DB, CACHE, MAIL = 3306, 6379, 2525
OPENED, CLOSED = "triomesh_tcp_connections_opened_total", "triomesh_tcp_connections_closed_total"
PORTS = {"db": (3306, 3307), "cache": (6379, 6380), "mail": (25, 26)}
"""Of each Service: the declared one and the undeclared one."""
each_port = pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])


def _serve(scene: Scene, pod: Pod, name: str, port: int, *command: str) -> subprocess.Popen[bytes]:
    """Start a server in a pod; the scene ends it."""
    log = scene.dir / "log" / f"{pod.name}-{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", start_new_session=True
        )
    pod.apps.append(process)

    def up() -> bool:
        assert process.poll() is None, f"{name}: {log.read_text(errors='replace')[-2000:]}"
        try:
            pod.connect("127.0.0.1", port, 1).close()
        except OSError:
            return False
        return True

    wait_for(up, f"{name} to listen", 20)
    return process


def _own_dir(scene: Scene, name: str) -> Path:
    path = scene.dir / "data" / name
    path.mkdir(parents=True)
    os.chown(path, APP_UID, APP_UID)
    return path


def _start_mariadb(scene: Scene, pod: Pod) -> None:
    data = _own_dir(scene, "db")
    options = [f"--datadir={data}", f"--socket={data}/socket", f"--pid-file={data}/pid", f"--port={DB}"]
    options += ["--skip-grant-tables", "--skip-networking=0", "--bind-address=0.0.0.0"]
    options += ["--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve"]
    _serve(scene, pod, "mariadb", DB, *pod.command("mariadbd", "--no-defaults", *options))


def _start_redis(scene: Scene, pod: Pod) -> None:
    options = ["--port", str(CACHE), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""]
    options += ["--dir", str(_own_dir(scene, "cache"))]
    _serve(scene, pod, "redis", CACHE, *pod.command("redis-server", *options))


def _start_smtpd(scene: Scene, pod: Pod) -> subprocess.Popen[bytes]:
    """OpenSMTPD changes its user by itself; its places are put in a mount namespace of its own."""
    box = _own_dir(scene, "mail")
    config = scene.dir / "config" / "smtpd.conf"
    config.write_text(
        f"listen on 0.0.0.0 port {MAIL} hostname mail.shop.test\n"
        f'action "keep" maildir "{box}" virtual {{ "@" = nobody }}\n'
        'match from any for any action "keep"\n'
    )
    script = "mount -t tmpfs tmpfs /run; mount -t tmpfs -o mode=711 tmpfs /var/spool; "
    script += f"mkdir -m 711 /var/spool/smtpd; exec smtpd -d -f {config}"
    inside = ["ip", "netns", "exec", pod.netns, "setpriv", "--pdeathsig", "KILL", "--"]
    return _serve(scene, pod, "smtpd", MAIL, *inside, "unshare", "--mount", "sh", "-ec", script)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene([Pod("client"), Pod("server")]) as scene:
        server = scene["server"]
        server.inbound = Inbound(mtls=MtlsMode.STRICT)
        for name, target in (("db", DB), ("cache", CACHE), ("mail", MAIL)):
            declared, undeclared = PORTS[name]
            scene.service(name, declared, [server], target, Protocol.TCP)
            scene.service(name, undeclared, [server], target)
        scene.start()
        (scene.dir / "data").mkdir()
        _start_mariadb(scene, server)
        _start_redis(scene, server)
        smtpd = _start_smtpd(scene, server)
        yield scene
        smtpd.terminate()  # it ends its own children
        smtpd.wait(5)


def _client(scene: Scene, *command: str, given: bytes | None = None) -> bytes:
    """Run a client program in the client's pod; what it said on stdout."""
    argv = scene["client"].command(*command)
    done = subprocess.run(argv, input=given, capture_output=True, timeout=30, cwd="/")
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-500:])
    return done.stdout


def _sql(scene: Scene, port: int, query: str, *options: str) -> bytes:
    command = ["mariadb", "--no-defaults", "-h", "db", "-P", str(port), "--batch", "-N", "--quick", *options]
    return _client(scene, *command, given=query.encode())


def _redis(scene: Scene, port: int, *words: str, given: bytes | None = None) -> bytes:
    return _client(scene, "redis-cli", "-h", "cache", "-p", str(port), *words, given=given)


def _port(name: str, declared: bool) -> int:
    return PORTS[name][0 if declared else 1]


@contextmanager
def only_mtls(scene: Scene, name: str, port: int) -> Iterator[None]:
    """What is done meanwhile goes by connections that are mTLS on both sides, and they end cleanly."""
    client, server = scene["client"], scene["server"]
    label = f"{name}.shop:{port}"

    def counts() -> tuple[float, ...]:
        return (
            client.metric(OPENED, direction="outbound", destination=label, mtls="true"),
            server.metric(OPENED, direction="inbound", mtls="true"),
            client.metric(OPENED, direction="outbound", destination=label, mtls="false"),
            server.metric(OPENED, direction="inbound", mtls="false"),
        )

    before = counts()
    yield
    after = counts()
    assert after[0] > before[0]
    assert after[1] - before[1] == after[0] - before[0]
    assert after[2:] == (0, 0)


# -- MariaDB -------------------------------------------------------------------------------------------------


@each_port
def test_mariadb_does_its_work(scene: Scene, declared: bool) -> None:
    port = _port("db", declared)
    marker = b"very-secret-row"
    with only_mtls(scene, "db", port), Capture(scene.node, scene["server"].link) as wire:
        _sql(scene, port, "create database shop; create table shop.items (id int primary key, name text)")
        try:
            _sql(scene, port, f"insert into shop.items values (1, '{marker.decode()}'), (2, 'two')")
            _sql(scene, port, "update shop.items set name = upper(name) where id = 2")
            assert _sql(scene, port, "select id, name from shop.items order by id") == (
                b"1\tvery-secret-row\n2\tTWO\n"
            )
        finally:
            _sql(scene, port, "drop database shop")
    sent = b"".join(wire.payloads(DB))
    assert len(sent) > 1000
    assert marker not in sent


@each_port
def test_mariadb_gives_a_large_result(scene: Scene, declared: bool) -> None:
    port = _port("db", declared)
    numbers = "with recursive s (n) as (select 1 union all select n + 1 from s where n < 24)"
    with only_mtls(scene, "db", port):
        found = _sql(scene, port, f"{numbers} select repeat(md5(n), 16384) from s")
    lines = [hashlib.md5(str(n).encode()).hexdigest() * 16384 for n in range(1, 25)]
    assert len(found) > 12_000_000
    assert found.decode().splitlines() == lines


def test_mariadb_takes_a_large_statement(scene: Scene) -> None:
    text = os.urandom(5_000_000).hex()
    found = _sql(scene, DB, f"select md5('{text}')", "--max-allowed-packet=16M")
    assert found.decode().strip() == hashlib.md5(text.encode()).hexdigest()


def test_who_speaks_first_is_found_out_once(scene: Scene) -> None:
    """The tests above have dialled the undeclared port: by now its server is known to speak first."""

    def looked_at() -> float:
        return scene["client"].metric("triomesh_detect_total", direction="outbound", verdict="server-first")

    _sql(scene, 3307, "select 1")
    before = looked_at()
    assert before >= 1
    _sql(scene, 3307, "select 1")
    assert looked_at() == before


# -- Redis ---------------------------------------------------------------------------------------------------


@each_port
def test_redis_does_its_work(scene: Scene, declared: bool) -> None:
    port = _port("cache", declared)
    big = os.urandom(6_000_000).hex().encode()
    commands = b"".join(
        b"*3\r\n$3\r\nSET\r\n$%d\r\nk%d\r\n$%d\r\n%d\r\n" % (len(b"k%d" % n), n, len(b"%d" % n), n)
        for n in range(20_000)
    )
    with only_mtls(scene, "cache", port):
        _redis(scene, port, "flushall")
        assert _redis(scene, port, "set", "key", "value") == b"OK\n"
        assert _redis(scene, port, "get", "key") == b"value\n"
        _redis(scene, port, "-x", "set", "big", given=big)
        assert _redis(scene, port, "get", "big") == big + b"\n"
        said = _redis(scene, port, "--pipe", given=commands)
        assert b"errors: 0, replies: 20000" in said, said
        assert _redis(scene, port, "dbsize") == b"20002\n"


@each_port
def test_redis_pushes_to_its_subscribers(scene: Scene, declared: bool) -> None:
    port = _port("cache", declared)
    argv = scene["client"].command("redis-cli", "-h", "cache", "-p", str(port), "subscribe", "news")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd="/") as subscriber:
        try:
            assert subscriber.stdout is not None
            assert [subscriber.stdout.readline() for _ in range(3)] == [b"subscribe\n", b"news\n", b"1\n"]
            for n in range(10):
                assert _redis(scene, port, "publish", "news", f"item {n}") == b"1\n"
                assert [subscriber.stdout.readline() for _ in range(3)][2] == b"item %d\n" % n
        finally:
            subscriber.kill()


@each_port
def test_a_blocked_client_is_served_after_the_configuration_has_changed(scene: Scene, declared: bool) -> None:
    """Settings, endpoints and mode of the destination change while nothing moves on the connection."""
    port = _port("cache", declared)
    client, server = scene["client"], scene["server"]
    service = scene.services["cache", port]
    argv = client.command("redis-cli", "-h", "cache", "-p", str(port), "blpop", "queue", "20")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd="/") as waiting:
        try:
            wait_for(lambda: b"blocked_clients:1" in _redis(scene, port, "info", "clients"), "BLPOP to wait")
            service.timeouts = Timeouts(connect_s=2.5)
            scene.apply(client)
            pods, service.pods = service.pods, ()
            scene.apply(client)
            service.pods = pods
            scene.apply(client)
            server.inbound = Inbound(mtls=MtlsMode.PERMISSIVE)
            scene.apply(server)
            assert _redis(scene, port, "rpush", "queue", "late") == b"1\n"
            out, _ = waiting.communicate(timeout=10)
            assert out == b"queue\nlate\n"
        finally:
            waiting.kill()
            service.timeouts = Timeouts()
            server.inbound = Inbound(mtls=MtlsMode.STRICT)
            scene.apply()


# -- SMTP ----------------------------------------------------------------------------------------------------


@each_port
def test_mail_is_delivered_as_it_was_sent(scene: Scene, declared: bool) -> None:
    port = _port("mail", declared)
    lines = [".", "..", "a line.", "", "From here", *(os.urandom(300).hex() for _ in range(500))]
    message = scene.dir / "data" / "message"
    message.write_text("Subject: through the mesh\n\n" + "\n".join(lines) + "\n")
    box = scene.dir / "data" / "mail" / "new"
    with only_mtls(scene, "mail", port):
        said = _client(
            scene,
            *("swaks", "--server", f"mail:{port}", "--from", "a@shop.test", "--to", "b@shop.test"),
            *("--data", f"@{message}", "--silent", "2"),
        )
        assert b"error" not in said.lower(), said
        (mail,) = wait_for(lambda: list(box.glob("*")), "the mail in the box")
    text = mail.read_text()
    mail.unlink()
    assert re.search(r"^Received: .*by mail\.shop\.test", text, re.M | re.S)
    head, _, body = text.partition("\n\n")
    assert "Subject: through the mesh" in head
    assert body.rstrip("\n").split("\n") == lines
