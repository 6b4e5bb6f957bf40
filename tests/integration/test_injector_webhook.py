"""The webhook's server over TLS on loopback: what it answers, its bounds, rotation, and how it ends."""

import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from injector import webhook
from injector.decision import INJECTION, Namespace
from injector.review import MAX_BYTES, Decided, ReviewError
from injector.values import Values
from tests.support.inject import values
from tests.support.local_webhook import Authority
from tests.support.mesh import run


class Hook:
    """A process around the server: one namespace, and what it was told."""

    def __init__(self) -> None:
        self.decisions: list[Decided] = []
        self.failures: list[str] = []
        self.events: list[Decided] = []
        self.namespace_waits: trio.Event | None = None
        self.event_waits: trio.Event | None = None
        self.event_fails = False
        self.asked = 0

    def values(self) -> Values:
        return values()

    async def namespace(self, name: str) -> Namespace:
        self.asked += 1
        if self.namespace_waits is not None:
            await self.namespace_waits.wait()
        if name != "shop":
            raise webhook.NamespaceUnavailable(f"{name} is not known")
        return Namespace("shop", {INJECTION: "enabled"})

    def decided(self, decided: Decided) -> None:
        self.decisions.append(decided)

    def failed(self, what: str) -> None:
        self.failures.append(what)

    async def event(self, decided: Decided) -> None:
        if self.event_waits is not None:
            await self.event_waits.wait()
        if self.event_fails:
            raise OSError("no API server")
        self.events.append(decided)


def other(body: bytes) -> bytes:
    """What answers at a path of its own."""
    if body == b"no review":
        raise ReviewError("expected a review")
    return body[::-1]


class Served:
    """A running server, and clients of it."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.hook = Hook()
        self.stop = trio.Event()
        self.ended = trio.Event()
        self.tls: ssl.SSLContext | None = authority.tls("localhost")
        self.port = 0

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await webhook.serve(
            listeners,
            lambda: self.tls,
            self.hook,
            self.stop,
            others={"/other": other},
            task_status=task_status,
        )
        self.ended.set()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
        context = ssl.create_default_context(cadata=self.authority.pki.ca.certificate.decode())
        transport = await trio.open_tcp_stream("127.0.0.1", self.port)
        stream: trio.SSLStream[trio.SocketStream] = trio.SSLStream(
            transport, context, server_hostname="localhost", https_compatible=True
        )
        try:
            await stream.do_handshake()
            yield stream
        finally:
            await trio.aclose_forcefully(transport)

    async def ask(self, data: bytes) -> tuple[int, bytes]:
        """Send bytes on a connection of their own."""
        async with self.connect() as stream:
            await stream.send_all(data)
            return await answer(stream)


async def answer(stream: trio.abc.Stream) -> tuple[int, bytes]:
    """Status and body of one response; status 0 if the connection ends instead."""
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            got = await stream.receive_some(65536)
        except trio.BrokenResourceError:
            return 0, b""
        if not got:
            return 0, b""
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += await stream.receive_some(65536)
    return int(head.split()[1]), body


def review(namespace: str = "shop", **more: Any) -> bytes:
    pod = {"metadata": {"name": "web"}, "spec": {"containers": [{"name": "web", "image": "x"}]}}
    request = {
        "uid": "u-1",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "namespace": namespace,
        "operation": "CREATE",
        "object": pod,
        **more,
    }
    return json.dumps(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    ).encode()


def post(
    body: bytes,
    target: str = "/inject?timeout=5s",
    *headers: str,
    length: int | None = None,
    chunked: bool = False,
) -> bytes:
    lines = [
        f"POST {target} HTTP/1.1",
        "Host: localhost",
        *(headers or ("Content-Type: application/json",)),
        *([] if chunked else [f"Content-Length: {len(body) if length is None else length}"]),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


Test = Callable[[Served], Awaitable[None]]


def with_server(directory: Path, test: Test) -> None:
    async def main() -> None:
        served = Served(Authority(directory))
        async with trio.open_nursery() as nursery:
            await nursery.start(served.serve)
            await test(served)
            nursery.cancel_scope.cancel()

    run(main)


async def until(done: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not done():
            await trio.sleep(0.01)


def test_a_pod_is_answered_and_told_about(tmp_path: Path) -> None:
    async def test(served: Served) -> None:
        async with served.connect() as stream:
            for _ in range(3):  # the API server keeps its connection
                await stream.send_all(post(review()))
                status, body = await answer(stream)
                response = json.loads(body)["response"]
                assert (status, response["allowed"], response["patchType"]) == (200, True, "JSONPatch")
            await stream.send_all(post(review(dryRun=True)))
            status, body = await answer(stream)
            assert json.loads(body)["response"]["patch"]
        await until(lambda: len(served.hook.events) == 3)
        assert [decided.dry_run for decided in served.hook.decisions] == [False, False, False, True]
        assert served.hook.failures == []

    with_server(tmp_path, test)


def test_an_event_never_delays_an_answer_and_its_failure_is_told(tmp_path: Path) -> None:
    async def test(served: Served) -> None:
        served.hook.event_waits = trio.Event()
        for _ in range(2):
            assert (await served.ask(post(review())))[0] == 200
        assert served.hook.events == []
        served.hook.event_fails = True
        served.hook.event_waits.set()
        await until(lambda: len(served.hook.failures) == 2)
        assert "an Event was lost: OSError('no API server')" in served.hook.failures

    with_server(tmp_path, test)


def test_events_that_do_not_fit_are_dropped_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "EVENT_QUEUE", 1)

    async def test(served: Served) -> None:
        served.hook.event_waits = trio.Event()
        for _ in range(4):
            assert (await served.ask(post(review())))[0] == 200
        assert served.hook.failures
        assert set(served.hook.failures) == {"an Event was lost: more than 1 wait"}

    with_server(tmp_path, test)


@pytest.mark.parametrize(
    ("data", "status", "text"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200, b"ok"),
        (post(review(), "/nothing"), 404, b"expected /inject, /other or /healthz"),
        (post(b"abc", "/other?timeout=5s"), 200, b"cba"),
        (post(b"no review", "/other"), 400, b"expected a review"),
        (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", 405, b"expected POST"),
        (post(b"", "/other", length=MAX_BYTES + 1), 413, b"expected at most 3145728 bytes"),
        (b"GET /inject HTTP/1.1\r\nHost: x\r\n\r\n", 405, b"expected POST"),
        (post(review(), "/inject", "Content-Type: text/plain"), 415, b"expected application/json"),
        (post(b"", "/inject", length=MAX_BYTES + 1), 413, b"expected at most 3145728 bytes"),
        (post(b"{}"), 400, b"not a review of the creation of a pod"),
        (post(review(operation="DELETE")), 400, b"$.request.operation"),
        (post(review("other")), 503, b"other is not known"),
        (b"nonsense\r\n\r\n", 400, b"malformed request"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000, 431, b"malformed request"),
    ],
)
def test_other_requests(tmp_path: Path, data: bytes, status: int, text: bytes) -> None:
    async def test(served: Served) -> None:
        got, body = await served.ask(data)
        assert got == status
        assert text in body

    with_server(tmp_path, test)


def test_a_body_in_chunks_is_bounded_too(tmp_path: Path) -> None:
    async def test(served: Served) -> None:
        head = post(
            b"", "/inject", "Content-Type: application/json", "Transfer-Encoding: chunked", chunked=True
        )
        async with served.connect() as stream, trio.open_nursery() as nursery:
            await stream.send_all(head)
            chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"

            async def send() -> None:
                try:
                    for _ in range(100):
                        await stream.send_all(chunk)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # refused in the middle, as it should be

            nursery.start_soon(send)
            assert (await answer(stream))[0] == 413
            nursery.cancel_scope.cancel()

    with_server(tmp_path, test)


def test_slow_requests_and_slow_namespaces_have_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "REQUEST_S", 0.1)
    monkeypatch.setattr(webhook, "DECIDE_S", 0.1)
    monkeypatch.setattr(webhook, "HANDSHAKE_S", 0.1)

    async def test(served: Served) -> None:
        assert (await served.ask(post(review())[:-5]))[0] == 408
        served.hook.namespace_waits = trio.Event()
        status, body = await served.ask(post(review()))
        assert status == 503
        assert b"no answer within 0.1 s" in body
        silent = await trio.open_tcp_stream("127.0.0.1", served.port)
        assert await silent.receive_some() == b""
        await silent.aclose()

    with_server(tmp_path, test)


def test_who_holds_connections_open_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "MAX_CONNECTIONS", 2)

    async def test(served: Served) -> None:
        async with served.connect() as first, served.connect() as second:
            assert (await served.ask(post(review())))[0] == 200
            assert await answer(first) == (0, b"")  # the oldest was closed
            await second.send_all(post(review()))
            assert (await answer(second))[0] == 200

    with_server(tmp_path, test)


def test_a_busy_connection_is_not_closed_to_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "MAX_CONNECTIONS", 1)

    async def test(served: Served) -> None:
        served.hook.namespace_waits = trio.Event()
        async with served.connect() as first:
            await first.send_all(post(review()))
            await until(lambda: served.hook.asked == 1)
            with pytest.raises((trio.BrokenResourceError, OSError)):
                await served.ask(post(review()))
            served.hook.namespace_waits.set()
            assert (await answer(first))[0] == 200

    with_server(tmp_path, test)


def test_a_renewed_certificate_is_in_use_from_the_next_connection_on(tmp_path: Path) -> None:
    async def test(served: Served) -> None:
        async with served.connect() as old:
            before = old.getpeercert()["serialNumber"]
            served.tls = served.authority.tls("localhost", "renewed")
            async with served.connect() as new:
                assert new.getpeercert()["serialNumber"] != before
            await old.send_all(post(review()))
            assert (await answer(old))[0] == 200  # connections that are up live on

    with_server(tmp_path, test)


def test_plaintext_and_no_certificate_do_not_end_the_server(tmp_path: Path) -> None:
    async def test(served: Served) -> None:
        plain = await trio.open_tcp_stream("127.0.0.1", served.port)
        await plain.send_all(b"GET /healthz HTTP/1.1\r\n\r\n")
        try:
            while await plain.receive_some():  # an alert may come before the end
                pass
        except trio.BrokenResourceError:
            pass
        await plain.aclose()
        tls, served.tls = served.tls, None
        with pytest.raises((trio.BrokenResourceError, OSError)):
            await served.ask(post(review()))
        served.tls = tls
        assert (await served.ask(post(review())))[0] == 200
        assert served.hook.failures == ["a connection was closed: there is no certificate to serve with yet"]

    with_server(tmp_path, test)


def test_the_end_answers_what_has_come_and_closes_the_rest(tmp_path: Path) -> None:
    async def test(served: Served) -> None:
        served.hook.namespace_waits = trio.Event()
        async with served.connect() as busy, served.connect() as idle, served.connect() as half:
            await busy.send_all(post(review()))
            await until(lambda: served.hook.asked == 1)
            await half.send_all(post(review())[:-5])
            await trio.testing.wait_all_tasks_blocked(0.05)
            served.stop.set()
            assert await answer(idle) == (0, b"")
            with pytest.raises(OSError, match="connect"):
                await trio.open_tcp_stream("127.0.0.1", served.port)
            served.hook.namespace_waits.set()
            assert (await answer(busy))[0] == 200
            await half.send_all(post(review())[-5:])
            assert (await answer(half))[0] == 200
        with trio.fail_after(5):
            await served.ended.wait()
        assert len(served.hook.events) == 2

    with_server(tmp_path, test)


def test_cancellation_closes_listeners_and_connections(tmp_path: Path) -> None:
    async def main() -> None:
        served = Served(Authority(tmp_path))
        async with trio.open_nursery() as nursery:
            await nursery.start(served.serve)
            async with served.connect() as stream:
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True), trio.fail_after(5):
                    assert await answer(stream) == (0, b"")
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", served.port))

    run(main)
