"""A sidecar that stops ends every wait of a request, and gives back what the request held."""

from __future__ import annotations

import pytest
import trio

from mesh_api.sidecar import Protocol
from mesh_api.traffic import (
    Backoff,
    Breaker,
    Delay,
    Fault,
    Retries,
    RetryOn,
    Route,
    Settings,
    Timeouts,
    WeightedTarget,
)
from tests.integration.http_peers import Peer
from tests.integration.policy_mesh import GET, POST, PolicyMesh, mesh_test, policy_mesh
from tests.support.mesh import wait_until


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.rest()


async def failing(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")


async def deaf(peer: Peer) -> None:
    await peer.rest()


LONG = Backoff(base_s=3600, max_s=3600)
BACKING_OFF = Retries(attempts=1, on=(RetryOn.GATEWAY_ERROR,), backoff=LONG)
DELAYED = Route(to=(WeightedTarget(),), fault=Fault(delay=Delay(percent=100, fixed_s=3600)))
QUEUED = Settings(breaker=Breaker(max_connections=1), timeouts=Timeouts(connect_s=3600))


def retried(m: PolicyMesh) -> bool:
    return m.client.metric("triomesh_retries_total", result="tried") == 1


def pending(m: PolicyMesh) -> bool:
    return m.cluster().breaker.pending == 1


def connected(m: PolicyMesh) -> bool:
    return bool(m.apps["v1"].peers)


def accepted(m: PolicyMesh) -> bool:
    return m.client.metric("triomesh_connections", direction="outbound") == 1


WAITS = {
    "for a response": (silent, {}, [GET], connected),
    "for a response, while the body arrives": (silent, {}, [POST[:-1]], connected),
    "in a backoff": (failing, {"retries": BACKING_OFF}, [GET], retried),
    "in a fault's delay": (silent, {"routes": (DELAYED,)}, [GET], accepted),
    "for a connection": (silent, {"settings": QUEUED}, [GET, GET], pending),
    "in a relay": (deaf, {"protocol": Protocol.TCP}, [b"ab"], connected),
}


@pytest.mark.parametrize("wait", WAITS)
@mesh_test
async def test_a_sidecar_that_stops_gives_everything_back(wait: str) -> None:
    handler, changes, requests, waits = WAITS[wait]
    async with policy_mesh({"v1": handler}, **changes) as m:  # type: ignore[arg-type]
        for raw in requests:
            peer = await m.connect()
            await peer.send(raw)
            await wait_until(lambda: m.cluster().breaker.connections or waits(m))
        await wait_until(lambda: waits(m))
        breaker = m.cluster().breaker
        m.client.app.stop.set()  # its drain lasts 0.2 s
        await wait_until(lambda: not m.client.app.runtime.connections)
        assert (breaker.requests, breaker.pending, breaker.connections) == (0, 0, 0)
        assert not [e for e in m.cluster().endpoints if e.inflight]
        assert not m.client.app.runtime.reactor.conns


@mesh_test
async def test_a_client_that_goes_leaves_the_queue() -> None:
    async with policy_mesh({"v1": silent}, settings=QUEUED) as m:
        first, second = await m.connect(), await m.connect()
        await first.send(GET)
        await wait_until(lambda: m.apps["v1"].peers)
        await second.send(GET)
        await wait_until(lambda: m.cluster().breaker.pending == 1)
        second.reset()
        assert (await m.record(flag="DC"))["attempts"] == 1
        assert m.cluster().breaker.pending == 0
        assert not m.cluster().connections.waiting
        first.reset()


@mesh_test
async def test_who_gives_up_waiting_for_a_connection_leaves_its_place() -> None:
    async with policy_mesh({"v1": silent}, settings=QUEUED) as m:
        peer = await m.connect()
        await peer.send(GET)
        await wait_until(lambda: m.apps["v1"].peers)
        cluster = m.cluster()
        (endpoint,) = cluster.endpoints
        await m.connect()
        await wait_until(lambda: m.client.app.runtime.connections == 2)
        conns = m.client.app.runtime.reactor.conns.values()
        (client,) = [conn for conn in conns if not conn.peer and not conn.received]
        for turn in range(3):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cluster.connect, endpoint, "triomesh-h1", 60.0, client)
                    await wait_until(lambda: cluster.breaker.pending == 1)
                    if turn == 1:
                        peer.reset()  # its place is granted in the same moment
                    scope.cancel()
            assert cluster.breaker.pending == 0
            if turn == 1:
                await wait_until(lambda: cluster.breaker.connections == 0)
                peer = await m.connect()
                await peer.send(GET)
                await wait_until(lambda: cluster.breaker.connections == 1 and not cluster.breaker.pending)
        assert not cluster.connections.waiting
        peer.reset()
