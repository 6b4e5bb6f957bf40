"""Edges added up, and what follows from their sums. Shared by sidecar, control plane and `meshctl`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mesh_api.stats import LATENCY_BUCKETS_S, MAX_COUNT, Direction, Edge, EdgeKind

_NUMBERS = (
    *("requests", "failures", "attempts", "attempt_failures", "retries", "overflows", "ejections"),
    *("latency_sum_s", "opened", "closed", "broken", "open", "sent", "received"),
)
_LAST = len(LATENCY_BUCKETS_S)


class EdgeKey(NamedTuple):
    """What tells edges apart; the fields are those of `Edge`."""

    direction: Direction
    kind: EdgeKind
    service: str = ""
    route: str = ""
    subset: str = ""
    namespace: str = ""
    workload: str = ""
    identity: str = ""


class Sums:
    """Numbers of one or more edges; each as in `Edge`."""

    __slots__ = (*_NUMBERS, "latencies")

    def __init__(self) -> None:
        self.requests = self.failures = self.attempts = self.attempt_failures = 0
        self.retries = self.overflows = self.ejections = 0
        self.opened = self.closed = self.broken = self.open = self.sent = self.received = 0
        self.latency_sum_s = 0.0
        self.latencies: dict[int, int] = {}

    def add(self, other: Edge | Sums) -> None:
        """Add other numbers. A latency bucket that does not exist counts as the last."""
        for field in _NUMBERS:
            more = getattr(other, field)
            if more:
                setattr(self, field, getattr(self, field) + more)
        for bucket, count in other.latencies.items():
            self.took(bucket if 0 <= bucket <= _LAST else _LAST, count)

    def took(self, bucket: int, count: int) -> None:
        """Add `count` requests to a latency bucket."""
        self.latencies[bucket] = self.latencies.get(bucket, 0) + count

    def edge(self, key: EdgeKey) -> Edge:
        """The numbers as an edge; those that came to more than one can say, as the most that it can."""
        numbers = {field: min(getattr(self, field), MAX_COUNT) for field in _NUMBERS}
        latencies = {bucket: min(count, MAX_COUNT) for bucket, count in self.latencies.items()}
        return Edge(*key, latencies=latencies, **numbers)


def key_of(edge: Edge) -> EdgeKey:
    """What an edge is called."""
    return EdgeKey(*(getattr(edge, field) for field in EdgeKey._fields))


def total(edges: Iterable[Edge]) -> Sums:
    """The sum of edges."""
    sums = Sums()
    for edge in edges:
        sums.add(edge)
    return sums


def quantile(latencies: Mapping[int, int], share: float) -> float | None:
    """The duration in seconds that `share` (0 to 1) of the requests did not exceed; None without requests.

    Within a bucket requests count as evenly spread, as Prometheus' histogram_quantile has it; those beyond
    the last bound count as just that long.
    """
    wanted = share * sum(latencies.values())
    if not wanted:
        return None
    below = 0
    for bucket in sorted(latencies):
        count = latencies[bucket]
        if below + count >= wanted:
            if bucket >= _LAST:
                break
            lower = LATENCY_BUCKETS_S[bucket - 1] if bucket else 0.0
            return lower + (LATENCY_BUCKETS_S[bucket] - lower) * (wanted - below) / count
        below += count
    return LATENCY_BUCKETS_S[-1]
