"""One HTTP/2 stream, as a consumer uses it; names that `Conn` has too mean the same here.

`read` and `write` wait as those of a connection do: one reader and one sender at a time, every wait is
bounded by `deadline` and ended by `interrupt`. Credit for what `read` returned is given back by the next
`read`, so a slow consumer holds at most the stream's window. Whoever uses a stream ends with `close`,
whatever has happened to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

from mesh_proxy.base.errors import DeadlineExceeded, PartnerGone, PeerReset, StreamReset, TransportError
from mesh_proxy.net.reactor import fail
from mesh_proxy.net.roles import Interruptible
from mesh_proxy.net.wheel import Timed
from mesh_proxy.wire.http2.seam import CANCEL, ENHANCE_YOUR_CALM, INTERNAL_ERROR, RequestFields

if TYPE_CHECKING:
    from mesh_proxy.http2.client import ClientSession
    from mesh_proxy.http2.session import Session

SMALL_BYTES = 1024
"""What comes behind less than this is joined to it: thousands of tiny objects take many times their bytes."""
QUEUED_BYTES = 64 * 1024
"""A writer waits while more than this of its stream is queued."""
INTERIM_BYTES = 128 * 1024
"""Interim response heads behind one that nobody has taken yet ..."""
INTERIM_COST = 256
"""... of which each counts for so much more."""


class Stream(Timed):
    """What both ends share. `deadline` (see Timed) bounds every wait on it."""

    __slots__ = (
        "_chunks",
        "_hint",
        "_taken",
        "buffered",
        "closed",
        "complete",
        "doom",
        "finished",
        "flush_mark",
        "gone",
        "id",
        "over",
        "partner",
        "reader",
        "received",
        "sent",
        "session",
        "stall_at",
        "stall_left",
        "trailers",
        "writer",
    )

    def __init__(self, session: Session[Any], stream_id: int) -> None:
        super().__init__()
        self.session = session
        self.id = stream_id
        self.complete = False
        """The peer has ended its direction: what is not read yet is buffered here."""
        self.finished = False
        """We have ended ours, as far as the consumer is concerned."""
        self.over = False
        """Closed on the wire, reset, or its connection is gone: nothing can be sent."""
        self.closed = False
        """The consumer is done with it."""
        self.trailers = b""
        """Block of the trailers that came; valid once `complete`."""
        self.doom: TransportError | None = None
        """Why nobody should wait on this stream any more."""
        self.gone: TransportError | None = None
        """Why the stream ended before its time: a reset by either side, or the connection's end."""
        self.partner: Interruptible | None = None
        """Told when the stream is reset, or its connection dies, while nobody waits on it."""
        self.reader: trio.lowlevel.Task | None = None
        self.writer: trio.lowlevel.Task | None = None
        self.sent = 0
        """Body bytes that were queued to the peer."""
        self.received = 0
        """Body bytes that came from it."""
        self.buffered = 0
        """Bytes held here whose credit has not been given back."""
        self.flush_mark = session.flushes
        self.stall_at = 0.0
        self.stall_left = 0
        self._chunks: list[bytes] = []
        self._taken = 0
        self._hint = 0

    def __repr__(self) -> str:
        state = "closed" if self.closed else "over" if self.over else "open"
        return f"<{type(self).__name__} {self.id} {state} in={self.received} out={self.sent}>"

    @property
    def sending(self) -> bool:
        """A sender waits for the peer to take its bytes."""
        return self.writer is not None

    async def read(self) -> bytes:
        """The next bytes of the body; b"" once the peer has ended it, after which `trailers` are there.

        Raises StreamReset, DeadlineExceeded, PartnerGone; when the connection dies, the error of that.
        """
        if self._taken:
            self._give_back()
        while not self._chunks:
            if self.complete and not self.closed:
                return b""
            await self._park_reader()
        return self.take()

    def take(self) -> bytes:
        """What has come and was not read yet, without waiting; b"" if that is nothing."""
        chunks = self._chunks
        if not chunks:
            return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._taken += len(data)
        return data

    async def write(self, data: bytes, end: bool = False) -> None:
        """Queue a part of the body, the last one with `end`; waits while more than 64 KiB are queued.

        Raises StreamReset, DeadlineExceeded, PartnerGone; when the connection has died, the error of that.
        """
        if self.over or self.finished:
            raise self._unsendable()
        self.session.engine.data(self.id, data, end)
        self._queued(len(data), end)
        if self._hint > QUEUED_BYTES:
            await self._wait_sent()

    async def end(self, trailers: bytes = b"") -> None:
        """End our direction, with a block of trailers or without. Ending twice is no error."""
        if self.finished:
            return
        if self.over:
            raise self._unsendable()
        if trailers:
            self.session.engine.trailers(self.id, trailers)
        else:
            self.session.engine.data(self.id, b"", True)
        self._queued(0, True)
        await trio.lowlevel.checkpoint_if_cancelled()

    def reset(self, code: int = CANCEL) -> None:
        """End the stream in both directions and tell the peer why; whoever waits on it meets StreamReset."""
        if not self.over:
            self.session.reset_stream(self, code)
            self._fall(StreamReset(code, False))

    def close(self) -> None:
        """The consumer is done: free what is held. A stream that has not ended both ways is reset."""
        if self.closed:
            return
        self.closed = True
        self.partner = None
        if not self.over:
            self._abandon()
        self.session.reactor.wheel.forget(self)
        self._chunks.clear()
        self._give_back()
        if self.reader is not None or self.writer is not None:
            self.interrupt(PeerReset("closed here"))
        self.doom = self.gone = None  # with their tracebacks they would make cycles

    def set_deadline(self, after_s: float) -> None:
        """Bound every wait on this stream to `after_s` seconds from the last batch of events."""
        reactor = self.session.reactor
        deadline = reactor.now + after_s
        if int(deadline * 100) + 1 < self.queued:
            reactor.set_deadline(self, deadline)
        else:
            self.deadline = deadline

    def on_deadline(self) -> None:
        """Wake who waits, with DeadlineExceeded."""
        self._wake(DeadlineExceeded("deadline reached"))

    def interrupt(self, error: TransportError) -> None:
        """Resume the parked reader and sender with `error`; who parks later meets it too."""
        self.doom = error
        self._wake(error)

    # What the session calls.

    def arrive(self, data: bytes, end: bool) -> None:
        """Body bytes, the end, or both have come."""
        if data:
            size = len(data)
            chunks = self._chunks
            if chunks and len(chunks[-1]) < SMALL_BYTES:
                chunks[-1] += data
            else:
                chunks.append(data)
            self.buffered += size
            self.received += size
        if end:
            self.complete = True
        task = self.reader
        if task is not None:
            self.reader = None
            reschedule(task)

    def fail(self, error: TransportError) -> None:
        """The peer reset the stream or its connection died; a body that has wholly come stays readable."""
        if self.over:
            return
        self.over = True
        self._fall(error)

    def unqueued(self, left: int) -> None:
        """So much is still queued after a flush: let the sender go on, if that is little enough."""
        self._hint = left
        if left <= QUEUED_BYTES:
            task = self.writer
            self.session.blocked.pop(self, None)
            if task is not None:
                self.writer = None
                reschedule(task)
        elif left < self.stall_left:
            self.stall_left = left
            self.stall_at = self.session.reactor.now

    # Inner parts.

    def _fall(self, error: TransportError) -> None:
        waiting = self.reader is not None or self.writer is not None
        self.session.blocked.pop(self, None)
        if self.closed:
            return
        self.gone = error
        self.interrupt(error)
        if not waiting and self.partner is not None and not self._harmless():
            self.partner.interrupt(PartnerGone(error.detail))

    def _wake(self, error: TransportError) -> None:
        task = self.reader
        if task is not None:
            self.reader = None
            fail(task, error)
        task = self.writer
        if task is not None:
            self.writer = None
            self.session.blocked.pop(self, None)
            fail(task, error)

    def _unsendable(self) -> TransportError:
        if self.doom is not None:
            return self.doom
        return PeerReset("closed here" if self.closed else "already ended here")

    def _queued(self, size: int, end: bool) -> None:
        """Something of ours was queued in the engine."""
        session = self.session
        self.sent += size
        self._hint += size
        if self._hint > QUEUED_BYTES:
            self._hint = session.engine.queued(self.id)
        if end:
            self.finished = True
            session.ending.append(self)
        session.flush_soon()

    def _give_back(self) -> None:
        """Credit for what the consumer took, or for everything once it is gone."""
        size = self.buffered if self.closed else self._taken
        self._taken = 0
        if size:
            self.buffered -= size
            self.session.taken(self, size)

    async def _wait_sent(self) -> None:
        session = self.session
        self._hint = session.engine.queued(self.id)
        if self._hint <= QUEUED_BYTES:
            return
        self._check_wait()
        if self.writer is not None:
            raise trio.BusyResourceError("one sender at a time")
        self.writer = current_task()
        self.stall_at = session.reactor.now
        self.stall_left = self._hint
        session.blocked[self] = None
        await wait_task_rescheduled(self._unpark_writer)

    def _unpark_writer(self, _: object) -> Abort:
        self.writer = None
        self.session.blocked.pop(self, None)
        return Abort.SUCCEEDED

    async def _park_reader(self) -> None:
        self._check_wait()
        if self.reader is not None:
            raise trio.BusyResourceError("one reader at a time")
        self.reader = current_task()
        await wait_task_rescheduled(self._unpark_reader)

    def _unpark_reader(self, _: object) -> Abort:
        self.reader = None
        return Abort.SUCCEEDED

    def _check_wait(self) -> None:
        if self.doom is not None:
            raise self.doom
        if self.closed:
            raise PeerReset("closed here")
        if self.deadline <= self.session.reactor.now:
            raise DeadlineExceeded("deadline reached")

    def _harmless(self) -> bool:
        """Whether the stream's end takes nothing from its consumer."""
        return False

    def _abandon(self) -> None:
        """The consumer leaves a stream that is open on the wire."""
        raise NotImplementedError


class ServerStream(Stream):
    """A request to be answered."""

    __slots__ = ("fields", "responded")

    def __init__(self, session: Session[Any], stream_id: int, fields: RequestFields, complete: bool) -> None:
        super().__init__(session, stream_id)
        self.fields = fields
        self.complete = complete
        self.responded = False
        """A final response head was queued."""

    def respond(self, status: int, block: bytes, end: bool = False) -> None:
        """Queue the final response head; with `end` the response has no body. Does not wait.

        Raises StreamReset, or the error of a connection that has died.
        """
        if self.over or self.finished:
            raise self._unsendable()
        self.session.engine.respond(self.id, status, block, end)
        self.responded = True
        self._queued(0, end)

    def interim(self, status: int, block: bytes) -> None:
        """Queue an interim response head (100-199). Raises as `respond` does."""
        if self.over or self.finished:
            raise self._unsendable()
        self.session.engine.respond(self.id, status, block, False)
        self._queued(0, False)

    def _abandon(self) -> None:
        # A response that is complete is sent to its end; then a request that is not is no longer wanted
        # (RFC 9113, 8.1): the session sees to both.
        if not self.finished:
            self.reset(INTERNAL_ERROR)
        elif not self.complete:
            self.session.ending.append(self)
            self.session.flush_soon()


class ClientStream(Stream):
    """A request that was sent, and its response."""

    __slots__ = ("_heads", "_interim_bytes", "responded")
    session: ClientSession

    def __init__(self, session: Session[Any], stream_id: int) -> None:
        super().__init__(session, stream_id)
        self._heads: list[tuple[int, bytes, bool]] = []
        self._interim_bytes = 0
        self.responded = False
        """The final response head has come."""

    @property
    def unprocessed(self) -> bool:
        """The stream ended, and the peer has certainly not processed the request."""
        return self.gone is not None and self.gone.unprocessed

    async def response(self) -> tuple[int, bytes, bool]:
        """The next response head: status, block, and whether the stream ends with it; interim ones too.

        Raises as `read` does.
        """
        while not self._heads:
            await self._park_reader()
        return self._heads.pop(0)

    def head(self, status: int, block: bytes, end: bool) -> None:
        """A response head has come."""
        if status >= 200:
            self.responded = True
        elif self._heads:
            self._interim_bytes += len(block) + INTERIM_COST
            if self._interim_bytes > INTERIM_BYTES:
                self._heads.clear()
                self.reset(ENHANCE_YOUR_CALM)  # nothing holds them back: flow control is for DATA only
                return
        else:
            self._interim_bytes = 0
        self._heads.append((status, block, end))
        self.arrive(b"", end)

    def _harmless(self) -> bool:
        return self.complete  # the whole response is here

    def _abandon(self) -> None:
        self.reset(CANCEL)
