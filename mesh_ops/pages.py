"""A small HTTP/1.1 server for a process's own pages: one request per connection, everything bounded.

These ports must answer while the data path is in trouble, so they share nothing with it. Health and metrics
are open to the network: who holds connections open without a word loses the oldest of them to the next
caller, and every step has a deadline.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl

import h11
import trio

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Host headers that reach the admin port; a page of a browser that rebinds its DNS name sends another."""

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"

MAX_CONNECTIONS = 64
MAX_BODY_BYTES = 16 * 1024
DEADLINE_S = 5.0
LINGER_S = 1.0
MAX_HEAD_BYTES = 8 * 1024
MAX_HEADERS = 64
MAX_PARAMETERS = 32
_WRITE_BYTES = 64 * 1024
_READ_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Response:
    """What a handler returns. A body in pieces lets other tasks run between two of them."""

    status: int
    content_type: str
    body: bytes | Iterable[bytes]
    headers: tuple[tuple[str, str], ...] = ()


Query = Mapping[str, str]
Handler = Callable[[Query, bytes], Response | Awaitable[Response]]
"""A handler that waits brings its own deadline."""


class Route(NamedTuple):
    """One method of one path; GET answers HEAD too."""

    method: str
    handler: Handler


Routes = Mapping[str, Route | tuple[str, Handler] | Sequence[Route]]
ErrorHook = Callable[[Exception], None]


class Site(Protocol):
    """What answers the request of a connection."""

    def refusal(self, head: h11.Request) -> Response | None:
        """Why a request is answered before its body is read, if it is."""
        ...

    def answer(self, head: h11.Request, body: bytes) -> Response | Awaitable[Response]:
        """The response."""
        ...

    def report(self, exc: Exception) -> None:
        """Tell the server's owner."""
        ...

    def failed(self, exc: Exception) -> Response:
        """The response to an exception of `answer`, which is reported."""
        ...


Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]
Secure = Callable[[trio.SocketStream], Awaitable[tuple[Stream, Site]]]
"""What is spoken on an accepted connection, and who answers there. It raises what breaks a connection, and
brings its own deadline."""


def text(status: int, body: str) -> Response:
    """A plain-text response; a newline is added."""
    return Response(status, TEXT, body.encode("utf-8", "replace") + b"\n")


async def serve(
    listeners: Sequence[trio.SocketListener],
    routes: Routes,
    *,
    hosts: Collection[str] | None = None,
    on_error: ErrorHook | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on `listeners` until cancelled.

    Args:
        listeners: taken over, and closed at the end.
        routes: by path.
        hosts: Host headers (without port) that are let in; None lets everybody in. A server that names its
            hosts also refuses whatever changes state on behalf of a web page.
        on_error: told about exceptions of handlers; the client gets a 500.
        task_status: started once connections are accepted.
    """
    table = {path: _methods(entry) for path, entry in routes.items()}
    site = _Site(table, hosts, on_error)

    async def plain(stream: trio.SocketStream) -> tuple[Stream, Site]:
        return stream, site

    await serve_site(listeners, plain, site.report, task_status=task_status)


async def serve_site(
    listeners: Sequence[trio.SocketListener],
    secure: Secure,
    on_error: ErrorHook,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """As `serve`, for a server with TLS or pages of its own kind."""
    try:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                await nursery.start(trio.serve_listeners, _Door(secure, on_error).handle, [listener])
            task_status.started()
    finally:
        # serve_listeners closes what it was given; this is for those it was not given any more.
        for listener in listeners:
            listener.socket.close()


def _methods(entry: Route | tuple[str, Handler] | Sequence[Route]) -> dict[str, Handler]:
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
        routes: Iterable[tuple[str, Handler]] = (entry,)
    else:
        routes = entry
    methods = dict(routes)
    if "GET" in methods:
        methods.setdefault("HEAD", methods["GET"])
    return methods


class _Site:
    """From request to response; the same for all listeners of a server."""

    def __init__(
        self,
        table: Mapping[str, Mapping[str, Handler]],
        hosts: Collection[str] | None,
        on_error: ErrorHook | None,
    ) -> None:
        self._table = table
        self._hosts = hosts
        self._on_error = on_error

    def refusal(self, head: h11.Request) -> Response | None:
        """Why a request is answered before its body is read, if it is."""
        fields = dict(head.headers)
        if self._hosts is not None:
            if _host_name(fields.get(b"host", b"")) not in self._hosts:
                return text(403, f"expected a Host header out of {', '.join(sorted(self._hosts))}")
            if head.method not in (b"GET", b"HEAD") and b"origin" in fields:
                return text(403, "a web page may not change anything here")
        path = split(head.target)[0]
        methods = self._table.get(path)
        if methods is None:
            return text(404, "no such path; these exist:\n" + "\n".join(sorted(self._table)))
        if head.method.decode("ascii") not in methods:
            allow = ", ".join(sorted(methods))
            body = f"expected {allow} for {path}\n".encode()
            return Response(405, TEXT, body, (("Allow", allow),))
        return None

    def answer(self, head: h11.Request, body: bytes) -> Response | Awaitable[Response]:
        """The response of the path's handler."""
        path, query = split(head.target)
        fields = parse_query(query)
        if fields is None:
            return text(400, f"expected at most {MAX_PARAMETERS} query parameters")
        try:
            return self._table[path][head.method.decode("ascii")](fields, body)
        except Exception as exc:
            return self.failed(exc)

    def report(self, exc: Exception) -> None:
        """Tell the server's owner."""
        if self._on_error is not None:
            self._on_error(exc)

    def failed(self, exc: Exception) -> Response:
        """The response to an exception of a handler, which is reported."""
        self.report(exc)
        return text(500, f"internal error: {type(exc).__name__}")


class _Door:
    """The connections of one listener. For a new one the oldest makes room: one that has not sent its whole
    request, unless most have and do not take their answers.
    """

    def __init__(self, secure: Secure, on_error: ErrorHook) -> None:
        self._secure = secure
        self._on_error = on_error
        self._silent: dict[trio.CancelScope, None] = {}
        self._asking: dict[trio.CancelScope, None] = {}

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection; errors of the connection end here."""
        try:
            if len(self._silent) + len(self._asking) >= MAX_CONNECTIONS:
                crowd = self._asking if len(self._asking) > MAX_CONNECTIONS // 2 else self._silent
                oldest = next(iter(crowd))
                del crowd[oldest]
                oldest.cancel()
            with trio.CancelScope() as scope:
                self._silent[scope] = None

                def asked() -> None:
                    if self._silent.pop(scope, scope) is None:  # it is still wanted
                        self._asking[scope] = None

                try:
                    await _serve(*await self._secure(stream), asked)
                finally:
                    self._silent.pop(scope, None)
                    self._asking.pop(scope, None)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass
        except Exception as exc:
            # One connection must never end the server.
            self._on_error(exc)
        finally:
            stream.socket.close()


async def _serve(stream: Stream, site: Site, asked: Callable[[], None]) -> None:
    """Answer one request; `asked` is told when all of it has come."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    head: h11.Request | None = None
    response: Response | Awaitable[Response] | None = None
    with trio.move_on_after(DEADLINE_S) as reading:
        try:
            head = await _read_head(stream, parser)
            if head is None:
                return
            response = _unreadable(head) or site.refusal(head)
            if response is None:
                body = await _read_body(stream, parser)
                if body is None:
                    return
                asked()
                response = site.answer(head, body)
        except h11.RemoteProtocolError as exc:
            response = text(exc.error_status_hint, f"expected an HTTP/1.1 request: {exc}")
    if reading.cancelled_caught or response is None:
        response = text(408, f"expected the whole request within {DEADLINE_S:g} s")
    if not isinstance(response, Response):
        response = await _awaited(response, site)
    try:
        payload = await _join(response.body)
    except Exception as exc:
        response = site.failed(exc)
        payload = await _join(response.body)
    await _write(stream, response, payload, head)
    # Closing a socket with unread bytes resets it, and the client might lose the response.
    with trio.move_on_after(LINGER_S):
        transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        await transport.send_eof()
        left = MAX_BODY_BYTES * 4
        while left > 0 and (data := await stream.receive_some(_READ_BYTES)):
            left -= len(data)


async def _awaited(coming: Awaitable[Response], site: Site) -> Response:
    try:
        return await coming
    except Exception as exc:
        return site.failed(exc)


async def _join(body: bytes | Iterable[bytes]) -> bytes:
    if isinstance(body, bytes):
        return body
    parts = []
    for part in body:
        parts.append(part)
        await trio.lowlevel.checkpoint()
    return b"".join(parts)


async def _next(stream: Stream, parser: h11.Connection) -> h11.Event | None:
    """The next part of the request; None when the client is gone."""
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Event):
            return event
        if event is h11.PAUSED:
            return None
        if parser.they_are_waiting_for_100_continue:
            await stream.send_all(
                parser.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
            )
        data = await stream.receive_some(_READ_BYTES)
        if not data:
            return None
        parser.receive_data(bytes(data))


async def _read_head(stream: Stream, parser: h11.Connection) -> h11.Request | None:
    # RFC 9112 2.2: an empty line before the request is skipped.
    while data := (await stream.receive_some(_READ_BYTES)):
        if rest := data.lstrip(b"\r\n"):
            parser.receive_data(bytes(rest))
            event = await _next(stream, parser)
            return event if isinstance(event, h11.Request) else None
    return None


async def _read_body(stream: Stream, parser: h11.Connection) -> bytes | None:
    body = bytearray()
    while isinstance(event := await _next(stream, parser), h11.Data):
        body += event.data
    return bytes(body) if isinstance(event, h11.EndOfMessage) else None


async def _write(stream: Stream, response: Response, body: bytes, head: h11.Request | None) -> None:
    phrase = HTTPStatus(response.status).phrase
    lines = [
        f"HTTP/1.1 {response.status} {phrase}",
        f"Date: {datetime.now(UTC):%a, %d %b %Y %H:%M:%S} GMT",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *(f"{name}: {value}" for name, value in response.headers),
    ]
    data = "\r\n".join((*lines, "", "")).encode("ascii")
    if head is None or head.method != b"HEAD":
        data += body
    view = memoryview(data)
    while view:
        with trio.fail_after(DEADLINE_S):
            await stream.send_all(view[:_WRITE_BYTES])
        view = view[_WRITE_BYTES:]


def split(target: bytes) -> tuple[str, str]:
    """Path and query of a request's target."""
    path, _, query = target.decode("latin-1").partition("?")
    return path, query


def parse_query(query: str) -> Query | None:
    """The parameters; None for too many."""
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_PARAMETERS))
    except ValueError:
        return None


def _unreadable(head: h11.Request) -> Response | None:
    """Why a request cannot be read whole, if it cannot."""
    fields = dict(head.headers)
    if _too_large(head):
        return text(431, f"expected a head of at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers")
    if not head.target.startswith(b"/"):
        return text(400, "expected a path that starts with a slash")
    if b"transfer-encoding" in fields:
        return text(411, "expected a Content-Length")
    if int(fields.get(b"content-length", b"0")) > MAX_BODY_BYTES:
        return text(413, f"expected at most {MAX_BODY_BYTES} bytes")
    return None


def _host_name(host: bytes) -> str:
    name = host.decode("latin-1").lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0]


def _too_large(head: h11.Request) -> bool:
    size = len(head.method) + len(head.target) + sum(len(name) + len(value) for name, value in head.headers)
    return size > MAX_HEAD_BYTES or len(head.headers) > MAX_HEADERS
