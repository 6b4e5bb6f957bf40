"""Which endpoint takes the next request: `balancer(algorithm, warmup_s)` makes the one that is asked for.

`LeastLatency` compares two endpoints at random by how long one more request would take there: a moving
average of the latency that follows a rise at once and falls with time, multiplied by the requests already in
flight. `LeastRequest` compares two by requests in flight alone, `Random` draws one, `RoundRobin` takes turns;
all go by weight. Each leaves an endpoint that just failed alone for a moment, longer each time in a row,
unless every other one failed too; none ever returns an excluded endpoint. Endpoints that keep failing are
not among those to choose from at all (outlier.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import accumulate
from math import exp
from typing import Protocol, TypeVar

from mesh_api.traffic import Algorithm

DEFAULT_LATENCY_S = 0.030
DECAY_S = 10.0
FAILURE_FACTOR = 10.0
FAILURE_CAP_S = 5.0
FIRST_PENALTY_S = 0.1
MAX_PENALTY_S = 10.0
WARMUP_FLOOR = 0.1
"""Share that an endpoint has when it has just come."""
_MAX_DOUBLINGS = 8
_ROUNDS = 3


class Rng(Protocol):
    """What is needed of random.Random."""

    def random(self) -> float:
        """A float in [0, 1)."""
        ...


class Strikes:
    """What outlier detection holds against an endpoint; outlier.py keeps it."""

    __slots__ = (
        "ejected",
        "ejected_at",
        "gateway",
        "last",
        "local",
        "probe_at",
        "returned_at",
        "row",
        "server",
        "until",
    )

    def __init__(self) -> None:
        self.restart()
        self.last = float("-inf")
        """The last failure that counted."""
        self.ejected = False
        self.ejected_at = float("-inf")
        self.until = float("-inf")
        """End of the present ejection; then it may be probed."""
        self.probe_at = float("inf")
        """When the latest probe began, if it is under way."""
        self.returned_at = float("-inf")
        self.row = 0
        """Ejections in a row."""

    def restart(self) -> None:
        """Count failures in a row from 0."""
        self.server = self.gateway = self.local = 0


class EndpointState:
    """What balancers know of an endpoint; the endpoint's class derives from it.

    The owner counts `inflight` up when it sends a request and down when that ends; `observe` of the balancer
    keeps the rest.
    """

    __slots__ = (
        "ewma_at",
        "ewma_s",
        "failures",
        "inflight",
        "penalty_until",
        "since",
        "strikes",
        "turn",
        "weight",
    )

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
        self.since: float = float("-inf")
        """When it was first seen, for warm-up; its owner says so unless it came with its destination."""
        self.strikes: Strikes | None = None
        """None: nothing is held against it."""


E = TypeVar("E", bound=EndpointState)


class Balancer(Protocol):
    """What every algorithm offers."""

    def pick(self, endpoints: Sequence[E], excluded: Collection[E], rng: Rng, now: float) -> E | None:
        """The endpoint for the next request; None when there is none outside `excluded`."""
        ...

    def observe(self, endpoint: EndpointState, latency_s: float, failed: bool, now: float) -> None:
        """Learn from a response, or from a failure that is the endpoint's."""
        ...

    def holds(self, endpoints: Sequence[EndpointState], now: float) -> bool:
        """Whether the next request is bound to one of these, and so may not be a probe of another."""
        ...


class _Free:
    """What algorithms have that bind no request to an endpoint."""

    __slots__ = ()

    def holds(self, endpoints: Sequence[EndpointState], now: float) -> bool:
        """Never."""
        return False


class _Choices(_Free):
    """The better of two random choices."""

    __slots__ = ()

    def _prefer(self, a: E, b: E, now: float) -> bool:
        """Whether the next request is better off at `a`."""
        raise NotImplementedError

    def pick(self, endpoints: Sequence[E], excluded: Collection[E], rng: Rng, now: float) -> E | None:
        """The endpoint for the next request; None when there is none outside `excluded`.

        Costs the same for two endpoints and for a thousand, except on a retry, which looks at all of them.
        """
        if excluded:
            endpoints = [endpoint for endpoint in endpoints if endpoint not in excluded]
        n = len(endpoints)
        if n < 2:
            return endpoints[0] if n else None
        best: E | None = None
        for _ in range(_ROUNDS if n > 2 else 1):
            i = int(rng.random() * n)
            j = int(rng.random() * (n - 1))
            if j >= i:
                j += 1
            a = endpoints[i]
            b = endpoints[j]
            best, other = (a, b) if self._prefer(a, b, now) else (b, a)
            if best.penalty_until <= now:
                return best
            if other.penalty_until <= now:
                return other
        return best


class LeastLatency(_Choices):
    """The better of two random choices, by peak EWMA latency times load."""

    __slots__ = ("_decay_s",)

    def __init__(self, decay_s: float = DECAY_S) -> None:
        self._decay_s = decay_s

    def _prefer(self, a: E, b: E, now: float) -> bool:
        # An estimate that nobody renewed fades to nothing, so a slow endpoint is tried again some day.
        decay_s = self._decay_s
        cost_a = a.ewma_s * exp((a.ewma_at - now) / decay_s) * (a.inflight + 1) / a.weight
        return cost_a <= b.ewma_s * exp((b.ewma_at - now) / decay_s) * (b.inflight + 1) / b.weight

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


class _Penalties:
    """What algorithms without a memory of latency learn."""

    __slots__ = ()

    def observe(self, endpoint: EndpointState, latency_s: float, failed: bool, now: float) -> None:
        """Learn from a response; only failures matter here."""
        if failed:
            _penalise(endpoint, now)
        elif endpoint.failures:
            _absolve(endpoint)


class LeastRequest(_Penalties, _Choices):
    """The better of two random choices, by requests in flight."""

    __slots__ = ()

    def _prefer(self, a: E, b: E, now: float) -> bool:
        return (a.inflight + 1) * b.weight <= (b.inflight + 1) * a.weight


class Random(_Penalties, _Free):
    """By chance and weight. The weights of a sequence are summed once, so it must not change in place."""

    __slots__ = ("_seen", "_sums")

    def __init__(self) -> None:
        self._seen: Sequence[EndpointState] | None = None
        self._sums: tuple[int, ...] = ()

    def pick(self, endpoints: Sequence[E], excluded: Collection[E], rng: Rng, now: float) -> E | None:
        """The endpoint for the next request; None when there is none outside `excluded`."""
        if excluded:
            endpoints = [endpoint for endpoint in endpoints if endpoint not in excluded]
        if not endpoints:
            return None
        if endpoints is not self._seen:
            self._seen = endpoints
            self._sums = tuple(accumulate(endpoint.weight for endpoint in endpoints))
        sums = self._sums
        for _ in range(_ROUNDS):
            endpoint = endpoints[bisect_right(sums, rng.random() * sums[-1])]
            if endpoint.penalty_until <= now:
                return endpoint
        rested = [candidate for candidate in endpoints if candidate.penalty_until <= now]
        return rested[int(rng.random() * len(rested))] if rested else endpoint


class RoundRobin(_Penalties, _Free):
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


class WarmUp(_Free):
    """Another algorithm, but an endpoint that has just come is passed over at first: its share grows.

    It grows linearly from a tenth to all of what the other algorithm gives it, over `warmup_s`.
    """

    __slots__ = ("_inner", "_warmup_s", "observe")

    def __init__(self, inner: Balancer, warmup_s: float) -> None:
        self._inner = inner
        self._warmup_s = warmup_s
        self.observe = inner.observe

    def pick(self, endpoints: Sequence[E], excluded: Collection[E], rng: Rng, now: float) -> E | None:
        """The endpoint for the next request; None when there is none outside `excluded`."""
        first = self._inner.pick(endpoints, excluded, rng, now)
        choice = first
        for _ in range(_ROUNDS):
            if choice is None:
                break
            age_s = now - choice.since
            if age_s >= self._warmup_s or rng.random() < max(WARMUP_FLOOR, age_s / self._warmup_s):
                break
            excluded = {*excluded, choice}
            choice = self._inner.pick(endpoints, excluded, rng, now)
        # Better a cold endpoint than one that has just failed.
        if choice is None or choice.penalty_until > now:
            return first
        return choice


def balancer(algorithm: Algorithm, warmup_s: float | None) -> Balancer:
    """The balancer for one cluster."""
    inner = _ALGORITHMS[algorithm]()
    return inner if warmup_s is None else WarmUp(inner, warmup_s)


_ALGORITHMS: dict[Algorithm, Callable[[], Balancer]] = {
    Algorithm.LEAST_LATENCY: LeastLatency,
    Algorithm.LEAST_REQUEST: LeastRequest,
    Algorithm.ROUND_ROBIN: RoundRobin,
    Algorithm.RANDOM: Random,
}


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
