"""A small HTTP/1.1 server for the sidecar's own pages: one request per connection, everything bounded.

These ports must answer while the data path is in trouble, so they share nothing with it but the parser of
heads. Health and metrics are open to the network: who holds connections open without a word loses the oldest
of them to the next caller, and every step has a deadline.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl

import trio

from mesh_proxy.wire import http1

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Host headers that reach the admin port; a page of a browser that rebinds its DNS name sends another."""

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"

MAX_CONNECTIONS = 64
MAX_BODY_BYTES = 16 * 1024
DEADLINE_S = 5.0
LINGER_S = 1.0
LIMITS = http1.Limits(head_bytes=8 * 1024, line_bytes=8 * 1024, header_count=64)
_WRITE_BYTES = 64 * 1024
_READ_BYTES = 16 * 1024
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


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


def text(status: int, body: str) -> Response:
    """A plain-text response; a newline is added."""
    return Response(status, TEXT, body.encode("utf-8", "replace") + b"\n")


def open_listeners(port: int, *, loopback: bool) -> list[trio.SocketListener]:
    """Listen on `port` for both families, each with a socket of its own; a family the host lacks is left out.

    Raises OSError when the port is taken or no family is there.
    """
    addresses = (
        ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
        if loopback
        else ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))
    )
    listeners: list[trio.SocketListener] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            try:
                listeners.append(_listener(family, address, port))
            except OSError as exc:
                if exc.errno not in _NO_SUCH_FAMILY:
                    raise
                missing = exc
        if missing is not None and not listeners:
            raise missing
    except OSError:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


def _listener(family: socket.AddressFamily, address: str, port: int) -> trio.SocketListener:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(MAX_CONNECTIONS)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except OSError:
        sock.close()
        raise


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
    try:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                await nursery.start(trio.serve_listeners, _Door(site).handle, [listener])
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

    def refusal(self, head: http1.RequestHead) -> Response | None:
        """Why a request is answered before its body is read, if it is."""
        if self._hosts is not None:
            if _host_name(head.host) not in self._hosts:
                return text(403, f"expected a Host header out of {', '.join(sorted(self._hosts))}")
            if head.method not in (b"GET", b"HEAD") and _has_origin(head.block):
                return text(403, "a web page may not change anything here")
        if not head.target.startswith(b"/"):
            return text(400, "expected a path that starts with a slash")
        path = _split(head.target)[0]
        methods = self._table.get(path)
        if methods is None:
            return text(404, "no such path; these exist:\n" + "\n".join(sorted(self._table)))
        if head.method.decode("ascii") not in methods:
            allow = ", ".join(sorted(methods))
            body = f"expected {allow} for {path}\n".encode()
            return Response(405, TEXT, body, (("Allow", allow),))
        if head.framing not in (http1.NO_BODY, http1.LENGTH):
            return text(411, "expected a Content-Length")
        if head.length > MAX_BODY_BYTES:
            return text(413, f"expected at most {MAX_BODY_BYTES} bytes")
        return None

    def answer(self, head: http1.RequestHead, body: bytes) -> Response | Awaitable[Response]:
        """The response of the path's handler."""
        path, query = _split(head.target)
        try:
            fields = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=32))
        except ValueError:
            return text(400, "expected at most 32 query parameters")
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
    """The connections of one listener; the oldest one makes room for a new one."""

    def __init__(self, site: _Site) -> None:
        self._site = site
        self._open: dict[trio.CancelScope, None] = {}

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection; errors of the connection end here."""
        try:
            if len(self._open) >= MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                oldest.cancel()
            with trio.CancelScope() as scope:
                self._open[scope] = None
                try:
                    await self._serve(stream)
                finally:
                    self._open.pop(scope, None)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass
        except Exception as exc:
            # One connection must never end the server.
            self._site.report(exc)
        finally:
            stream.socket.close()

    async def _serve(self, stream: trio.SocketStream) -> None:
        buf = bytearray()
        head: http1.RequestHead | None = None
        response: Response | Awaitable[Response] | None = None
        with trio.move_on_after(DEADLINE_S) as reading:
            try:
                head = await _read_head(stream, buf)
                if head is None:
                    return
                response = self._site.refusal(head)
                if response is None:
                    body = await _read_body(stream, buf, head)
                    if body is None:
                        return
                    response = self._site.answer(head, body)
            except http1.HttpError as exc:
                response = text(exc.status, f"{exc.reason}: {exc}")
        if reading.cancelled_caught or response is None:
            response = text(408, f"expected the whole request within {DEADLINE_S:g} s")
        if not isinstance(response, Response):
            response = await self._awaited(response)
        try:
            payload = await _join(response.body)
        except Exception as exc:
            response = self._site.failed(exc)
            payload = await _join(response.body)
        await _write(stream, response, payload, head)
        # Closing a socket with unread bytes resets it, and the client might lose the response.
        with trio.move_on_after(LINGER_S):
            await stream.send_eof()
            left = MAX_BODY_BYTES * 4
            while left > 0 and (data := await stream.receive_some(_READ_BYTES)):
                left -= len(data)

    async def _awaited(self, coming: Awaitable[Response]) -> Response:
        try:
            return await coming
        except Exception as exc:
            return self._site.failed(exc)


async def _join(body: bytes | Iterable[bytes]) -> bytes:
    if isinstance(body, bytes):
        return body
    parts = []
    for part in body:
        parts.append(part)
        await trio.lowlevel.checkpoint()
    return b"".join(parts)


async def _read_head(stream: trio.SocketStream, buf: bytearray) -> http1.RequestHead | None:
    seen = 0
    first = True
    while True:
        if first and len(buf) >= 2:
            first = False
            del buf[: http1.skip_leading_crlf(buf)]
        end = http1.head_end(buf, max(0, seen - 3), LIMITS)
        if end >= 0:
            head = http1.parse_request(bytes(buf[:end]), LIMITS)
            del buf[:end]
            return head
        seen = len(buf)
        data = await stream.receive_some(_READ_BYTES)
        if not data:
            return None
        buf += data


async def _read_body(stream: trio.SocketStream, buf: bytearray, head: http1.RequestHead) -> bytes | None:
    if head.expect_continue and len(buf) < head.length:
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
    while len(buf) < head.length:
        data = await stream.receive_some(_READ_BYTES)
        if not data:
            return None
        buf += data
    return bytes(buf[: head.length])


async def _write(
    stream: trio.SocketStream, response: Response, body: bytes, head: http1.RequestHead | None
) -> None:
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


def _split(target: bytes) -> tuple[str, str]:
    path, _, query = target.decode("latin-1").partition("?")
    return path, query


def _host_name(host: bytes) -> str:
    name = host.decode("latin-1").lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0]


def _has_origin(block: bytes) -> bool:
    return b"\r\norigin:" in b"\r\n" + block.lower()
