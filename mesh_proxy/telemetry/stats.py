"""The metric families of a sidecar, and helpers that resolve their labels once per target."""

from __future__ import annotations

from bisect import bisect_left

from mesh_proxy.telemetry.registry import Counter, Registry

DURATION_BUCKETS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
MAX_CACHED = 4_096


class ProxyStats:
    """Declares every family; one object per process, passed to whoever counts."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        counter = registry.counter
        self.requests = counter(
            "triomesh_requests_total",
            "Requests that ended, by response code and error flag.",
            ("direction", "source", "destination", "destination_workload", "code", "flag", "mtls"),
        )
        self.request_duration = registry.histogram(
            "triomesh_request_duration_seconds",
            "Time from the request's head to the end of its response.",
            ("direction", "destination", "destination_workload"),
            DURATION_BUCKETS_S,
        )
        self.tcp_opened = counter(
            "triomesh_tcp_connections_opened_total",
            "Opaque connections that were accepted.",
            ("direction", "destination", "flag", "mtls"),
        )
        self.tcp_closed = counter(
            "triomesh_tcp_connections_closed_total",
            "Opaque connections that ended, by error flag.",
            ("direction", "destination", "flag", "mtls"),
        )
        self.tcp_bytes = counter(
            "triomesh_tcp_bytes_total",
            "Bytes of opaque connections; sent goes to the destination, received comes from it.",
            ("direction", "destination", "way"),
        )
        self.connections = registry.gauge(
            "triomesh_connections", "Downstream connections that are open.", ("direction",)
        )
        self.refused = counter(
            "triomesh_refused_total", "Connections refused before any routing.", ("direction", "reason")
        )
        self.handshakes = counter(
            "triomesh_handshakes_total", "TLS handshakes between sidecars, by result.", ("side", "result")
        )
        self.handshake_duration = registry.histogram(
            "triomesh_handshake_duration_seconds",
            "Time of a successful TLS handshake, waiting for a thread included.",
            ("side",),
            DURATION_BUCKETS_S,
        )
        self.retries = counter(
            "triomesh_retries_total",
            "Failed attempts that were tried again, or the reason why not.",
            ("destination", "result"),
        )
        self.config_updates = counter(
            "triomesh_config_updates_total", "Configurations received, by result.", ("result",)
        )
        self.discovery_connected = registry.gauge(
            "triomesh_discovery_connected", "1 while the control plane's stream is up."
        ).child()
        self.discovery_subscriptions = registry.gauge(
            "triomesh_discovery_subscriptions", "Keys that this sidecar has asked the control plane for."
        ).child()
        self.certificate_expiry = registry.gauge(
            "triomesh_certificate_expiry_timestamp_seconds", "End of the certificate in use, as Unix time."
        ).child()
        self.certificate_renewals = counter(
            "triomesh_certificate_renewals_total",
            "Attempts to get a new certificate, by result.",
            ("result",),
        )
        self.access_log_dropped = counter(
            "triomesh_access_log_dropped_total", "Log lines dropped because the output was not read in time."
        ).child()
        self.detect = counter(
            "triomesh_detect_total",
            "Connections whose protocol was looked for, by verdict.",
            ("direction", "verdict"),
        )
        self.upstream_connections = counter(
            "triomesh_upstream_connections_opened_total",
            "Connections to endpoints that were opened for HTTP requests.",
            ("destination",),
        )
        self._requests: dict[tuple[str, str, str, bool, str], RequestStats] = {}
        self._tcp: dict[tuple[str, str, bool], TcpStats] = {}

    def request_stats(
        self, direction: str, destination: str, workload: str, mtls: bool, source: str = ""
    ) -> RequestStats:
        """The shared helper for these labels; ask when a route, endpoint or peer is new, then keep it."""
        key = (direction, destination, workload, mtls, source)
        found = self._requests.get(key)
        if found is None:
            if len(self._requests) >= MAX_CACHED:
                self._requests.clear()
            found = self._requests[key] = RequestStats(self, direction, destination, workload, mtls, source)
        return found

    def tcp_stats(self, direction: str, destination: str, mtls: bool) -> TcpStats:
        """The shared helper for opaque connections with these labels."""
        key = (direction, destination, mtls)
        found = self._tcp.get(key)
        if found is None:
            if len(self._tcp) >= MAX_CACHED:
                self._tcp.clear()
            found = self._tcp[key] = TcpStats(self, direction, destination, mtls)
        return found

    def forget_destination(self, destination: str) -> int:
        """Drop every series of a destination that left the configuration; returns how many.

        Helpers that were handed out before count in vain from here on.
        """
        self._requests = {key: value for key, value in self._requests.items() if key[1] != destination}
        self._tcp = {key: value for key, value in self._tcp.items() if key[1] != destination}
        labels = {"destination": destination}
        return sum(
            (
                self.requests.forget(labels),
                self.request_duration.forget(labels),
                self.tcp_opened.forget(labels),
                self.tcp_closed.forget(labels),
                self.tcp_bytes.forget(labels),
                self.retries.forget(labels),
                self.upstream_connections.forget(labels),
            )
        )


class RequestStats:
    """Counts requests of one (direction, source, destination, workload, mTLS)."""

    __slots__ = ("_counts", "_labels", "_mtls", "_stats", "_sums", "_totals")

    def __init__(
        self, stats: ProxyStats, direction: str, destination: str, workload: str, mtls: bool, source: str = ""
    ) -> None:
        self._stats = stats
        self._labels = (direction, source, destination, workload)
        self._mtls = truth(mtls)
        self._totals: dict[tuple[int, str], Counter] = {}
        self._sums = stats.request_duration.child(direction, destination, workload)
        self._counts = self._sums.counts

    def done(self, status: int, flag: str, duration_s: float) -> None:
        """Count one request at its end; `flag` is empty when the mesh has nothing to say about it."""
        total = self._totals.get((status, flag))
        if total is None:
            total = self._resolve(status, flag)
        total.value += 1
        # Histogram.observe, without the call.
        self._counts[bisect_left(DURATION_BUCKETS_S, duration_s)] += 1
        self._sums.sum += duration_s

    def _resolve(self, status: int, flag: str) -> Counter:
        code = str(status) if status == 0 or 100 <= status <= 599 else "other"
        total = self._stats.requests.child(*self._labels, code, str(flag), self._mtls)
        self._totals[status, flag] = total
        return total


class TcpStats:
    """Counts opaque connections of one (direction, destination, mTLS); add bytes to `sent` and `received`."""

    __slots__ = ("_closed", "_labels", "_mtls", "_opened", "received", "sent")

    def __init__(self, stats: ProxyStats, direction: str, destination: str, mtls: bool) -> None:
        self._labels = (direction, destination)
        self._mtls = truth(mtls)
        self._opened = stats.tcp_opened.child(direction, destination, "", self._mtls)
        self._closed = stats.tcp_closed
        self.sent = stats.tcp_bytes.child(direction, destination, "sent")
        self.received = stats.tcp_bytes.child(direction, destination, "received")

    def opened(self) -> None:
        """Count a connection that begins."""
        self._opened.value += 1

    def closed(self, flag: str) -> None:
        """Count a connection that ended; `flag` is empty after a clean end."""
        self._closed.child(*self._labels, str(flag), self._mtls).value += 1


def truth(value: bool) -> str:
    """A boolean as a label value."""
    return "true" if value else "false"
