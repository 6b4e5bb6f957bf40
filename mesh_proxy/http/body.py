"""A request body that has not wholly arrived with its head, on its way to the endpoint.

A helper task sends it, so that a response may overtake it. What has been read is kept for a
replay until it is too much.
"""

from __future__ import annotations

from mesh_proxy.base.errors import PartnerGone, PeerReset, TransportError
from mesh_proxy.http.idle import StreamIdle
from mesh_proxy.http.message import Call, trailers_passed_on
from mesh_proxy.http2.stream import ServerStream
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.wire.dechunk import Dechunker
from mesh_proxy.wire.http1 import ChunkScanner, HttpError

REPLAY_BYTES = 64 * 1024
"""A longer request is not kept, so it is not sent a second time."""


class Arriving:
    """The rest of a request body that is still arriving; keeps what a replay would need."""

    __slots__ = ("bad", "done", "gone", "idle_s", "kept", "sent", "size", "trailers")

    def __init__(self, idle_s: float) -> None:
        """A client that sends no byte for `idle_s` seconds is given up."""
        self.idle_s = idle_s
        self.done = False
        """The client has sent all of it."""
        self.sent = False
        """The endpoint's side has taken all of it."""
        self.bad: HttpError | None = None
        self.gone: TransportError | None = None
        self.kept: list[bytes] | None = []
        self.size = 0
        self.trailers = b""
        """Of an HTTP/2 request, once `done`; those of HTTP/1.1 are in its chunks."""

    async def send(self, up: Conn, idle: StreamIdle | None) -> None:
        """Relay the body as it is to `up`; never raises a transport error: `bad` and `gone` say what was."""
        await self._send(up, idle, None, None)

    async def convert(self, call: Call, idle: StreamIdle | None, dechunk: Dechunker | None) -> None:
        """Relay the payload to `call`, and end it, likewise; `dechunk` has had what came with the head."""
        await self._send(call, idle, call, dechunk)

    async def _send(
        self, up: Conn | Call, idle: StreamIdle | None, call: Call | None, dechunk: Dechunker | None
    ) -> None:
        self.sent = False
        try:
            for data in self.kept or ():
                await up.write(data if dechunk is None else dechunk.feed(data))
            while not self.done:
                data = await self._next()
                if dechunk is not None:
                    data = dechunk.feed(data)
                if data:
                    await up.write(data)
                    if idle is not None:
                        idle.touch()
            if call is not None:
                await call.end(self.trailers if dechunk is None else trailers_passed_on(dechunk.trailers))
            self.sent = True
        except HttpError as exc:
            self.bad = exc
            up.interrupt(PartnerGone(str(exc)))
        except _ClientFailed as exc:
            self.gone = exc.error
            up.interrupt(PartnerGone(exc.error.detail))
        except TransportError:
            pass  # the endpoint stopped reading: its response, or its reset, is met by the reader

    async def _next(self) -> bytes:
        """The next part, which may be empty; sets `done` with the last one."""
        raise NotImplementedError

    def _keep(self, data: bytes) -> None:
        if self.kept is not None:
            self.kept.append(data)
            self.size += len(data)
            if self.size > REPLAY_BYTES:
                self.kept = None


class Body(Arriving):
    """That of an HTTP/1 request, in the framing that it came in."""

    __slots__ = ("down", "left", "rest", "scanner")

    def __init__(self, down: Conn, left: int, scanner: ChunkScanner | None, idle_s: float) -> None:
        super().__init__(idle_s)
        self.down = down
        self.left = left
        self.scanner = scanner
        self.rest = b""
        """Bytes after the body: the next request."""

    async def _next(self) -> bytes:
        self.down.set_deadline(self.idle_s)
        try:
            data = await self.down.read()
            self.down.deadline = NEVER
        except TransportError as exc:
            raise _ClientFailed(exc) from exc
        if not data:
            raise _ClientFailed(PeerReset("the client ended within the request body"))
        if self.scanner is not None:
            used = self.scanner.feed(data)
            self.done = self.scanner.done
        else:
            used = min(self.left, len(data))
            self.left -= used
            self.done = self.left == 0
        if used < len(data):
            self.rest = data[used:]
            data = data[:used]
        self._keep(data)
        return data


class StreamBody(Arriving):
    """That of an HTTP/2 request; an `idle_s` of 0 is no bound."""

    __slots__ = ("stream",)

    def __init__(self, stream: ServerStream, idle_s: float) -> None:
        super().__init__(idle_s)
        self.stream = stream

    def unbounded(self) -> None:
        """Let the client be silent: it may have nothing to say for hours in a call of two directions.

        That it is there is known by PING.
        """
        self.idle_s = 0
        self.stream.deadline = NEVER

    async def _next(self) -> bytes:
        stream = self.stream
        if self.idle_s:
            stream.set_deadline(self.idle_s)
        try:
            data = await stream.read()
        except TransportError as exc:
            raise _ClientFailed(exc) from exc
        stream.deadline = NEVER
        if data:
            self._keep(data)
        else:
            self.done = True
            self.trailers = trailers_passed_on(stream.trailers)
        return data


class _ClientFailed(Exception):
    def __init__(self, error: TransportError) -> None:
        super().__init__(error.detail)
        self.error = error
