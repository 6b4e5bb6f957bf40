"""What counts, resolved once per target: helpers that whoever counts asks for, and keeps.

A helper counts for the metrics and for the edge that it belongs to (see `edges`):

    arm.stats = stats.arm(service.label, namespace, route, subset)   once, when an arm of a route is built
    stats = arm.stats[endpoint]                            per attempt; `arm.stats.none` without an endpoint
    stats.attempt(failed)                                  each attempt at its end
    stats.retried(), .overflowed(), .ejected()             where it happens
    stats.done(status, flag, duration_s, sent, received)   once a request, where its last attempt went
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol as Shape

from mesh_api.edge_sums import EdgeKey, Sums
from mesh_api.stats import LATENCY_BUCKETS_S, Direction, EdgeKind
from mesh_ops.registry import Counter, CounterFamily, Registry
from mesh_proxy.telemetry.edges import Counting, EdgeBook, bucket_map
from mesh_proxy.telemetry.families import DURATION_BUCKETS_S, Families
from mesh_proxy.wire import grpc

MAX_CACHED = 4_096
NOT_FAILED = frozenset(("", "DC", "DPE"))
"""Flags that do not make a request a failure: what the client did says nothing about who was asked."""
_BUCKETS = bucket_map(DURATION_BUCKETS_S)


class ProxyStats(Families):
    """All that a sidecar counts; one object per process, passed to whoever counts."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self.edges = EdgeBook()
        registry.before_collect(self.edges.settle)
        registry.counter(
            "triomesh_edges_dropped_total", "Edges that were left out of a report for want of room."
        ).child().set_function(lambda: self.edges.dropped)
        self._requests: dict[_Handle, RequestStats] = {}
        self._tcp: dict[_Handle, TcpStats] = {}

    def request_stats(
        self,
        direction: str,
        destination: str,
        workload: str,
        mtls: bool,
        source: str = "",
        edge: EdgeKey | None = None,
    ) -> RequestStats:
        """The shared helper for these labels; ask when a route, endpoint or peer is new, then keep it.

        Without `edge` it is the one that the labels name.
        """
        if edge is None:
            edge = _edge(EdgeKind.HTTP, direction, destination, workload, source)
        key = (edge, destination, workload, mtls, source)
        found = self._requests.get(key)
        if found is None:
            if len(self._requests) >= MAX_CACHED:
                self._requests.clear()
            labels = (direction, source, destination, workload)
            found = self._requests[key] = RequestStats(self, edge, labels, mtls)
        return found

    def tcp_stats(
        self, direction: str, destination: str, mtls: bool, source: str = "", edge: EdgeKey | None = None
    ) -> TcpStats:
        """The shared helper for opaque connections with these labels."""
        if edge is None:
            edge = _edge(EdgeKind.TCP, direction, destination, "", source)
        key = (edge, destination, "", mtls, "")
        found = self._tcp.get(key)
        if found is None:
            if len(self._tcp) >= MAX_CACHED:
                self._tcp.clear()
            found = self._tcp[key] = TcpStats(self, edge, (direction, destination), mtls)
        return found

    def arm(self, destination: str, namespace: str, route: str = "", subset: str = "") -> ArmStats:
        """What one arm of a route counts; `namespace` is that of its endpoints."""
        return ArmStats(self, destination, namespace, route, subset)

    def forget_destination(self, destination: str) -> int:
        """Drop every series of a destination that left the configuration; returns how many.

        Helpers that were handed out before count for their edges still, but for the metrics in vain.
        """
        self.edges.settle()
        for handles in (self._requests, self._tcp):
            for key in [key for key in handles if key[1] == destination]:
                handles.pop(key).muted = True
        labels = {"destination": destination}
        counters: tuple[CounterFamily, ...] = (
            *(self.requests, self.request_bytes, self.attempts, self.overflows, self.ejections, self.retries),
            *(self.tcp_opened, self.tcp_closed, self.tcp_bytes, self.tls_connections),
            self.upstream_connections,
        )
        gone = self.request_duration.forget(labels) + self.ejected.forget(labels)
        return gone + sum(family.forget(labels) for family in counters)


_Handle = tuple[EdgeKey, str, str, bool, str]


def _edge(kind: EdgeKind, direction: str, destination: str, workload: str, source: str) -> EdgeKey:
    if direction == Direction.OUTBOUND.value:
        return EdgeKey(Direction.OUTBOUND, kind, destination, workload=workload)
    return EdgeKey(Direction.INBOUND, kind, namespace=namespace_of(source), identity=source)


def namespace_of(identity: str) -> str:
    """The namespace in a SPIFFE id of ours (spiffe://DOMAIN/ns/NAMESPACE/sa/NAME); '' if there is none."""
    parts = identity.split("/")
    return parts[4] if len(parts) == 7 else ""


def is_failure(status: int, flag: str) -> bool:
    """Whether a request that ended so counts against its success rate."""
    if status >= grpc.COUNTED:
        status = grpc.as_http(status - grpc.COUNTED)
    return status >= 500 or flag not in NOT_FAILED or (not status and not flag)


class Tally:
    """Requests with one status and flag that wait to be settled."""

    __slots__ = ("failed", "total", "value")

    def __init__(self, total: Counter, failed: bool) -> None:
        self.value = 0
        self.total = total
        self.failed = failed


class RequestStats(Counting):
    """Counts requests of one edge."""

    __slots__ = (
        "_attempt_failures",
        "_attempts",
        "_durations",
        "_ejections",
        "_labels",
        "_latencies",
        "_latency_sum_s",
        "_mtls",
        "_overflows",
        "_received",
        "_retries",
        "_sent",
        "_stats",
        "_tallies",
    )

    def __init__(
        self, stats: ProxyStats, edge: EdgeKey, labels: tuple[str, str, str, str], mtls: bool
    ) -> None:
        super().__init__(stats.edges, edge)
        self._stats = stats
        self._labels = labels
        """Direction, source, destination, workload."""
        self._mtls = truth(mtls)
        self._tallies: dict[tuple[int, str], Tally] = {}
        self._latencies = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self._latency_sum_s = 0.0
        self._attempts = self._attempt_failures = self._retries = self._overflows = self._ejections = 0
        self._sent = self._received = 0
        direction, _, destination, workload = labels
        self._durations = stats.request_duration.child(direction, destination, workload)

    def done(self, status: int, flag: str, duration_s: float, sent: int = 0, received: int = 0) -> None:
        """Count one request at its end.

        Args:
            status: as the client got it; 0 for none; grpc.COUNTED and more for a gRPC status but OK.
            flag: empty when the mesh has nothing to say about it.
            duration_s: from its head to the end of its response.
            sent: bytes of the request.
            received: bytes of the response.
        """
        tally = self._tallies.get((status, flag))
        if tally is None:
            tally = self._resolve(status, flag)
        tally.value += 1
        self._latencies[bisect_left(LATENCY_BUCKETS_S, duration_s)] += 1
        self._latency_sum_s += duration_s
        self._sent += sent
        self._received += received

    def tunnelled(self, status: int, flag: str, sent: int, received: int) -> None:
        """The same for a request that became a tunnel, whose length says nothing about latency."""
        tally = self._tallies.get((status, flag)) or self._resolve(status, flag)
        tally.value += 1
        self._sent += sent
        self._received += received

    def attempt(self, failed: bool) -> None:
        """Count one attempt at an endpoint at its end; a status of 500 and above is a failure too."""
        self._attempts += 1
        if failed:
            self._attempt_failures += 1
            self.book.enter(self)

    def retried(self) -> None:
        """The attempt that was counted last is tried again."""
        self._retries += 1
        self.book.enter(self)

    def overflowed(self) -> None:
        """A circuit breaker has refused a request."""
        self._overflows += 1
        self.book.enter(self)

    def ejected(self) -> None:
        """An endpoint has been taken out of use."""
        self._ejections += 1
        self.book.enter(self)

    def settle(self) -> None:
        requests = failures = 0
        for tally in self._tallies.values():
            if tally.value:
                tally.total.value += tally.value
                requests += tally.value
                if tally.failed:
                    failures += tally.value
                tally.value = 0
        if requests:
            self._settle_requests(self.add_to(), requests, failures)
        if self._attempts or self._retries or self._overflows or self._ejections:
            self._settle_events(self.add_to())

    def left_out(self) -> None:
        self._tallies.clear()

    def _settle_requests(self, sums: Sums, requests: int, failures: int) -> None:
        sums.requests += requests
        sums.failures += failures
        durations = self._durations
        for i, count in enumerate(self._latencies):
            if count:
                durations.counts[_BUCKETS[i]] += count
                sums.took(i, count)
                self._latencies[i] = 0
        durations.sum += self._latency_sum_s
        sums.latency_sum_s += self._latency_sum_s
        self._latency_sum_s = 0.0
        sums.sent += self._sent
        sums.received += self._received
        self._add(self._stats.request_bytes, self._sent, "sent")
        self._add(self._stats.request_bytes, self._received, "received")
        self._sent = self._received = 0

    def _settle_events(self, sums: Sums) -> None:
        stats = self._stats
        _, _, destination, workload = self._labels
        sums.attempts += self._attempts
        sums.attempt_failures += self._attempt_failures
        sums.retries += self._retries
        sums.overflows += self._overflows
        sums.ejections += self._ejections
        self._add(stats.attempts, self._attempts - self._attempt_failures, "ok")
        self._add(stats.attempts, self._attempt_failures, "failed")
        if self._overflows and not self.muted:
            stats.overflows.child(destination).value += self._overflows
        if self._ejections and not self.muted:
            stats.ejections.child(destination, workload).value += self._ejections
        self._attempts = self._attempt_failures = self._retries = self._overflows = self._ejections = 0

    def _add(self, family: CounterFamily, count: int, last_label: str) -> None:
        if count and not self.muted:
            direction, _, destination, workload = self._labels
            family.child(direction, destination, workload, last_label).value += count

    def _resolve(self, status: int, flag: str) -> Tally:
        code = str(status) if status == 0 or 100 <= status <= 599 else "other"
        if grpc.COUNTED <= status <= grpc.COUNTED + 16:
            code = f"grpc-{status - grpc.COUNTED}"
        total = Counter()
        if not self.muted:
            total = self._stats.requests.child(*self._labels, code, str(flag), self._mtls)
        tally = Tally(total, is_failure(status, flag))
        # An edge without room in the book looks for it again with its next request.
        self.book.enter(self)
        self._tallies[status, flag] = tally
        return tally


class Flow(Shape):
    """Bytes of one opaque connection so far, to and from the destination: a relay."""

    to_up: int
    to_down: int


class TcpStats(Counting):
    """Counts opaque connections of one edge; their bytes are read while they go."""

    __slots__ = ("_broken", "_closed", "_flows", "_labels", "_mtls", "_opened", "_stats")

    def __init__(self, stats: ProxyStats, edge: EdgeKey, labels: tuple[str, str], mtls: bool) -> None:
        super().__init__(stats.edges, edge)
        self._stats = stats
        self._labels = labels
        """Direction, destination."""
        self._mtls = truth(mtls)
        self._opened = self._closed = self._broken = 0
        self._flows: dict[Flow, tuple[int, int]] = {}
        """The connections that are open, and which of their bytes are counted."""

    @property
    def now_open(self) -> int:
        return len(self._flows)

    def opened(self, flow: Flow) -> None:
        """Count a connection that begins."""
        self._opened += 1
        self._flows[flow] = (0, 0)
        self.book.enter(self)
        if not self.muted:
            self._stats.tcp_opened.child(*self._labels, "", self._mtls).value += 1

    def closed(self, flow: Flow, flag: str) -> None:
        """Count the end of one that was opened; `flag` is empty after a clean end."""
        before = self._flows.pop(flow)
        self._count_bytes(flow, before)
        self.failed(flag)

    def failed(self, flag: str) -> None:
        """Count one that never reached its destination."""
        self._closed += 1
        self._broken += flag not in NOT_FAILED
        self.book.enter(self)
        if not self.muted:
            self._stats.tcp_closed.child(*self._labels, str(flag), self._mtls).value += 1

    def settle(self) -> None:
        for flow, before in self._flows.items():
            if (flow.to_up, flow.to_down) != before:
                self._flows[flow] = self._count_bytes(flow, before)
        if self._opened or self._closed:
            sums = self.add_to()
            sums.opened += self._opened
            sums.closed += self._closed
            sums.broken += self._broken
            self._opened = self._closed = self._broken = 0

    def _count_bytes(self, flow: Flow, before: tuple[int, int]) -> tuple[int, int]:
        now = flow.to_up, flow.to_down
        sums = self.add_to()
        for way, more in (("sent", now[0] - before[0]), ("received", now[1] - before[1])):
            if way == "sent":
                sums.sent += more
            else:
                sums.received += more
            if more and not self.muted:
                self._stats.tcp_bytes.child(*self._labels, way).value += more
        return now


class HasIdentity(Shape):
    """Whom a connection must reach."""

    @property
    def identity(self) -> str:
        """SPIFFE id that the peer must prove; '' is plaintext."""
        ...


class Target(Shape):
    """The other side of an edge, as far as it is known: an endpoint."""

    workload: str

    @property
    def peer(self) -> HasIdentity:
        """Where it is and who must be there."""
        ...


class ArmStats(dict[Target, RequestStats]):
    """The helpers of one arm of a route by endpoint, made when an endpoint is first used.

    It holds as many endpoints as the arm has had, so it is made anew with the arm.
    """

    def __init__(self, stats: ProxyStats, destination: str, namespace: str, route: str, subset: str) -> None:
        super().__init__()
        self._stats = stats
        self._destination = destination
        self._namespace = namespace
        self._route = route
        self._subset = subset
        self.none = self._requests(EdgeKey(Direction.OUTBOUND, EdgeKind.HTTP, destination, route, subset))
        """For requests that reach no endpoint."""

    def __missing__(self, target: Target) -> RequestStats:
        found = self[target] = self._requests(self._edge(EdgeKind.HTTP, target))
        return found

    def tcp(self, target: Target | None) -> TcpStats:
        """The helper for opaque connections to an endpoint, or to none."""
        if target is None:
            edge = EdgeKey(Direction.OUTBOUND, EdgeKind.TCP, self._destination, self._route, self._subset)
        else:
            edge = self._edge(EdgeKind.TCP, target)
        return self._stats.tcp_stats(edge.direction.value, self._destination, bool(edge.identity), edge=edge)

    def _requests(self, edge: EdgeKey) -> RequestStats:
        stats, direction = self._stats, edge.direction.value
        return stats.request_stats(
            direction, self._destination, edge.workload, bool(edge.identity), edge=edge
        )

    def _edge(self, kind: EdgeKind, target: Target) -> EdgeKey:
        return EdgeKey(
            Direction.OUTBOUND,
            kind,
            self._destination,
            self._route,
            self._subset,
            self._namespace,
            target.workload,
            target.peer.identity,
        )


def truth(value: bool) -> str:
    """A boolean as a label value."""
    return "true" if value else "false"
