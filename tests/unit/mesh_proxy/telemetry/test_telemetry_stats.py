from mesh_proxy.telemetry.exposition import render
from mesh_proxy.telemetry.registry import Registry
from mesh_proxy.telemetry.stats import MAX_CACHED, ProxyStats


def page(stats):
    return render(stats.registry).decode().splitlines()


def test_requests():
    stats = ProxyStats(Registry())
    requests = stats.request_stats("outbound", "shop/reviews:9080", "reviews-v1", True, "shop/web")
    assert stats.request_stats("outbound", "shop/reviews:9080", "reviews-v1", True, "shop/web") is requests
    requests.done(200, "", 0.0004)
    requests.done(200, "", 0.0006)
    requests.done(503, "UF", 100.0)
    requests.done(0, "DC", 1.0)
    requests.done(999, "", 1.0)
    labels = 'direction="outbound",{}destination="shop/reviews:9080",destination_workload="reviews-v1"'
    source = labels.format('source="shop/web",')
    lines = page(stats)
    for code, flag, count in ((200, "", 2), (503, "UF", 1), (0, "DC", 1), ("other", "", 1)):
        assert f'triomesh_requests_total{{{source},code="{code}",flag="{flag}",mtls="true"}} {count}' in lines
    bucket = f"triomesh_request_duration_seconds_bucket{{{labels.format('')},"
    assert bucket + 'le="0.0005"} 1' in lines
    assert bucket + 'le="60.0"} 4' in lines
    assert bucket + 'le="+Inf"} 5' in lines


def test_opaque_connections():
    stats = ProxyStats(Registry())
    tcp = stats.tcp_stats("inbound", "d", False)
    assert stats.tcp_stats("inbound", "d", False) is tcp
    tcp.opened()
    tcp.opened()
    tcp.sent.value += 10
    tcp.received.value += 20
    tcp.closed("")
    tcp.closed("UC")
    lines = page(stats)
    labels = 'direction="inbound",destination="d"'
    for line in (
        f'triomesh_tcp_connections_opened_total{{{labels},flag="",mtls="false"}} 2',
        f'triomesh_tcp_connections_closed_total{{{labels},flag="",mtls="false"}} 1',
        f'triomesh_tcp_connections_closed_total{{{labels},flag="UC",mtls="false"}} 1',
        f'triomesh_tcp_bytes_total{{{labels},way="sent"}} 10',
        f'triomesh_tcp_bytes_total{{{labels},way="received"}} 20',
    ):
        assert line in lines


def test_a_destination_is_forgotten_whole():
    stats = ProxyStats(Registry())
    for name in ("gone", "kept"):
        stats.request_stats("outbound", name, "w", True).done(200, "", 0.1)
        stats.request_stats("outbound", name, "w", True).done(503, "UF", 0.1)
        stats.tcp_stats("outbound", name, True).opened()
        stats.retries.child(name, "tried")
        stats.upstream_connections.child(name)
    assert stats.forget_destination("gone") == 8
    text = "\n".join(page(stats))
    assert "gone" not in text
    assert "kept" in text
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
