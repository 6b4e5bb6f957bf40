"""Policies with every field, and ones that are wrong in one place each."""

import copy
from typing import Any

Object = dict[str, Any]

TRAFFIC: Object = {
    "apiVersion": "triomesh.dev/v1alpha1",
    "kind": "TrafficPolicy",
    "metadata": {"name": "reviews", "namespace": "bookshop"},
    "spec": {
        "target": {"service": "reviews"},
        "subsets": {
            "v1": {"labels": {"version": "v1"}},
            "v2": {"labels": {"version": "v2"}, "outliers": {"consecutive5xx": 3}},
        },
        "routes": [
            {
                "name": "beta",
                "match": [
                    {
                        "path": {"prefix": "/reviews"},
                        "method": "GET",
                        "headers": {"x-group": {"exact": "beta"}},
                        "query": {"debug": {"present": True}},
                        "source": {
                            "namespace": "bookshop",
                            "serviceAccount": "web",
                            "labels": {"app": "web"},
                        },
                    }
                ],
                "to": [{"subset": "v2", "weight": 1}],
                "timeout": "2s",
                "retries": {
                    "attempts": 3,
                    "retryOn": [
                        "connect-failure",
                        "refused-stream",
                        "reset-before-request",
                        "gateway-error",
                        "5xx",
                        "429",
                        "grpc-unavailable",
                    ],
                    "perTryTimeout": "500ms",
                    "backoff": {"base": "25ms", "max": "250ms"},
                    "methods": ["GET", "HEAD"],
                    "honorRetryAfter": True,
                },
            },
            {
                "to": [
                    {"subset": "v1", "weight": 90},
                    {"subset": "v2", "weight": 10},
                    {"service": "reviews-next.other", "port": 9080, "weight": 0},
                ],
                "rewrite": {"path": {"replacePrefix": "/"}, "host": "reviews"},
                "headers": {
                    "request": {"set": {"a": "b"}, "add": {"c": "d"}, "remove": ["e"]},
                    "response": {"set": {}, "add": {}, "remove": []},
                },
                "fault": {
                    "delay": {"percent": 5, "fixed": "2s"},
                    "abort": {"percent": 1.5, "status": 503},
                },
                "mirror": [{"to": {"subset": "v2"}, "percent": 10}],
                "cors": {"allowOrigins": ["https://example.com"], "allowMethods": ["*"], "maxAge": "1h"},
                "rateLimit": {"requestsPerSecond": 100, "burst": 20, "key": "source"},
            },
            {
                "redirect": {
                    "scheme": "https",
                    "host": "example.com",
                    "port": 443,
                    "path": {"replacePrefix": "/new"},
                    "status": 301,
                }
            },
            {"respond": {"status": 200, "body": "..."}},
        ],
        "timeouts": {
            "connect": "1s",
            "request": "30s",
            "streamIdle": "5m",
            "poolIdle": "60s",
            "tcpIdle": "1h",
        },
        "retries": {"budget": {"percent": 20, "minPerSecond": 10}},
        "loadBalancer": {
            "algorithm": "consistent-hash",
            "hash": {"cookie": {"name": "user", "path": "/", "ttl": "1h"}, "table": "maglev"},
            "locality": {
                "preferSameZone": True,
                "failover": [{"from": "eu", "to": "us"}],
                "distribute": {"eu-a": {"eu-a": 80, "eu-b": 20}},
            },
            "warmup": "30s",
        },
        "circuitBreaker": {
            "maxConnections": 1024,
            "maxPendingRequests": 1024,
            "maxRequests": 1024,
            "maxRequestsPerConnection": 0,
        },
        "outliers": {
            "consecutive5xx": 5,
            "consecutiveGatewayErrors": 0,
            "consecutiveLocalFailures": 5,
            "successRate": {"minHosts": 5, "minRequests": 100, "deviations": 1.9},
            "interval": "10s",
            "baseEjection": "30s",
            "maxEjectionPercent": 50,
            "minHealthPercent": 0,
        },
        "tls": {"mode": "mesh"},
    },
}
ACCESS: Object = {
    "apiVersion": "triomesh.dev/v1alpha1",
    "kind": "AccessPolicy",
    "metadata": {"name": "reviews", "namespace": "bookshop"},
    "spec": {
        "target": {"service": "reviews"},
        "action": "ALLOW",
        "rules": [
            {
                "from": [
                    {
                        "identities": [
                            "spiffe://cluster.local/ns/bookshop/sa/web",
                            "spiffe://cluster.local/ns/x/*",
                        ]
                    },
                    {"namespaces": ["bookshop"], "cidrs": ["10.0.0.0/8", "fd00::/8"]},
                ],
                "to": [{"ports": [9080], "methods": ["GET"], "paths": [{"prefix": "/reviews"}]}],
            },
        ],
        "dryRun": True,
    },
}
MESH: Object = {
    "apiVersion": "triomesh.dev/v1alpha1",
    "kind": "MeshPolicy",
    "metadata": {"name": "default", "namespace": "bookshop"},
    "spec": {
        "targetRefs": [{"group": "", "kind": "Service", "name": "reviews"}],
        "defaults": {
            "mtls": {"mode": "STRICT", "ports": {"8080": "PERMISSIVE"}},
            "egress": {"mode": "refuse"},
            "timeouts": {"connect": "2s"},
            "retries": {"attempts": 2, "budget": {"percent": 10}},
            "accessLog": "all",
            "tracing": {"samplingPercent": 1, "collector": {"service": "otel", "namespace": "tracing"}},
        },
        "overrides": {"mtls": {"mode": "STRICT"}},
    },
}

WRONG: list[tuple[Object, str, Any, str]] = [
    (TRAFFIC, "spec.target", {"service": "a", "host": "b.example"}, "spec.target"),
    (TRAFFIC, "spec.target", {}, "spec.target"),
    (TRAFFIC, "spec.routes.0.timeout", "2 seconds", "spec.routes[0].timeout"),
    (TRAFFIC, "spec.routes.0.retries.retryOn", ["always"], 'Unsupported value: "always"'),
    (TRAFFIC, "spec.routes.0.match.0.path", {"prefix": "/a", "exact": "/b"}, "spec.routes[0].match[0].path"),
    (TRAFFIC, "spec.routes.1.to.0.weight", -1, "spec.routes[1].to[0].weight"),
    (TRAFFIC, "spec.routes.3", {"respond": {"status": 200}, "to": [{}]}, "spec.routes[3]"),
    (TRAFFIC, "spec.loadBalancer.algorithm", "fastest", "spec.loadBalancer.algorithm"),
    (TRAFFIC, "spec.loadBalancer.hash", {"header": "a", "query": "b"}, "spec.loadBalancer.hash"),
    (TRAFFIC, "spec.subsets.v1.labels", {}, "spec.subsets.v1.labels"),
    (ACCESS, "spec.action", "MAYBE", "spec.action"),
    (ACCESS, "spec.rules.0.from.0.identities", ["web"], "spec.rules[0].from[0].identities[0]"),
    (ACCESS, "spec.rules.0.to.0.ports", [70000], "spec.rules[0].to[0].ports[0]"),
    (MESH, "spec.defaults.mtls.mode", "strict", "spec.defaults.mtls.mode"),
    (MESH, "spec.defaults.mtls.ports", {"8080": "X"}, "spec.defaults.mtls.ports.8080"),
]
"""A policy, the field that is changed, its wrong value, and what the refusal says."""


def broken(policy: Object, path: str, value: Any) -> Object:
    """`policy` with another value at `path`."""
    result = copy.deepcopy(policy)
    *way, last = path.split(".")
    place: Any = result
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return result
