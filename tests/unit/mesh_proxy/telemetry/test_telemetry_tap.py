import trio
import trio.testing

from mesh_api.edge_sums import EdgeKey
from mesh_api.stats import Direction, EdgeKind
from mesh_proxy.telemetry.tap import MAX_ENTRIES, Taps

OUT = EdgeKey(Direction.OUTBOUND, EdgeKind.HTTP, "reviews.shop:80", "", "", "shop", "reviews-v1")
IN = EdgeKey(Direction.INBOUND, EdgeKind.HTTP)


def watched(*requests, seconds=3.0):
    """What a watcher sees of requests that end while it watches."""
    taps = Taps()
    taps.own = "web.shop"
    found = []

    async def main():
        assert taps.active is None
        async with trio.open_nursery() as nursery:

            async def watch():
                found.append(await taps.watch(seconds))

            nursery.start_soon(watch)
            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            for request in requests:
                taps.active.add(*request)
        assert taps.active is None

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert found[0] == found[1]
    return found[0]


def test_requests_with_the_same_ends_method_and_path_are_one_line():
    tapped = watched(
        (OUT, "10.0.0.1:4000", b"GET", b"/a?x=1", False, 0.002),
        (OUT, "10.0.0.1:4001", b"GET", b"/a?x=2", True, 0.010),
        (OUT, "10.0.0.1:4001", b"GET", b"/a", False, 0.005),
        (IN, "10.0.0.9:5", b"PUT", b"/b\x1b[2J", False, 0.001),
        (IN, "[fd00::1]:5", b"PUT", b"/b", False, 0.001),
    )
    first, second, third = tapped.requests
    assert (first.source, first.destination, first.method, first.path) == (
        *("web.shop", "reviews-v1.shop"),
        *("GET", "/a"),
    )
    assert (first.count, first.failures) == (3, 1)
    assert (first.best_ms, first.worst_ms, first.last_ms) == (2.0, 10.0, 5.0)
    assert (second.source, second.destination, second.path) == ("10.0.0.9", "web.shop", "/b\\x1b[2J")
    assert third.source == "fd00::1"
    assert tapped.seconds == 3.0


def test_a_request_that_reached_nobody_names_the_service():
    (only,) = watched((OUT._replace(workload=""), "10.0.0.1:1", b"GET", b"/", True, 0.0)).requests
    assert only.destination == "reviews.shop:80"


def test_entries_are_bounded():
    requests = [(OUT, "10.0.0.1:1", b"GET", b"/%d" % i, False, 0.001) for i in range(MAX_ENTRIES + 7)]
    tapped = watched(*requests)
    assert len(tapped.requests) == MAX_ENTRIES
    assert tapped.dropped == 7


def test_a_watcher_that_is_cancelled_watches_no_more():
    taps = Taps()

    async def main():
        with trio.move_on_after(1.0):
            await taps.watch(20.0)
        assert taps.active is None

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
