"""A request that came as HTTP/2, on its way to an endpoint over HTTP/1.1, and the response back.

Lengths are kept where they are known; anything else is chunked (RFC 9112, 6.1). Trailers go on where the
framing can carry them, both ways.
"""

from __future__ import annotations

from mesh_proxy.base.errors import PeerReset, TransportError
from mesh_proxy.http.message import trailers_passed_on
from mesh_proxy.net.conn import Conn
from mesh_proxy.policy.edits import dropper, field
from mesh_proxy.wire.dechunk import Dechunker
from mesh_proxy.wire.http1 import (
    CHUNKED,
    LENGTH,
    NO_BODY,
    UNTIL_CLOSE,
    ChunkScanner,
    HttpError,
    Limits,
    ResponseHead,
    head_end,
    parse_response,
)
from mesh_proxy.wire.http2.seam import RequestFields
from mesh_proxy.wire.websocket import Opening, check_opened

_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))
_without_te = dropper(("te",))
_without_accept = dropper(("sec-websocket-accept",))
_without_length = dropper(("content-length",))


async def read_head(conn: Conn, buf: bytes, limits: Limits) -> tuple[bytes, int]:
    """Read on until a response head is complete: what has come, and where the head ends."""
    end = head_end(buf, 0, limits) if buf else -1
    while end < 0:
        data = await conn.read()
        if not data:
            within = "within the response head" if buf else "before it responded"
            raise PeerReset(f"the endpoint closed the connection {within}")
        start = max(0, len(buf) - 3)
        buf += data
        end = head_end(buf, start, limits)
    return buf, end


class Http1Call:
    """One request and its response on a connection; a `Call`."""

    __slots__ = (
        "_accept",
        "_buf",
        "_chunked",
        "_conn",
        "_dechunk",
        "_left",
        "_limits",
        "_method",
        "_scanner",
        "complete",
        "keep_error",
        "response_head",
        "reuse",
        "trailers",
    )

    def __init__(self, conn: Conn, method: bytes, limits: Limits, keep_error: bool) -> None:
        """`keep_error`: the endpoint is a sidecar whose error header is passed on."""
        self._conn = conn
        self._method = method
        self._limits = limits
        self.keep_error = keep_error
        self._chunked = False
        """The request is."""
        self._accept = b""
        """What an endpoint has to say that is asked for WebSocket."""
        self._buf = b""
        self._scanner: ChunkScanner | None = None
        self._dechunk = Dechunker()
        self._left = 0
        self.response_head: ResponseHead | None = None
        self.complete = False
        """The whole response has come."""
        self.reuse = False
        """The connection can carry another request, once the response is complete."""
        self.trailers = b""

    async def begin(self, fields: RequestFields, first: bytes, whole: bool, trailers: bytes) -> None:
        """Send the head and `first`, which is all of the body if `whole`."""
        block = _without_te(fields.block)
        rest = first
        if b"\r\ncontent-length:" not in b"\r\n" + block:
            if not whole or trailers:
                self._chunked = True
                block += b"transfer-encoding: chunked\r\n"
                rest = _chunk(first)
                if whole:
                    rest += b"0\r\n%s\r\n" % trailers
            elif first or fields.method in _WITH_BODY:
                block += b"content-length: %d\r\n" % len(first)
        await self._conn.write(b"%s %s HTTP/1.1\r\n%s\r\n%s" % (fields.method, fields.target, block, rest))

    async def ask_tunnel(self, opening: Opening) -> None:
        """Ask for WebSocket: the response is then 200, and the body both ways what is said in it."""
        self._accept = opening.accept
        await self._conn.write(opening.head)

    async def write(self, data: bytes, end: bool = False) -> None:
        """Send a part of the body."""
        if self._chunked:
            data = _chunk(data) + b"0\r\n\r\n" * end
        if data:
            await self._conn.write(data)

    async def end(self, trailers: bytes = b"") -> None:
        """End the request."""
        if self._chunked:
            await self._conn.write(b"0\r\n%s\r\n" % trailers)
        elif self._accept:
            await self._conn.write_eof()

    async def response(self) -> tuple[int, bytes, bool]:
        """The next response head, without the hop's own fields. Raises HttpError for a malformed one."""
        buf, end = await read_head(self._conn, self._buf, self._limits)
        head = parse_response(buf[:end], self._method, self._limits)
        self._buf = buf[end:]
        if head.announces_body and (head.status < 200 or head.status == 204):
            # It is zero; in HTTP/2 it would make the message malformed (RFC 9110, 8.6).
            head.block = _without_length(head.block)
        if head.status == 101 and self._accept:
            check_opened(head, self._accept, field(head.block, b"sec-websocket-accept"))
            head.framing = UNTIL_CLOSE
            self.response_head = head
            return 200, _without_accept(head.forward_block(self.keep_error)), False
        if self._accept and 200 <= head.status < 300:
            # To the client it would say that the tunnel is open.
            raise HttpError(502, "no-upgrade", "the endpoint did not switch to WebSocket")
        if head.status < 200:
            return head.status, head.forward_block(False), False
        self.response_head = head
        self.reuse = head.keep_alive and self._conn.expires > self._conn.reactor.now
        framing = head.framing
        if framing == NO_BODY:
            self.complete = True
        elif framing == LENGTH:
            self._left = head.length
        elif framing == CHUNKED:
            self._scanner = ChunkScanner(self._limits, 502)
        else:
            self.reuse = False
        if self.complete and self._buf:
            self.reuse = False
        return head.status, head.forward_block(self.keep_error), self.complete

    def take(self) -> bytes:
        """What came of the body with the head. Raises HttpError."""
        data, self._buf = self._buf, b""
        return self._payload(data) if data else b""

    async def read(self) -> bytes:
        """The next part of the body. Raises HttpError where its framing is malformed."""
        while not self.complete:
            data = await self._conn.read()
            if not data:
                head = self.response_head
                if head is None or head.framing != UNTIL_CLOSE:
                    raise PeerReset("the endpoint closed the connection within the response body")
                self.complete = True
                break
            payload = self._payload(data)
            if payload:
                return payload
        return b""

    def interrupt(self, error: TransportError) -> None:
        """Resume whoever waits on the connection, with `error`."""
        self._conn.interrupt(error)

    def _payload(self, data: bytes) -> bytes:
        scanner = self._scanner
        head = self.response_head
        if scanner is not None:
            used = scanner.feed(data)
            payload = self._dechunk.feed(data[:used])
            if scanner.done:
                self.complete = True
                self.trailers = trailers_passed_on(self._dechunk.trailers)
        elif head is not None and head.framing == LENGTH:
            payload = data[: self._left]
            used = len(payload)
            self._left -= used
            self.complete = self._left == 0
        else:
            return data
        if used < len(data):
            self.reuse = False
        return payload


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""
