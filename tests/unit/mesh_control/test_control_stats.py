"""The window of edges, and what several replicas know put together. Times are told by hand."""

import pytest

from mesh_api.discovery import REPORT_S, Report
from mesh_api.edge_sums import quantile
from mesh_api.stats import (
    LATENCY_BUCKETS_S,
    Direction,
    Edge,
    EdgeKind,
    TappedRequest,
    Top,
)
from mesh_control.stats.merge import merge, merge_top
from mesh_control.stats.steps import STEP
from mesh_control.stats.window import MAX_SPAN_S, Window
from tests.support.stats_scene import at_once

T = 1_000_000_000.0
WEB, WEB2 = ("shop", "web-1"), ("shop", "web-2")


def edge(requests=0, service="reviews.shop:80", **fields):
    return Edge(
        Direction.OUTBOUND,
        EdgeKind.HTTP,
        service,
        workload="reviews",
        namespace="shop",
        requests=requests,
        **fields,
    )


def feed(window, pod, seconds, rps, **options):
    """Reports of a pod that requests evenly; the time of the last one."""
    return feed_all(window, [(pod, rps, options.pop("every", REPORT_S), 0.0)], seconds, **options)


def feed_all(window, pods, seconds, *, start=T):
    """The same of several: (pod, rps, seconds between its reports, when it begins)."""
    reports = [
        (start + begins + i * every, pod, rps, every)
        for pod, rps, every, begins in pods
        for i in range(1, int(seconds / every) + 1)
    ]
    for now, pod, rps, every in sorted(reports):
        window.add(pod, "web", Report(every, (edge(int(rps * every)),)), now)
    return max(reports)[0]


def table(window, window_s, now):
    return at_once(merge([at_once(window.part(window_s, now))], window_s, 1))


def rate(found):
    (row,) = found.rows
    return row.edge.requests / row.span_s


@pytest.mark.parametrize("window_s", [10, 30, 60, 120, 600])
@pytest.mark.parametrize("phase", [0.0, 1.3, 4.9])
def test_a_steady_rate_is_seen_in_every_window(window_s, phase):
    window = Window()
    now = feed_all(window, [(WEB, 100, 5.0, phase), (WEB2, 50, 5.0, phase + 2)], 700)
    found = table(window, window_s, now)
    # Pods that do not do the same and report at other times: the shorter the window the rougher.
    assert rate(found) == pytest.approx(150, rel=0.06 if window_s > 10 else 0.1)
    assert found.rows[0].pods == 2


def test_a_rate_does_not_depend_on_when_sidecars_report():
    window = Window()
    pods = [(WEB, 100, 4.1, 1.0), (WEB2, 100, 5.9, 0.5), (("shop", "web-3"), 100, 5.0, 3.0)]
    now = feed_all(window, pods, 120)
    for window_s in (10, 30, 60):
        assert rate(table(window, window_s, now)) == pytest.approx(300, rel=0.06)


def test_a_workload_that_has_just_come_is_not_watered_down():
    window = Window()
    now = feed(window, WEB, 15, 100)
    assert rate(table(window, 60, now)) == pytest.approx(100, rel=0.01)


def test_pods_that_replace_each_other_are_one_workload():
    window = Window()
    now = feed(window, WEB, 30, 100)
    window.leave(WEB)
    now = feed(window, WEB2, 30, 100, start=now)
    found = table(window, 60, now)
    assert rate(found) == pytest.approx(100, rel=0.06)
    assert found.rows[0].pods == 1


def test_a_pod_that_moves_to_another_replica_counts_once():
    one, other = Window(), Window()
    middle = feed(one, WEB, 30, 100)
    one.leave(WEB)
    now = feed(other, WEB, 30, 100, start=middle)
    found = at_once(merge([at_once(one.part(60, now)), at_once(other.part(60, now))], 60, 2))
    assert rate(found) == pytest.approx(100, rel=0.06)
    assert (found.replicas, found.answered, found.rows[0].pods) == (2, 2, 1)


def test_replicas_add_up():
    one, other = Window(), Window()
    feed(one, WEB, 60, 100)
    now = feed(other, WEB2, 60, 50)
    assert rate(
        at_once(merge([at_once(one.part(60, now)), at_once(other.part(60, now))], 60, 3))
    ) == pytest.approx(150, rel=0.06)


def test_what_was_before_the_window_is_not_in_it():
    window = Window()
    now = feed(window, WEB, 10, 100)
    assert table(window, 60, now + 200).rows == ()
    assert table(window, 600, now + 200).rows[0].edge.requests == 1000
    assert table(window, 600, now + 700).rows == ()
    window.add(WEB, "web", Report(5.0), now + 700)
    assert (window.rows, window.cells) == (0, 0)


def test_open_connections_are_those_of_the_sidecars_that_are_here():
    def report(count):
        return Report(5.0, (Edge(Direction.OUTBOUND, EdgeKind.TCP, "db.shop:3306", open=count),))

    window = Window()
    window.add(WEB, "web", report(3), T)
    window.add(WEB2, "web", report(2), T)
    assert table(window, 60, T).rows[0].edge.open == 5
    window.add(WEB, "web", report(1), T + 5)
    assert table(window, 60, T + 5).rows[0].edge.open == 3
    window.keep({WEB})
    assert table(window, 60, T + 5).rows[0].edge.open == 1
    assert table(window, 60, T + 30).rows[0].edge.open == 0  # not heard of for long
    window.add(WEB2, "web", Report(5.0), T + 40)
    assert window.sidecars == 1


def test_open_connections_are_bounded():
    window = Window(max_open=2)
    edges = tuple(Edge(Direction.OUTBOUND, EdgeKind.TCP, str(i), open=1) for i in range(5))
    for _ in range(3):
        window.add(WEB, "web", Report(5.0, edges), T)
    assert sum(row.edge.open for row in table(window, 60, T).rows) == 2
    assert window.dropped == 9


def test_the_edge_that_was_silent_for_longest_makes_room():
    window = Window(max_cells=6)  # three edges, each with a cell in both rings
    for i, name in enumerate("abcd"):
        window.add(WEB, "web", Report(5.0, (edge(1, service=name), edge(1, service="always"))), T + i)
        assert window.cells <= 6
    names = {row.edge.service for row in table(window, 60, T + 5).rows}
    assert names == {"always", "c", "d"}
    assert (window.evicted, window.dropped) == (2, 2)


def test_a_large_window_is_worked_out_in_steps():
    window = Window()
    edges = tuple(edge(1, service=str(i)) for i in range(3 * STEP))
    window.add(WEB, "web", Report(5.0, edges), T)
    assert len(list(window.part(60, T))) == 6
    assert len(list(merge([at_once(window.part(60, T))], 60, 1))) == 6


@pytest.mark.parametrize("span", [MAX_SPAN_S + 1, 0.0, -5.0, float("nan"), float("inf")])
def test_a_report_about_long_ago_is_a_gap(span):
    window = Window()
    window.add(WEB, "web", Report(span, (edge(1000),)), T)
    assert table(window, 60, T).rows == ()


def test_a_clock_that_is_set_back_breaks_nothing():
    window = Window()
    feed(window, WEB, 60, 100)
    now = feed(window, WEB, 20, 100, start=T + 10)
    assert table(window, 60, now + 35).rows
    now = feed(window, WEB, 20, 100, start=T - 100_000)
    assert rate(table(window, 60, now)) == pytest.approx(100, rel=0.06)
    assert window.cells == sum(len(b.cells) for ring in window._rings for b in ring.buckets)


def test_what_a_sidecar_could_not_report_is_told():
    window = Window()
    window.add(WEB, "web", Report(5.0, (), 7), T)
    assert table(window, 60, T).dropped == 7


@pytest.mark.parametrize(
    ("latencies", "share", "seconds"),
    [
        ({}, 0.5, None),
        ({0: 10}, 0.5, 0.00025),
        ({10: 100}, 0.5, 0.00875),
        ({10: 100}, 1.0, 0.01),
        ({0: 90, 10: 10}, 0.95, 0.00875),
        ({len(LATENCY_BUCKETS_S): 1}, 0.99, 60.0),
        ({0: 1, len(LATENCY_BUCKETS_S): 1}, 0.99, 60.0),
    ],
)
def test_percentiles(latencies, share, seconds):
    found = quantile(latencies, share)
    assert found is None if seconds is None else found == pytest.approx(seconds)


def tapped(source, destination, count, direction=Direction.INBOUND, **fields):
    values = {"failures": 0, "best_ms": 1.0, "worst_ms": 2.0, "last_ms": 1.5, **fields}
    return TappedRequest(direction, source, destination, "GET", "/", count, **values)


def test_live_requests_of_several_replicas():
    one = Top(3.0, 1, 1, 2, 1, ("reviews.shop",), (tapped("a", "reviews.shop", 3, best_ms=0.5),), 1)
    other = Top(
        3.0,
        1,
        1,
        1,
        0,
        ("web.shop",),
        (
            tapped("a", "reviews.shop", 2, failures=1, worst_ms=9.0),
            tapped("web.shop", "reviews.shop", 7, Direction.OUTBOUND),
            tapped("web.shop", "db.other", 9, Direction.OUTBOUND),
        ),
    )
    found = merge_top([one, other], 2, 10)
    assert [(each.destination, each.count) for each in found.requests] == [
        ("db.other", 9),
        ("reviews.shop", 5),
    ]
    both = found.requests[1]
    assert (both.failures, both.best_ms, both.worst_ms) == (1, 0.5, 9.0)
    assert (found.sidecars, found.failed, found.dropped, found.replicas) == (3, 1, 1, 2)
    assert merge_top([one, other], 2, 1).dropped == 1 + 5
