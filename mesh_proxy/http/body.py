"""A request body that has not wholly arrived with its head, on its way to the endpoint.

A helper task sends it, so that a response may overtake it. What has been read is kept for a
replay until it is too much.
"""

from __future__ import annotations

from mesh_proxy.base.errors import PartnerGone, PeerReset, TransportError
from mesh_proxy.http.idle import StreamIdle
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.wire.http1 import ChunkScanner, HttpError

BODY_IDLE_S = 3600.0
"""A client that sends no byte of its body for this long is given up."""
REPLAY_BYTES = 64 * 1024
"""A longer request is not kept, so it is not sent a second time."""


class Body:
    """The rest of a request body that is still arriving; keeps what a replay would need."""

    __slots__ = ("bad", "done", "down", "gone", "kept", "left", "rest", "scanner", "sent", "size")

    def __init__(self, down: Conn, left: int, scanner: ChunkScanner | None) -> None:
        self.down = down
        self.left = left
        self.scanner = scanner
        self.done = False
        """The client has sent all of it."""
        self.sent = False
        """The endpoint's socket has taken all of it."""
        self.rest = b""
        """Bytes after the body: the next request."""
        self.bad: HttpError | None = None
        self.gone: TransportError | None = None
        self.kept: list[bytes] | None = []
        self.size = 0

    async def send(self, up: Conn, idle: StreamIdle | None) -> None:
        """Relay the body to `up`; never raises a transport error: what happened is in the attributes."""
        self.sent = False
        try:
            for data in self.kept or ():
                await up.write(data)
            while not self.done:
                data = await self._next()
                if data:
                    await up.write(data)
                    if idle is not None:
                        idle.touch()
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
        self.down.set_deadline(BODY_IDLE_S)
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
        if self.kept is not None:
            self.kept.append(data)
            self.size += len(data)
            if self.size > REPLAY_BYTES:
                self.kept = None
        return data


class _ClientFailed(Exception):
    def __init__(self, error: TransportError) -> None:
        super().__init__(error.detail)
        self.error = error
