"""Opaque connections live through every change of the configuration, and none waits for another."""

import pytest
import trio
from msgspec.structs import replace

from mesh_api.sidecar import EgressMode, Inbound, MtlsMode, Protocol
from mesh_api.traffic import (
    Algorithm,
    Breaker,
    Match,
    Outliers,
    PathMatch,
    Respond,
    Route,
    Settings,
    Subset,
    Timeouts,
    WeightedTarget,
)
from mesh_proxy.net.addr import Addr
from tests.integration.test_tcp_relay import (
    BROKEN,
    application,
    connected,
    endpoint,
    everything,
    exactly,
    is_tcp,
    refused_port,
    reset,
)
from tests.support.mesh import pair, run, server_snapshot, wait_until

BLOB = bytes(1_000_000)
ONLY_HTTP = Route(match=(Match(path=PathMatch(prefix="/")),), respond=Respond(status=403))
TO_V2 = Route(to=(WeightedTarget(subset="v2", weight=1),))


def _elsewhere(mesh):
    return (endpoint(Addr("127.0.0.1", refused_port()), "another"),)


CHANGES = {
    "routes for HTTP only": lambda mesh: {"routes": (ONLY_HTTP,)},
    "routes to a subset without endpoint": lambda mesh: {
        "routes": (TO_V2,),
        "subsets": {"v2": Subset(labels={"version": "v2"})},
    },
    "other endpoints": lambda mesh: {"endpoints": _elsewhere(mesh)},
    "no endpoint": lambda mesh: {"endpoints": ()},
    "another identity": lambda mesh: {"endpoints": (endpoint(mesh.server.inbound, "another"),)},
    "declared to be HTTP": lambda mesh: {"protocol": Protocol.HTTP},
    "no connections allowed": lambda mesh: {"settings": Settings(breaker=Breaker(max_connections=1))},
    "other settings": lambda mesh: {
        "settings": Settings(
            algorithm=Algorithm.ROUND_ROBIN,
            timeouts=Timeouts(tcp_idle_s=0.2, connect_s=0.1),
            outliers=Outliers(consecutive_local=1),
        )
    },
    "another name": lambda mesh: {"name": "renamed"},
    "no such destination": lambda mesh: {"addresses": ("10.255.9.9",)},
}


async def works(client, served):
    await client.send_all(b"ping")
    assert await exactly(served, 4) == b"ping"
    await served.send_all(b"pong")
    assert await exactly(client, 4) == b"pong"


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_destination(change):
    async def main():
        async with connected() as (mesh, client, served):
            changes = CHANGES[change](mesh)
            mesh.client.app.on_snapshot(mesh.snapshot(**{"protocol": Protocol.TCP, **changes}))
            await works(client, served)
            mesh.client.app.on_snapshot(mesh.snapshot(protocol=Protocol.TCP))
            await works(client, served)
            assert not any(map(is_tcp, mesh.client.log.poll()))

    run(main)


def test_every_change_at_once_while_bytes_flow():
    """Endpoints, certificates and modes change between the pieces of one large transfer."""

    async def main():
        async with connected() as (mesh, client, served):

            async def change():
                for changes in CHANGES.values():
                    snapshot = mesh.snapshot(**{"protocol": Protocol.TCP, **changes(mesh)})
                    mesh.client.app.on_snapshot(replace(snapshot, egress=EgressMode.REFUSE))
                    mesh.client.app.holder.swap(mesh.ca.credentials("client"))
                    mesh.server.app.holder.swap(mesh.ca.credentials("server"))
                    for mode in (MtlsMode.STRICT, MtlsMode.PERMISSIVE):
                        mesh.server.app.on_snapshot(server_snapshot(inbound=Inbound(mtls=mode)))
                    await trio.sleep(0.002)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(change)
                for stream in (client, served):
                    nursery.start_soon(stream.send_all, BLOB * 10)
                nursery.start_soon(exactly, served, len(BLOB) * 10)
                assert await exactly(client, len(BLOB) * 10) == BLOB * 10
            await works(client, served)

    run(main)


def test_a_mesh_connection_survives_strict_and_plaintext_does_not():
    async def main():
        async with connected() as (mesh, client, served), application() as app:
            mesh.server.aim(inbound=app.addr)
            async with await trio.open_tcp_stream(*mesh.server.inbound) as plain:
                await plain.send_all(b"\0plain")
                async with await app.accept() as other:
                    assert await exactly(other, 6) == b"\0plain"
                    mesh.server.app.on_snapshot(server_snapshot(inbound=Inbound(mtls=MtlsMode.STRICT)))
                    with pytest.raises(BROKEN):
                        await everything(other)
                    with pytest.raises(BROKEN):
                        await everything(plain)
            await works(client, served)
            assert (await mesh.server.log.wait_for(is_tcp))["flag"] == "UAEX"

    run(main)


async def connection(mesh, app):
    """(client stream, application stream), and both have been heard."""
    client = await mesh.connect()
    await client.send_all(b"hello")
    served = await app.accept()
    assert await exactly(served, 5) == b"hello"
    return client, served


async def fill(stream):
    """Send until the sidecars and sockets on the way take no more."""
    with trio.move_on_after(0.5):
        while True:
            await stream.send_all(BLOB)


@pytest.mark.parametrize("stalled", ["client", "application"])
def test_a_stalled_peer_stalls_nobody_else(stalled):
    """Ten connections that nobody reads are full to the brim, and ten handshakes have stopped half-way."""

    async def main():
        async with application() as app, pair(app.addr, protocol=Protocol.TCP) as mesh:
            full = [await connection(mesh, app) for _ in range(10)]
            async with trio.open_nursery() as nursery:
                for client, served in full:
                    nursery.start_soon(fill, served if stalled == "client" else client)
            for _ in range(10):
                half = await trio.open_tcp_stream(*mesh.server.inbound)
                await half.send_all(b"\x16\x03\x01\x02\x00\x01")
                full.append((half,))
            client, served = await connection(mesh, app)
            for _ in range(20):
                await works(client, served)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, BLOB)
                await exactly(served, len(BLOB))
            for ends in (*full, (client, served)):
                for stream in ends:
                    reset(stream)
            for side in (mesh.client, mesh.server):
                await wait_until(lambda side=side: not side.app.runtime.connections)

    run(main)
