"""Probes over time, and grace periods, by a clock of our own."""

from typing import Any

import trio
from trio.testing import MockClock

from mesh_local.kubelet.prober import Listener, run_probes
from mesh_local.kubelet.probes import CheckFailed
from mesh_local.kubelet.stopping import Grace
from mesh_local.machinery.objects import Object


def observe(spec: Object, results: dict[str, list[bool]], seconds: float) -> list[tuple[float, str, Any]]:
    """What a listener hears; each probe's results in turn, the last one for ever."""
    heard: list[tuple[float, str, Any]] = []

    async def check(probe: Object) -> None:
        queue = results[probe["name"]]
        if not (queue.pop(0) if len(queue) > 1 else queue[0]):
            raise CheckFailed("no")

    listener = Listener(
        failed=lambda kind, _text: heard.append((trio.current_time(), kind, "failed")),
        changed=lambda kind, good: heard.append((trio.current_time(), kind, good)),
    )

    async def main() -> None:
        with trio.move_on_after(seconds):
            await run_probes(spec, trio.current_time(), check, listener)

    clock = MockClock(autojump_threshold=0)
    trio.run(main, clock=clock)
    return heard


def probe(name: str, **more: int) -> Object:
    return {"name": name, "exec": {}, "periodSeconds": 2, "failureThreshold": 2, **more}


def test_readiness_follows_its_thresholds() -> None:
    spec = {"readinessProbe": probe("r", initialDelaySeconds=5, successThreshold=2)}
    heard = observe(spec, {"r": [True, True, False, True, False, False, True]}, 18)
    assert heard == [
        (0, "Startup", True),
        (7, "Readiness", True),
        (9, "Readiness", "failed"),
        (13, "Readiness", "failed"),
        (15, "Readiness", "failed"),
        (15, "Readiness", False),
    ]


def test_nothing_else_is_probed_before_the_startup_probe_has_passed() -> None:
    spec = {"startupProbe": probe("s", failureThreshold=5), "livenessProbe": probe("l")}
    heard = observe(spec, {"s": [False, False, True], "l": [False]}, 100)
    assert heard == [
        (0, "Startup", "failed"),
        (2, "Startup", "failed"),
        (4, "Startup", True),
        (4, "Readiness", True),
        (4, "Liveness", "failed"),
        (6, "Liveness", "failed"),
        (6, "Liveness", False),
    ]


def test_a_startup_probe_that_never_passes() -> None:
    heard = observe({"startupProbe": probe("s"), "readinessProbe": probe("r")}, {"s": [False]}, 100)
    assert heard[-1] == (2, "Startup", False)


def test_a_grace_period_may_be_shortened_while_somebody_waits() -> None:
    async def main() -> None:
        grace = Grace(30)
        async with trio.open_nursery() as nursery:

            async def shorten() -> None:
                await trio.sleep(1)
                grace.shorten(4)
                grace.shorten(10)  # does not lengthen

            nursery.start_soon(shorten)
            assert not await grace.within(trio.sleep_forever)
        assert trio.current_time() == 5
        assert not await grace.within(trio.sleep_forever, 2)
        assert trio.current_time() == 7
        assert await grace.within(trio.lowlevel.checkpoint, 1)

    clock = MockClock(autojump_threshold=0)
    trio.run(main, clock=clock)
