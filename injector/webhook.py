"""The webhooks' HTTPS server: `POST /inject`, what else the process answers, and `GET /healthz`.

Everybody in the cluster can reach it, and pods cannot be created while it does not answer. So everything is
bounded and has a deadline, and who holds connections open without a request loses the oldest to the next one.
The answer is sent before anybody is told about it: Events must not delay a pod.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import h11
import trio

from injector import review
from injector.decision import Namespace
from injector.review import Decided, ReviewError
from injector.values import Values

MAX_CONNECTIONS = 256
MAX_HEAD_BYTES = 16 * 1024
HANDSHAKE_S = 5.0
REQUEST_S = 5.0
"""From the first byte of a request to its last."""
DECIDE_S = 3.0
"""With the rest, within the five seconds that the API server waits."""
WRITE_S = 5.0
LINGER_S = 1.0
IDLE_S = 120.0
"""Longer than the API server keeps an idle connection (90 s), so that it is never closed under a request."""
DRAIN_S = 5.0
EVENT_QUEUE = 256
EVENT_S = 10.0
_READ_BYTES = 64 * 1024


Reviewer = Callable[[bytes], bytes]
"""Answers a review by its bytes alone; raises ReviewError for what is none."""


class NamespaceUnavailable(Exception):
    """Nobody can say at present what labels a namespace has; the message says why."""


class Hook(Protocol):
    """What the server needs of the process around it."""

    def values(self) -> Values:
        """Those in force."""
        ...

    async def namespace(self, name: str) -> Namespace:
        """A namespace, best from a cache that has synced. Raises NamespaceUnavailable."""
        ...

    def decided(self, decided: Decided) -> None:
        """Count a decision. Must not wait."""
        ...

    def failed(self, what: str) -> None:
        """Count and log a request without a decision, or an Event that was lost. Must not wait."""
        ...

    async def event(self, decided: Decided) -> None:
        """Write an Event; comes after the answer, and only for what is `newsworthy`."""
        ...


class _Response(NamedTuple):
    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "text/plain; charset=utf-8"
    decided: Decided | None = None


class _Refused(Exception):
    """A request that is answered without being read to its end."""

    def __init__(self, response: _Response) -> None:
        super().__init__(response.status)
        self.response = response


def _text(status: int, text: str, *headers: tuple[str, str]) -> _Response:
    return _Response(status, text.encode() + b"\n", headers)


@dataclass(eq=False)
class _Line:
    """One connection: what of it may be cut to make room, or at the end."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    idle: bool = True
    """Nothing of a request has come."""
    busy: bool = False
    """A whole request has come, and its answer is not out yet."""


class _Server:
    def __init__(
        self, hook: Hook, tls: Callable[[], ssl.SSLContext | None], others: Mapping[str, Reviewer]
    ) -> None:
        self.hook = hook
        self.others = {path.encode(): reviewer for path, reviewer in others.items()}
        self.tls = tls
        self.stopping = False
        self._lines: dict[_Line, None] = {}
        self.events, self.queue = trio.open_memory_channel[Decided](EVENT_QUEUE)

    @property
    def open(self) -> int:
        return len(self._lines)

    async def handle(self, transport: trio.SocketStream) -> None:
        """Serve one connection; its errors end here."""
        line = _Line()
        # Asked for each connection: a renewed certificate is in use from the next one on.
        context = self.tls()
        if context is None:
            self.hook.failed("a connection was closed: there is no certificate to serve with yet")
        if context is None or not self._admit(line):
            await trio.aclose_forcefully(transport)
            return
        try:
            with line.scope:
                stream = trio.SSLStream(transport, context, server_side=True, https_compatible=True)
                with trio.fail_after(HANDSHAKE_S):
                    await stream.do_handshake()
                await _Connection(self, stream, line).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # the peer is gone, slow, or speaks no TLS: nobody is left to be told
        except Exception as exc:
            # One connection must never end the server.
            self.hook.failed(f"a connection failed: {exc!r}")
        finally:
            self._lines.pop(line, None)
            await trio.aclose_forcefully(transport)

    def _admit(self, line: _Line) -> bool:
        if len(self._lines) >= MAX_CONNECTIONS:
            oldest = next((one for one in self._lines if not one.busy), None)
            if oldest is None:
                return False
            del self._lines[oldest]
            oldest.scope.cancel()
        self._lines[line] = None
        return True

    def stop(self) -> None:
        """Finish the requests that have begun to come, and nothing else."""
        self.stopping = True
        for line in self._lines:
            if line.idle:
                line.scope.cancel()

    async def answer(self, request: h11.Request, body: bytes) -> _Response:
        """The response to a whole request."""
        path = request.target.partition(b"?")[0]
        if path == b"/healthz":
            return _text(200, "ok")
        try:
            if path in self.others:
                return _Response(200, self.others[path](body), content_type="application/json")
            asked = review.parse(body)
            with trio.fail_after(DECIDE_S):
                namespace = await self.hook.namespace(asked.namespace)
            answer, decided = review.answer(asked, namespace, self.hook.values())
        except ReviewError as exc:
            self.hook.failed(str(exc))
            return _text(400, str(exc))
        except (NamespaceUnavailable, trio.TooSlowError) as exc:
            reason = str(exc) or f"no answer within {DECIDE_S:g} s"
            self.hook.failed(f"namespace: {reason}")
            return _text(503, f"the namespace's labels are not known: {reason}")
        except Exception as exc:
            self.hook.failed(f"a review failed: {exc!r}")
            return _text(500, f"internal error: {type(exc).__name__}")
        self.hook.decided(decided)
        return _Response(200, answer, content_type="application/json", decided=decided)

    def announce(self, decided: Decided) -> None:
        """Have an Event written, once the answer is out."""
        if not decided.newsworthy:
            return
        try:
            self.events.send_nowait(decided)
        except trio.WouldBlock:
            self.hook.failed(f"an Event was lost: more than {EVENT_QUEUE} wait")

    async def tell(self) -> None:
        """Write Events until the server is done."""
        async for decided in self.queue:
            try:
                with trio.fail_after(EVENT_S):
                    await self.hook.event(decided)
            except Exception as exc:
                self.hook.failed(f"an Event was lost: {exc!r}")


class _Connection:
    """HTTP/1.1 on one connection, one request after the other."""

    def __init__(self, server: _Server, stream: trio.SSLStream[trio.SocketStream], line: _Line) -> None:
        self._server = server
        self._stream = stream
        self._line = line
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)

    async def run(self) -> None:
        while not self._server.stopping:
            self._line.idle = True
            if not await self._first_byte():
                return
            self._line.idle = False
            response = await self._exchange()
            with trio.fail_after(WRITE_S):
                await self._write(response)
            if response.decided is not None:
                self._server.announce(response.decided)
            self._line.busy = False
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                break
            self._http.start_next_cycle()
        with trio.move_on_after(LINGER_S):
            await self._linger()
            await self._stream.aclose()

    async def _first_byte(self) -> bool:
        """Wait for the next request; False if none comes."""
        if self._http.trailing_data[0]:
            return True
        with trio.move_on_after(IDLE_S):
            return await self._receive()
        return False

    async def _receive(self) -> bool:
        data = bytes(await self._stream.receive_some(_READ_BYTES))
        self._http.receive_data(data)
        return bool(data)

    async def _exchange(self) -> _Response:
        try:
            with trio.move_on_after(REQUEST_S):
                request, body = await self._request()
                self._line.busy = True
            if not self._line.busy:
                return _text(408, f"expected the whole request within {REQUEST_S:g} s")
            return await self._server.answer(request, body)
        except _Refused as exc:
            return exc.response
        except h11.RemoteProtocolError as exc:
            return _text(exc.error_status_hint, f"malformed request: {exc}")

    async def _request(self) -> tuple[h11.Request, bytes]:
        request: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    go = self._http.send(h11.InformationalResponse(status_code=100, headers=[]))
                    await self._stream.send_all(go or b"")
                await self._receive()
            elif isinstance(event, h11.Request):
                _check(event, self._server.others)
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > review.MAX_BYTES:
                    raise _Refused(_too_large())
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                return request, bytes(body)
            else:
                raise trio.BrokenResourceError("the peer has closed within a request")

    async def _write(self, response: _Response) -> None:
        close = self._server.stopping or self._http.their_state is not h11.DONE
        headers = [
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("X-Content-Type-Options", "nosniff"),
            *response.headers,
            *([("Connection", "close")] if close else []),
        ]
        head = self._http.send(h11.Response(status_code=response.status, headers=headers)) or b""
        data = self._http.send(h11.Data(data=response.body)) or b""
        await self._stream.send_all(head + data + (self._http.send(h11.EndOfMessage()) or b""))

    async def _linger(self) -> None:
        """Read on: closing a socket with unread bytes resets it, and the peer might lose the answer."""
        left = 2 * review.MAX_BYTES
        while self._http.their_state not in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED) and left > 0:
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                return
            left -= len(data)


def _check(request: h11.Request, others: Mapping[bytes, Reviewer]) -> None:
    """Refuse by the head alone. Raises _Refused."""
    path = request.target.partition(b"?")[0]
    methods = {b"/inject": b"POST", **dict.fromkeys(others, b"POST"), b"/healthz": b"GET"}
    allowed = methods.get(path)
    if allowed is None:
        *some, last = (known.decode() for known in methods)
        raise _Refused(_text(404, f"expected {', '.join(some)} or {last}"))
    if request.method != allowed:
        raise _Refused(_text(405, f"expected {allowed.decode()}", ("Allow", allowed.decode())))
    headers = dict(request.headers)
    if request.method == b"POST":
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise _Refused(_text(415, "expected application/json"))
    if int(headers.get(b"content-length", b"0")) > review.MAX_BYTES:
        raise _Refused(_too_large())


def _too_large() -> _Response:
    return _text(413, f"expected at most {review.MAX_BYTES} bytes")


async def serve(
    listeners: Sequence[trio.SocketListener],
    tls: Callable[[], ssl.SSLContext | None],
    hook: Hook,
    stop: trio.Event,
    *,
    others: Mapping[str, Reviewer] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set; requests that have come are then answered for some seconds more.

    Args:
        listeners: taken over, and closed at the end.
        tls: the context for the next connection; None closes it.
        hook: the process around.
        stop: set to end.
        others: what answers at other paths.
        task_status: started once connections are accepted.
    """
    server = _Server(hook, tls, others or {})
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.tell)
            async with trio.open_nursery() as connections:
                accept = partial(trio.serve_listeners, handler_nursery=connections)
                async with trio.open_nursery() as doors:
                    for listener in listeners:
                        doors.start_soon(accept, server.handle, [listener])
                    task_status.started()
                    await stop.wait()
                    doors.cancel_scope.cancel()
                server.stop()
                with trio.move_on_after(DRAIN_S):
                    while server.open:  # noqa: ASYNC110 - a handful of connections, and their end is near
                        await trio.sleep(0.02)
                connections.cancel_scope.cancel()
            server.events.close()
            nursery.cancel_scope.deadline = trio.current_time() + EVENT_S
    finally:
        for listener in listeners:
            listener.socket.close()
        if lost := server.queue.statistics().current_buffer_used:
            hook.failed(f"{lost} Events were lost at the end")
