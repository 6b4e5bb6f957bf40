import pytest

from mesh_api.edge_sums import EdgeKey
from mesh_api.stats import LATENCY_BUCKETS_S, Direction, EdgeKind
from mesh_ops.exposition import render
from mesh_ops.registry import Registry
from mesh_proxy.telemetry.edges import bucket_map
from mesh_proxy.telemetry.families import DURATION_BUCKETS_S
from mesh_proxy.telemetry.stats import MAX_CACHED, ProxyStats, is_failure, namespace_of


class Flow:
    def __init__(self):
        self.to_up = self.to_down = 0


class Peer:
    def __init__(self, identity):
        self.identity = identity


class Endpoint:
    def __init__(self, workload, identity=""):
        self.workload = workload
        self.peer = Peer(identity)


def page(stats):
    return render(stats.registry).decode().splitlines()


def test_requests():
    stats = ProxyStats(Registry())
    requests = stats.request_stats("outbound", "shop/reviews:9080", "reviews-v1", True, "shop/web")
    assert stats.request_stats("outbound", "shop/reviews:9080", "reviews-v1", True, "shop/web") is requests
    requests.done(200, "", 0.0004)
    requests.done(200, "", 0.0006, 10, 300)
    requests.done(503, "UF", 100.0)
    requests.done(0, "DC", 1.0)
    requests.done(999, "", 1.0)
    labels = 'direction="outbound",{}destination="shop/reviews:9080",destination_workload="reviews-v1"'
    source = labels.format('source="shop/web",')
    for _ in range(2):  # reading changes nothing
        lines = page(stats)
        for code, flag, count in ((200, "", 2), (503, "UF", 1), (0, "DC", 1), ("other", "", 1)):
            assert (
                f'triomesh_requests_total{{{source},code="{code}",flag="{flag}",mtls="true"}} {count}'
                in lines
            )
        bucket = f"triomesh_request_duration_seconds_bucket{{{labels.format('')},"
        assert bucket + 'le="0.0005"} 1' in lines
        assert bucket + 'le="60.0"} 4' in lines
        assert bucket + 'le="+Inf"} 5' in lines
        for way, count in (("sent", 10), ("received", 300)):
            assert f'triomesh_request_bytes_total{{{labels.format("")},way="{way}"}} {count}' in lines


def test_attempts_and_what_becomes_of_them():
    stats = ProxyStats(Registry())
    requests = stats.request_stats("outbound", "d", "w", True)
    requests.attempt(True)
    requests.retried()
    requests.attempt(False)
    requests.overflowed()
    requests.ejected()
    lines = page(stats)
    ends = 'direction="outbound",destination="d",destination_workload="w"'
    assert f'triomesh_attempts_total{{{ends},result="ok"}} 1' in lines
    assert f'triomesh_attempts_total{{{ends},result="failed"}} 1' in lines
    assert 'triomesh_breaker_overflows_total{destination="d"} 1' in lines
    assert 'triomesh_ejections_total{destination="d",destination_workload="w"} 1' in lines
    (edge,) = stats.edges.report(5.0).edges
    assert (edge.attempts, edge.attempt_failures, edge.retries, edge.overflows, edge.ejections) == (
        (2, 1, 1, 1, 1)
    )


def test_opaque_connections():
    stats = ProxyStats(Registry())
    tcp = stats.tcp_stats("inbound", "d", False)
    assert stats.tcp_stats("inbound", "d", False) is tcp
    flows = [Flow(), Flow()]
    for flow in flows:
        tcp.opened(flow)
    flows[0].to_up, flows[1].to_down = 10, 5
    labels = 'direction="inbound",destination="d"'
    lines = page(stats)
    # Bytes are counted while connections are open.
    assert f'triomesh_tcp_bytes_total{{{labels},way="sent"}} 10' in lines
    assert f'triomesh_tcp_bytes_total{{{labels},way="received"}} 5' in lines
    flows[1].to_down = 20
    tcp.closed(flows[0], "")
    tcp.closed(flows[1], "UC")
    tcp.failed("UF")
    lines = page(stats)
    for line in (
        f'triomesh_tcp_connections_opened_total{{{labels},flag="",mtls="false"}} 2',
        f'triomesh_tcp_connections_closed_total{{{labels},flag="",mtls="false"}} 1',
        f'triomesh_tcp_connections_closed_total{{{labels},flag="UC",mtls="false"}} 1',
        f'triomesh_tcp_connections_closed_total{{{labels},flag="UF",mtls="false"}} 1',
        f'triomesh_tcp_bytes_total{{{labels},way="sent"}} 10',
        f'triomesh_tcp_bytes_total{{{labels},way="received"}} 20',
    ):
        assert line in lines
    (edge,) = stats.edges.report(5.0).edges
    assert (edge.opened, edge.closed, edge.broken, edge.open) == (2, 3, 2, 0)
    assert (edge.sent, edge.received) == (10, 20)


def test_an_arm_names_its_edges():
    stats = ProxyStats(Registry())
    arm = stats.arm("reviews.shop:9080", "shop", "beta", "v2")
    there = Endpoint("reviews-v2", "spiffe://cluster.local/ns/shop/sa/reviews")
    assert arm[there] is arm[there]
    arm[there].done(200, "", 0.01)
    arm.none.done(503, "UH", 0.0)
    arm.tcp(there).failed("UF")
    edges = {(edge.kind, edge.workload): edge for edge in stats.edges.report(5.0).edges}
    assert len(edges) == 3
    edge = edges[EdgeKind.HTTP, "reviews-v2"]
    assert (edge.direction, edge.service, edge.route, edge.subset, edge.namespace) == (
        (Direction.OUTBOUND, "reviews.shop:9080", "beta", "v2", "shop")
    )
    assert (edge.identity, edge.requests, edge.failures) == (there.peer.identity, 1, 0)
    assert (edges[EdgeKind.HTTP, ""].requests, edges[EdgeKind.HTTP, ""].failures) == (1, 1)
    assert (edges[EdgeKind.TCP, "reviews-v2"].closed, edges[EdgeKind.TCP, "reviews-v2"].broken) == (1, 1)
    text = "\n".join(page(stats))
    assert 'destination="reviews.shop:9080",destination_workload="reviews-v2",code="200"' in text


def test_an_inbound_edge_names_its_caller():
    stats = ProxyStats(Registry())
    web = "spiffe://cluster.local/ns/shop/sa/web"
    stats.request_stats("inbound", "reviews.shop", "reviews.shop", True, web).done(200, "", 0.01)
    stats.request_stats("inbound", "reviews.shop", "reviews.shop", False).done(200, "", 0.01)
    found = {(edge.identity, edge.namespace, edge.workload) for edge in stats.edges.report(5.0).edges}
    assert found == {(web, "shop", ""), ("", "", "")}


def test_a_destination_is_forgotten_whole():
    stats = ProxyStats(Registry())
    held = []
    for name in ("gone", "kept"):
        requests = stats.request_stats("outbound", name, "w", True)
        requests.done(200, "", 0.1)
        requests.done(503, "UF", 0.1)
        held.append(requests)
        stats.tcp_stats("outbound", name, True).opened(Flow())
        stats.retries.child(name, "tried")
        stats.upstream_connections.child(name)
    assert stats.forget_destination("gone") == 6
    # What is under way ends later, and brings no series back.
    held[0].done(200, "", 0.1, 10, 10)
    held[0].done(504, "UT", 0.1)
    held[0].attempt(True)
    text = "\n".join(page(stats))
    assert "gone" not in text
    assert "kept" in text
    assert {edge.service: edge.requests for edge in stats.edges.report(5.0).edges if edge.requests} == {
        "gone": 4,
        "kept": 2,
    }
    stats.request_stats("outbound", "gone", "w", True).done(200, "", 0.1)
    assert 'destination="gone"' in "\n".join(page(stats))


def test_helpers_are_bounded():
    stats = ProxyStats(Registry(max_series=2))
    for i in range(MAX_CACHED + 10):
        stats.request_stats("outbound", str(i), "w", True)
        stats.tcp_stats("outbound", str(i), True)
    assert len(stats._requests) == len(stats._tcp) == 10
    last = stats.request_stats("outbound", "last", "w", True)
    last.done(200, "", 1.0)
    assert any('destination="other"' in line for line in page(stats))


def test_every_family_can_be_declared_twice_and_shown():
    registry = Registry()
    ProxyStats(registry)
    stats = ProxyStats(registry)
    stats.access_log_dropped.set_function(lambda: 3)
    stats.certificate_expiry.set(1.5e9)
    stats.connections.child("inbound").value += 1
    lines = page(stats)
    assert "triomesh_access_log_dropped_total 3" in lines
    assert "triomesh_certificate_expiry_timestamp_seconds 1500000000.0" in lines
    assert 'triomesh_connections{direction="inbound"} 1' in lines


@pytest.mark.parametrize(
    ("status", "flag", "failed"),
    [
        (200, "", False),
        (404, "", False),
        (500, "", True),
        (504, "UT", True),
        (403, "UAEX", True),
        (200, "UC", True),
        (0, "", True),
        (0, "DC", False),
        (400, "DPE", False),
    ],
)
def test_what_is_a_failure(status, flag, failed):
    assert is_failure(status, flag) is failed


def test_the_namespace_of_an_identity():
    assert namespace_of("spiffe://cluster.local/ns/shop/sa/web") == "shop"
    assert namespace_of("") == namespace_of("spiffe://cluster.local/other") == ""


def test_fine_buckets_lie_within_the_coarse_ones():
    places = bucket_map(DURATION_BUCKETS_S)
    for i, upper in enumerate(LATENCY_BUCKETS_S):
        assert upper <= DURATION_BUCKETS_S[places[i]]
    assert places[-1] == len(DURATION_BUCKETS_S)
    with pytest.raises(ValueError, match="expected bounds among"):
        bucket_map((0.123,))


def test_an_edge_is_a_key_of_eight():
    assert EdgeKey(Direction.OUTBOUND, EdgeKind.HTTP)._fields[2:] == (
        *("service", "route", "subset"),
        *("namespace", "workload", "identity"),
    )
