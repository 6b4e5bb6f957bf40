"""What a sidecar knows of its edges, for the reports on the discovery stream.

Theory of operation: whoever counts (`stats.RequestStats`, `stats.TcpStats`) adds to its own slots. `settle`
moves them to the Prometheus series and to the edge's sums; it happens when metrics are read and before a
report, never per request. The book holds the edges that have counted something. It is bounded: a new edge
takes the place of the one that has been idle for longest; where none is idle, the new one is left out of the
reports, and counted.
"""

from __future__ import annotations

import enum
from itertools import islice

from mesh_api.discovery import MAX_EDGES, Report
from mesh_api.edge_sums import EdgeKey, Sums
from mesh_api.stats import LATENCY_BUCKETS_S

MAX_IDLE_REPORTS = 60
"""An edge that has counted nothing for so many reports is let go."""

LOOKED_AT = 16
"""Edges that a new one looks at for room."""


class Membership(enum.Enum):
    """Whether an edge is in the book."""

    OUT = "out"
    IN = "in"
    REFUSED = "refused"
    """Out, and counted as such since the last report."""


class Counting:
    """One edge that counts. Subclasses say how by `settle`, `now_open` and `left_out`."""

    __slots__ = ("book", "idle", "key", "membership", "muted", "sums")

    def __init__(self, book: EdgeBook, key: EdgeKey) -> None:
        self.book = book
        self.key = key
        self.membership = Membership.OUT
        self.idle = 0
        """Reports since it last counted."""
        self.sums: Sums | None = None
        """None: nothing since the last report."""
        self.muted = False
        """The metrics do not want it any more."""

    def settle(self) -> None:
        """Move what was counted to the metrics and to `sums`."""
        raise NotImplementedError

    @property
    def now_open(self) -> int:
        """Opaque connections that are open."""
        return 0

    def left_out(self) -> None:
        """The book has let this edge go; it enters again when it counts again."""

    def add_to(self) -> Sums:
        """The sums, to be added to."""
        if self.sums is None:
            self.sums = Sums()
        return self.sums


class EdgeBook:
    """The edges that are reported, in the order in which they last counted."""

    def __init__(self, max_edges: int = MAX_EDGES) -> None:
        self._max = max_edges
        self._edges: dict[Counting, None] = {}
        self._refused: dict[Counting, None] = {}
        self._dropped = 0
        self.dropped = 0
        """Edges that found no room, over all reports."""

    def __len__(self) -> int:
        return len(self._edges)

    def enter(self, edge: Counting) -> bool:
        """Take an edge in that begins to count; whether there was room."""
        if edge.membership is Membership.IN:
            return True
        if len(self._edges) >= self._max and not self._make_room():
            if edge.membership is Membership.OUT:
                self._refuse(edge)
            return False
        self._refused.pop(edge, None)
        edge.membership = Membership.IN
        edge.idle = 0
        self._edges[edge] = None
        return True

    def settle(self) -> None:
        """Bring the metrics up to date."""
        for edge in self._edges:
            edge.settle()
        self._release()

    def report(self, span_s: float) -> Report:
        """What was counted in the last `span_s` seconds, which is not reported again."""
        self.settle()
        found = []
        for edge in list(self._edges):
            sums, now_open = edge.sums, edge.now_open
            if sums is None and not now_open:
                edge.idle += 1
                if edge.idle >= MAX_IDLE_REPORTS:
                    self._let_go(edge)
                continue
            sums = sums or Sums()
            sums.open = now_open
            found.append(sums.edge(edge.key))
            edge.sums = None
            edge.idle = 0
            del self._edges[edge]
            self._edges[edge] = None
        dropped, self._dropped = self._dropped, 0
        return Report(span_s, tuple(found), dropped)

    def _refuse(self, edge: Counting) -> None:
        if len(self._refused) >= self._max:
            self._release()
        edge.membership = Membership.REFUSED
        self._dropped += 1
        self.dropped += 1
        self._refused[edge] = None

    def _release(self) -> None:
        """Count what was refused for the metrics; with its next request it looks for room again."""
        for edge in self._refused:
            edge.settle()
            edge.sums = None
            edge.membership = Membership.OUT
            edge.left_out()
        self._refused.clear()

    def _make_room(self) -> bool:
        """Let the edge go that has been idle for longest; False if none was found."""
        for edge in list(islice(self._edges, LOOKED_AT)):
            if not edge.idle:
                break  # nor is any that follows
            edge.settle()
            if edge.sums is None and not edge.now_open:
                self._let_go(edge)
                return True
        return False

    def _let_go(self, edge: Counting) -> None:
        del self._edges[edge]
        edge.membership = Membership.OUT
        edge.left_out()


def bucket_map(bounds: tuple[float, ...]) -> tuple[int, ...]:
    """For each bucket of LATENCY_BUCKETS_S, that of `bounds` which holds it.

    Raises:
        ValueError: a bound is none of LATENCY_BUCKETS_S.
    """
    if not set(bounds) <= set(LATENCY_BUCKETS_S):
        raise ValueError(f"expected bounds among {LATENCY_BUCKETS_S}")
    return tuple(sum(bound < upper for bound in bounds) for upper in (*LATENCY_BUCKETS_S, float("inf")))
