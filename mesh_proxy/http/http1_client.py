"""The response to an HTTP/1 client, from an endpoint that speaks HTTP/2."""

from __future__ import annotations

from mesh_proxy.http.status_line import status_line
from mesh_proxy.net.conn import Conn
from mesh_proxy.policy.edits import field
from mesh_proxy.wire.http1 import RequestHead


class Http1Client:
    """One response on a connection; a `Client`. What `respond` was given goes out with what follows.

    A body without a length is chunked, for an HTTP/1.0 client delimited by the connection's end.
    """

    __slots__ = ("_chunked", "_conn", "_minor", "_no_body", "_pending", "keep")

    def __init__(self, conn: Conn, head: RequestHead) -> None:
        self._conn = conn
        self._minor = head.minor
        self._no_body = head.method == b"HEAD"
        self._chunked = False
        self._pending = b""
        self.keep = False
        """The connection can carry another request; known when `respond` is called."""

    def interim(self, status: int, block: bytes) -> None:
        """Pass an interim response on, but to an HTTP/1.0 client."""
        if self._minor:
            self._pending += b"%s\r\n%s\r\n" % (status_line(status), block)

    def respond(self, status: int, block: bytes, end: bool) -> None:
        """Take the final head."""
        if end or self._no_body or status in (204, 304):
            if not self._no_body and status not in (204, 304) and field(block, b"content-length") is None:
                block += b"content-length: 0\r\n"
            self._no_body = True
        elif field(block, b"content-length") is None:
            if self._minor:
                self._chunked = True
                block += b"transfer-encoding: chunked\r\n"
            else:
                self.keep = False
        if not self.keep:
            block += b"connection: close\r\n"
        elif not self._minor:
            block += b"connection: keep-alive\r\n"
        self._pending += b"%s\r\n%s\r\n" % (status_line(status), block)

    async def flush(self) -> None:
        """Send what is pending."""
        if self._pending:
            data, self._pending = self._pending, b""
            await self._conn.write(data)

    async def write(self, data: bytes, end: bool = False) -> None:
        """Send a part of the body."""
        if self._no_body:
            data = b""
        elif self._chunked:
            data = (b"%x\r\n%s\r\n" % (len(data), data) if data else b"") + b"0\r\n\r\n" * end
        data, self._pending = self._pending + data, b""
        if data:
            await self._conn.write(data)

    async def end(self, trailers: bytes = b"") -> None:
        """End the response."""
        data, self._pending = self._pending, b""
        if self._chunked:
            data += b"0\r\n%s\r\n" % trailers
        if data:
            await self._conn.write(data)

    def reset(self, code: int) -> None:
        """Cut the connection: HTTP/1 has no other way to say that a response is not whole."""
        self._conn.abort()
