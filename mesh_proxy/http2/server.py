"""The server's end of an HTTP/2 connection: each stream is served by one of a few tasks that are kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio
from outcome import Value
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from mesh_proxy.base.errors import TransportError
from mesh_proxy.http2.budget import Budget, SessionSettings
from mesh_proxy.http2.session import DRAINING, Session
from mesh_proxy.http2.stream import ServerStream
from mesh_proxy.net.conn import Conn
from mesh_proxy.wire.http2.seam import CANCEL, NO_ERROR, REFUSED_STREAM, Engine, Http2Limits

KEPT = 64
"""Tasks that one session keeps for its next streams ..."""
KEPT_S = 5.0
"""... for this long without any stream."""
LEAVE_S = 10.0
"""After the connection's end, its consumers have this long to note it."""
Serve = Callable[[ServerStream], Awaitable[None]]


class ServerSession(Session[ServerStream]):
    """Takes requests from one connection."""

    __slots__ = ("_announced_at", "_parked", "_serve", "_workers", "max_tasks", "tasks")

    def __init__(
        self, conn: Conn, engine: Engine, settings: SessionSettings, budget: Budget, limits: Http2Limits
    ) -> None:
        super().__init__(conn, engine, settings, budget, limits)
        self.max_tasks = 2 * limits.streams
        """Streams that a peer has reset may still be worked on; beyond this, new ones are refused."""
        self._parked: list[Task] = []
        self.tasks = 0
        self._announced_at = -1.0

    async def run(self, serve: Serve) -> None:
        """Serve the connection to its end, each stream by `serve`; the connection is closed afterwards.

        A transport error that `serve` raises ends its stream only. What it leaves unfinished is reset.
        """
        self._serve = serve
        async with trio.open_nursery() as workers:
            self._workers = workers
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.send_loop)
                await self.read_loop()
                nursery.cancel_scope.cancel()
            self._dismiss()
            workers.cancel_scope.deadline = trio.current_time() + LEAVE_S

    def drain(self) -> None:
        """Serve what is open, and what the peer sends before it knows; then close (RFC 9113, 6.8)."""
        if self.dead is None and self._announced_at < 0 and not self.going:
            self._announced_at = self.reactor.now
            self.engine.goaway(NO_ERROR, notice=True)
            self.engine.ping(DRAINING)
            self.flush_soon()

    def expire(self) -> None:
        self.drain()

    def _drained(self) -> None:
        if not self.going:
            self.going = True
            if self.streams:
                self.engine.goaway(NO_ERROR)
                self.flush_soon()
            else:
                self.leave()

    def look(self, now: float) -> None:
        if self._announced_at >= 0 and not self.going and now >= self._announced_at + self.settings.drain_s:
            self._drained()
        if self._parked and not self.streams and now >= self.clock.idle_since + KEPT_S:
            self._dismiss()

    def _gone_away(self, last: int, code: int, text: bytes) -> None:
        # A client that opens no more streams: the connection ends with those it has.
        self.going = True
        if not self.streams:
            self.leave()

    # Tasks.

    def _head(self, stream_id: int, value: Any, end: bool) -> None:
        stream = ServerStream(self, stream_id, value, end)
        self.streams[stream_id] = stream
        if self._parked:
            reschedule(self._parked.pop(), Value(stream))
        elif self.tasks < self.max_tasks:
            self.tasks += 1
            self._workers.start_soon(self._work, stream)
        else:
            stream.reset(REFUSED_STREAM)
            stream.close()

    async def _work(self, stream: ServerStream | None) -> None:
        serve = self._serve
        task = current_task()
        unpark = partial(self._unpark, task)
        try:
            while stream is not None:
                try:
                    await serve(stream)
                except TransportError:
                    pass  # `close` resets what is not finished
                except (trio.Cancelled, BaseExceptionGroup):
                    stream.reset(CANCEL)
                    raise
                finally:
                    stream.close()
                stream = None
                if self.dead is not None or len(self._parked) >= KEPT:
                    return
                self._parked.append(task)
                stream = await wait_task_rescheduled(unpark)
        finally:
            self.tasks -= 1

    def _unpark(self, task: Task, _: object) -> Abort:
        self._parked.remove(task)
        return Abort.SUCCEEDED

    def _dismiss(self) -> None:
        """End the tasks that wait for a stream."""
        while self._parked:
            reschedule(self._parked.pop(), Value(None))
