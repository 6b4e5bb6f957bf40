"""Every deadline of one HTTP/2 session, looked at a few times in the shortest of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mesh_proxy.base.errors import DeadlineExceeded
from mesh_proxy.net.wheel import NEVER, Timed
from mesh_proxy.wire.http2.seam import CANCEL

if TYPE_CHECKING:
    from mesh_proxy.http2.session import Session

_ALIVE = b"alive?\0\0"


class SessionClock(Timed):
    """When things happened on a session; the times are the reactor's."""

    __slots__ = (
        "_period_s",
        "_session",
        "asked_at",
        "head_since",
        "heard_at",
        "idle_since",
        "settled",
        "started",
        "taken",
    )

    def __init__(self, session: Session[Any]) -> None:
        super().__init__()
        self._session = session
        self._period_s = session.settings.period_s
        self.settled = False
        """The peer's first SETTINGS have come."""
        self.asked_at = NEVER
        """When an unanswered PING was sent."""
        self.taken = 0
        """Bytes that the peer had taken then."""
        self.head_since = NEVER
        """When the header block began that has not ended."""
        self.started = self.heard_at = self.idle_since = session.reactor.now

    def start(self) -> None:
        """The session begins to read."""
        now = self._session.reactor.now
        self.started = self.heard_at = self.idle_since = now
        self._look_again(now)

    def on_deadline(self) -> None:
        session = self._session
        if session.dead is not None:
            return
        now = session.reactor.now
        problem = self._overdue(now)
        if problem:
            session.stop(DeadlineExceeded(problem))
            return
        session.look(now)
        if session.conn.expires <= now and not session.going:
            session.expire()
        if session.streams or session.conn.sending:
            if self.asked_at == NEVER and now >= self.heard_at + session.settings.ping_s:
                session.engine.ping(_ALIVE)
                session.flush_soon()
                self.asked_at, self.taken = now, session.conn.taken()[0]
            self._end_stalled(now)
        if not session.streams and now >= self.idle_since + session.settings.idle_s:
            session.leave()
        self._look_again(now)

    def _look_again(self, now: float) -> None:
        session = self._session
        due = min(now + self._period_s, self.asked_at + session.settings.ping_ack_s)
        if session.conn.expires > now:
            due = min(due, session.conn.expires)
        session.reactor.set_deadline(self, due)

    def _overdue(self, now: float) -> str:
        """Why the session has to end, in words; empty if it goes on."""
        settings = self._session.settings
        if not self.settled and now >= self.started + settings.preface_s:
            return f"no HTTP/2 preface within {settings.preface_s:g} s"
        if now >= self.head_since + settings.head_s:
            return f"a header block did not end within {settings.head_s:g} s"
        if now >= self.asked_at + settings.ping_ack_s and not self._takes(now):
            return f"no answer to PING within {settings.ping_ack_s:g} s"
        return ""

    def _takes(self, now: float) -> bool:
        """Whether the peer takes what waits for it, and the PING with it, if slowly: it gets more time."""
        before = self.taken
        self.taken, waiting = self._session.conn.taken()
        if not waiting or self.taken == before:
            return False
        self.asked_at = now
        return True

    def _end_stalled(self, now: float) -> None:
        session = self._session
        limit_s = session.reactor.stall_s
        for stream in [*session.blocked, *session.ending]:
            if stream.stall_left and now >= stream.stall_at + limit_s and not stream.over:
                stream.interrupt(DeadlineExceeded(f"the peer took no byte for {limit_s:g} s"))
                stream.reset(CANCEL)
