"""The policies of the case `http1-1k-c32-policy`, for ours, Envoy and HAProxy alike.

Two routes with matches that the bench's requests do not take, and one for everything that splits 90/10 over
two subsets; time-outs; two retries on 5xx and failed connections; limits that are not reached; ejection of an
endpoint after five errors. Both subsets are the one server there is. HAProxy is given no ejection: it wants
active health checks for that.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from mesh_api.sidecar import Destination
from mesh_api.traffic import (
    Breaker,
    Match,
    Outliers,
    PathMatch,
    Retries,
    RetryOn,
    Route,
    Settings,
    Subset,
    Timeouts,
    ValueMatch,
    WeightedTarget,
)

_ATTEMPTS, _ERRORS, _LIMIT = 2, 5, 1000
_REQUEST_S, _IDLE_S = 5, 30
_INTERVAL_S, _EJECTION_S = 10, 30
_WEIGHTS = {"v1": 90, "v2": 10}
_EXACT, _PREFIX, _HEADER, _VALUE = "/admin", "/api", "x-user", "tester"


def with_policy(dest: Destination) -> Destination:
    """A destination with these policies, and its one endpoint in both subsets."""
    v1 = (WeightedTarget(subset="v1"),)
    header = ValueMatch(name=_HEADER, exact=_VALUE)
    (endpoint,) = dest.endpoints
    return replace(
        dest,
        endpoints=tuple(replace(endpoint, workload=v, labels={"version": v}) for v in _WEIGHTS),
        subsets={version: Subset(labels={"version": version}) for version in _WEIGHTS},
        routes=(
            Route(match=(Match(path=PathMatch(exact=_EXACT)),), to=v1),
            Route(match=(Match(path=PathMatch(prefix=_PREFIX), headers=(header,)),), to=v1),
            Route(to=tuple(WeightedTarget(subset=v, weight=weight) for v, weight in _WEIGHTS.items())),
        ),
        settings=Settings(
            timeouts=Timeouts(request_s=_REQUEST_S, stream_idle_s=_IDLE_S),
            breaker=Breaker(max_connections=_LIMIT, max_pending=_LIMIT, max_requests=_LIMIT),
            outliers=Outliers(consecutive_5xx=_ERRORS, interval_s=_INTERVAL_S, base_ejection_s=_EJECTION_S),
        ),
        retries=Retries(attempts=_ATTEMPTS, on=(RetryOn.SERVER_ERROR, RetryOn.CONNECT_FAILURE)),
    )


def envoy_routes() -> list[dict[str, Any]]:
    """The same routes for Envoy, to the clusters of `envoy_clusters`."""
    common = {
        "timeout": f"{_REQUEST_S}s",
        "idle_timeout": f"{_IDLE_S}s",
        "retry_policy": {"retry_on": "5xx,connect-failure", "num_retries": _ATTEMPTS},
    }
    header = {"name": _HEADER, "string_match": {"exact": _VALUE}}
    split = [{"name": f"next-{version}", "weight": weight} for version, weight in _WEIGHTS.items()]
    v1 = {"cluster": "next-v1", **common}
    return [
        {"match": {"path": _EXACT}, "route": v1},
        {"match": {"path_separated_prefix": _PREFIX, "headers": [header]}, "route": v1},
        {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": split}, **common}},
    ]


def envoy_clusters(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    """A cluster for each subset, with limits and ejection."""
    limits = {"max_connections": _LIMIT, "max_pending_requests": _LIMIT, "max_requests": _LIMIT}
    policy = {
        "circuit_breakers": {"thresholds": [limits]},
        "outlier_detection": {
            "consecutive_5xx": _ERRORS,
            "interval": f"{_INTERVAL_S}s",
            "base_ejection_time": f"{_EJECTION_S}s",
        },
    }
    names = [f"next-{version}" for version in _WEIGHTS]
    return [
        {
            **cluster,
            **policy,
            "name": name,
            "load_assignment": {**cluster["load_assignment"], "cluster_name": name},
        }
        for name in names
    ]


HAPROXY_DEFAULTS = f"""\
timeout server {_REQUEST_S}s
  retries {_ATTEMPTS}
  retry-on conn-failure empty-response 500 502 503 504"""

HAPROXY_LIMIT = f"maxconn {_LIMIT}"

HAPROXY_ROUTES = f"""\
use_backend out if {{ path {_EXACT} }}
  use_backend out if {{ path_beg {_PREFIX}/ }} {{ req.hdr({_HEADER}) {_VALUE} }}
  use_backend out-v2 if {{ rand(100) lt {_WEIGHTS["v2"]} }}"""
