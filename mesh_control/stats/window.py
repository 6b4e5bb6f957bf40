"""The last minutes of the edges that sidecars report, as much of it as fits.

Theory of operation: each report is added to the present bucket of two rings, one of the last minute in
steps of 5 s, one of the last ten minutes in steps of a minute. Buckets are counted from the Unix epoch, so
that those of several replicas fit together. A bucket holds one cell per edge that was reported in it, the
pods of a workload added up, and how much of its time the reports of each pod cover: rates are by that time,
not by the clock, so that neither a new workload nor a sidecar that reports a little late distorts them.
Cells are bounded: the edge that has been silent for longest goes first, and no workload crowds out the rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

from mesh_api.discovery import MAX_EDGES, REPORT_S, Report
from mesh_api.edge_sums import EdgeKey, Sums, key_of
from mesh_api.stats import Edge, OwnEdge, Owner, WindowPart
from mesh_control.stats.steps import STEP, Steps

FINE_S, COARSE_S = 5, 60
FINE_WINDOW_S, MAX_WINDOW_S = 60, 600
MAX_CELLS = 100_000
"""Some 70 MB."""
MAX_SHARE = 0.25
"""Of the cells: in a full window a workload that holds as many makes room by its own edges."""
MAX_OPEN = 20_000
"""Numbers of open connections, by pod and edge."""
MAX_KEY_CHARS = 1024
"""Of all names of an edge together."""
MAX_SPAN_S = 4 * REPORT_S
"""A report about more than that is mostly about what was before; it is left out."""
GONE_S = 3 * REPORT_S
"""A sidecar that has not reported for so long is not counted any more."""


PodName = tuple[str, str]
"""Namespace and name: one sidecar."""


class Workload(NamedTuple):
    """Whose sidecars counted."""

    namespace: str
    name: str


class RowKey(NamedTuple):
    """One edge of one workload."""

    owner: Workload
    edge: EdgeKey


class _Bucket:
    __slots__ = ("cells", "covered", "number", "reported")

    def __init__(self, number: int) -> None:
        self.number = number
        self.cells: dict[RowKey, Sums] = {}
        self.covered: dict[tuple[Workload, PodName], float] = {}
        """Seconds of this bucket that the reports of a pod are about."""
        self.reported: dict[Workload, float] = {}
        """Seconds that the reports in this bucket are about."""


class _Ring:
    """Buckets of one length without gaps, the newest last."""

    def __init__(self, bucket_s: int, window_s: int) -> None:
        self.bucket_s = bucket_s
        self.size = window_s // bucket_s + 1
        self.buckets: list[_Bucket] = []

    def advance(self, now: float) -> list[_Bucket]:
        """Make the newest bucket that of `now`; returns those that fell out.

        A clock that was set back stays in the newest bucket, or (by more than the ring) begins anew.
        """
        number = int(now // self.bucket_s)
        if not self.buckets or abs(number - self.buckets[-1].number) > self.size:
            gone, self.buckets = self.buckets, [_Bucket(number)]
            return gone
        while self.buckets[-1].number < number:
            self.buckets.append(_Bucket(self.buckets[-1].number + 1))
        gone, self.buckets = self.buckets[: -self.size], self.buckets[-self.size :]
        return gone

    def cover(self, owner: Workload, pod: PodName, since: float, until: float) -> None:
        """Note what a report is about."""
        newest = self.buckets[-1]
        newest.reported[owner] = newest.reported.get(owner, 0.0) + until - since
        for number, overlap in _overlaps(self.bucket_s, since, until):
            place = number - newest.number - 1
            if -len(self.buckets) <= place < 0:
                covered = self.buckets[place].covered
                covered[owner, pod] = covered.get((owner, pod), 0.0) + overlap

    def last(self, window_s: float, now: float) -> list[_Bucket]:
        """The buckets of a window that ends now, the newest (which is not over yet) not counted."""
        oldest = int((now - window_s) // self.bucket_s)
        return [bucket for bucket in self.buckets if bucket.number >= oldest]


class _Sidecar:
    __slots__ = ("open", "owner", "seen")

    def __init__(self, owner: Workload, seen: float) -> None:
        self.owner = owner
        self.seen = seen
        self.open: dict[RowKey, int] = {}


class _Held:
    """What one workload holds of the window; rows as in `Window._rows`."""

    __slots__ = ("cells", "rows")

    def __init__(self) -> None:
        self.cells = 0
        self.rows: OrderedDict[RowKey, None] = OrderedDict()


class Window:
    """What one replica knows of the last minutes. Times are Unix times."""

    def __init__(self, max_cells: int = MAX_CELLS, max_open: int = MAX_OPEN) -> None:
        self._rings = (_Ring(FINE_S, FINE_WINDOW_S), _Ring(COARSE_S, MAX_WINDOW_S))
        self._rows: OrderedDict[RowKey, int] = OrderedDict()
        """How many cells each row has; the one that has been silent for longest is the first."""
        self._held: dict[Workload, _Held] = {}
        self._sidecars: dict[PodName, _Sidecar] = {}
        self._max_cells = max_cells
        self._max_open = max_open
        self._open = 0
        self.cells = 0
        self.dropped = 0
        """Edges that found no room, here or in the sidecars."""
        self.evicted = 0
        """Rows that made room for others."""
        self.reports = 0

    @property
    def rows(self) -> int:
        """Edges that are known."""
        return len(self._rows)

    @property
    def sidecars(self) -> int:
        """Sidecars that have reported and are still connected."""
        return len(self._sidecars)

    def add(self, pod: PodName, workload: str, report: Report, now: float) -> None:
        """Take the report of a sidecar in."""
        self.reports += 1
        self.dropped += min(report.dropped, MAX_EDGES)
        owner = Workload(pod[0], workload)
        for ring in self._rings:
            for old in ring.advance(now):
                self._forget(old)
        edges = self._sound(owner, report)
        self._see(pod, owner, edges, now)
        if not 0 < report.span_s <= MAX_SPAN_S:
            return
        for ring in self._rings:
            ring.cover(owner, pod, now - report.span_s, now)
        for key, edge in edges:
            for ring in self._rings:
                self._cell(ring.buckets[-1], key).add(edge)

    def leave(self, pod: PodName) -> None:
        """A sidecar has gone, and its open connections with it; what it counted stays for its time."""
        sidecar = self._sidecars.pop(pod, None)
        if sidecar is not None:
            self._open -= len(sidecar.open)

    def keep(self, present: Collection[PodName]) -> None:
        """Only these sidecars are connected."""
        for pod in [pod for pod in self._sidecars if pod not in present]:
            self.leave(pod)

    def _sound(self, owner: Workload, report: Report) -> Collection[tuple[RowKey, Edge]]:
        """The edges by their keys, without those whose names nobody could have."""
        found = []
        for edge in report.edges:
            key = RowKey(owner, key_of(edge))
            if key in self._rows or _nameable(key.edge):
                found.append((key, edge))
            else:
                self.dropped += 1
        return found

    def _see(self, pod: PodName, owner: Workload, edges: Collection[tuple[RowKey, Edge]], now: float) -> None:
        """Keep what a sidecar has open, and forget those that have not been heard of."""
        self.leave(pod)
        while self._sidecars:  # in the order in which they were heard
            silent, each = next(iter(self._sidecars.items()))
            if now - each.seen <= GONE_S:
                break
            self.leave(silent)
        sidecar = self._sidecars[pod] = _Sidecar(owner, now)
        for key, edge in edges:
            if not edge.open:
                continue
            if self._open >= self._max_open:
                self.dropped += 1
                continue
            self._open += key not in sidecar.open
            sidecar.open[key] = sidecar.open.get(key, 0) + edge.open

    def part(self, window_s: float, now: float) -> Steps[WindowPart]:
        """Everything of the last `window_s` seconds, at most MAX_WINDOW_S, in steps."""
        ring = self._rings[window_s > FINE_WINDOW_S]
        buckets = ring.last(window_s, now)
        rows: dict[RowKey, Sums] = {}
        for bucket in buckets:
            for i, (key, cell) in enumerate(list(bucket.cells.items())):
                rows.setdefault(key, Sums()).add(cell)
                if i % STEP == STEP - 1:
                    yield
        for sums in rows.values():
            sums.open = 0  # a value, not a difference: the sidecars that are here have it
        here = {pod: sidecar for pod, sidecar in self._sidecars.items() if now - sidecar.seen <= GONE_S}
        for sidecar in here.values():
            for key, count in sidecar.open.items():
                rows.setdefault(key, Sums()).open += count
        edges = []
        for key, sums in rows.items():
            edges.append(OwnEdge(*key.owner, sums.edge(key.edge)))
            if len(edges) % STEP == 0:
                yield
        owners = tuple(_owners(ring.bucket_s, buckets, here, now))
        return WindowPart(ring.bucket_s, int(now // ring.bucket_s), owners, tuple(edges), self.dropped)

    def _cell(self, bucket: _Bucket, key: RowKey) -> Sums:
        cell = bucket.cells.get(key)
        if cell is None:
            while self.cells >= self._max_cells and self._evict(key):
                pass
            cell = bucket.cells[key] = Sums()
            self.cells += 1
            self._rows[key] = self._rows.get(key, 0) + 1
            held = self._held.setdefault(key.owner, _Held())
            held.cells += 1
            held.rows[key] = None
        self._rows.move_to_end(key)
        self._held[key.owner].rows.move_to_end(key)
        return cell

    def _evict(self, spared: RowKey) -> bool:
        own = self._held.get(spared.owner)
        greedy = own is not None and own.cells >= self._max_cells * MAX_SHARE
        first = own.rows if own is not None and greedy else ()
        victim = next((key for key in chain(first, self._rows) if key != spared), None)
        if victim is None:
            return False
        for ring in self._rings:
            for bucket in ring.buckets:
                if bucket.cells.pop(victim, None) is not None:
                    self._let_go(victim)
        self.evicted += 1
        self.dropped += 1
        return True

    def _forget(self, bucket: _Bucket) -> None:
        for key in bucket.cells:
            self._let_go(key)

    def _let_go(self, key: RowKey) -> None:
        """One cell of a row is no more."""
        held = self._held[key.owner]
        self.cells -= 1
        held.cells -= 1
        self._rows[key] -= 1
        if not self._rows[key]:
            del self._rows[key], held.rows[key]
        if not held.rows:
            del self._held[key.owner]


def _nameable(edge: EdgeKey) -> bool:
    """Whether the names could be of anything, and can be shown on a terminal."""
    names = "".join(edge[2:])
    return len(names) <= MAX_KEY_CHARS and names.isascii() and names.isprintable()


def _owners(
    bucket_s: int, buckets: Collection[_Bucket], here: Mapping[PodName, _Sidecar], now: float
) -> Iterator[Owner]:
    """How much time of the buckets belongs to each workload: that of its reports, and of those to come."""
    covered: dict[Workload, dict[PodName, dict[int, float]]] = {}
    reported: dict[Workload, float] = {}
    for bucket in buckets:
        for (owner, pod), span in bucket.covered.items():
            covered.setdefault(owner, {}).setdefault(pod, {})[bucket.number] = span
        for owner, span in bucket.reported.items():
            reported[owner] = reported.get(owner, 0.0) + span
    pods: dict[Workload, int] = {}
    for pod, sidecar in here.items():
        pods[sidecar.owner] = pods.get(sidecar.owner, 0) + 1
        spans = covered.setdefault(sidecar.owner, {}).setdefault(pod, {})
        for number, overlap in _overlaps(bucket_s, sidecar.seen, now):
            spans[number] = spans.get(number, 0.0) + overlap
    newest = int(now // bucket_s)
    for owner, of in covered.items():
        size = newest - min((number for spans in of.values() for number in spans), default=newest) + 1
        by_age = [max(spans.get(newest - age, 0.0) for spans in of.values()) for age in range(size)]
        yield Owner(
            *owner,
            pods.get(owner, 0),
            tuple(round(span, 3) for span in by_age),
            round(sum(span for spans in of.values() for span in spans.values()), 3),
            round(reported.get(owner, 0.0), 3),
        )


def _overlaps(bucket_s: int, since: float, until: float) -> Iterator[tuple[int, float]]:
    """The buckets between two times, and how much of each lies between them."""
    for number in range(int(since // bucket_s), int(until // bucket_s) + 1):
        overlap = min(until, (number + 1) * bucket_s) - max(since, number * bucket_s)
        if overlap > 0:
            yield number, overlap
