"""Checks and metrics of the application through the metrics port, against real servers on loopback."""

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio

from mesh_ops.pages import serve
from mesh_proxy.admin import probes
from mesh_proxy.admin.probes import Application, ApplicationError
from tests.support.local_webhook import Asked, Authority, Reply, serving
from tests.support.mesh import run

IP = "127.0.0.1"
PATH = "/app-health/web/readyz"
OWN = b"triomesh_up 1\n"


def own_metrics() -> Iterable[bytes]:
    return [OWN]


class Sidecar:
    """The metrics port alone."""

    def __init__(self) -> None:
        self.port = 0
        self.changes: list[tuple[str, str]] = []
        self.errors: list[Exception] = []

    async def get(self, path: str) -> tuple[int, str]:
        stream = await trio.open_tcp_stream(IP, self.port)
        async with stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            data = b""
            while chunk := await stream.receive_some():
                data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()


@asynccontextmanager
async def sidecar(checks: Any = "", metrics: Any = "", ip: str = IP) -> AsyncIterator[Sidecar]:
    one = Sidecar()
    as_json = [value and json.dumps(value) for value in (checks, metrics)]
    application = Application(ip, *as_json, lambda path, outcome: one.changes.append((path, outcome)))
    listeners = await trio.open_tcp_listeners(0, host=IP)
    one.port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:

        async def pages() -> None:
            await serve(listeners, application.routes(own_metrics), on_error=one.errors.append)

        nursery.start_soon(pages)
        yield one
        assert one.errors == []
        nursery.cancel_scope.cancel()


def check(port: int, timeout_s: int = 5, **handler: Any) -> dict[str, Any]:
    return {PATH: {"handler": handler, "port": port, "timeoutSeconds": timeout_s}}


def replying(*replies: Reply) -> Callable[[Asked], Awaitable[Reply]]:
    left = list(replies)

    async def handler(asked: Asked) -> Reply:
        return left.pop(0) if len(left) > 1 else left[0]

    return handler


def test_http_check_asks_as_it_was_written() -> None:
    async def test() -> None:
        async with serving(replying(Reply(204)), None) as app:
            headers = [{"name": "X-Probe", "value": "a b"}, {"name": "host", "value": "web.example"}]
            get = {"path": "/ready?deep=1 2", "port": "http", "httpHeaders": headers}
            async with sidecar(check(app.port, httpGet=get)) as one:
                assert await one.get(PATH) == (200, "ok\n")
        asked = app.asked[0]
        assert (asked.method, asked.target) == ("GET", "/ready?deep=1%202")
        assert asked.headers["x-probe"] == "a b"
        assert asked.headers["host"] == "web.example"
        assert asked.headers["user-agent"].startswith("kube-probe/")

    run(test)


@pytest.mark.parametrize(
    ("status", "told"), [(200, 200), (302, 200), (399, 200), (404, 404), (503, 503), (599, 500)]
)
def test_http_check_passes_the_status_on(status: int, told: int) -> None:
    async def test() -> None:
        async with (
            serving(replying(Reply(status)), None) as app,
            sidecar(check(app.port, httpGet={"port": 1})) as one,
        ):
            assert (await one.get(PATH))[0] == told

    run(test)


def test_http_check_follows_redirects_to_the_same_host_only() -> None:
    async def test() -> None:
        here = replying(Reply(302, headers={"Location": "/login"}), Reply(500))
        async with serving(here, None) as app, sidecar(check(app.port, httpGet={"port": 1})) as one:
            assert (await one.get(PATH))[0] == 500
            assert [asked.target for asked in app.asked] == ["/", "/login"]
        away = replying(Reply(302, headers={"Location": "http://elsewhere.example/"}), Reply(500))
        async with serving(away, None) as app, sidecar(check(app.port, httpGet={"port": 1})) as one:
            assert (await one.get(PATH))[0] == 200
        ever = replying(Reply(302, headers={"Location": "/again"}))
        async with serving(ever, None) as app, sidecar(check(app.port, httpGet={"port": 1})) as one:
            assert await one.get(PATH) == (503, "more than 10 redirects\n")

    run(test)


def test_https_check_does_not_verify(tmp_path: Path) -> None:
    async def test() -> None:
        tls: ssl.SSLContext = Authority(tmp_path).tls("other.example")
        get = {"port": 1, "scheme": "HTTPS"}
        async with serving(replying(Reply()), tls) as app, sidecar(check(app.port, httpGet=get)) as one:
            assert (await one.get(PATH))[0] == 200

    run(test)


async def _closed_port() -> int:
    listeners = await trio.open_tcp_listeners(0, host=IP)
    port: int = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    return port


def test_tcp_check_and_what_the_log_is_told() -> None:
    async def test() -> None:
        async with (
            serving(replying(Reply()), None) as app,
            sidecar(check(app.port, tcpSocket={"port": 1})) as one,
        ):
            assert (await one.get(PATH))[0] == 200
            assert one.changes == []
        port = await _closed_port()
        async with sidecar(check(port, tcpSocket={"port": 1})) as one:
            for _ in range(3):
                status, text = await one.get(PATH)
                assert (status, text) == (503, f"connect to 127.0.0.1:{port}: Connection refused\n")
            assert one.changes == [(PATH, text.strip())]

    run(test)


def test_an_application_on_loopback_alone_is_not_well() -> None:
    """The kubelet could not reach it either: the check goes to the pod's address."""

    async def test() -> None:
        listeners = await trio.open_tcp_listeners(0, host=IP)
        port = listeners[0].socket.getsockname()[1]
        for ip, status in ((IP, 200), ("127.0.0.2", 503)):
            async with sidecar(check(port, tcpSocket={"port": 1}), ip=ip) as one:
                assert (await one.get(PATH))[0] == status
        await listeners[0].aclose()

    run(test)


def test_a_silent_application_is_given_up_and_its_connection_closed() -> None:
    async def test() -> None:
        closed = trio.Event()

        async def silent(stream: trio.SocketStream) -> None:
            while await stream.receive_some():
                pass
            closed.set()

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, silent, 0)
            port = listeners[0].socket.getsockname()[1]
            async with sidecar(check(port, 1, httpGet={"port": 1})) as one:
                assert await one.get(PATH) == (504, "no answer within 1 s\n")
                with trio.fail_after(5):
                    await closed.wait()
            nursery.cancel_scope.cancel()

    run(test)


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 99 X\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"", b"x" * 70_000]
)
def test_what_is_no_http_is_not_well(data: bytes) -> None:
    async def test() -> None:
        async def odd(stream: trio.SocketStream) -> None:
            await stream.receive_some()
            await stream.send_all(data)
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, odd, 0)
            port = listeners[0].socket.getsockname()[1]
            async with sidecar(check(port, httpGet={"port": 1})) as one:
                assert (await one.get(PATH))[0] == 503
            nursery.cancel_scope.cancel()

    run(test)


Calls = list[tuple[str, bytes]]


async def grpc_server(stream: trio.SocketStream, answer: bytes | None, asked: Calls) -> None:
    """A gRPC server by the real HTTP/2 library; None answers with trailers alone, as an error does."""
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
    )
    connection.initiate_connection()
    await stream.send_all(connection.data_to_send())
    path, message = "", b""
    while data := await stream.receive_some():
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                path = str(dict(event.headers)[":path"])  # type: ignore[arg-type]
            elif isinstance(event, h2.events.DataReceived):
                message += event.data or b""
            elif isinstance(event, h2.events.StreamEnded):
                asked.append((path, message))
                head = [(":status", "200"), ("content-type", "application/grpc")]
                if answer is None:
                    connection.send_headers(1, [*head, ("grpc-status", "5")], end_stream=True)
                else:
                    connection.send_headers(1, head)
                    connection.send_data(1, b"\0" + len(answer).to_bytes(4, "big") + answer)
                    connection.send_headers(1, [("grpc-status", "0")], end_stream=True)
        await stream.send_all(connection.data_to_send())


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (b"\x08\x01", 200, "ok"),
        (b"\x08\x02", 503, "the gRPC service says NOT_SERVING"),
        (b"", 503, "the gRPC service says UNKNOWN"),
        (b"\x12\x01x", 503, "the gRPC answer is not a HealthCheckResponse"),
        (None, 503, "the gRPC call for service 'shop.Cart' failed"),
    ],
)
def test_grpc_check(answer: bytes | None, status: int, text: str) -> None:
    async def test() -> None:
        asked: Calls = []

        async def server(stream: trio.SocketStream) -> None:
            try:
                await grpc_server(stream, answer, asked)
            except trio.BrokenResourceError:
                pass  # the check has its answer

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, server, 0)
            port = listeners[0].socket.getsockname()[1]
            async with sidecar(check(port, grpc={"port": port, "service": "shop.Cart"})) as one:
                assert await one.get(PATH) == (status, text + "\n")
            nursery.cancel_scope.cancel()
        assert asked == [("/grpc.health.v1.Health/Check", b"\0\0\0\0\x0b\x0a\x09shop.Cart")]

    run(test)


def test_grpc_check_of_an_http1_server() -> None:
    async def test() -> None:
        async with (
            serving(replying(Reply(400)), None) as app,
            sidecar(check(app.port, grpc={"port": 1})) as one,
        ):
            assert (await one.get(PATH))[0] == 503

    run(test)


def metrics(port: int, path: str = "/m") -> dict[str, Any]:
    return {"annotations": {}, "target": {"port": port, "path": path}}


def test_metrics_of_both() -> None:
    async def test() -> None:
        async with (
            serving(replying(Reply(body=b"app_total 5\n# EOF\n")), None) as app,
            sidecar(metrics=metrics(app.port)) as one,
        ):
            status, text = await one.get("/stats/prometheus")
        assert status == 200
        up = "# TYPE triomesh_application_metrics_up gauge\ntriomesh_application_metrics_up 1\n"
        assert text == OWN.decode() + up + "app_total 5\n"
        assert app.asked[0].target == "/m"

    run(test)


def test_own_metrics_get_out_whatever_the_application_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "METRICS_BYTES", 100)

    async def test() -> None:
        chunked = Reply(headers={"Transfer-Encoding": "chunked"})
        for reply in (Reply(500), Reply(body=b"x" * 200), chunked):
            async with (
                serving(replying(reply), None) as app,
                sidecar(metrics=metrics(app.port)) as one,
            ):
                status, text = await one.get("/stats/prometheus")
            assert status == 200
            assert text.startswith(OWN.decode())
            assert "triomesh_application_metrics_up 0\n# the application's metrics: " in text

    run(test)


def test_without_metrics_of_the_application_the_page_is_the_sidecars() -> None:
    application = Application(IP, "", '{"annotations":{}}', lambda path, outcome: None)
    assert application.routes(own_metrics) == {}


@pytest.mark.parametrize(
    ("ip", "checks", "metrics", "message"),
    [
        (IP, "{", "", "TRIOMESH_PROBES: "),
        (IP, '{"/x": {"handler": {}, "port": 0, "timeoutSeconds": 1}}', "", "$[...].port"),
        (
            IP,
            '{"/x": {"handler": {}, "port": 1, "timeoutSeconds": 1}}',
            "",
            "expected one handler",
        ),
        (
            IP,
            '{"/x": {"handler": {"exec": {}}, "port": 1, "timeoutSeconds": 1}}',
            "",
            "/x: exec: expected",
        ),
        (IP, '{"/x": {"handler": {"httpGet": {"path": 5}}, "port": 1, "timeoutSeconds": 1}}', "", "$.path"),
        (IP, "", '{"target": {"port": "x"}}', "TRIOMESH_APP_METRICS: "),
        ("", "", '{"target": {"port": 80}}', "TRIOMESH_POD_IPS: expected the pod's address"),
    ],
)
def test_what_cannot_be_read_is_told(ip: str, checks: str, metrics: str, message: str) -> None:
    with pytest.raises(ApplicationError) as refused:
        Application(ip, checks, metrics, lambda path, outcome: None)
    assert message in str(refused.value)
