"""One HTTP/2 connection: an engine, a `Conn`, and the streams on them. What both ends share.

One task reads: bytes go to the engine, its events to the streams, and the consumers that wait are resumed.
They run after it, in one batch of the loop; what they queue in the engine is sent by a second task that
runs in the batch after theirs, so many streams' output costs one `send`. A blocked `send` does not stop the
reader.

Credit (RFC 9113, 5.2). A stream's is given back when its consumer has taken the bytes. The connection's is
given back as bytes arrive, so that a slow stream does not stop the others, as long as session and process
hold little (see `Budget`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from mesh_proxy.base.errors import DeadlineExceeded, PeerReset, ProtocolFailed, StreamReset, TransportError
from mesh_proxy.http2.budget import Budget, SessionSettings
from mesh_proxy.http2.clock import SessionClock
from mesh_proxy.http2.stream import Stream
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.wire.http2.seam import (
    DATA,
    GOAWAY,
    NO_ERROR,
    PING_ACK,
    RESET,
    SETTINGS,
    TRAILERS,
    Engine,
    Http2Error,
    Http2Limits,
)

LINGER_S = 1.0
"""How long the peer has to take our last bytes and to end its direction too."""
DRAINING = b"drain!\0\0"
S = TypeVar("S", bound=Stream)
Events = Sequence[tuple[int, int, Any, bool]]


class Session(Generic[S]):
    """State and work that a server's and a client's session have in common."""

    __slots__ = (
        "_credit",
        "_credit_bytes",
        "_dirty",
        "_leaving",
        "_out",
        "_owed",
        "_sender",
        "blocked",
        "budget",
        "clock",
        "conn",
        "dead",
        "ending",
        "engine",
        "flushes",
        "given_up",
        "going",
        "held",
        "reactor",
        "settings",
        "streams",
    )

    def __init__(
        self, conn: Conn, engine: Engine, settings: SessionSettings, budget: Budget, limits: Http2Limits
    ) -> None:
        """Take over a connection of which nothing was read, or it was given back with `unread`.

        `engine` was made with `limits`; `budget` is that of all sessions.
        """
        self.conn = conn
        self.engine = engine
        self.settings = settings
        self.budget = budget
        self.reactor = conn.reactor
        self.streams: dict[int, S] = {}
        """Those that are open on the wire."""
        self.blocked: dict[Stream, None] = {}
        """Those whose sender waits."""
        self.ending: list[Stream] = []
        """Those that may be over once what is queued has gone."""
        self.dead: TransportError | None = None
        """Why the session is over; nothing may be asked of the engine then."""
        self.going = False
        """No new stream; the connection ends with the last one."""
        self.held = 0
        """Bytes that streams hold for their consumers."""
        self.flushes = 0
        """How often output was handed to the connection."""
        self.given_up = 0
        """Streams that were reset here, as long as the engine still has their RST_STREAM."""
        self._owed = 0
        self._credit = 0
        self._credit_bytes = min(limits.stream_window, limits.connection_window) // 4
        self._dirty = True  # the preface
        self._out = b""
        self._sender: Task | None = None
        self._leaving = False
        self.clock = SessionClock(self)

    def __repr__(self) -> str:
        state = "over" if self.dead else "going" if self.going else "open"
        return f"<{type(self).__name__} {state} streams={len(self.streams)} {self.conn!r}>"

    @property
    def settled(self) -> bool:
        """The peer's first SETTINGS have come."""
        return self.clock.settled

    # What streams call.

    def flush_soon(self) -> None:
        """Have everything that is queued sent, once those that run now have queued theirs."""
        if not self._dirty:
            self._dirty = True
            task = self._sender
            if task is not None:
                self._sender = None
                reschedule(task)

    def taken(self, stream: Stream, size: int) -> None:
        """A consumer took bytes, or dropped them: give their credit back."""
        self.held -= size
        if self.dead is None:
            if not stream.complete and not stream.over and not stream.closed:
                self.engine.consumed(stream.id, size)
                self._credited(size)
            if self._owed:
                self.give_credit()
        self.budget.release(size)

    def give_credit(self) -> None:
        """Give back what is owed to the connection, as much as the bounds allow."""
        if self.dead is not None:
            return
        give = self._owed
        if self.held > self.settings.held_bytes:
            give -= self.held
        elif self.budget.used > self.budget.limit:
            give -= self.held
            self.budget.waiting[self] = None
        if give > 0:
            self._owed -= give
            self.engine.consumed(0, give)
            self._credited(give)

    def reset_stream(self, stream: Stream, code: int) -> None:
        """End a stream on the wire."""
        self.budget.resets.sent += 1
        self.given_up += 1
        self.engine.reset(stream.id, code)
        self.closed_on_wire(stream)
        self.flush_soon()

    def closed_on_wire(self, stream: Stream) -> None:
        """A stream is over: it no longer counts."""
        stream.over = True
        if self.streams.pop(stream.id, None) is not None:
            self._freed()

    # The two tasks.

    async def read_loop(self) -> None:
        """Read until the connection ends or has to; then the session is over, and every stream knows."""
        conn = self.conn
        engine = self.engine
        reactor = self.reactor
        read = conn.read
        conn.deadline = NEVER
        clock = self.clock
        clock.start()
        error: TransportError = PeerReset("the sidecar stopped")
        try:
            while True:
                data = await read()
                if not data:
                    error = PeerReset("the peer closed the connection")
                    if not self.streams and not conn.sending:
                        conn.set_deadline(LINGER_S)
                        await conn.write_eof()  # the peer may look for our end too
                    return
                clock.heard_at = now = reactor.now
                clock.asked_at = NEVER
                if conn.deadline <= now:
                    raise DeadlineExceeded("the peer goes on after the end")  # a flood never waits
                events = engine.feed(data, now)
                if events:
                    self._dispatch(events)
                if engine.within_head:
                    if clock.head_since == NEVER:
                        clock.head_since = now
                elif clock.head_since != NEVER:
                    clock.head_since = NEVER
                if self._sender is not None:
                    # Only if there is something: the consumers that now run may have more for the same send.
                    self._out = engine.drain()
                    if self._out:
                        self.flush_soon()
        except Http2Error as exc:
            self._dispatch(exc.events)
            self.dead = error = ProtocolFailed(str(exc))
            self.going = True
            self._fail_all(error)
            await self._complain()
        except TransportError as exc:
            error = exc
        finally:
            self._die(error)

    async def send_loop(self) -> None:
        """Send what is queued, whenever something is; ends once nothing more will be."""
        conn = self.conn
        drain = self.engine.drain
        try:
            while True:
                if not self._dirty:
                    self._sender = current_task()
                    await wait_task_rescheduled(self._unpark_sender)
                if self.dead is not None:
                    return  # what is left to say is said by the reader
                self._dirty = False
                out = self._out or drain()
                self._out = b""
                if self.given_up:
                    self._resets_sent()
                while out:
                    self.flushes += 1
                    self._credit = 0
                    await conn.write(out)
                    if self.blocked:
                        self._unblock()
                    if self.ending:
                        self._settle()  # here too: there may always be more to send
                    out = drain()
                    if self.given_up:
                        self._resets_sent()
                if self.ending:
                    self._settle()
                if self._leaving and not self._dirty:
                    await conn.write_eof()
                    conn.set_deadline(LINGER_S)
                    return
        except PeerReset:
            # The reader meets it too, after what has come; this is for the case that nothing wakes it.
            conn.set_deadline(LINGER_S)
        except TransportError as exc:
            conn.interrupt(exc)

    def _unpark_sender(self, _: object) -> Abort:
        self._sender = None
        return Abort.SUCCEEDED

    # Events.

    def _dispatch(self, events: Events) -> None:
        streams = self.streams
        size = lost = 0
        drained = False
        for kind, stream_id, value, end in events:
            if kind == DATA:
                stream = streams.get(stream_id)
                if stream is None or stream.closed:
                    lost += len(value)
                    if stream is None:
                        continue
                    value = b""
                size += len(value)
                stream.arrive(value, end)
                if end:
                    self._ended(stream)
            elif kind == RESET:
                code, by_peer = value
                if by_peer:
                    self.budget.resets.received += 1
                self._fail(stream_id, StreamReset(code, by_peer))
            elif kind == TRAILERS:
                stream = streams.get(stream_id)
                if stream is not None:
                    stream.trailers = value
                    stream.arrive(b"", True)
                    self._ended(stream)
            elif kind == SETTINGS:
                self.clock.settled = True
                self._settings_changed()
            elif kind == GOAWAY:
                self._gone_away(*value)
            elif kind == PING_ACK:
                drained = value == DRAINING
            else:
                self._head(stream_id, value, end)
        if drained:
            self._drained()  # not before the requests that came in the same bytes: they are to be served
        if size or lost:
            self.held += size
            self.budget.used += size
            self._owed += size + lost
            self.give_credit()

    def _ended(self, stream: Stream) -> None:
        """The peer has ended its direction."""
        if stream.finished and not stream.over:
            if self.engine.queued(stream.id):
                self.ending.append(stream)
            else:
                self.closed_on_wire(stream)

    def _fail(self, stream_id: int, error: TransportError) -> None:
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            stream.fail(error)
            self._freed()

    def _head(self, stream_id: int, value: Any, end: bool) -> None:
        """A request or response head has come."""
        raise NotImplementedError

    def _settings_changed(self) -> None:
        """The peer has told its settings."""

    def _gone_away(self, last: int, code: int, text: bytes) -> None:
        """The peer takes no new stream."""
        raise NotImplementedError

    def _resets_sent(self) -> None:
        """The engine has no RST_STREAM left."""
        self.given_up = 0

    def _drained(self) -> None:
        """The peer has answered the announcement that this session ends."""

    def _freed(self) -> None:
        """A stream no longer counts."""
        if not self.streams:
            self.clock.idle_since = self.reactor.now
            if self.going:
                self.leave()

    # Output that flow control holds back.

    def _unblock(self) -> None:
        queued = self.engine.queued
        for stream in list(self.blocked):
            stream.unqueued(queued(stream.id))

    def _settle(self) -> None:
        """Something was sent: streams of which nothing is left may be over."""
        ending, self.ending = self.ending, []
        for stream in ending:
            if stream.over:
                continue
            left = self.engine.queued(stream.id)
            if left:
                if not stream.stall_left or left < stream.stall_left:
                    stream.stall_left = left
                    stream.stall_at = self.reactor.now
                self.ending.append(stream)
            elif stream.complete:
                self.closed_on_wire(stream)
            elif stream.closed:
                self.reset_stream(stream, NO_ERROR)  # its rest is not wanted (RFC 9113, 8.1)

    def _credited(self, size: int) -> None:
        # The engine makes a WINDOW_UPDATE of half a window. It is sent with whatever goes next, but no later
        # than after another quarter, so that the peer always has a quarter left.
        self._credit += size
        if self._credit >= self._credit_bytes:
            self.flush_soon()

    # Ends.

    def leave(self) -> None:
        """End the connection in good order; no stream is open."""
        if not self._leaving and self.dead is None:
            self.going = self._leaving = True
            self.engine.goaway(NO_ERROR)
            self.flush_soon()

    def stop(self, error: TransportError) -> None:
        """End the connection now; every stream fails with `error`."""
        self.going = True
        self.conn.interrupt(error)

    async def _complain(self) -> None:
        """Tell the peer why its connection ends, if it takes that now."""
        conn = self.conn
        if conn.sending:
            return
        try:
            conn.set_deadline(LINGER_S)
            while out := self._out or self.engine.drain():
                self._out = b""
                await conn.write(out)
            await conn.linger_close(wait_s=LINGER_S, limit_s=LINGER_S)
        except TransportError:
            pass

    def _die(self, error: TransportError) -> None:
        """Once: wake every stream, free what is held."""
        self.dead = error
        in_order = self._leaving or not self.streams
        self._fail_all(error)
        self.blocked.clear()
        self.ending.clear()
        self.reactor.wheel.forget(self.clock)
        self.budget.waiting.pop(self, None)
        if in_order:
            self.conn.bye()
        else:
            self.conn.abort()
        self.engine.close()

    def _fail_all(self, error: TransportError) -> None:
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            own = type(error)(error.detail)
            own.unprocessed = stream.flush_mark == self.flushes
            stream.fail(own)

    def look(self, now: float) -> None:
        """Called a few times in the shortest of the session's deadlines."""

    def expire(self) -> None:
        """The peer's certificate has ended: what is open goes on, nothing new."""
        raise NotImplementedError
