"""The metric families of a sidecar. docs/stats.md says what each is for."""

from __future__ import annotations

from mesh_ops.registry import Registry

DURATION_BUCKETS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
MAX_SERVER_NAMES = 200


class Families:
    """Declares every family of a sidecar."""

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
        self.tls_connections = counter(
            "triomesh_tls_connections_total",
            "TLS connections of programs, passed through as they are, by the server name they ask for.",
            ("destination", "sni"),
        )
        # The names are the programs' own choice.
        self.tls_connections.max_series = MAX_SERVER_NAMES
        self.tcp_bytes = counter(
            "triomesh_tcp_bytes_total",
            "Bytes of opaque connections; sent goes to the destination, received comes from it.",
            ("direction", "destination", "way"),
        )
        self.request_bytes = counter(
            "triomesh_request_bytes_total",
            "Bytes of requests (sent) and of responses (received) on the client's connection.",
            ("direction", "destination", "destination_workload", "way"),
        )
        self.attempts = counter(
            "triomesh_attempts_total",
            "Attempts at endpoints, retries included, by result (ok, failed).",
            ("direction", "destination", "destination_workload", "result"),
        )
        self.overflows = counter(
            "triomesh_breaker_overflows_total",
            "Requests and connections that a circuit breaker refused.",
            ("destination",),
        )
        self.ejections = counter(
            "triomesh_ejections_total",
            "Endpoints that were taken out of use because they failed.",
            ("destination", "destination_workload"),
        )
        self.ejected = registry.gauge(
            "triomesh_ejected_endpoints", "Endpoints that are out of use now.", ("destination",)
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
