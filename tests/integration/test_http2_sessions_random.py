"""Many streams that end in every way at random moments: afterwards nothing is held, parked or counted."""

from __future__ import annotations

import random
from random import Random

import pytest
import trio
import trio.testing

from mesh_proxy.base.errors import TransportError
from mesh_proxy.http2.client import ClientSession
from mesh_proxy.http2.server import KEPT
from mesh_proxy.http2.stream import ServerStream, Stream
from mesh_proxy.wire.http2.seam import Http2Limits
from tests.support.http2 import Net, fields, http2_test, wait_until

LIMITS = Http2Limits(stream_window=20_000, connection_window=70_000, resets_burst=100_000)
WAYS = ("whole", "whole", "whole", "reset", "leave", "cancel", "wait", "stall")


async def talk(stream: Stream, rng: Random, size: int) -> None:
    """Send and receive in pieces, then do one of the things that end a stream."""
    way = rng.choice(WAYS)
    stop_at = rng.randrange(size + 1)

    async def send() -> None:
        try:
            while stream.sent < size:
                await stream.write(bytes(min(rng.randrange(1, 30_000), size - stream.sent)))
                if way != "whole" and stream.sent >= stop_at:
                    return
            await stream.end(b"x-size: %d\r\n" % size if rng.random() < 0.3 else b"")
        except TransportError:
            pass

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            if way != "whole":
                stream.set_deadline(rng.random() * 0.05)  # the other end may wait for us
            if way == "stall":
                await trio.sleep(rng.random() * 0.05)
            try:
                while await stream.read():
                    if way == "whole" or stream.received < stop_at:
                        continue
                    if way == "reset":
                        stream.reset(rng.choice((0, 5, 7, 8)))
                    elif way == "leave":
                        break
                    elif way == "cancel":
                        scope.cancel()
            except TransportError:
                pass
            if way != "whole":
                nursery.cancel_scope.cancel()


async def one(client: ClientSession, rng: Random) -> None:
    stream = client.open(fields(b"POST"), False)
    try:
        if rng.random() < 0.9:
            await stream.response()
        await talk(stream, rng, rng.randrange(120_000))
    except TransportError:
        pass
    finally:
        stream.close()


@pytest.mark.parametrize("seed", range(4))
@http2_test
async def test_everything_at_once(n: Net, seed: int) -> None:
    rng = random.Random(seed)

    async def serve(stream: ServerStream) -> None:
        if rng.random() < 0.9:
            stream.respond(200, b"")
            await talk(stream, rng, rng.randrange(120_000))

    client, server = n.pair(serve, limits=LIMITS)
    n.budget.limit = rng.choice((50_000, 10_000_000))

    async def some() -> None:
        for _ in range(12):
            while not client.capacity():
                await trio.sleep(0.001)
            await one(client, rng)

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(some)
    assert client.dead is None
    assert not client.streams
    await wait_until(lambda: not server.streams and server.tasks <= KEPT and not server.held)
    await trio.testing.wait_all_tasks_blocked(0.01)
    for session in (client, server):
        assert session.held == 0
        assert not session.blocked
        assert not [s for s in session.ending if not s.over]
    assert n.budget.used == 0
    # It still works, with its whole window.
    stream = client.open(fields(b"POST"), False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.write, bytes(10_000), True)
        try:
            await stream.response()
            while await stream.read():
                pass
        except TransportError:
            pass
    stream.close()
    assert client.dead is None
