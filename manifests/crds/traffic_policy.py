"""TrafficPolicy: everything that holds for one destination, in one place."""

from collections.abc import Mapping
from typing import Any

from manifests.crds.schema import (
    Schema,
    array,
    boolean,
    column,
    crd,
    described,
    duration,
    enum,
    exactly_one,
    header_name,
    integer,
    label_name,
    labels,
    mapping,
    method,
    number,
    obj,
    path,
    path_match,
    percent,
    port,
    service_reference,
    string,
    subdomain,
    value_match,
)
from manifests.crds.settings import retries_with_budget, retry_fields, timeouts


def traffic_policy(object_labels: Mapping[str, str]) -> dict[str, Any]:
    """The CustomResourceDefinition."""
    return crd(
        "TrafficPolicy",
        "trafficpolicies",
        "tp",
        "How requests to one destination are routed, balanced, retried and limited.",
        _spec(),
        [column("Service", ".spec.target.service"), column("Host", ".spec.target.host")],
        object_labels,
    )


def _spec() -> Schema:
    target = exactly_one(
        obj(
            {
                # Wider than a Service's name, so that NAME.NAMESPACE is refused with an explanation.
                "service": service_reference("A Service of this namespace."),
                "host": subdomain("A destination outside the mesh."),
            }
        ),
        "service",
        "host",
    )
    return obj(
        {
            "target": target,
            "subsets": mapping(_subset(), 32, "Endpoints of the Service by pod labels."),
            "routes": array(_route(), 1024, description="The first match wins. Without: every endpoint."),
            "connection": _connection(),
            "timeouts": timeouts(),
            "retries": retries_with_budget(),
            "loadBalancer": _load_balancer(),
            "circuitBreaker": _circuit_breaker(),
            "outliers": _outliers(),
            "tls": obj(
                {
                    "mode": enum(
                        "mesh",
                        "disable",
                        "simple",
                        "mutual",
                        description="mesh: mTLS to what is in the mesh. simple, mutual: for a host.",
                    )
                },
                "mode",
            ),
        },
        "target",
    )


def _subset() -> Schema:
    return obj(
        {
            "labels": {**labels("Labels of its pods."), "minProperties": 1},
            "connection": _connection(),
            "timeouts": timeouts(),
            "loadBalancer": _load_balancer(),
            "circuitBreaker": _circuit_breaker(),
            "outliers": _outliers(),
        },
        "labels",
        description="May override settings of the destination.",
    )


def _backend() -> dict[str, Schema]:
    return {
        "subset": label_name("Of this policy. Without: every endpoint."),
        "service": service_reference(
            "NAME or NAME.NAMESPACE (which needs a ReferenceGrant). Without: the target."
        ),
        "port": port("Without: the port that the client asked for."),
    }


def _route() -> Schema:
    weighted = obj({**_backend(), "weight": integer(0, 1_000_000, default=1)})
    route = obj(
        {
            "name": label_name(),
            "match": array(_match(), 16, description="One must match. Without: every request."),
            "to": array(weighted, 16, least=1),
            "redirect": _redirect(),
            "respond": _respond(),
            "timeout": duration("The whole request, retries included."),
            "retries": obj(retry_fields()),
            "rewrite": obj({"path": _path_rewrite(), "host": subdomain()}),
            "headers": obj({"request": _header_edits(), "response": _header_edits()}),
            "fault": _fault(),
            "mirror": array(obj({"to": obj(_backend()), "percent": percent("Without: 100.")}, "to"), 4),
            "cors": _cors(),
            "rateLimit": _rate_limit(),
        }
    )
    return exactly_one(route, "to", "redirect", "respond")


def _match() -> Schema:
    return obj(
        {
            "path": path_match(),
            "method": method(),
            "headers": mapping(value_match(), 16),
            "query": mapping(value_match(), 16),
            "source": obj(
                {"namespace": label_name(), "serviceAccount": subdomain(), "labels": labels("Of its pod.")}
            ),
        },
        description="All fields must match.",
    )


def _path_rewrite() -> Schema:
    fields = {
        "replacePrefix": described(path(), "In place of the prefix that matched."),
        "replaceFull": described(path(), "In place of the whole path."),
    }
    return exactly_one(obj(fields), *fields)


def _redirect() -> Schema:
    status = {**integer(301, 308, default=301), "enum": [301, 302, 303, 307, 308]}
    return obj(
        {
            "scheme": enum("http", "https"),
            "host": subdomain(),
            "port": port(),
            "path": _path_rewrite(),
            "status": status,
        }
    )


def _respond() -> Schema:
    return obj({"status": integer(200, 599), "body": string(4096, least=0)}, "status")


def _header_edits() -> Schema:
    values = mapping(string(4096, least=0), 32)
    return obj({"set": values, "add": values, "remove": array(header_name(), 32)})


def _fault() -> Schema:
    abort = obj({"percent": percent(), "status": integer(200, 599), "grpcStatus": integer(0, 16)}, "percent")
    return obj(
        {
            "delay": obj({"percent": percent(), "fixed": duration()}, "percent", "fixed"),
            "abort": exactly_one(abort, "status", "grpcStatus"),
        }
    )


def _cors() -> Schema:
    return obj(
        {
            "allowOrigins": array(string(253), 32),
            "allowMethods": array(string(32, pattern=r"^(\*|[A-Z][A-Z-]*)$"), 16),
            "allowHeaders": array(header_name(), 32),
            "exposeHeaders": array(header_name(), 32),
            "allowCredentials": boolean(),
            "maxAge": duration(),
        }
    )


def _rate_limit() -> Schema:
    return obj(
        {
            "requestsPerSecond": number(0.01, 1_000_000, "Of each receiving pod."),
            "burst": integer(1, 1_000_000),
            "key": enum("source", description="Each caller for itself. Without: all together."),
        },
        "requestsPerSecond",
    )


def _connection() -> Schema:
    version = enum("1.1", "2", description="Without: as the port is declared, else as the client speaks.")
    return obj({"httpVersion": version})


def _load_balancer() -> Schema:
    algorithms = ("least-latency", "least-request", "round-robin", "random", "consistent-hash")
    return obj(
        {
            "algorithm": enum(*algorithms, description="Without: least-latency."),
            "hash": _hash(),
            "locality": _locality(),
            "warmup": duration("New endpoints get their full share only after this time."),
        }
    )


def _hash() -> Schema:
    fields = {
        "header": header_name(),
        "cookie": obj({"name": header_name(), "path": path(), "ttl": duration()}, "name"),
        "query": string(256),
        "source": {"type": "boolean", "enum": [True]},
    }
    extra = {
        "table": enum("ring", "maglev", description="Without: ring."),
        "boundedLoadPercent": integer(101, 1000, description="Most load of one endpoint against the mean."),
    }
    return described(exactly_one(obj({**fields, **extra}), *fields), "What consistent-hash goes by.")


def _locality() -> Schema:
    place = string(190)
    return obj(
        {
            "preferSameZone": boolean(),
            "failover": array(obj({"from": place, "to": place}, "from", "to"), 16),
            "distribute": mapping(
                mapping(integer(0, 100), 16), 16, "Percent by zone of the endpoint, by zone of the caller."
            ),
        }
    )


def _circuit_breaker() -> Schema:
    most = 2**31 - 1
    return obj(
        {
            "maxConnections": integer(1, most),
            "maxPendingRequests": integer(0, most, description="Without: 1024."),
            "maxRequests": integer(1, most),
            "maxRequestsPerConnection": integer(0, most, description="0: no limit."),
        },
        description="For each calling pod. A limit that is not set does not limit.",
    )


def _outliers() -> Schema:
    return obj(
        {
            "consecutive5xx": integer(0, 1000, description="0 switches it off. Without: 5."),
            "consecutiveGatewayErrors": integer(0, 1000, description="Without: 0, off."),
            "consecutiveLocalFailures": integer(0, 1000, description="Without: 5."),
            "successRate": obj(
                {
                    "minHosts": integer(1, 1000),
                    "minRequests": integer(1, 1_000_000),
                    "deviations": number(0.1, 10, "Standard deviations below the mean."),
                }
            ),
            "interval": duration("Without: 10s."),
            "baseEjection": duration("Without: 30s."),
            "maxEjectionPercent": integer(0, 100, description="Without: 50; never the last endpoint."),
            "minHealthPercent": integer(0, 100, description="Without: 0."),
        }
    )
