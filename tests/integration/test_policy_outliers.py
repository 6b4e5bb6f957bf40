"""Ejection of endpoints that keep failing, and their way back."""

from __future__ import annotations

import pytest
import trio
from msgspec.structs import replace

from mesh_api.sidecar import Endpoint, Protocol
from mesh_api.traffic import Algorithm, Outliers, Retries, Settings, Subset
from tests.integration.http_peers import Handler, Peer, closed_port, plain
from tests.integration.policy_mesh import (
    GET,
    PolicyMesh,
    error,
    flag_of,
    mesh_test,
    ok,
    policy_mesh,
    to,
)


class App:
    """An application whose answer can change."""

    def __init__(self, name: bytes, bad: bytes = b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nbad") -> None:
        self.asked = 0
        self.good = ok(name)
        self.bad = bad
        self.fails = False

    async def handle(self, peer: Peer) -> None:
        while True:
            await peer.request()
            self.asked += 1
            if self.fails and not self.bad:
                peer.reset()
                return
            await peer.send(self.bad if self.fails else self.good)


def settings(**outliers: float) -> Settings:
    return Settings(algorithm=Algorithm.ROUND_ROBIN, outliers=Outliers(**outliers))  # type: ignore[arg-type]


def handlers(*apps: App) -> dict[str, Handler | bytes]:
    return {f"v{i}": app.handle for i, app in enumerate(apps, 1)}


def ejected(m: PolicyMesh, subset: str = "") -> set[str]:
    return {endpoint.workload for endpoint in m.cluster(subset).outliers.ejected}


async def until_ejected(m: PolicyMesh, *names: str) -> None:
    """Ask until these are ejected."""
    peer = await m.connect()
    with trio.fail_after(20):
        while ejected(m) != set(names):
            await peer.send(GET)
            await peer.response()


NO_RETRY = Retries(attempts=0)


@mesh_test
async def test_consecutive_5xx_and_the_way_back() -> None:
    good, bad = App(b"good"), App(b"back")
    bad.fails = True
    policy = settings(consecutive_5xx=3, base_ejection_s=0.3)
    async with policy_mesh(handlers(good, bad), settings=policy, retries=NO_RETRY) as m:
        await until_ejected(m, "server-v2")
        assert bad.asked == 3
        assert m.client.metric("triomesh_ejections_total", destination_workload="server-v2") == 1
        assert m.client.metric("triomesh_ejected_endpoints") == 1
        # Probes that fail eject it anew, for longer; nobody else is sent there.
        peer = await m.connect()
        with trio.fail_after(20):
            while bad.asked < 4:
                await peer.send(GET)
                await peer.response()
        assert m.client.metric("triomesh_ejections_total") == 2
        assert ejected(m) == {"server-v2"}
        # One that succeeds brings it back.
        bad.fails = False
        await until_ejected(m)
        assert (await m.bodies(20)).keys() == {b"good", b"back"}
        assert m.client.metric("triomesh_ejected_endpoints") == 0


@mesh_test
async def test_gateway_errors_alone() -> None:
    good, bad = App(b"good"), App(b"x", b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n")
    other = App(b"y")
    bad.fails = other.fails = True
    policy = settings(consecutive_5xx=0, consecutive_gateway=3, consecutive_local=0, max_ejection_percent=100)
    async with policy_mesh(handlers(good, bad, other), settings=policy, retries=NO_RETRY) as m:
        await until_ejected(m, "server-v2")
        while other.asked < 5:
            await m.ask()
        assert ejected(m) == {"server-v2"}, "500 is no gateway error"


@mesh_test
async def test_local_failures_alone() -> None:
    """An application that resets is the server's sidecar's 503 here; one without a sidecar fails locally."""
    good = App(b"good")
    policy = settings(consecutive_5xx=0, consecutive_gateway=0, consecutive_local=2)
    dead = plain(closed_port())
    async with policy_mesh(handlers(good), settings=policy, retries=NO_RETRY) as m:
        m.change(endpoints=(*m.client.app.store.snapshot.destinations[0].endpoints, dead))
        for _ in range(200):
            if ejected(m):
                break
            assert (await m.ask()).status in {200, 503}
        assert ejected(m) == {dead.workload}
        assert (await m.bodies(20)) == {b"good": 20}


@pytest.mark.parametrize(("interval_s", "out"), [(0.01, set()), (3600.0, {"server-v2"})])
@mesh_test
async def test_failures_far_apart_are_none_in_a_row(interval_s: float, out: set[str]) -> None:
    good, bad = App(b"good"), App(b"x")
    bad.fails = True
    policy = settings(consecutive_5xx=2, interval_s=interval_s)
    async with policy_mesh(handlers(good, bad), settings=policy, retries=NO_RETRY) as m:
        peer = await m.connect()
        while bad.asked < 2:  # the balancer's own pause after a failure is longer than the interval
            await peer.send(GET)
            await peer.response()
        assert ejected(m) == out


@mesh_test
async def test_the_last_endpoint_is_never_ejected() -> None:
    bad = App(b"x")
    bad.fails = True
    policy = settings(consecutive_5xx=1, max_ejection_percent=100)
    async with policy_mesh(handlers(bad), settings=policy, retries=NO_RETRY) as m:
        for _ in range(5):
            assert (await m.ask()).body == b"bad"
        assert not ejected(m)
        assert bad.asked == 5


@pytest.mark.parametrize(("percent", "out"), [(50, 2), (100, 3), (0, 1)])
@mesh_test
async def test_the_share_is_bounded(percent: float, out: int) -> None:
    apps = [App(b"x") for _ in range(4)]
    for app in apps:
        app.fails = True
    policy = settings(consecutive_5xx=1, max_ejection_percent=percent)
    async with policy_mesh(handlers(*apps), settings=policy, retries=NO_RETRY) as m:
        await m.bodies(20)
        assert len(ejected(m)) == out


@mesh_test
async def test_below_the_healthy_share_nothing_is_ejected() -> None:
    apps = [App(b"x") for _ in range(4)]
    for app in apps:
        app.fails = True
    policy = settings(consecutive_5xx=1, max_ejection_percent=100, min_health_percent=60)
    async with policy_mesh(handlers(*apps), settings=policy, retries=NO_RETRY) as m:
        await m.bodies(20)
        before = [app.asked for app in apps]
        await m.bodies(40)
        assert all(app.asked > asked for app, asked in zip(apps, before, strict=True)), "all are in use"


@mesh_test
async def test_a_subset_has_outliers_of_its_own() -> None:
    apps = [App(b"x") for _ in range(4)]
    for app in apps:
        app.fails = True
    subsets = {
        "a": Subset(labels={"half": "a"}, settings=settings(consecutive_5xx=1)),
        "b": Subset(labels={"half": "b"}),
    }
    async with policy_mesh(
        handlers(*apps),
        settings=settings(consecutive_5xx=0, consecutive_local=0),
        subsets=subsets,
        routes=(to("a", "b"),),
        retries=NO_RETRY,
    ) as m:
        (dest, *_) = m.client.app.store.snapshot.destinations
        halves = tuple(labelled(e, "a" if i < 2 else "b") for i, e in enumerate(dest.endpoints))
        m.change(endpoints=halves)
        await m.bodies(40)
        assert len(ejected(m, "a")) == 1
        assert not ejected(m, "b")


def labelled(endpoint: Endpoint, half: str) -> Endpoint:
    return replace(endpoint, labels={"half": half})


@mesh_test
async def test_a_configuration_change_keeps_what_was_learned() -> None:
    good, bad = App(b"good"), App(b"x")
    bad.fails = True
    policy = settings(consecutive_5xx=1, base_ejection_s=3600)
    async with policy_mesh(handlers(good, bad), settings=policy, retries=NO_RETRY) as m:
        await until_ejected(m, "server-v2")
        opened = m.client.metric("triomesh_upstream_connections_opened_total")
        cluster = m.cluster()
        m.change(retries=Retries(attempts=3), routes=(to(""),))
        assert m.cluster() is cluster
        assert await m.bodies(20) == {b"good": 20}
        assert m.client.metric("triomesh_upstream_connections_opened_total") == opened
        m.change(settings=settings(consecutive_5xx=0, consecutive_local=0), retries=NO_RETRY)
        assert not ejected(m), "what is not watched is in use"
        peer = await m.connect()
        with trio.fail_after(20):  # the balancer spares it for a moment yet
            while bad.asked < 2:
                await peer.send(GET)
                await peer.response()


@mesh_test
async def test_endpoints_go_on_in_subsets_that_are_new() -> None:
    """A first split closes no connection."""
    subsets = {name: Subset(labels={"version": name}) for name in ("v1", "v2")}
    apps = handlers(App(b"1"), App(b"2"))
    async with policy_mesh(apps, settings=settings(), subsets=subsets) as m:
        assert (await m.bodies(20)).keys() == {b"1", b"2"}
        opened = m.client.metric("triomesh_upstream_connections_opened_total")
        m.change(routes=(to("v1", "v2"),))
        assert (await m.bodies(40)).keys() == {b"1", b"2"}
        assert m.client.metric("triomesh_upstream_connections_opened_total") == opened
        assert m.cluster("v1").breaker.connections == 1


@mesh_test
async def test_opaque_connections_eject_endpoints_that_refuse() -> None:
    async def echo(peer: Peer) -> None:
        await peer.send(await peer.exactly(2))

    dead = plain(closed_port())
    policy = settings(consecutive_local=2)
    async with policy_mesh({"v1": echo}, protocol=Protocol.TCP, settings=policy) as m:
        m.change(endpoints=(*m.client.app.store.snapshot.destinations[0].endpoints, dead))
        for _ in range(200):
            if ejected(m):
                break
            peer = await m.connect()
            await peer.send(b"ab")
            assert await peer.rest() == b"ab", "the other endpoint is tried"
            peer.close()
        assert ejected(m) == {dead.workload}


@mesh_test
async def test_nobody_left_is_503() -> None:
    async with policy_mesh({"v1": ok()}, retries=NO_RETRY) as m:
        m.change(endpoints=())
        response = await m.ask()
        assert (response.status, flag_of(response)) == (503, "UH")


@mesh_test
async def test_an_error_says_how_many_endpoints_are_ejected() -> None:
    async with policy_mesh({"v1": b""}, settings=settings(consecutive_local=2), retries=NO_RETRY) as m:
        m.change(endpoints=(plain(closed_port()), plain(closed_port())))
        peer = await m.connect()
        for _ in range(20):
            await peer.send(GET)
            response = await peer.response()
            assert flag_of(response) == "UF"
            if b"; 1 of 2 endpoints ejected" in error(response):
                return
        raise AssertionError(error(response))
