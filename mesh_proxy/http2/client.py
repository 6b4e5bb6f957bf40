"""The client's end of an HTTP/2 connection: many requests at once on one session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from mesh_proxy.base.errors import REFUSED_STREAM, StreamReset
from mesh_proxy.http2.budget import Budget, SessionSettings
from mesh_proxy.http2.session import Session
from mesh_proxy.http2.stream import ClientStream
from mesh_proxy.net.conn import Conn
from mesh_proxy.wire.http2.seam import Engine, Http2Limits, RequestFields

STALLED = 4
"""So many senders that wait, for each of which the peer may hold a window, are enough to go elsewhere ..."""
STALLED_S = 1.0
"""... once they have waited for so long."""


class ClientSession(Session[ClientStream]):
    """Sends requests on one connection. `run` must be running for anything to happen."""

    __slots__ = ("fresh", "on_free", "uses")

    def __init__(
        self, conn: Conn, engine: Engine, settings: SessionSettings, budget: Budget, limits: Http2Limits
    ) -> None:
        super().__init__(conn, engine, settings, budget, limits)
        self.fresh = True
        """No response has come on it yet."""
        self.uses = 0
        """Streams that were opened on it."""
        self.on_free: Callable[[ClientSession], None] | None = None
        """Called when a stream is over, the peer's settings have changed, or the session has ended."""

    async def run(self) -> None:
        """Serve the connection to its end; it is closed afterwards."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.send_loop)
                await self.read_loop()
                nursery.cancel_scope.cancel()
        finally:
            self._tell()

    @property
    def open_to_new(self) -> bool:
        """Whether the session takes new streams, now or when others have ended."""
        conn = self.conn
        return self.dead is None and not self.going and not conn.ended and conn.expires > self.reactor.now

    @property
    def clogged(self) -> bool:
        """Readers that take nothing, at either end, hold so much that they may soon stop the others here."""
        if self.held > self.settings.held_bytes // 2:
            return True
        if len(self.blocked) + len(self.ending) < STALLED:
            return False
        since = self.reactor.now - STALLED_S
        senders = (*self.blocked, *self.ending)
        return sum(each.stall_left > 0 and each.stall_at < since for each in senders) >= STALLED

    def capacity(self) -> bool:
        """Whether a stream can be opened now."""
        most = min(self.settings.streams, self.engine.peer_max_streams) if self.dead is None else 0
        return len(self.streams) + self.given_up < most and self.open_to_new

    def open(self, fields: RequestFields, end: bool) -> ClientStream:
        """Send a request's head, with `end` the whole request. Ask `capacity` before.

        Raises StreamReset, `unprocessed`, if the session takes no new stream any more.
        """
        stream_id = self.engine.request(fields, end) if self.open_to_new else 0
        if not stream_id:
            self.retire()
            raise StreamReset(REFUSED_STREAM, True, "the connection takes no new stream")
        stream = self.streams[stream_id] = ClientStream(self, stream_id)
        stream.finished = end
        self.uses += 1
        self.flush_soon()
        return stream

    def retire(self) -> None:
        """Open no new stream; the connection ends with those that are open."""
        if not self.going and self.dead is None:
            self.going = True
            if not self.streams:
                self.leave()

    def expire(self) -> None:
        self.retire()

    def _head(self, stream_id: int, value: Any, end: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.fresh = False
            stream.head(value[0], value[1], end)
            if end:
                self._ended(stream)

    def _tell(self) -> None:
        if self.on_free is not None:
            self.on_free(self)

    def _settings_changed(self) -> None:
        self._tell()

    def _resets_sent(self) -> None:
        super()._resets_sent()
        self._tell()

    def _freed(self) -> None:
        super()._freed()
        self._tell()

    def _gone_away(self, last: int, code: int, text: bytes) -> None:
        self.retire()
        for stream_id in [i for i in self.streams if i > last]:
            self._fail(stream_id, StreamReset(REFUSED_STREAM, True, f"not processed (GOAWAY, code {code})"))
