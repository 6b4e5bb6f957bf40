"""What is refused in a policy, and with which words."""

import json
from typing import Any

import pytest

from mesh_api.policy import MAX_PROBLEMS, read_policy
from mesh_api.policy_types import MeshPolicy, TrafficPolicy
from mesh_api.policy_values import duration, duration_text

V1 = {"subsets": {"v1": {"labels": {"version": "v1"}}}}
ALGORITHMS = "least-latency, least-request, round-robin or random"
CONDITIONS = (
    "connect-failure, refused-stream, reset-before-request, gateway-error, 5xx, 429, grpc-cancelled, "
    "grpc-deadline-exceeded, grpc-internal, grpc-resource-exhausted or grpc-unavailable"
)
UNIT = "expected a duration with its unit, such as 500ms, 2s, 5m or 1h, got"


def route(**fields: Any) -> dict[str, Any]:
    return {**V1, "routes": [{"to": [{}], **fields}]}


def traffic(spec: dict[str, Any]) -> dict[str, Any]:
    meta = {"name": "reviews", "namespace": "bookshop", "generation": 3, "uid": "x", "labels": {"a": "b"}}
    return {
        "apiVersion": "triomesh.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": meta,
        "spec": {"target": {"service": "reviews"}, **spec},
    }


BAD: list[tuple[dict[str, Any], str]] = [
    # unknown fields, wrong types
    ({"timeuts": {}}, "spec.timeuts: unknown field; did you mean 'timeouts'?"),
    ({"zzz": {}}, "spec.zzz: unknown field"),
    ({"timeouts": []}, "spec.timeouts: expected a mapping, got a list"),
    ({"routes": {}}, "spec.routes: expected a list, got a mapping"),
    ({"subsets": {"v1": {}}}, "spec.subsets.v1.labels: expected a value, got none"),
    ({"subsets": {"v1": {"labels": {}}}}, "spec.subsets.v1.labels: expected at least 1 item, got 0"),
    (
        {"subsets": {"v1": {"labels": {"version": 1}}}},
        'spec.subsets.v1.labels.version: expected a label\'s value, got 1; write it in quotes: "1"',
    ),
    (
        {"subsets": {"V 1": {"labels": {"a": "b"}}}},
        "spec.subsets: expected a name in small letters, digits and '-', got 'V 1' as a key",
    ),
    ({"circuitBreaker": {"maxRequests": None}}, "spec.circuitBreaker.maxRequests: expected a whole number"),
    (
        {"circuitBreaker": {"maxRequests": 0}},
        "spec.circuitBreaker.maxRequests: expected a whole number from 1 to 2147483647, got 0",
    ),
    (
        {"outliers": {"maxEjectionPercent": 101}},
        "spec.outliers.maxEjectionPercent: expected a whole percentage from 0 to 100, got 101",
    ),
    (
        {"loadBalancer": {"algorithm": "rond-robin"}},
        f"spec.loadBalancer.algorithm: expected {ALGORITHMS}, got 'rond-robin'; did you mean 'round-robin'?",
    ),
    ({"tls": {}}, "spec.tls.mode: expected a value, got none"),
    # durations
    ({"timeouts": {"request": "30"}}, f"spec.timeouts.request: {UNIT} '30'; write 30s for seconds"),
    ({"timeouts": {"request": 30}}, f"spec.timeouts.request: {UNIT} 30; write 30s for seconds"),
    ({"timeouts": {"request": "2 s"}}, f"spec.timeouts.request: {UNIT} '2 s'"),
    ({"timeouts": {"request": "1.5s"}}, f"spec.timeouts.request: {UNIT} '1.5s'"),
    ({"timeouts": {"connect": "0s"}}, "spec.timeouts.connect: expected a duration above 0, got '0s'"),
    ({"timeouts": {"tcpIdle": "25h"}}, "spec.timeouts.tcpIdle: expected at most 24h, got '25h'"),
    # the target
    (
        {"target": {"service": "reviews.other"}},
        "spec.target.service: expected the name of a Service in this policy's namespace (bookshop), "
        "got 'reviews.other'; a policy belongs in its Service's namespace",
    ),
    ({"target": {}}, "spec.target.service: expected a value, got none"),
    # routes
    (
        {**V1, "routes": [{"to": [{"subset": "v1", "weight": 0}]}]},
        "spec.routes[0].to: expected weights with a sum above 0, got 0",
    ),
    ({"routes": [{"to": []}]}, "spec.routes[0].to: expected at least 1 item, got 0"),
    (
        {"subsets": {"canary": {"labels": {"a": "b"}}}, "routes": [{"to": [{"subset": "canry"}]}]},
        "spec.routes[0].to[0].subset: expected a subset of spec.subsets (canary), got 'canry'; "
        "did you mean 'canary'?",
    ),
    (
        {"routes": [{"to": [{"subset": "v2"}]}]},
        "spec.routes[0].to[0].subset: expected a subset of spec.subsets (none is defined), got 'v2'",
    ),
    (
        {**V1, "routes": [{"to": [{"subset": "v1", "service": "x"}]}]},
        "spec.routes[0].to[0]: expected either a subset or a service and port, got both",
    ),
    (
        {"routes": [{"to": [{"service": "next.other"}]}]},
        "spec.routes[0].to[0].service: next.other is in another namespace, "
        "which needs a ReferenceGrant there: not supported yet",
    ),
    ({"routes": [{}]}, "spec.routes[0]: expected exactly one of to, redirect and respond, got none"),
    (
        {"routes": [{"to": [{}], "respond": {"status": 200}}]},
        "spec.routes[0]: expected exactly one of to, redirect and respond, got to and respond",
    ),
    (
        {"routes": [{"name": "a", "to": [{}]}, {"name": "b", "to": [{}]}, {"name": "a", "to": [{}]}]},
        "spec.routes[2].name: expected a name of its own, got 'a', as spec.routes[0]",
    ),
    (
        route(match=[{"path": {"regex": "/a("}}]),
        "spec.routes[0].match[0].path.regex: expected a regular expression of RE2, got '/a(': missing ): /a(",
    ),
    (
        route(match=[{"headers": {"x": {"regex": "(?=a)"}}}]),
        "spec.routes[0].match[0].headers.x.regex: expected a regular expression of RE2, "
        "got '(?=a)': invalid perl operator: (?=",
    ),
    (
        route(match=[{"query": {"x": {"regex": ".{1,1000}"}}}]),
        "spec.routes[0].match[0].query.x.regex: expected a regular expression of RE2, got '.{1,1000}': "
        "it compiles to 9003 instructions, more than 2000; repeat or alternate less",
    ),
    (
        route(match=[{"path": {"prefix": "/a", "exact": "/b"}}]),
        "spec.routes[0].match[0].path: expected exactly one of exact, prefix and regex, got exact and prefix",
    ),
    (
        route(match=[{"path": {"prefix": "a"}}]),
        "spec.routes[0].match[0].path.prefix: expected a path that begins with '/', without query, got 'a'",
    ),
    (
        route(match=[{"method": "get"}]),
        "spec.routes[0].match[0].method: expected a method in capital letters, got 'get'",
    ),
    (
        route(match=[{"headers": {"X-A": {"present": True}, "x-a": {"present": True}}}]),
        "spec.routes[0].match[0].headers: expected each header once, got 'x-a' 2 times (case does not count)",
    ),
    (
        route(match=[{"headers": {":path": {"present": True}}}]),
        "spec.routes[0].match[0].headers: expected a header's name, got ':path' as a key",
    ),
    (
        route(rewrite={"path": {"replacePrefix": "/"}}),
        "spec.routes[0].rewrite.path.replacePrefix: expected a path prefix in every match of the route, "
        "which it stands for; use replaceFull to replace the whole path",
    ),
    (
        {"routes": [{"match": [{"path": {"exact": "/a"}}], "redirect": {"path": {"replacePrefix": "/"}}}]},
        "spec.routes[0].redirect.path.replacePrefix: expected a path prefix in every match of the route",
    ),
    (
        {"routes": [{"redirect": {}}]},
        "spec.routes[0].redirect: expected scheme, host, port or path, got none of them",
    ),
    (
        {"routes": [{"redirect": {"host": "a", "status": 304}}]},
        "spec.routes[0].redirect.status: expected 301, 302, 303, 307 or 308, got 304",
    ),
    (
        {"routes": [{"respond": {"status": 204, "body": "x"}}]},
        "spec.routes[0].respond.body: expected no body with status 204",
    ),
    (
        {"routes": [{"respond": {"status": 200}, "timeout": "1s"}]},
        "spec.routes[0].timeout: expected none beside respond, which asks no endpoint",
    ),
    (
        {"routes": [{"redirect": {"host": "a"}, "rewrite": {"host": "b"}}]},
        "spec.routes[0].rewrite: expected none beside redirect, which asks no endpoint",
    ),
    (
        route(timeout="2s", retries={"perTryTimeout": "3s"}),
        "spec.routes[0].retries.perTryTimeout: expected at most the route's timeout, 2s, got 3s",
    ),
    (
        {"retries": {"backoff": {"base": "1s"}}},
        "spec.retries.backoff.base: expected at most backoff.max, 250ms, got 1s",
    ),
    (
        {"retries": {"retryOn": ["5xx", "5xx"]}},
        "spec.retries.retryOn: expected each condition once, got 5xx twice",
    ),
    (
        {"retries": {"retryOn": ["50x"]}},
        f"spec.retries.retryOn[0]: expected {CONDITIONS}, got '50x'; did you mean '5xx'?",
    ),
    (
        {"routes": [{"to": [{"service": f"s{n}"}]} for n in range(257)]},
        "spec.routes: expected at most 256 Services and ports that routes lead to, got 257",
    ),
    (
        {"routes": [{"match": [{"path": {"regex": "("}}], "to": [{}]}] * 257},
        "spec.routes: expected at most 256 regular expressions in one policy, got 257",
    ),
    # header edits
    (
        route(headers={"request": {"set": {"Host": "a"}}}),
        "spec.routes[0].headers.request.set.Host: expected another header: "
        "the host is changed by rewrite.host",
    ),
    (
        route(headers={"response": {"remove": ["Connection"]}}),
        "spec.routes[0].headers.response.remove[0]: "
        "expected another header: connection belongs to the connection or to framing",
    ),
    (
        route(headers={"response": {"add": {"x-triomesh-error": "a"}}}),
        "spec.routes[0].headers.response.add.x-triomesh-error: "
        "expected another header: x-triomesh-* is the mesh's own",
    ),
    (
        route(headers={"request": {"set": {"x-a": "a\r\nb: c"}}}),
        "spec.routes[0].headers.request.set.x-a: expected visible ASCII without spaces at its ends "
        "(RFC 9110, 5.5), got 'a\\r\\nb: c'",
    ),
    (
        route(headers={"request": {"set": {"x a": "b"}}}),
        "spec.routes[0].headers.request.set: expected a header's name, got 'x a' as a key",
    ),
    # faults
    (
        route(fault={"delay": {"percent": "5%", "fixed": "1s"}}),
        "spec.routes[0].fault.delay.percent: expected a percentage from 0 to 100, such as 5 or 0.1, got '5%'",
    ),
    (
        route(fault={"abort": {"percent": 5}}),
        "spec.routes[0].fault.abort: expected exactly one of status and grpcStatus, got none",
    ),
    (
        route(fault={"abort": {"percent": 5, "status": 503, "grpcStatus": 14}}),
        "spec.routes[0].fault.abort: expected exactly one of status and grpcStatus, got status and",
    ),
    (
        route(fault={"abort": {"percent": 5, "grpcStatus": 17}}),
        "spec.routes[0].fault.abort.grpcStatus: expected a status of gRPC from 0 to 16, got 17",
    ),
    # the version of HTTP
    (
        {"connection": {"httpVersion": 2}},
        'spec.connection.httpVersion: expected 1.1 or 2, got 2; write it in quotes: "2"',
    ),
    ({"connection": {"httpVersion": "h2"}}, "spec.connection.httpVersion: expected 1.1 or 2, got 'h2'"),
    (
        {"subsets": {"v1": {"labels": {"a": "b"}, "connection": {"version": "2"}}}},
        "spec.subsets.v1.connection.version: unknown field; did you mean 'httpVersion'?",
    ),
    # what has no bytes in UTF-8
    (
        {"routes": [{"respond": {"status": 200, "body": "a\ud800"}}]},
        "spec.routes[0].respond.body: expected text, got 'a\\ud800', in which a part of a character",
    ),
    (
        route(match=[{"query": {"\udcff": {"present": True}}}]),
        "spec.routes[0].match[0].query: expected a parameter's name, got '\\udcff', in which",
    ),
    # not yet
    (
        {"loadBalancer": {"algorithm": "consistent-hash"}},
        f"spec.loadBalancer.algorithm: consistent-hash is not supported yet; expected {ALGORITHMS}",
    ),
    ({"loadBalancer": {"hash": {"header": "a"}}}, "spec.loadBalancer.hash: not supported yet"),
    ({"loadBalancer": {"locality": {}}}, "spec.loadBalancer.locality: not supported yet"),
    (route(mirror=[]), "spec.routes[0].mirror: not supported yet"),
    (route(cors={}), "spec.routes[0].cors: not supported yet"),
    (route(rateLimit={}), "spec.routes[0].rateLimit: not supported yet"),
    ({"outliers": {"successRate": {}}}, "spec.outliers.successRate: not supported yet"),
    ({"tls": {"mode": "simple"}}, "spec.tls.mode: simple is not supported yet; expected mesh or disable"),
    ({"tls": {"mode": "mutual"}}, "spec.tls.mode: mutual is not supported yet; expected mesh or disable"),
    ({"target": {"host": "api.example.com"}}, "spec.target.host: not supported yet"),
]

BAD_MESH: list[tuple[dict[str, Any], str]] = [
    ({"defaults": {"tracing": {}}}, "spec.defaults.tracing: not supported yet"),
    (
        {"defaults": {"mtls": {"mode": "strict"}}},
        "spec.defaults.mtls.mode: expected PERMISSIVE, STRICT or DISABLE, got 'strict'",
    ),
    (
        {"defaults": {"mtls": {"ports": {"99999": "STRICT"}}}},
        "spec.defaults.mtls.ports: expected a port from 1 to 65535, got '99999' as a key",
    ),
    (
        {"targetRefs": [{"kind": "Service", "name": "web"}]},
        "spec.targetRefs[0].kind: Service is not supported yet; expected Deployment, StatefulSet,",
    ),
    (
        {"targetRefs": [{"kind": "Deployment", "name": "web", "group": "batch"}]},
        "spec.targetRefs[0].group: expected 'apps', which has the kind Deployment, got 'batch'",
    ),
    (
        {"targetRefs": [{"kind": "Job", "name": "web"}, {"kind": "Job", "name": "web"}]},
        "spec.targetRefs[1]: expected each workload once, got spec.targetRefs[0]",
    ),
    (
        {"targetRefs": [{"kind": "Job", "name": "web"}], "defaults": {"timeouts": {"request": "1s"}}},
        "spec.defaults.timeouts: expected none beside targetRefs: they hold for calls to Services",
    ),
    (
        {"targetRefs": [{"kind": "Job", "name": "web"}], "overrides": {"retries": {"attempts": 1}}},
        "spec.overrides.retries: expected none beside targetRefs: they hold for calls to Services",
    ),
    (
        {"defaults": {"pathNormalization": "merge"}},
        "spec.defaults.pathNormalization: expected none, base, merge-slashes or decode-and-merge, got",
    ),
    ({"defaults": {"egress": {}}}, "spec.defaults.egress.mode: expected a value, got none"),
    ({"defaults": {"accessLog": "none"}}, "spec.defaults.accessLog: expected errors or all, got 'none'"),
]


def refused(kind: str, raw: dict[str, Any]) -> list[str]:
    found = read_policy(kind, raw)
    assert isinstance(found, list), found
    return [str(one) for one in found]


@pytest.mark.parametrize(("spec", "message"), BAD, ids=[message.partition(":")[0] for _, message in BAD])
def test_what_is_wrong_with_a_traffic_policy(spec: dict[str, Any], message: str) -> None:
    told = refused("TrafficPolicy", traffic(spec))
    assert len(told) == 1, told
    assert told[0].startswith(message), told[0]


@pytest.mark.parametrize(("spec", "message"), BAD_MESH)
def test_what_is_wrong_with_a_mesh_policy(spec: dict[str, Any], message: str) -> None:
    told = refused("MeshPolicy", {"metadata": {"name": "a", "namespace": "b"}, "spec": spec})
    assert len(told) == 1, told
    assert told[0].startswith(message), told[0]


def test_all_problems_are_told_up_to_a_bound() -> None:
    many = {f"x{i}": 1 for i in range(100)}
    assert len(refused("TrafficPolicy", traffic(many))) == MAX_PROBLEMS
    assert len(refused("TrafficPolicy", traffic({"timeouts": {"request": "1", "connect": "2"}}))) == 2


def test_the_object_around_the_spec() -> None:
    good = traffic({})
    assert refused("AccessPolicy", good) == ["kind: AccessPolicy is not supported yet"]
    assert refused("TrafikPolicy", good) == [
        "kind: expected TrafficPolicy, MeshPolicy or AccessPolicy, got 'TrafikPolicy'; "
        "did you mean 'TrafficPolicy'?"
    ]
    assert refused("TrafficPolicy", {**good, "sepc": {}}) == ["sepc: unknown field; did you mean 'spec'?"]
    assert refused("MeshPolicy", {**good, "spec": {}}) == ["kind: expected MeshPolicy, got 'TrafficPolicy'"]
    assert refused("TrafficPolicy", {**good, "apiVersion": "v1"}) == [
        "apiVersion: expected triomesh.dev/v1alpha1, got 'v1'"
    ]
    assert refused("MeshPolicy", {"metadata": {}}) == ["spec: expected a value, got none"]
    assert refused("MeshPolicy", {"metadata": {"name": 5}, "spec": {}})[0].startswith("metadata: ")


@pytest.mark.parametrize("raw", [b"[]", b"{", b"\xff", b"[" * 10_000])
def test_bytes_that_are_no_object(raw: bytes) -> None:
    found = read_policy("MeshPolicy", raw)
    assert isinstance(found, list)
    assert str(found[0]).startswith("MeshPolicy: expected an object in JSON")


def test_a_good_policy_is_typed() -> None:
    found = read_policy("TrafficPolicy", json.dumps(traffic({"timeouts": {"request": "1m30s"}})).encode())
    assert isinstance(found, TrafficPolicy)
    assert (found.key, found.generation, found.created) == (("bookshop", "reviews"), 3, "")
    assert found.spec.timeouts.request == 90
    mesh = read_policy("MeshPolicy", {"metadata": {"name": "a", "namespace": "b"}, "spec": {}, "status": {}})
    assert isinstance(mesh, MeshPolicy)


@pytest.mark.parametrize(
    ("text", "seconds", "back"),
    [
        ("500ms", 0.5, "500ms"),
        ("2s", 2, "2s"),
        ("90s", 90, "1m30s"),
        ("5m", 300, "5m"),
        ("1h30m", 5400, "1h30m"),
        ("0s", 0, "0s"),
        ("24h", 86400, "24h"),
    ],
)
def test_durations(text: str, seconds: float, back: str) -> None:
    assert duration(text) == seconds
    assert duration_text(seconds) == back


@pytest.mark.parametrize(
    "text", ["", "s", "1", "-1s", "1d", "1s ", "1s2", "١s", "1ss", None, True, 1.5, ["1s"]]
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration with its unit"):
        duration(text)
