"""The book of edges: differences, bounds, and who makes room for whom."""

import pytest

from mesh_ops.exposition import render
from mesh_ops.registry import Registry
from mesh_proxy.telemetry.edges import MAX_IDLE_REPORTS, EdgeBook
from mesh_proxy.telemetry.stats import ProxyStats


@pytest.fixture
def stats():
    found = ProxyStats(Registry())
    found.edges._max = 3
    return found


def outbound(stats, name):
    return stats.request_stats("outbound", name, "w", True)


def reported(stats):
    return {edge.service: edge.requests for edge in stats.edges.report(5.0).edges}


def test_a_report_holds_what_is_new(stats):
    edge = outbound(stats, "a")
    edge.done(200, "", 0.0009, 10, 20)
    edge.done(500, "", 0.3)
    report = stats.edges.report(5.0)
    assert (report.span_s, report.dropped) == (5.0, 0)
    (found,) = report.edges
    assert (found.requests, found.failures, found.sent, found.received) == (2, 1, 10, 20)
    assert sum(found.latencies.values()) == 2
    assert found.latency_sum_s == pytest.approx(0.3009)
    assert reported(stats) == {}
    edge.done(200, "", 0.1)
    assert reported(stats) == {"a": 1}


def test_reading_the_metrics_takes_nothing_from_a_report(stats):
    edge = outbound(stats, "a")
    edge.done(200, "", 0.1)
    render(stats.registry)
    edge.done(200, "", 0.1)
    assert reported(stats) == {"a": 2}


def test_an_open_connection_is_always_reported(stats):
    class Flow:
        to_up = to_down = 0

    flow = Flow()
    tcp = stats.tcp_stats("outbound", "db", True)
    tcp.opened(flow)
    for _ in range(3):
        (found,) = stats.edges.report(5.0).edges
        assert found.open == 1
    tcp.closed(flow, "")
    (found,) = stats.edges.report(5.0).edges
    assert (found.open, found.closed) == (0, 1)
    assert stats.edges.report(5.0).edges == ()


def test_a_new_edge_takes_the_place_of_the_one_idle_for_longest(stats):
    for name in "abc":
        outbound(stats, name).done(200, "", 0.1)
    stats.edges.report(5.0)
    outbound(stats, "a").done(200, "", 0.1)
    stats.edges.report(5.0)
    outbound(stats, "b").done(200, "", 0.1)  # since the report: it is not idle any more
    outbound(stats, "d").done(200, "", 0.1)  # in c's place
    assert stats.edges.report(5.0).dropped == 0
    outbound(stats, "c").done(200, "", 0.1)  # it comes back, in the place of a
    assert reported(stats) == {"c": 1}
    assert len(stats.edges) == 3


def test_an_edge_without_room_is_counted_once_a_report_and_comes_in_later(stats):
    for name in "abcd":
        for _ in range(5):
            outbound(stats, name).done(200, "", 0.1, 1, 1)
    report = stats.edges.report(5.0)
    assert {edge.service for edge in report.edges} == set("abc")
    assert report.dropped == 1
    assert stats.edges.dropped == 1
    page = render(stats.registry).decode()
    assert 'destination="d",destination_workload="w",way="sent"} 5' in page
    assert 'triomesh_request_duration_seconds_count{direction="outbound",destination="d"' in page
    assert "triomesh_edges_dropped_total 1" in page
    stats.edges.report(5.0)
    outbound(stats, "d").done(200, "", 0.1)
    assert reported(stats) == {"d": 1}


def test_what_has_no_room_is_bounded_without_reports_too(stats):
    for i in range(20):
        outbound(stats, str(i)).done(200, "", 0.1)
    assert len(stats.edges._refused) <= 3
    page = render(stats.registry).decode()
    for i in range(20):
        assert f'destination="{i}",destination_workload="w",code="200",flag="",mtls="true"}} 1' in page


def test_an_edge_that_is_idle_for_long_is_let_go(stats):
    edge = outbound(stats, "a")
    edge.done(200, "", 0.1)
    stats.edges.report(5.0)
    for _ in range(MAX_IDLE_REPORTS):
        assert len(stats.edges) == 1
        stats.edges.report(5.0)
    assert len(stats.edges) == 0
    edge.done(200, "", 0.1)
    edge.done(200, "", 0.1)
    assert reported(stats) == {"a": 2}


def test_an_empty_book():
    assert EdgeBook().report(5.0).edges == ()
