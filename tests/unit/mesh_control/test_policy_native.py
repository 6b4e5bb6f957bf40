"""Native policies as sidecars get them, and which of several policies holds."""

from typing import Any

import msgspec

from mesh_api import traffic
from mesh_api.policy import read_policy
from mesh_api.policy_types import MeshPolicy, TrafficPolicy
from mesh_api.sidecar import Destination, EgressMode, MtlsMode, check_destination
from mesh_api.traffic import Algorithm, PathNormalization, RetryOn
from mesh_control.compile import native
from mesh_control.index.levels import Levels, held, scopes

SYSTEM = "triomesh-system"


def traffic_policy(spec: dict[str, Any], name: str = "reviews", created: str = "") -> TrafficPolicy:
    meta = {"name": name, "namespace": "shop", "creationTimestamp": created or None}
    found = read_policy(
        "TrafficPolicy", {"metadata": meta, "spec": {"target": {"service": "reviews"}, **spec}}
    )
    assert isinstance(found, TrafficPolicy), found
    return found


def mesh_policy(namespace: str, spec: dict[str, Any], name: str = "default", created: str = "") -> MeshPolicy:
    meta = {"name": name, "namespace": namespace, "creationTimestamp": created or None}
    found = read_policy("MeshPolicy", {"metadata": meta, "spec": spec})
    assert isinstance(found, MeshPolicy), found
    return found


def levels(*policies: MeshPolicy) -> Levels:
    return Levels(SYSTEM, held(policies, scopes)[0])


def backend(service: str, port: int | None) -> str:
    return f"shop/{service or 'reviews'}:{port or 9080}"


def parts(spec: dict[str, Any] | None, *mesh: MeshPolicy) -> native.Parts:
    policy = None if spec is None else traffic_policy(spec)
    return native.parts(policy, levels(*mesh), "shop", backend)


def test_without_a_policy_everything_is_the_default() -> None:
    assert parts(None) == native.Parts()
    assert parts({}) == native.Parts(policy="shop/reviews")


def test_every_setting_arrives() -> None:
    found = parts(
        {
            "connection": {"httpVersion": "2"},
            "timeouts": {
                "connect": "2s",
                "request": "30s",
                "streamIdle": "5m",
                "poolIdle": "10s",
                "tcpIdle": "2h",
            },
            "loadBalancer": {"algorithm": "round-robin", "warmup": "30s"},
            "circuitBreaker": {
                "maxConnections": 1,
                "maxPendingRequests": 0,
                "maxRequests": 3,
                "maxRequestsPerConnection": 4,
            },
            "outliers": {
                "consecutive5xx": 1,
                "consecutiveGatewayErrors": 2,
                "consecutiveLocalFailures": 0,
                "interval": "1s",
                "baseEjection": "5s",
                "maxEjectionPercent": 10,
                "minHealthPercent": 20,
            },
            "retries": {
                "attempts": 3,
                "retryOn": ["5xx", "connect-failure", "grpc-internal"],
                "perTryTimeout": "500ms",
                "backoff": {"base": "10ms", "max": "100ms"},
                "methods": ["GET"],
                "honorRetryAfter": True,
                "budget": {"percent": 5, "minPerSecond": 1},
            },
            "tls": {"mode": "disable"},
        }
    )
    assert found == native.Parts(
        settings=traffic.Settings(
            http_version=traffic.HttpVersion.HTTP2,
            timeouts=traffic.Timeouts(2, 30, 300, 10, 7200),
            algorithm=Algorithm.ROUND_ROBIN,
            warmup_s=30,
            breaker=traffic.Breaker(1, 0, 3, 4),
            outliers=traffic.Outliers(1, 2, 0, 1, 5, 10, 20),
        ),
        retries=traffic.Retries(
            3,
            (RetryOn.SERVER_ERROR, RetryOn.CONNECT_FAILURE, RetryOn.GRPC_INTERNAL),
            0.5,
            traffic.Backoff(0.01, 0.1),
            ("GET",),
            True,
        ),
        budget=traffic.Budget(5, 1),
        plaintext=True,
        policy="shop/reviews",
    )


def test_every_part_of_a_route_arrives_and_the_sidecar_takes_it() -> None:
    found = parts(
        {
            "subsets": {"v1": {"labels": {"version": "v1"}}},
            "routes": [
                {
                    "name": "beta",
                    "match": [
                        {
                            "path": {"prefix": "/a"},
                            "method": "GET",
                            "headers": {"X-Group": {"exact": "beta"}},
                            "query": {"debug": {"present": True}},
                            "source": {
                                "namespace": "shop",
                                "serviceAccount": "web",
                                "labels": {"app": "web"},
                            },
                        }
                    ],
                    "to": [
                        {"subset": "v1", "weight": 90},
                        {"service": "next.shop", "port": 80, "weight": 10},
                        {},
                    ],
                    "timeout": "2s",
                    "retries": {"attempts": 2},
                    "rewrite": {"path": {"replacePrefix": "/b"}, "host": "next"},
                    "headers": {"request": {"set": {"X-A": "1"}, "add": {"b": "2"}, "remove": ["C"]}},
                    "fault": {
                        "delay": {"percent": 5, "fixed": "2s"},
                        "abort": {"percent": 0.5, "status": 503},
                    },
                },
                {
                    "redirect": {
                        "scheme": "https",
                        "host": "x.example",
                        "port": 443,
                        "path": {"replaceFull": "/n"},
                    }
                },
                {
                    "respond": {"status": 200, "body": "ok"},
                    "headers": {"response": {"set": {"content-type": "text/plain"}}},
                },
                {"to": [{}], "fault": {"abort": {"percent": 1, "grpcStatus": 14}}},
            ],
        }
    )
    match = traffic.Match(
        traffic.PathMatch(prefix="/a"),
        "GET",
        (traffic.ValueMatch("x-group", exact="beta"),),
        (traffic.ValueMatch("debug", present=True),),
        traffic.SourceMatch("shop", "web", {"app": "web"}),
    )
    first, second, third, fourth = found.routes
    assert first == traffic.Route(
        name="beta",
        match=(match,),
        to=(
            traffic.WeightedTarget("v1", "", 90),
            traffic.WeightedTarget("", "shop/next:80", 10),
            traffic.WeightedTarget(),
        ),
        timeout_s=2.0,
        retries=traffic.Retries(attempts=2),
        rewrite=traffic.Rewrite(traffic.PathRewrite("/b"), "next"),
        request_headers=traffic.HeaderEdits({"x-a": "1"}, {"b": "2"}, ("c",)),
        fault=traffic.Fault(traffic.Delay(5, 2.0), traffic.Abort(0.5, 503)),
    )
    assert second.redirect == traffic.Redirect("https", "x.example", 443, traffic.PathRewrite("", "/n"))
    assert third.respond == traffic.Respond(200, "ok")
    assert fourth.fault == traffic.Fault(abort=traffic.Abort(1, grpc_status=14))
    assert third.response_headers == traffic.HeaderEdits({"content-type": "text/plain"})
    made = Destination(
        "reviews", "shop", 9080, (), subsets=found.subsets, routes=found.routes, settings=found.settings
    )
    assert msgspec.json.decode(msgspec.json.encode(made), type=Destination) == made
    assert list(check_destination("$", made, "cluster.local")) == []


def test_a_subset_and_a_route_say_only_what_differs() -> None:
    found = parts(
        {
            "timeouts": {"request": "30s"},
            "outliers": {"consecutive5xx": 7, "interval": "3s"},
            "retries": {"attempts": 4, "backoff": {"base": "5ms"}},
            "subsets": {
                "v1": {"labels": {"version": "v1"}},
                "v2": {
                    "labels": {"version": "v2"},
                    "connection": {"httpVersion": "1.1"},
                    "outliers": {"consecutive5xx": 3},
                    "timeouts": {"request": "0s"},
                },
            },
            "routes": [{"to": [{}], "retries": {"retryOn": ["5xx"], "backoff": {"max": "1s"}}}],
        }
    )
    assert found.subsets["v1"].settings is None
    v2 = found.subsets["v2"].settings
    assert v2 is not None
    assert (v2.outliers.consecutive_5xx, v2.outliers.interval_s, v2.timeouts.request_s) == (3, 3, None)
    assert (v2.http_version, found.settings.http_version) == (
        traffic.HttpVersion.HTTP1,
        traffic.HttpVersion.CLIENT,
    )
    retries = found.routes[0].retries
    assert retries == traffic.Retries(
        attempts=4, on=(RetryOn.SERVER_ERROR,), backoff=traffic.Backoff(0.005, 1)
    )


def test_defaults_lose_and_overrides_win() -> None:
    mesh = mesh_policy(
        SYSTEM,
        {
            "defaults": {"timeouts": {"connect": "3s", "request": "9s"}, "retries": {"attempts": 5}},
            "overrides": {"retries": {"budget": {"percent": 1}}},
        },
    )
    space = mesh_policy(
        "shop",
        {
            "defaults": {"timeouts": {"request": "8s"}, "retries": {"attempts": 6}},
            "overrides": {
                "timeouts": {"request": "7s"},
                "retries": {"budget": {"percent": 2}, "attempts": 0},
            },
        },
    )
    none = parts(None, mesh, space)
    assert (none.settings.timeouts.connect_s, none.settings.timeouts.request_s) == (3, 7)
    assert (none.retries.attempts, none.budget.percent) == (0, 1)
    spec = {
        "timeouts": {"request": "20s", "connect": "4s"},
        "subsets": {"v1": {"labels": {"a": "b"}, "timeouts": {"request": "21s"}}},
        "routes": [{"to": [{"subset": "v1"}], "timeout": "22s", "retries": {"attempts": 9}}],
    }
    found = parts(spec, mesh, space)
    assert (found.settings.timeouts.connect_s, found.settings.timeouts.request_s) == (4, 7)
    assert found.subsets["v1"].settings is not None
    assert found.subsets["v1"].settings.timeouts.request_s == 7
    assert found.routes[0].timeout_s is None
    assert found.routes[0].retries is not None
    assert found.routes[0].retries.attempts == 0
    elsewhere = native.parts(None, levels(mesh, space), "other", backend)
    assert (elsewhere.settings.timeouts.request_s, elsewhere.retries.attempts) == (9, 5)


def test_mtls_by_mesh_namespace_workload_and_port() -> None:
    found = levels(
        mesh_policy(
            SYSTEM,
            {
                "defaults": {
                    "mtls": {"mode": "STRICT", "ports": {"9000": "PERMISSIVE"}},
                    "egress": {"mode": "refuse"},
                    "pathNormalization": "none",
                }
            },
        ),
        mesh_policy("shop", {"defaults": {"mtls": {"ports": {"8080": "DISABLE"}}, "accessLog": "all"}}),
        mesh_policy(
            "shop",
            {
                "targetRefs": [{"kind": "Deployment", "name": "old"}],
                "defaults": {"mtls": {"mode": "PERMISSIVE"}, "accessLog": "errors"},
            },
            "old",
        ),
        mesh_policy(
            "bank", {"overrides": {"mtls": {"mode": "STRICT"}, "pathNormalization": "decode-and-merge"}}
        ),
        mesh_policy(
            "bank",
            {
                "targetRefs": [{"kind": "Job", "name": "j"}],
                "defaults": {
                    "mtls": {"mode": "DISABLE", "ports": {"1": "DISABLE"}},
                    "pathNormalization": "merge-slashes",
                },
            },
            "j",
        ),
    )
    other = found.of_workload("other")
    assert (other.mtls, other.port_mtls) == (MtlsMode.STRICT, {"9000": MtlsMode.PERMISSIVE})
    assert (other.egress, other.access_log) == (EgressMode.REFUSE, False)
    assert other.path_normalization is PathNormalization.NONE
    shop = found.of_workload("shop", "Deployment", "web")
    assert shop.mtls is MtlsMode.STRICT
    assert shop.port_mtls == {"9000": MtlsMode.PERMISSIVE, "8080": MtlsMode.DISABLE}
    assert shop.access_log
    old = found.of_workload("shop", "Deployment", "old")
    assert (old.mtls, old.port_mtls, old.access_log) == (MtlsMode.PERMISSIVE, {}, False)
    assert found.of_workload("shop", "StatefulSet", "old").mtls is MtlsMode.STRICT
    job = found.of_workload("bank", "Job", "j")
    assert (job.mtls, job.port_mtls) == (MtlsMode.STRICT, {})
    assert job.path_normalization is PathNormalization.DECODE_AND_MERGE
    assert levels().of_workload("bank").path_normalization is PathNormalization.BASE


def test_the_oldest_policy_of_a_target_holds_whole() -> None:
    first = traffic_policy({}, "zz", "2026-01-01T00:00:00Z")
    second = traffic_policy({}, "aa", "2026-01-02T00:00:00Z")
    twin = traffic_policy({}, "ab", "2026-01-02T00:00:00Z")
    unborn = traffic_policy({}, "a")
    holding, conflicts = held([unborn, twin, second, first], native.target)
    assert holding == {("shop", "reviews"): first}
    assert conflicts == dict.fromkeys([("shop", "aa"), ("shop", "ab"), ("shop", "a")], ("shop", "zz"))
    del first
    assert held([twin, second], native.target)[0] == {("shop", "reviews"): second}
    both = mesh_policy(
        "shop",
        {"targetRefs": [{"kind": "Job", "name": "a"}, {"kind": "Job", "name": "b"}]},
        "both",
        "2026-01-02T00:00:00Z",
    )
    one = mesh_policy("shop", {"targetRefs": [{"kind": "Job", "name": "b"}]}, "one", "2026-01-01T00:00:00Z")
    scoped, lost = held([both, one], scopes)
    assert list(scoped.values()) == [one]
    assert lost == {("shop", "both"): ("shop", "one")}
