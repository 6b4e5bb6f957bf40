"""Single checks against real servers on loopback: HTTP, TCP, gRPC health."""

import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import h2.config
import h2.connection
import h2.events
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh_local.kubelet.probes import CheckFailed, Target, check
from mesh_local.kubelet.runtime import CommandFailed, Container, Runtime
from mesh_local.machinery.objects import Object

Serve = Callable[[trio.SocketStream], Awaitable[None]]


class Loopback:
    async def dial(self, host: str, port: int) -> trio.SocketStream:
        sock = trio.socket.socket()
        try:
            await sock.connect((host, port))
        except OSError:
            sock.close()
            raise
        return trio.SocketStream(sock)


class Commands:
    """A runtime that only answers commands."""

    async def exec_sync(self, container: Container, argv: list[str]) -> tuple[int, str]:
        if argv == ["sleep"]:
            await trio.sleep_forever()
        if argv == ["gone"]:
            raise CommandFailed("the container is not running")
        return int(argv[0]), "said"


def probe(handler: Object, serve: Serve | None = None, timeout_s: float = 5.0) -> str:
    """What the check says: '' for well. `PORT` in the handler stands for the server's."""

    async def main() -> str:
        async with trio.open_nursery() as nursery:
            port = 1
            if serve is not None:
                listeners = await nursery.start(
                    trio.serve_tcp,
                    serve,
                    0,
                )
                port = listeners[0].socket.getsockname()[1]
            spec = {"ports": [{"name": "web", "containerPort": port}]}
            none = cast(Any, None)
            target = Target("127.0.0.1", spec, none, cast(Runtime, Commands()), Loopback())
            try:
                await check(handler, target, timeout_s)
                said = ""
            except CheckFailed as exc:
                said = str(exc).replace(str(port), "PORT")
            nursery.cancel_scope.cancel()
        return said

    return trio.run(main)


def answering(*answers: bytes) -> tuple[Serve, list[bytes]]:
    left, seen = list(answers), []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            seen.append(await stream.receive_some(65536))
            await stream.send_all(left.pop(0))

    return serve, cast(list[bytes], seen)


def http(**more: Any) -> Object:
    return {"httpGet": {"port": "web", "path": "/live", **more}}


def test_http() -> None:
    serve, seen = answering(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert (
        probe(http(httpHeaders=[{"name": "X-A", "value": "1"}, {"name": "Host", "value": "h"}]), serve) == ""
    )
    head = seen[0].decode().split("\r\n")
    assert head[0] == "GET /live HTTP/1.1"
    assert {"X-A: 1", "Host: h", "User-Agent: kube-probe/1.36", "Connection: close"} <= set(head)
    serve, _ = answering(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
    assert probe(http(), serve) == "HTTP probe failed with statuscode: 503"
    serve, _ = answering(b"nonsense\r\n\r\n")
    assert probe(http(), serve).startswith('Get "http://127.0.0.1:PORT/live": ')


def test_redirects_are_followed_on_the_same_host() -> None:
    found = b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
    serve, seen = answering(found % b"/other?x=1", b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
    assert probe(http(), serve) == "HTTP probe failed with statuscode: 500"
    assert seen[1].startswith(b"GET /other?x=1 ")
    serve, seen = answering(found % b"http://elsewhere.example/")
    assert probe(http(), serve) == ""
    assert len(seen) == 1


def test_what_is_no_url_and_no_header_is_a_failed_check() -> None:
    found = b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
    for location in (b"http://[", b"http://127.0.0.1:99999/", b"http://127.0.0.1:x/"):
        serve, _ = answering(found % location)
        assert probe(http(), serve).startswith('Get "http://127.0.0.1:')
    serve, _ = answering()
    assert "Illegal header value" in probe(http(httpHeaders=[{"name": "X", "value": "a\nb"}]), serve)
    assert "Illegal target" in probe(http(path="/a b"), serve)
    assert probe(http(path="/\u00e9"), serve).startswith("Get ")


def test_what_does_not_answer() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    assert probe(http(), silent, 0.05) == (
        'Get "http://127.0.0.1:PORT/live": context deadline exceeded'
        " (Client.Timeout exceeded while awaiting headers)"
    )
    refused = probe({"tcpSocket": {"port": 1}})
    assert refused == "dial tcp PORT27.0.0.PORT:PORT: connect: connection refused"
    assert probe({"tcpSocket": {"port": "web"}}, silent) == ""
    assert probe({"tcpSocket": {"port": "nope"}}) == 'couldn\'t find port: "nope" in pod'
    assert "failed to connect service" in probe({"grpc": {"port": "web"}}, silent, 0.05)


def test_commands() -> None:
    assert probe({"exec": {"command": ["0"]}}) == ""
    assert probe({"exec": {"command": ["3"]}}) == "said"
    assert probe({"exec": {"command": ["gone"]}}) == "the container is not running"
    assert probe({"exec": {"command": ["sleep"]}}, timeout_s=0.05) == (
        'command timed out: "sleep" timed out after 0.05s'
    )


def grpc(message: bytes, status: str = "0") -> tuple[Serve, list[Any]]:
    """A gRPC server that answers one call."""
    seen: list[Any] = []

    async def serve(stream: trio.SocketStream) -> None:
        connection = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        connection.initiate_connection()
        await stream.send_all(connection.data_to_send())
        while True:
            data = await stream.receive_some(65536)
            if not data:
                return
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    seen.append(dict(event.headers or ()))
                elif isinstance(event, h2.events.DataReceived):
                    seen.append(event.data)
                elif isinstance(event, h2.events.StreamEnded):
                    connection.send_headers(1, [(":status", "200"), ("content-type", "application/grpc")])
                    connection.send_data(1, b"\0" + len(message).to_bytes(4, "big") + message)
                    connection.send_headers(1, [("grpc-status", status)], end_stream=True)
            await stream.send_all(connection.data_to_send())

    return serve, seen


def test_grpc_health() -> None:
    serve, seen = grpc(b"\x08\x01")
    assert probe({"grpc": {"port": "web", "service": "shop"}}, serve) == ""
    assert seen[0][":path"] == "/grpc.health.v1.Health/Check"
    assert seen[1] == b"\0\0\0\0\x06\x0a\x04shop"
    assert probe({"grpc": {"port": "web"}}, grpc(b"\x08\x02")[0]) == (
        'service unhealthy (responded with "NOT_SERVING")'
    )
    assert "does not implement the grpc health protocol" in probe(
        {"grpc": {"port": "web"}}, grpc(b"", "12")[0]
    )


def self_signed(tmp_path: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nobody")])
    now = datetime.now(UTC)
    cert = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=now - timedelta(hours=1),
        not_valid_after=now + timedelta(hours=1),
    ).sign(key, hashes.SHA256())
    pem = tmp_path / "pem"
    plain = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(key.private_bytes(*plain) + cert.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def test_https_without_verification(tmp_path: Path) -> None:
    context = self_signed(tmp_path)

    async def serve(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, context, server_side=True)
        await secure.receive_some(65536)
        await secure.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await stream.aclose()

    assert probe(http(scheme="HTTPS"), serve) == ""
    plain, _ = answering(b"HTTP/1.1 200 OK\r\n\r\n")
    assert probe(http(scheme="HTTPS"), plain).startswith('Get "https://127.0.0.1:PORT/live": ')
