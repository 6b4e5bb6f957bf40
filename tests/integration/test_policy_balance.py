"""Every balancer, and warm-up, on traffic."""

from __future__ import annotations

from collections import Counter

import pytest
import trio

from mesh_api.traffic import Algorithm, Outliers, Settings, Subset
from tests.integration.http_peers import Peer
from tests.integration.policy_mesh import GET, mesh_test, ok, policy_mesh, to
from tests.support.mesh import wait_until

BOTH = {"v1": ok(b"v1"), "v2": ok(b"v2")}


def by(algorithm: Algorithm, **more: object) -> Settings:
    return Settings(algorithm=algorithm, **more)  # type: ignore[arg-type]


@mesh_test
async def test_round_robin() -> None:
    async with policy_mesh(BOTH, settings=by(Algorithm.ROUND_ROBIN)) as m:
        assert await m.bodies(20) == {b"v1": 10, b"v2": 10}


@mesh_test
async def test_random() -> None:
    async with policy_mesh(BOTH, settings=by(Algorithm.RANDOM)) as m:
        m.client.app.runtime.rng.seed(7)
        got = await m.bodies(200)
        # Four standard deviations.
        assert 72 <= got[b"v1"] <= 128, got


@pytest.mark.parametrize("algorithm", [Algorithm.LEAST_REQUEST, Algorithm.LEAST_LATENCY])
@mesh_test
async def test_an_endpoint_that_is_busy_is_spared(algorithm: Algorithm) -> None:
    go = trio.Event()
    held = 0

    async def stuck(peer: Peer) -> None:
        nonlocal held
        while True:
            await peer.request()
            held += 1
            await go.wait()
            await peer.send(ok(b"stuck"))

    async with policy_mesh({"v1": stuck, "v2": ok(b"v2")}, settings=by(algorithm)) as m:
        got: Counter[bytes] = Counter()

        async def one() -> None:
            got[(await m.ask()).body] += 1

        async with trio.open_nursery() as nursery:
            for n in range(1, 21):
                nursery.start_soon(one)
                await wait_until(lambda n=n: held + got[b"v2"] == n)
            go.set()
        assert got[b"v2"] >= 15, got


@mesh_test
async def test_warm_up_grows_a_new_endpoints_share() -> None:
    settings = by(Algorithm.RANDOM, warmup_s=3600.0)
    async with policy_mesh(BOTH, settings=settings) as m:
        m.client.app.runtime.rng.seed(7)
        got = await m.bodies(100)
        assert 30 <= got[b"v1"] <= 70, "endpoints that came with their destination are all warm"
        dest = m.client.app.store.snapshot.destinations[0]
        m.change(endpoints=dest.endpoints[:1])
        m.change(endpoints=dest.endpoints)
        got = await m.bodies(100)
        assert 0 < got[b"v2"] <= 20, "a tenth of its half"
        (new,) = [e for e in m.cluster().endpoints if e.workload == "server-v2"]
        new.since -= 3600
        got = await m.bodies(100)
        assert 30 <= got[b"v2"] <= 70, "warm"


@mesh_test
async def test_a_subset_has_a_balancer_of_its_own() -> None:
    off = Outliers(consecutive_5xx=0, consecutive_local=0)
    subsets = {
        "all": Subset(labels={}, settings=by(Algorithm.ROUND_ROBIN, outliers=off)),
    }
    async with policy_mesh(
        BOTH, settings=by(Algorithm.LEAST_LATENCY), subsets=subsets, routes=(to("all"),)
    ) as m:
        peer = await m.connect()
        bodies = []
        for _ in range(10):
            await peer.send(GET)
            bodies.append((await peer.response()).body)
        assert bodies[::2] == [bodies[0]] * 5
        assert bodies[1::2] == [bodies[1]] * 5
        assert bodies[0] != bodies[1]
