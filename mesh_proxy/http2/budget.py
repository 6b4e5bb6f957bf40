"""What HTTP/2 sessions may hold and how long they wait: their settings, and what they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Bounds of one session, in seconds, bytes and streams."""

    idle_s: float = 60.0
    """Without a stream for this long, the session ends."""
    ping_s: float = 30.0
    """With streams open and nothing received for this long, a PING asks whether the peer is there ..."""
    ping_ack_s: float = 10.0
    """... and if nothing comes for this long after it, the session is dead."""
    preface_s: float = 10.0
    """The peer's first SETTINGS must have come by then."""
    head_s: float = 60.0
    """A header block must be complete this long after it began."""
    drain_s: float = 2.0
    """A draining server takes new streams for this long from a peer that does not answer the announcement."""
    streams: int = 100
    """Streams that we open at once on one client session."""
    held_bytes: int = 2 * 1024 * 1024
    """Bytes that consumers have not taken, up to which the connection's credit is given ahead."""

    @property
    def period_s(self) -> float:
        """How often a session looks at its deadlines."""
        shortest = min(self.idle_s, self.ping_s, self.ping_ack_s, self.preface_s, self.head_s)
        return max(shortest / 2, 0.01)


class Creditor(Protocol):
    """A session whose peer waits for the connection's credit."""

    def give_credit(self) -> None:
        """There is room again: give what is owed."""


class Budget:
    """Bytes that all sessions together hold for their consumers.

    While `used` is below the limit, a session gives the connection's credit back as bytes arrive, so that a
    stream whose consumer is slow does not stop the others. Beyond, it gives credit only for what was taken,
    so that it holds no more than its connection window: one that holds less goes on as fast as its
    consumers take. The bound of all is `limit` and one connection window for each session.
    """

    __slots__ = ("limit", "resets", "used", "waiting")

    def __init__(self, limit: int = 32 * 1024 * 1024) -> None:
        self.limit = limit
        self.used = 0
        self.resets = Resets()
        self.waiting: dict[Creditor, None] = {}

    def release(self, size: int) -> None:
        """Bytes were taken or dropped; sessions that wait for room get their credit."""
        self.used -= size
        if self.waiting and self.used <= self.limit // 2:
            waiting, self.waiting = self.waiting, {}
            for session in waiting:
                session.give_credit()


class Resets:
    """Streams that were reset before their end, on all sessions together."""

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.received = 0
        """By peers ..."""
        self.sent = 0
        """... and by us."""
