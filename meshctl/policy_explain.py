"""What holds for a Service, field by field: the value, who says so, and which side enforces it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from mesh_api import traffic
from mesh_api.policy_types import Retries, Route, TrafficPolicy, Usage
from mesh_api.policy_values import duration_text
from mesh_api.sidecar import MtlsMode
from mesh_control.compile.native import layers, usage_of
from mesh_control.index.levels import Layer, Levels
from meshctl import policy_text as text

CALLER = "caller"
RECEIVER = "receiver"
DEFAULT = "default"


class Row(NamedTuple):
    """One effective field."""

    scope: str
    """destination, subset NAME, route NAME, or the workload."""
    field: str
    value: str
    source: str
    side: str


_T, _B, _O, _R = traffic.Timeouts(), traffic.Breaker(), traffic.Outliers(), traffic.Retries()
DEFAULTS: dict[str, str] = {
    "connection.httpVersion": "as declared",
    "timeouts.connect": duration_text(_T.connect_s),
    "timeouts.request": "off",
    "timeouts.streamIdle": "off",
    "timeouts.poolIdle": duration_text(_T.pool_idle_s),
    "timeouts.tcpIdle": duration_text(_T.tcp_idle_s),
    "loadBalancer.algorithm": traffic.Settings().algorithm.value,
    "loadBalancer.warmup": "off",
    "circuitBreaker.maxConnections": "no limit",
    "circuitBreaker.maxPendingRequests": str(_B.max_pending),
    "circuitBreaker.maxRequests": "no limit",
    "circuitBreaker.maxRequestsPerConnection": str(_B.max_requests_per_connection),
    "outliers.consecutive5xx": str(_O.consecutive_5xx),
    "outliers.consecutiveGatewayErrors": str(_O.consecutive_gateway),
    "outliers.consecutiveLocalFailures": str(_O.consecutive_local),
    "outliers.interval": duration_text(_O.interval_s),
    "outliers.baseEjection": duration_text(_O.base_ejection_s),
    "outliers.maxEjectionPercent": f"{_O.max_ejection_percent:g}",
    "outliers.minHealthPercent": f"{_O.min_health_percent:g}",
    "retries.attempts": str(_R.attempts),
    "retries.retryOn": "the safe set",
    "retries.perTryTimeout": "off",
    "retries.backoff.base": duration_text(_R.backoff.base_s),
    "retries.backoff.max": duration_text(_R.backoff.max_s),
    "retries.methods": "idempotent methods",
    "retries.honorRetryAfter": "false",
    "retries.budget.percent": f"{traffic.Budget().percent:g}",
    "retries.budget.minPerSecond": str(traffic.Budget().min_per_s),
    "tls.mode": "mesh",
}
"""What holds for a destination where nobody says anything."""

Values = dict[str, tuple[str, str]]
"""Value and source, by path."""


def explained(policy: TrafficPolicy | None, levels: Levels, namespace: str) -> list[Row]:
    """Every effective field of a destination; of subsets and routes what is their own."""
    below, above = layers(policy, levels, namespace)
    values: Values = {path: (value, DEFAULT) for path, value in DEFAULTS.items()}
    values |= _said(below)
    own = below[-1].source if policy is not None else ""
    if policy is not None:
        mode = policy.spec.tls.mode.value
        values["tls.mode"] = (mode, own) if mode != DEFAULTS["tls.mode"] else values["tls.mode"]
    values |= _said(above)
    rows = [Row("destination", path, *found, CALLER) for path, found in values.items()]
    if policy is not None:
        stronger = _said(above)
        for name, subset in policy.spec.subsets.items():
            scope = f"subset {name}"
            rows.append(Row(scope, "labels", text.labels(subset.labels), own, CALLER))
            mine = _said([Layer(own, usage_of(subset), Retries())])
            rows += [Row(scope, path, *stronger.get(path, found), CALLER) for path, found in mine.items()]
        for i, route in enumerate(policy.spec.routes):
            rows += _of_route(f"route {route.name or f'#{i}'}", route, own, stronger)
    return rows


def _said(given: Sequence[Layer]) -> Values:
    found: Values = {}
    for layer in given:
        for field in msgspec.structs.fields(Usage):
            part = getattr(layer.usage, field.name)
            found |= {path: (value, layer.source) for path, value in text.said(part, field.encode_name)}
        found |= {path: (value, layer.source) for path, value in text.said(layer.retries, "retries")}
    return found


def _of_route(scope: str, route: Route, own: str, stronger: Values) -> Iterator[Row]:
    asked = " or ".join(map(text.match, route.match)) or "every request"
    yield Row(scope, "match", asked, own, CALLER)
    yield Row(scope, "to", text.outcome(route), own, CALLER)
    mine: Values = {}
    if route.timeout is not None:
        mine["timeout"] = stronger.get("timeouts.request", (text.shown(route.timeout), own))
    for path, value in text.said(route.retries, "retries"):
        mine[path] = stronger.get(path, (value, own))
    for name, part in (("rewrite", route.rewrite), ("headers", route.headers), ("fault", route.fault)):
        mine |= {path: (value, own) for path, value in text.said(part, name)}
    for path, found in mine.items():
        yield Row(scope, path, *found, CALLER)


def inbound(levels: Levels, namespace: str, workloads: Iterable[tuple[str, str]]) -> list[Row]:
    """What the pods behind a Service accept, by kind and name of their workload."""
    rows = []
    for kind, name in workloads:
        settings = levels.of_workload(namespace, kind, name)
        scope = f"{kind.lower()} {name}"
        said = levels.said(namespace, kind, name)
        by = [DEFAULT, *(source for source, part in said if part.mtls.mode is not None)]
        rows.append(Row(scope, "mtls.mode", settings.mtls.value, by[-1], RECEIVER))
        for port, mode in settings.port_mtls.items():
            by = [source for source, part in said if port in part.mtls.ports]
            rows.append(Row(scope, f"mtls.ports.{port}", mode.value, by[-1], RECEIVER))
        by = [DEFAULT, *(source for source, part in said if part.path_normalization is not None)]
        rows.append(Row(scope, "pathNormalization", settings.path_normalization.value, by[-1], RECEIVER))
    return rows


def notes(rows: Iterable[Row]) -> list[str]:
    """What to know about callers that have no sidecar."""
    found = ["side caller: the sidecar of the pod that calls enforces it; it cannot act for callers outside"]
    if any(row.side == RECEIVER and row.value == MtlsMode.STRICT.value for row in rows):
        found.append("mtls STRICT: callers outside the mesh are refused")
    return found
