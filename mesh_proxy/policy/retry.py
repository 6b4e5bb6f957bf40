"""Whether a failed attempt may be tried again, and a budget that keeps retries from becoming a storm."""

from __future__ import annotations

import enum
from typing import NamedTuple

MAX_KEPT_BODY = 64 * 1024
"""Bytes of a request body that are kept for a retry."""

# RFC 9110, 9.2.2: the safe methods, PUT and DELETE.
IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})


class Phase(enum.Enum):
    """How far the failed attempt came."""

    NOT_CONNECTED = "not-connected"
    """The connection never came up; a TLS alert before any response on a new connection counts as that."""
    NOTHING_SENT = "nothing-sent"
    """No byte of the request reached the kernel, or the peer said that it did not process the request."""
    SENT_NO_RESPONSE = "sent-no-response"
    """Bytes were sent and no response byte came back."""
    RESPONSE_STARTED = "response-started"


class RetryDecision(NamedTuple):
    """`reason` is a label of triomesh_retries_total; `text` is for the access log, empty for a retry."""

    retry: bool
    reason: str
    text: str


RETRY = RetryDecision(True, "tried", "")
RESPONSE_STARTED = RetryDecision(False, "not-retryable", "the response had started")
NOT_IDEMPOTENT = RetryDecision(False, "not-retryable", "the method is not idempotent and bytes were sent")
BODY_TOO_BIG = RetryDecision(False, "body-too-big", "the request body is over 64 KiB and was not kept")
LIMIT = RetryDecision(False, "limit", "no retries are left")
BUDGET = RetryDecision(False, "budget", "the retry budget of the destination is spent")


def decide(phase: Phase, method: bytes, body_replayable: bool, attempts: int, limit: int) -> RetryDecision:
    """Decide about one failed attempt, the budget aside (withdraw from it when the answer is yes).

    Args:
        phase: how far the attempt came.
        method: as the client wrote it; methods are case-sensitive.
        body_replayable: the body is wholly kept, or not a byte of it was consumed.
        attempts: attempts made so far, the first one included.
        limit: retries that the policy allows.
    """
    if phase is Phase.RESPONSE_STARTED:
        return RESPONSE_STARTED
    if phase is Phase.SENT_NO_RESPONSE and method not in IDEMPOTENT:
        return NOT_IDEMPOTENT
    if not body_replayable:
        return BODY_TOO_BIG
    if attempts > limit:
        return LIMIT
    return RETRY


def why_not(phase: Phase, method: bytes, body_replayable: bool, attempts: int, limit: int) -> str:
    """Why `decide` says no, in words; empty when it says yes."""
    return decide(phase, method, body_replayable, attempts, limit).text


class Budget:
    """How many retries a destination gets: a share of its recent requests, and a few a second in any case.

    Each request deposits a fraction of a retry; what is not spent within ten seconds expires, the oldest
    first. The unconditional part is a bucket of its own that never holds more than one second's worth.
    All amounts are integers, so that five deposits of 20 % are exactly one retry.
    """

    __slots__ = ("_credit", "_deposit", "_min_per_s", "_reserve", "_reserve_at", "_slot", "_slots")

    SLOTS = 10
    _PRICE = 100_000

    def __init__(self, percent: float, min_per_s: float) -> None:
        """Start with a full unconditional part and no deposits."""
        self._deposit = round(percent * self._PRICE / 100)
        self._min_per_s = min_per_s
        self._reserve = float(min_per_s)
        self._reserve_at: float | None = None
        self._slots = [0] * self.SLOTS
        self._slot = 0
        """Number of the current second; its deposits are in `_slots[_slot % SLOTS]`."""
        self._credit = 0
        """Sum of the slots."""

    def deposit(self, now: float) -> None:
        """Count one request (not its retries)."""
        second = int(now)
        if second != self._slot:
            self._advance(second)
        self._slots[self._slot % self.SLOTS] += self._deposit
        self._credit += self._deposit

    def withdraw(self, now: float) -> bool:
        """Take one retry; False when the budget is spent."""
        if self._reserve_at is None:
            self._reserve_at = now
        elif now > self._reserve_at:
            earned = (now - self._reserve_at) * self._min_per_s
            self._reserve = min(self._reserve + earned, float(max(self._min_per_s, 1)))
            self._reserve_at = now
        if self._min_per_s and self._reserve >= 1:
            self._reserve -= 1
            return True
        self._advance(int(now))
        if self._credit < self._PRICE:
            return False
        self._credit -= self._PRICE
        due = self._PRICE
        for age in range(self.SLOTS - 1, -1, -1):
            index = (self._slot - age) % self.SLOTS
            paid = min(due, self._slots[index])
            self._slots[index] -= paid
            due -= paid
        return True

    def _advance(self, second: int) -> None:
        # A clock that went back keeps the slot it had.
        for step in range(min(second - self._slot, self.SLOTS)):
            index = (second - step) % self.SLOTS
            self._credit -= self._slots[index]
            self._slots[index] = 0
        self._slot = max(second, self._slot)
