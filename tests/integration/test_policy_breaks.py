"""What once broke, or could: configuration changes within a request, connections that change hands."""

from __future__ import annotations

import random

import pytest
import trio

from mesh_api.sidecar import Protocol
from mesh_api.traffic import (
    Algorithm,
    Breaker,
    HeaderEdits,
    Match,
    Outliers,
    PathMatch,
    Respond,
    Retries,
    Route,
    Settings,
    Subset,
    ValueMatch,
    WeightedTarget,
)
from mesh_proxy.pool.cluster import Cluster
from tests.integration.http_peers import Handler, Peer
from tests.integration.policy_mesh import GET, OTHER, POST, PolicyMesh, mesh_test, ok, policy_mesh, to
from tests.support.mesh import wait_until

BOTH = {name: Subset(labels={"version": name}) for name in ("v1", "v2")}
NO_RETRY = Retries(attempts=0)


@mesh_test
async def test_a_connection_that_changes_hands_leaves_its_deadline_behind() -> None:
    async def handle(peer: Peer) -> None:
        while True:
            path = (await peer.request()).path
            await trio.sleep(0.6 if path == b"/slow" else 0.1)
            await peer.send(ok())

    quick = Route(
        match=(Match(path=PathMatch(exact="/quick")),), to=(WeightedTarget(),), timeout_s=0.4, name="quick"
    )
    limit = Settings(breaker=Breaker(max_connections=1))
    async with policy_mesh({"v1": handle}, settings=limit, routes=(quick, to(""))) as m:
        first, second = await m.connect(), await m.connect()
        await first.send(b"GET /quick HTTP/1.1\r\nHost: s\r\n\r\n")
        await wait_until(lambda: m.cluster().breaker.connections == 1)
        await second.send(b"GET /slow HTTP/1.1\r\nHost: s\r\n\r\n")
        await wait_until(lambda: len(m.cluster().connections.waiting) == 1)
        assert (await first.response()).status == 200
        assert (await second.response()).status == 200, "it has no time-out"


@mesh_test
async def test_an_ejected_endpoint_that_moves_to_a_subset_is_judged_anew() -> None:
    fails = True

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 500 E\r\nContent-Length: 0\r\n\r\n" if fails else ok(b"2"))

    policy = Settings(
        algorithm=Algorithm.ROUND_ROBIN, outliers=Outliers(consecutive_5xx=1, base_ejection_s=3600)
    )
    both = {"all": Subset(labels={}), **BOTH}
    handlers: dict[str, Handler | bytes] = {"v1": ok(b"1"), "v2": handle}
    async with policy_mesh(handlers, settings=policy, retries=NO_RETRY, subsets=both) as m:
        while not m.cluster().outliers.ejected:
            await m.ask()
        m.change(routes=(to("all"),))
        cluster = m.cluster("all")
        while not cluster.outliers.ejected:
            await m.ask()
        assert [each.workload for each in cluster.outliers.ejected] == ["server-v2"]


@mesh_test
async def test_a_probe_ends_in_a_subset_that_came_meanwhile() -> None:
    hold, go, fails = trio.Event(), trio.Event(), True

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            if fails:
                await peer.send(b"HTTP/1.1 500 E\r\nContent-Length: 0\r\n\r\n")
                continue
            hold.set()
            await go.wait()
            await peer.send(ok(b"2"))

    policy = Settings(
        algorithm=Algorithm.ROUND_ROBIN, outliers=Outliers(consecutive_5xx=1, base_ejection_s=0.1)
    )
    both = {"all": Subset(labels={}), **BOTH}
    handlers: dict[str, Handler | bytes] = {"v1": ok(b"1"), "v2": handle}
    async with policy_mesh(handlers, settings=policy, retries=NO_RETRY, subsets=both) as m:
        while not m.cluster().outliers.ejected:
            await m.ask()
        fails = False
        peers = []
        with trio.fail_after(5):
            while not hold.is_set():
                peers.append(await m.connect())
                await peers[-1].send(GET)
                await trio.sleep(0.01)
        m.change(routes=(to("all"),))
        go.set()
        for peer in peers:
            assert (await peer.response()).status == 200
        assert (await m.bodies(40)).keys() == {b"1", b"2"}


@mesh_test
async def test_connections_of_a_subset_that_is_gone_are_not_kept_uncounted() -> None:
    go = trio.Event()
    asked: list[bytes] = []

    async def handle(peer: Peer) -> None:
        while True:
            asked.append((await peer.request()).path)
            await go.wait()
            await peer.send(ok())

    limit = Settings(breaker=Breaker(max_connections=2))
    everything = {"all": Subset(labels={})}
    async with policy_mesh({"v1": handle}, settings=limit, subsets=everything) as m:
        peers = [await m.connect() for _ in range(2)]
        for peer in peers:
            await peer.send(GET)
        await wait_until(lambda: len(asked) == 2)
        m.change(routes=(to("all"),))
        go.set()
        for peer in peers:
            assert (await peer.response()).status == 200
        cluster = m.cluster("all")
        (endpoint,) = cluster.endpoints
        assert len(endpoint.idle) <= cluster.breaker.connections


@mesh_test
async def test_endpoints_of_two_subsets_that_go_keep_no_connection() -> None:
    every = {"a": Subset(labels={}), "b": Subset(labels={})}
    async with policy_mesh({"v1": ok()}, subsets=every, routes=(to("a", "b"),)) as m:
        await m.bodies(40)
        old = [m.cluster(name).endpoints[0] for name in ("a", "b")]
        assert all(each.idle for each in old)
        m.change(routes=())
        (kept,) = m.cluster().endpoints
        assert not any(each.idle for each in old if each is not kept)


@mesh_test
async def test_an_answer_of_a_route_has_each_field_once() -> None:
    edits = HeaderEdits(
        set={"content-type": "application/json", "server": "pot", "x-request-id": "ours"}, add={"x-a": "b"}
    )
    route = Route(respond=Respond(status=200, body="{}"), response_headers=edits)
    async with policy_mesh({"v1": ok()}, routes=(route,)) as m:
        response = await m.ask()
        named = [name.lower() for name, _ in response.fields]
        assert len(named) == len(set(named))
        assert response.get(b"content-type") == b"application/json"
        assert response.get(b"server") == b"pot"
        assert response.get(b"x-request-id") == b"ours"
        assert (response.get(b"x-a"), response.body) == (b"b", b"{}")


@mesh_test
async def test_a_client_that_sends_slowly_does_not_eject_an_endpoint() -> None:
    policy = Settings(algorithm=Algorithm.ROUND_ROBIN, outliers=Outliers(consecutive_local=1))
    route = to("", timeout_s=0.1)

    async with policy_mesh({"v1": ok(), "v2": ok()}, settings=policy, routes=(route,)) as m:
        response = await m.ask(b"PUT / HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\na")
        assert response.status == 504
        assert all(each.strikes is None for each in m.cluster().endpoints)


@mesh_test
async def test_an_endpoint_that_never_says_continue_is_to_blame() -> None:
    async def silent(peer: Peer) -> None:
        await trio.sleep_forever()

    policy = Settings(outliers=Outliers(consecutive_local=1))
    handlers: dict[str, Handler | bytes] = {"v1": silent, "v2": silent}
    async with policy_mesh(handlers, settings=policy, routes=(to("", timeout_s=0.1),)) as m:
        response = await m.ask(
            b"PUT / HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert response.status == 504
        assert m.cluster().outliers.ejected


@mesh_test
async def test_no_route_goes_by_a_field_that_is_not_passed_on() -> None:
    beta = to("v2", match=(Match(headers=(ValueMatch("x-group", exact="beta"),)),))
    async with policy_mesh({"v1": ok(b"1"), "v2": ok(b"2")}, subsets=BOTH, routes=(beta, to("v1"))) as m:
        line = b"GET / HTTP/1.1\r\nHost: s\r\nX-Group: beta\r\n"
        assert (await m.ask(line + b"\r\n")).body == b"2"
        assert (await m.ask(line + b"Connection: keep-alive, x-group\r\n\r\n")).body == b"1"


CHANGES: list[dict[str, object]] = [
    {"routes": ()},
    {"routes": (to("v1", "v2"),)},
    {"routes": (to("v1"),), "settings": Settings(breaker=Breaker(max_connections=1))},
    {"routes": (to(""),), "settings": Settings(breaker=Breaker(max_connections=3, max_requests=5))},
    {"routes": (Route(to=(WeightedTarget(destination=OTHER), WeightedTarget(subset="v2"))),)},
    {"settings": Settings(breaker=Breaker(max_requests_per_connection=2, max_pending=2))},
    {"settings": Settings(outliers=Outliers(consecutive_5xx=1, base_ejection_s=0.05))},
]


@pytest.mark.parametrize("protocol", Protocol)
@mesh_test
async def test_counters_return_to_zero_whatever_changes_meanwhile(protocol: Protocol) -> None:
    rng = random.Random(7)

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            await trio.sleep(rng.choice((0, 0, 0.01, 0.05)))
            if rng.random() < 0.1:
                return
            await peer.send(rng.choice((ok(), ok(), b"HTTP/1.1 503 E\r\nContent-Length: 0\r\n\r\n")))

    async def client(m: PolicyMesh) -> None:
        for _ in range(12):
            try:
                peer = await m.connect()
            except OSError:
                continue  # an opaque connection is refused with a reset, which may come at once
            for _ in range(rng.randint(1, 4)):
                with trio.move_on_after(rng.choice((0.005, 0.03, 1.0))) as patience:
                    try:
                        await peer.send(rng.choice((GET, POST, GET + GET)))
                        await peer.response()
                    except (EOFError, OSError, trio.BrokenResourceError):
                        break
                if patience.cancelled_caught:
                    break
            (peer.reset if rng.random() < 0.5 else peer.close)()

    handlers: dict[str, Handler | bytes] = {"v1": handle, "v2": handle}
    seen: set[Cluster] = set()
    async with policy_mesh(handlers, other=handle, subsets=BOTH, protocol=protocol) as m:
        endpoints = m.client.app.store.snapshot.destinations[0].endpoints  # type: ignore[union-attr]
        async with trio.open_nursery() as nursery:

            async def change() -> None:
                while True:
                    some = rng.choice((endpoints, endpoints, endpoints[:1], endpoints[1:], ()))
                    m.change(**rng.choice(CHANGES), endpoints=some)
                    for service in m.client.app.runtime.services.all():
                        seen.update(service.clusters.values())
                    await trio.sleep(0.01)

            nursery.start_soon(change)
            async with trio.open_nursery() as clients:
                for _ in range(6):
                    clients.start_soon(client, m)
            nursery.cancel_scope.cancel()
    assert len(seen) > 3
    for cluster in seen:
        breaker = cluster.breaker
        assert (breaker.requests, breaker.pending) == (0, 0)
        assert not cluster.connections.waiting
        assert all(each.inflight == 0 for each in cluster.endpoints)
        assert breaker.connections == 0
