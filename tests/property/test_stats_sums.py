"""However reports are cut and whichever replica gets them: the totals are the same."""

from hypothesis import given
from hypothesis import strategies as st

from mesh_api.edge_sums import key_of, total
from mesh_api.stats import LATENCY_BUCKETS_S
from mesh_control.stats.merge import merge
from mesh_control.stats.window import Window
from mesh_ops.registry import Registry
from mesh_proxy.telemetry.stats import ProxyStats
from tests.support.stats_scene import at_once

T = 1_700_000_000.0

request = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from([(200, ""), (404, ""), (500, ""), (503, "UF"), (0, "DC")]),
    st.floats(0, 100),
    st.integers(0, 1000),
)
step = st.one_of(request, st.sampled_from(["report", "scrape"]))


@given(st.lists(step, max_size=80), st.integers(1, 3))
def test_the_sum_of_reports_is_what_was_counted(steps, replicas):
    stats = ProxyStats(Registry())
    windows = [Window() for _ in range(replicas)]
    wanted: dict[str, list[float]] = {}
    sent = 0
    now = T
    for step in [*steps, "report"]:
        if step == "report":
            now += 1.0
            report = stats.edges.report(1.0)
            windows[sent % replicas].add(("shop", "web-1"), "web", report, now)
            sent += 1
        elif step == "scrape":
            list(stats.registry.collect())
        else:
            name, (status, flag), duration, size = step
            stats.request_stats("outbound", name, "w", True).done(status, flag, duration, size, 2 * size)
            sums = wanted.setdefault(name, [0, 0, 0.0, 0, 0])
            failed = status >= 500
            for i, more in enumerate((1, failed, duration, size, 2 * size)):
                sums[i] += more
    found = at_once(merge([at_once(window.part(600, now)) for window in windows], 600, replicas))
    got = {
        row.edge.service: (
            row.edge.requests,
            row.edge.failures,
            round(row.edge.latency_sum_s, 6),
            row.edge.sent,
            row.edge.received,
        )
        for row in found.rows
    }
    assert got == {name: (*sums[:2], round(sums[2], 6), *sums[3:]) for name, sums in wanted.items()}
    assert all(sum(row.edge.latencies.values()) == row.edge.requests for row in found.rows)
    assert len({key_of(row.edge) for row in found.rows}) == len(found.rows)


counts = st.dictionaries(st.integers(0, len(LATENCY_BUCKETS_S)), st.integers(1, 50), max_size=5)


@given(st.lists(counts, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_sums_does_not_matter(latencies, rng):
    stats = ProxyStats(Registry())
    stats.request_stats("outbound", "a", "w", True).done(200, "", 0.1)
    (one,) = stats.edges.report(1.0).edges
    edges = [type(one)(one.direction, one.kind, latencies=each, requests=1) for each in latencies]
    forward = total(edges)
    rng.shuffle(edges)
    assert total(edges).latencies == forward.latencies
    assert total(edges).requests == len(edges)
