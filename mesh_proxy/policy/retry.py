"""Whether a failed attempt may be tried again, and a budget that keeps retries from becoming a storm.

`decide` is the safe set, for opaque TCP; `RetryPolicy(spec)` is a policy's, which is the same by default.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from mesh_api.traffic import Backoff, Retries, RetryOn
from mesh_proxy.policy.balance import Rng
from mesh_proxy.policy.http_date import retry_after_s

MAX_RETRY_AFTER_S = 30.0
"""A longer Retry-After is not waited for: the response is passed on."""
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
NOT_NAMED = RetryDecision(False, "not-retryable", "the retry policy does not name this failure")
OTHER_METHOD = RetryDecision(False, "not-retryable", "the retry policy is not for this method")
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
    return _possible(body_replayable, attempts, limit)


def why_not(phase: Phase, method: bytes, body_replayable: bool, attempts: int, limit: int) -> str:
    """Why `decide` says no, in words; empty when it says yes."""
    return decide(phase, method, body_replayable, attempts, limit).text


_SAFE_ALWAYS = frozenset({Phase.NOT_CONNECTED, Phase.NOTHING_SENT})
"""Not processed: tried again whatever a policy names, or naming `5xx` would lose a POST that was safe."""
_NO_ANSWER = frozenset({Phase.NOT_CONNECTED, Phase.NOTHING_SENT, Phase.SENT_NO_RESPONSE})
_GATEWAY = frozenset((502, 503, 504))
_STATUSES = {
    RetryOn.GATEWAY_ERROR: _GATEWAY,
    RetryOn.SERVER_ERROR: frozenset(range(500, 600)),
    RetryOn.TOO_MANY_REQUESTS: frozenset((429,)),
}
_GRPC = {
    RetryOn.GRPC_CANCELLED: b"1",
    RetryOn.GRPC_DEADLINE_EXCEEDED: b"4",
    RetryOn.GRPC_RESOURCE_EXHAUSTED: b"8",
    RetryOn.GRPC_INTERNAL: b"13",
    RetryOn.GRPC_UNAVAILABLE: b"14",
}


class RetryPolicy:
    """Prepared Retries. `per_try_s` is None without a limit; a try that runs over it has had no answer.

    `by_response` says whether some responses are retried; only then ask `decide_response`.
    """

    __slots__ = (
        "_base_s",
        "_grpc",
        "_guarded",
        "_max_s",
        "_methods",
        "_statuses",
        "by_response",
        "honor_retry_after",
        "limit",
        "per_try_s",
    )

    def __init__(self, spec: Retries) -> None:
        on = frozenset(spec.on)
        self.limit = spec.attempts
        self.per_try_s = spec.per_try_s
        self.honor_retry_after = spec.honor_retry_after
        self._methods = frozenset(m.encode() for m in spec.methods) if spec.methods else IDEMPOTENT
        self._grpc = frozenset(_GRPC[cause] for cause in on if cause in _GRPC)
        self._statuses = frozenset[int]().union(*(_STATUSES[cause] for cause in on if cause in _STATUSES))
        self.by_response = bool(self._statuses or self._grpc)
        self._max_s = spec.backoff.max_s
        if on:
            no_answer = on & {RetryOn.GATEWAY_ERROR, RetryOn.SERVER_ERROR}
            self._guarded = _NO_ANSWER if no_answer else frozenset[Phase]()
            self._base_s = spec.backoff.base_s
        else:
            self._guarded = _NO_ANSWER
            # Another endpoint is asked, about a failure of one: a pause helps nobody unless it was ordered.
            self._base_s = 0.0 if spec.backoff == Backoff() else spec.backoff.base_s

    def decide(self, phase: Phase, method: bytes, body_replayable: bool, attempts: int) -> RetryDecision:
        """Decide about an attempt without a response, as the function `decide` does."""
        if phase is Phase.RESPONSE_STARTED:
            return RESPONSE_STARTED
        if phase not in _SAFE_ALWAYS:
            if phase not in self._guarded:
                return NOT_NAMED
            if method not in self._methods:
                return NOT_IDEMPOTENT if self._methods is IDEMPOTENT else OTHER_METHOD
        return _possible(body_replayable, attempts, self.limit)

    def decide_response(
        self,
        status: int,
        method: bytes,
        body_replayable: bool,
        attempts: int,
        grpc_status: bytes = b"",
        grpc: bool = False,
    ) -> RetryDecision | None:
        """Decide about a response of which nothing was passed on; None: it is not one to be retried.

        Args:
            status: of the response.
            method: as the client wrote it.
            body_replayable: the body is wholly kept, or not a byte of it was consumed.
            attempts: attempts made so far, the first one included.
            grpc_status: field grpc-status of the response's head, if there is one.
            grpc: the request is a call of gRPC, always a POST, which need not be named for it.
        """
        by_grpc = grpc_status in self._grpc
        if not by_grpc and status not in self._statuses:
            return None
        any_method = by_grpc and grpc and self._methods is IDEMPOTENT
        if not any_method and method not in self._methods:
            return OTHER_METHOD
        return _possible(body_replayable, attempts, self.limit)

    def pause_s(self, attempts: int, rng: Rng, retry_after: bytes = b"", now_unix: float = 0.0) -> float:
        """How long to wait before the next attempt; negative: the endpoint asked for more than 30 s.

        Args:
            attempts: attempts made so far; the bound doubles with each.
            rng: chooses evenly between 0 and the bound (full jitter).
            retry_after: the response's field; acts only where the policy honours it.
            now_unix: Unix time, for a date in it.
        """
        if retry_after and self.honor_retry_after:
            asked_s = retry_after_s(retry_after, now_unix)
            if asked_s is not None:
                return asked_s if asked_s <= MAX_RETRY_AFTER_S else -1.0
        if not self._base_s:
            return 0.0
        return rng.random() * min(self._base_s * 2.0 ** max(attempts - 1, 0), self._max_s)


def _possible(body_replayable: bool, attempts: int, limit: int) -> RetryDecision:
    if not body_replayable:
        return BODY_TOO_BIG
    return LIMIT if attempts > limit else RETRY


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
