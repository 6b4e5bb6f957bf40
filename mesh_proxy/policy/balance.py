"""Which endpoint takes the next request.

`LeastLatency` compares two endpoints at random by how long one more request would take there: a moving
average of the latency that follows a rise at once and falls with time, multiplied by the requests already in
flight. `RoundRobin` takes turns by weight. Both leave an endpoint that just failed alone for a moment, longer
each time in a row, unless every other one failed too; neither ever returns an excluded endpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from math import exp
from typing import Protocol, TypeVar

DEFAULT_LATENCY_S = 0.030
DECAY_S = 10.0
FAILURE_FACTOR = 10.0
FAILURE_CAP_S = 5.0
FIRST_PENALTY_S = 0.1
MAX_PENALTY_S = 10.0
_MAX_DOUBLINGS = 8
_ROUNDS = 3


class Rng(Protocol):
    """What is needed of random.Random."""

    def random(self) -> float:
        """A float in [0, 1)."""
        ...


class EndpointState:
    """What balancers know of an endpoint; the endpoint's class derives from it.

    The owner counts `inflight` up when it sends a request and down when that ends; `observe` of the balancer
    keeps the rest.
    """

    __slots__ = ("ewma_at", "ewma_s", "failures", "inflight", "penalty_until", "turn", "weight")

    def __init__(self, weight: int = 1, now: float = 0.0) -> None:
        self.inflight: int = 0
        self.ewma_s: float = DEFAULT_LATENCY_S
        self.ewma_at: float = now
        self.penalty_until: float = float("-inf")
        self.failures: int = 0
        """Failures in a row."""
        self.turn: int = 0
        """Credit in the weighted rotation."""
        self.weight: int = weight


E = TypeVar("E", bound=EndpointState)


class Balancer(Protocol):
    """What both algorithms offer."""

    def pick(self, endpoints: Sequence[E], excluded: Collection[E], rng: Rng, now: float) -> E | None:
        """The endpoint for the next request; None when there is none outside `excluded`."""
        ...

    def observe(self, endpoint: EndpointState, latency_s: float, failed: bool, now: float) -> None:
        """Learn from a response, or from a failure that is the endpoint's."""
        ...


class LeastLatency:
    """The better of two random choices, by peak EWMA latency times load."""

    __slots__ = ("_decay_s",)

    def __init__(self, decay_s: float = DECAY_S) -> None:
        self._decay_s = decay_s

    def pick(self, endpoints: Sequence[E], excluded: Collection[E], rng: Rng, now: float) -> E | None:
        """The endpoint for the next request; None when there is none outside `excluded`.

        Costs the same for two endpoints and for a thousand, except on a retry, which looks at all of them.
        """
        if excluded:
            endpoints = [endpoint for endpoint in endpoints if endpoint not in excluded]
        n = len(endpoints)
        if n < 2:
            return endpoints[0] if n else None
        decay_s = self._decay_s
        best: E | None = None
        for _ in range(_ROUNDS if n > 2 else 1):
            i = int(rng.random() * n)
            j = int(rng.random() * (n - 1))
            if j >= i:
                j += 1
            a = endpoints[i]
            b = endpoints[j]
            # An estimate that nobody renewed fades to nothing, so a slow endpoint is tried again some day.
            cost_a = a.ewma_s * exp((a.ewma_at - now) / decay_s) * (a.inflight + 1) / a.weight
            cost_b = b.ewma_s * exp((b.ewma_at - now) / decay_s) * (b.inflight + 1) / b.weight
            best = a if cost_a <= cost_b else b
            if best.penalty_until <= now:
                return best
            other = b if best is a else a
            if other.penalty_until <= now:
                return other
        return best

    def observe(self, endpoint: EndpointState, latency_s: float, failed: bool, now: float) -> None:
        """Learn from a response. A failure counts as ten times the usual latency, at most 5 s."""
        old = endpoint.ewma_s
        if failed:
            punished = min(max(old, DEFAULT_LATENCY_S) * FAILURE_FACTOR, FAILURE_CAP_S)
            latency_s = max(latency_s, punished if _penalise(endpoint, now) else old)
        elif endpoint.failures:
            _absolve(endpoint)
        if latency_s >= old:
            endpoint.ewma_s = latency_s
        else:
            age_s = now - endpoint.ewma_at
            if age_s > 0:
                endpoint.ewma_s = latency_s + (old - latency_s) * exp(-age_s / self._decay_s)
        if now > endpoint.ewma_at:
            endpoint.ewma_at = now


class RoundRobin:
    """Turns by weight, spread smoothly.

    A sequence of endpoints must not be changed in place between two picks; whether its weights are equal is
    remembered with it. With equal weights a pick costs the same for any number of endpoints.
    """

    __slots__ = ("_equal", "_next", "_seen")

    def __init__(self) -> None:
        self._seen: Sequence[EndpointState] | None = None
        self._equal = True
        self._next = 0

    def pick(self, endpoints: Sequence[E], excluded: Collection[E], rng: Rng, now: float) -> E | None:
        """The endpoint for the next request; None when there is none outside `excluded`."""
        if endpoints is not self._seen:
            self._seen = endpoints
            self._equal = len({endpoint.weight for endpoint in endpoints}) < 2
        if self._equal:
            return self._rotate(endpoints, excluded, now)
        return _heaviest(endpoints, excluded, now)

    def _rotate(self, endpoints: Sequence[E], excluded: Collection[E], now: float) -> E | None:
        n = len(endpoints)
        fallback: E | None = None
        at = self._next
        for _ in range(n):
            if at >= n:
                at = 0
            endpoint = endpoints[at]
            at += 1
            if excluded and endpoint in excluded:
                continue
            if endpoint.penalty_until <= now:
                self._next = at
                return endpoint
            if fallback is None:
                fallback = endpoint
                self._next = at
        return fallback

    def observe(self, endpoint: EndpointState, latency_s: float, failed: bool, now: float) -> None:
        """Learn from a response; only failures matter here."""
        if failed:
            _penalise(endpoint, now)
        elif endpoint.failures:
            _absolve(endpoint)


def _heaviest(endpoints: Sequence[E], excluded: Collection[E], now: float) -> E | None:
    # Everybody who takes part gains its weight; the richest goes and pays for all of them.
    candidates = [e for e in endpoints if e.penalty_until <= now and e not in excluded]
    if not candidates:
        candidates = [e for e in endpoints if e not in excluded]
    best: E | None = None
    total = 0
    for endpoint in candidates:
        total += endpoint.weight
        endpoint.turn += endpoint.weight
        if best is None or endpoint.turn > best.turn:
            best = endpoint
    if best is not None:
        best.turn -= total
    return best


def _penalise(endpoint: EndpointState, now: float) -> bool:
    # Requests that were in flight together fail together: one penalty at a time.
    if now < endpoint.penalty_until:
        return False
    pause_s = FIRST_PENALTY_S * (1 << min(endpoint.failures, _MAX_DOUBLINGS))
    endpoint.failures += 1
    endpoint.penalty_until = now + min(pause_s, MAX_PENALTY_S)
    return True


def _absolve(endpoint: EndpointState) -> None:
    endpoint.failures = 0
    endpoint.penalty_until = float("-inf")


class Weights:
    """Weights of a split, summed up once."""

    __slots__ = ("sums",)

    def __init__(self, weights: Iterable[int]) -> None:
        """Raises ValueError when a weight is negative or all are 0."""
        given = tuple(weights)
        if not given or min(given) < 0 or not sum(given):
            raise ValueError(f"expected weights with a sum above 0, got {given}")
        self.sums: tuple[int, ...] = tuple(accumulate(given))


def split(weights: Weights | Sequence[int], rng: Rng) -> int:
    """The index of one arm, by chance and weight. Routes hold a `Weights`; others are summed each time."""
    sums = weights.sums if isinstance(weights, Weights) else Weights(weights).sums
    point = rng.random() * sums[-1]
    for index, bound in enumerate(sums):
        if point < bound:
            return index
    raise ValueError("expected a random number below 1")
