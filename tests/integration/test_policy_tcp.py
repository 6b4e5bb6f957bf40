"""What policies do to connections that are not HTTP, and what keeps those from going past routes."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from msgspec.structs import replace

from mesh_api.sidecar import Pod, Protocol, TlsMode
from mesh_api.traffic import (
    Breaker,
    HeaderEdits,
    Match,
    PathMatch,
    Respond,
    Route,
    Settings,
    SourceMatch,
    Subset,
    Timeouts,
    WeightedTarget,
)
from mesh_proxy.net.addr import Addr
from tests.integration.http_peers import Handler, Peer
from tests.integration.policy_mesh import (
    GET,
    OTHER,
    PolicyMesh,
    flag_of,
    mesh_test,
    ok,
    policy_mesh,
    to,
)
from tests.support.mesh import identity, wait_until

SUBSETS = {name: Subset(labels={"version": name}) for name in ("v1", "v2")}


def naming(name: bytes) -> Handler:
    """Answers each two bytes with its name."""

    async def handle(peer: Peer) -> None:
        while True:
            await peer.exactly(2)
            await peer.send(name)

    return handle


def greeting(name: bytes) -> Handler:
    """A server that speaks first."""

    async def handle(peer: Peer) -> None:
        await peer.send(name)
        await peer.rest()

    return handle


async def names(m: PolicyMesh, n: int) -> Counter[bytes]:
    got: Counter[bytes] = Counter()
    for _ in range(n):
        peer = await m.connect()
        await peer.send(b"ab")
        got[await peer.exactly(2)] += 1
        peer.close()
    return got


BOTH = {"v1": naming(b"v1"), "v2": naming(b"v2")}


@mesh_test
async def test_a_split_of_connections() -> None:
    arms = (
        WeightedTarget(subset="v1", weight=50),
        WeightedTarget(subset="v2", weight=25),
        WeightedTarget(destination=OTHER, weight=25),
    )
    async with policy_mesh(
        BOTH, other=naming(b"ot"), protocol=Protocol.TCP, subsets=SUBSETS, routes=(Route(to=arms),)
    ) as m:
        m.client.app.runtime.rng.seed(2)
        got = await names(m, 100)
        # Four standard deviations.
        assert 30 <= got[b"v1"] <= 70, got
        assert 8 <= got[b"v2"] <= 42, got
        assert 8 <= got[b"ot"] <= 42, got
        record = await m.record(subset="v2")
        assert (record["rule"], record["protocol"]) == ("shop/server/#0", "TCP")


@pytest.mark.parametrize(
    ("first", "goes"),
    [
        (Match(source=SourceMatch(namespace="shop")), b"v2"),
        (Match(source=SourceMatch(namespace="bank")), b"v1"),
        (Match(path=PathMatch(prefix="/a")), b"v1"),
        (Match(method="GET"), b"v1"),
    ],
)
@mesh_test
async def test_only_routes_that_ask_nothing_of_a_request_take_connections(first: Match, goes: bytes) -> None:
    routes = (to("v2", match=(first,)), to("v1"))
    async with policy_mesh(BOTH, protocol=Protocol.TCP, subsets=SUBSETS, routes=routes) as m:
        assert await names(m, 3) == {goes: 3}


@pytest.mark.parametrize(
    "route",
    [to("v2", match=(Match(path=PathMatch(prefix="/")), Match(method="GET"))), Route(respond=Respond(200))],
)
@mesh_test
async def test_without_such_a_route_a_connection_is_refused(route: Route) -> None:
    async with policy_mesh(BOTH, protocol=Protocol.AUTO, subsets=SUBSETS, routes=(route,)) as m:
        if route.to and route.match[0].path is not None:
            route = replace(route, match=route.match[1:])
            m.change(routes=(route,))
        peer = await m.connect()
        await peer.send(b"\x00\x01\x02")
        assert await peer.end() == "reset"
        assert (await m.record(flag="NR"))["protocol"] == "TCP"
        assert m.client.metric("triomesh_tcp_connections_closed_total", flag="NR") == 1


@pytest.mark.parametrize(
    "route",
    [
        to("v1", match=(Match(method="GET"),)),
        to("v1", request_headers=HeaderEdits(set={"x-a": "b"})),
        to("v1", response_headers=HeaderEdits(set={"x-a": "b"})),
        Route(respond=Respond(status=200)),
    ],
)
@mesh_test
async def test_a_silent_client_opens_nothing_past_http_routes(route: Route) -> None:
    """Nothing is opened for it in case the server speaks first; when it speaks, the routes hold."""
    apps = {"v1": greeting(b"hi")}
    async with policy_mesh(apps, protocol=Protocol.AUTO, subsets=SUBSETS, routes=(route,)) as m:
        peer = await m.connect()
        with trio.move_on_after(0.2):
            await peer.exactly(1)
        assert not m.apps["v1"].peers
        assert m.client.metric("triomesh_detect_total", verdict="server-first") == 0
        m.change(routes=(Route(respond=Respond(status=204)),))
        await peer.send(GET)
        assert (await peer.response()).status == 204


@mesh_test
async def test_what_was_learned_of_a_server_does_not_go_past_new_routes() -> None:
    async with policy_mesh({"v1": greeting(b"hi")}, protocol=Protocol.AUTO, subsets=SUBSETS) as m:
        for _ in range(2):
            peer = await m.connect()
            assert await peer.exactly(2) == b"hi"
            peer.close()
        m.change(routes=(Route(match=(Match(method="GET"),), respond=Respond(status=204)),))
        assert (await m.ask()).status == 204


@mesh_test
async def test_a_plain_split_leaves_a_server_that_speaks_first_alone() -> None:
    apps = {"v1": greeting(b"v1"), "v2": greeting(b"v2")}
    routes = (Route(to=(WeightedTarget(subset="v1", weight=0), WeightedTarget(subset="v2"))),)
    async with policy_mesh(apps, protocol=Protocol.AUTO, subsets=SUBSETS, routes=routes) as m:
        for _ in range(3):
            peer = await m.connect()
            assert await peer.exactly(2) == b"v2"
            peer.close()


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.AUTO])
@mesh_test
async def test_max_connections(protocol: Protocol) -> None:
    apps = {"v1": greeting(b"hi")} if protocol is Protocol.AUTO else {"v1": naming(b"hi")}
    settings = Settings(breaker=Breaker(max_connections=2))
    async with policy_mesh(apps, protocol=protocol, settings=settings) as m:

        async def open_one() -> Peer:
            peer = await m.connect()
            if protocol is Protocol.TCP:
                await peer.send(b"ab")
            return peer

        peers = [await open_one() for _ in range(2)]
        for peer in peers:
            assert await peer.exactly(2) == b"hi"
        assert await (await m.connect()).end() == "reset"
        record = await m.record(flag="UO")
        assert record["detail"] == "maxConnections (2) is reached"
        assert m.client.metric("triomesh_breaker_overflows_total") == 1
        peers[0].close()
        await wait_until(lambda: m.cluster().breaker.connections == 1)
        assert await (await open_one()).exactly(2) == b"hi"


@mesh_test
async def test_tcp_idle() -> None:
    settings = Settings(timeouts=Timeouts(tcp_idle_s=0.1))
    async with policy_mesh({"v1": naming(b"v1")}, protocol=Protocol.TCP, settings=settings) as m:
        peer = await m.connect()
        await peer.send(b"ab")
        assert await peer.exactly(2) == b"v1"
        assert await peer.end() == "reset"
        assert (await m.record(flag="SI"))["protocol"] == "TCP"


@mesh_test
async def test_a_pods_own_address_has_the_settings_of_its_headless_service() -> None:
    """No Service's routes, but its circuit breaker, and its time-outs."""
    async with policy_mesh({"v1": ok(b"v1")}) as m:
        side = m.servers["v1"]
        pod = Pod(
            name="db-0",
            namespace="shop",
            addresses=(side.inbound.ip,),
            identity=identity("server"),
            tls=TlsMode.MESH,
            settings=Settings(breaker=Breaker(max_requests=0)),
        )
        snapshot = m.client.app.store.snapshot
        assert snapshot is not None
        m.client.app.on_snapshot(replace(snapshot, pods=(pod,)))
        m.client.aim(outbound=Addr(side.inbound.ip, side.inbound.port))
        peer = await m.connect()
        await peer.send(GET)
        assert flag_of(await peer.response()) == "UO"
        m.client.app.on_snapshot(replace(snapshot, pods=(replace(pod, settings=Settings()),)))
        await peer.send(GET)
        assert (await peer.response()).body == b"v1"


@mesh_test
async def test_routes_that_cannot_be_used_leave_the_last_good_ones() -> None:
    bad = to("v2", match=(Match(path=PathMatch(regex="(")),))
    apps = {"v1": ok(b"v1"), "v2": ok(b"v2")}
    async with policy_mesh(apps, subsets=SUBSETS, routes=(to("v1"),)) as m:
        assert (await m.ask()).body == b"v1"
        m.change(routes=(bad,))
        assert (await m.ask()).body == b"v1"
        line = await m.client.log.wait_for(lambda line: line.get("event") == "routes refused")
        assert line["error"].startswith("$.routes[0].match[0].path.regex: ")
        m.change(routes=(to("v2"),))
        assert (await m.ask()).body == b"v2"
    async with policy_mesh(apps, subsets=SUBSETS, routes=(bad,)) as m:
        response = await m.ask()
        assert (response.status, flag_of(response)) == (404, "NR"), "nothing is let through"
