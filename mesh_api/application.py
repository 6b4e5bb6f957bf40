"""What the injector tells a sidecar about its application: checks and metrics that go through the sidecar.

Both are JSON in variables of the sidecar's container, TRIOMESH_PROBES (by path) and TRIOMESH_APP_METRICS.
They hold the originals as they were written, so that they can be put back.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

PROBES_VARIABLE = "TRIOMESH_PROBES"
METRICS_VARIABLE = "TRIOMESH_APP_METRICS"

PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class AppCheck(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A probe or lifecycle hook of the application."""

    handler: dict[str, dict[str, Any]]
    """One of Kubernetes' `httpGet`, `tcpSocket` and `grpc`, as it was written."""
    port: PortNumber
    """The handler's port, which may be written as a name."""
    timeout_seconds: Annotated[int, msgspec.Meta(ge=1)]


class MetricsTarget(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Where the application shows its metrics, on the pod's own address."""

    port: PortNumber
    path: str = "/metrics"
    scheme: Literal["http", "https"] = "http"


class AppMetrics(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What the pod's annotations prometheus.io/* said."""

    annotations: dict[str, str] = {}
    """As they were, without that prefix."""
    target: MetricsTarget | None = None
