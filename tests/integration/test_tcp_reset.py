"""Resets: what had arrived before one is delivered, then the other end learns of it as a reset."""

import contextlib
import fcntl
import os
import socket
import struct
import termios
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from mesh_api.sidecar import Endpoint, Protocol, TlsMode
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.reactor import Reactor
from mesh_proxy.net.relay import Relay
from tests.integration.test_tcp_relay import (
    BROKEN,
    application,
    connected,
    everything,
    exactly,
    is_tcp,
    reset,
)
from tests.support.mesh import VIP, TestCa, client_snapshot, run, server_snapshot, sidecar, wait_until

CA = TestCa()
BLOB = os.urandom(1_500_000)


@asynccontextmanager
async def through_outbound():
    """A meshed client and a plain endpoint."""
    async with application() as app:
        plain = Endpoint(address=app.addr.ip, port=app.addr.port, tls=TlsMode.NONE, workload="plain")
        snapshot = client_snapshot(app.addr, protocol=Protocol.TCP, endpoints=(plain,))
        async with sidecar(CA.credentials("client"), snapshot) as side:
            side.aim(outbound=VIP)
            async with await trio.open_tcp_stream(*side.outbound) as client, await app.accept() as served:
                await served.send_all(b"\0")
                assert await exactly(client, 1) == b"\0"
                yield client, served, (side,)


@asynccontextmanager
async def through_inbound():
    """A client outside the mesh and a meshed application."""
    async with application() as app, sidecar(CA.credentials("server"), server_snapshot()) as side:
        side.aim(inbound=app.addr)
        async with await trio.open_tcp_stream(*side.inbound) as client:
            await client.send_all(b"\0")
            async with await app.accept() as served:
                assert await exactly(served, 1) == b"\0"
                yield client, served, (side,)


@asynccontextmanager
async def through_both():
    """Both in the mesh: mTLS between their sidecars."""
    async with connected() as (mesh, client, served):
        yield client, served, (mesh.client, mesh.server)


SCENES = {"outbound": through_outbound, "inbound": through_inbound, "mtls": through_both}
every_way = pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)


async def taken(stream):
    """Return once the next hop has everything that was sent."""

    def left():
        return struct.unpack("i", fcntl.ioctl(stream.socket.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]

    await wait_until(lambda: not left())


async def send_taken(stream, data):
    await stream.send_all(data)
    await taken(stream)


async def broken_after(stream, data):
    """Read exactly `data`, then the reset."""
    assert await exactly(stream, len(data)) == data
    with pytest.raises(BROKEN):
        await everything(stream)


async def flags(sides):
    return [(await side.log.wait_for(is_tcp))["flag"] for side in sides]


async def gone(sides):
    for side in sides:
        await wait_until(lambda side=side: not side.app.runtime.connections)
        assert not side.app.runtime.reactor.conns
        assert not any(side.app.runtime.reactor.wheel._buckets.values())


def tcp_pair():
    """Two ends of one connection, as plain non-blocking sockets."""
    with socket.socket() as listener, socket.socket() as near:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        far.setblocking(False)
        near.setblocking(False)
        return near.dup(), far


@every_way
def test_a_reset_of_the_client(scene):
    async def main():
        async with scene() as (client, served, sides):
            reset(client)
            with pytest.raises(BROKEN):
                await everything(served)
            assert await flags(sides) == ["DC"] * len(sides)
            await gone(sides)

    run(main)


@every_way
def test_a_reset_of_the_application(scene):
    async def main():
        async with scene() as (client, served, sides):
            reset(served)
            with pytest.raises(BROKEN):
                await everything(client)
            assert await flags(sides) == ["UC"] * len(sides)
            await gone(sides)

    run(main)


@every_way
def test_what_the_application_said_before_its_reset_arrives(scene):
    """The client begins to read late: sockets and sidecars hold the bytes while the reset is there."""

    async def main():
        async with scene() as (client, served, sides):
            await send_taken(served, BLOB)
            reset(served)
            await wait_until(lambda: len(sides[-1].app.runtime.reactor.conns) < 2 * len(sides))
            await broken_after(client, BLOB)
            assert await flags(sides) == ["UC"] * len(sides)
            await gone(sides)

    run(main)


@every_way
def test_what_the_client_said_before_its_reset_arrives(scene):
    async def main():
        async with scene() as (client, served, sides):
            await send_taken(client, BLOB)
            reset(client)
            await broken_after(served, BLOB)
            assert await flags(sides) == ["DC"] * len(sides)
            await gone(sides)

    run(main)


@every_way
@pytest.mark.parametrize("answer", [b"413 too large", BLOB[:150_000]], ids=["short", "long"])
def test_an_answer_to_an_upload_that_the_application_cuts_off(scene, answer):
    """Writing to the application fails while its answer is on the way to the client."""

    async def main():
        for _ in range(3):
            async with scene() as (client, served, sides):
                with trio.move_on_after(0.2):
                    await client.send_all(BLOB * 20)
                # From here on the client only reads: a failed send would take the reset out of its socket.
                await exactly(served, 1)
                await send_taken(served, answer)
                reset(served)
                await broken_after(client, answer)
                assert await flags(sides) == ["UC"] * len(sides)
                await gone(sides)

    run(main)


@every_way
@pytest.mark.parametrize("end", ["client", "application"])
def test_a_stalled_reader_keeps_a_reset_for_a_bounded_time(scene, end, monkeypatch):
    monkeypatch.setattr("mesh_proxy.net.relay.LAST_S", 0.1)

    async def main():
        async with scene() as (client, served, sides):
            sender, reader = (client, served) if end == "client" else (served, client)
            with trio.move_on_after(0.5):
                while True:
                    await sender.send_all(BLOB)
            reset(sender)
            await gone(sides)  # though nobody reads
            with pytest.raises(BROKEN):
                await everything(reader)

    run(main)


@every_way
def test_a_reset_after_the_other_end_has_half_closed(scene):
    async def main():
        async with scene() as (client, served, sides):
            await served.send_eof()
            assert await everything(client) == b""
            await send_taken(client, BLOB)
            reset(client)
            await broken_after(served, BLOB)
            await gone(sides)

    run(main)


@pytest.mark.parametrize("broken", ["writing", "draining"])
def test_cancelled_while_it_delivers_the_last_bytes(broken):
    async def main():
        reactor = Reactor()
        client, down = tcp_pair()
        up, served = tcp_pair()
        with client, served:
            async with trio.open_nursery() as nursery:
                await nursery.start(reactor.run)
                relay = Relay(Conn(reactor, down), Conn(reactor, up), 60)

                def stalled():
                    with contextlib.suppress(BlockingIOError):
                        served.send(BLOB)
                    return relay.down.sending

                async with trio.open_nursery() as work:
                    work.start_soon(relay.run)
                    await wait_until(stalled)
                    if broken == "writing":
                        relay.lost(relay.up, "reset")
                    else:
                        relay.stop("UC", "reset")
                    await trio.testing.wait_all_tasks_blocked()
                    assert not relay.down.closed
                    work.cancel_scope.cancel()
                assert relay.down.closed
                assert relay.up.closed
                assert not reactor.conns
                nursery.cancel_scope.cancel()

    run(main)
