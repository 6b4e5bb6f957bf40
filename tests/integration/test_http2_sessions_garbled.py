"""HTTP/2 sessions with peers that send anything: a connection ends, nothing else does; nothing is left."""

from __future__ import annotations

import random
import socket
from random import Random

import pytest
import trio

from mesh_proxy.base.errors import PartnerGone, TransportError
from mesh_proxy.http2.budget import SessionSettings
from mesh_proxy.http2.client import ClientSession
from mesh_proxy.http2.server import ServerSession
from mesh_proxy.http2.stream import ServerStream, Stream
from mesh_proxy.wire.http2.seam import Http2Limits
from tests.support import http2_frames as h2
from tests.support.http2 import Net, fields, http2_test, tcp_pair, wait_until

QUICK = SessionSettings(idle_s=0.2, ping_s=0.1, ping_ack_s=0.1, preface_s=0.2, head_s=0.2, drain_s=0.1)
LIMITS = (
    Http2Limits(),
    Http2Limits(streams=3, stream_window=1000, connection_window=70_000),
    Http2Limits(resets_burst=10**6, control_burst=10**6, queued_control=10**6),
)
CODES = (0, 2, 7, 8)


def head(rng: Random, server: bool, ids: list[int]) -> bytes:
    if server:
        ids.append(1 + 2 * len(ids))
        return h2.headers(ids[-1], rng.choice((h2.GET, h2.POST)), end=rng.random() < 0.4)
    status = rng.choice((b"200", b"103", b"204"))
    return h2.headers(rng.choice(ids), [(b":status", status), (b"a", b"b" * 100)], end=rng.random() < 0.2)


def frames(rng: Random, server: bool, ids: list[int]) -> bytes:
    """Mostly what a peer may send."""
    if not ids or rng.random() < 0.4:
        return head(rng, server, ids) if server or ids else b""
    stream = rng.choice(ids)
    kind = rng.randrange(20)
    if kind < 8:
        return h2.data(stream, bytes(rng.choice((0, 1, 600, 16_384))), end=rng.random() < 0.3)
    if kind < 11:
        return h2.rst_stream(stream, rng.choice(CODES))
    if kind < 14:
        return h2.window_update(rng.choice((0, stream)), rng.choice((1, 1000, 65_535)))
    if kind < 16:
        return h2.settings((rng.choice((3, 4)), rng.choice((0, 1, 1000, 100_000))))
    if kind < 18:
        return h2.ping(rng.choice((b"drain!\0\0", bytes(8))), ack=rng.random() < 0.5) * rng.choice(
            (1, 30, 900)
        )
    if kind == 18:
        return h2.goaway(rng.choice((0, stream, 2**31 - 1)))
    return rng.choice((rng.randbytes(20), h2.window_update(0, 2**31 - 1), h2.frame(rng.randrange(20))))


async def use(stream: Stream, rng: Random) -> None:
    """Do what consumers do, in any order."""
    for _ in range(rng.randrange(6)):
        stream.set_deadline(0.2)
        what = rng.randrange(6)
        if what == 0:
            await stream.write(bytes(rng.choice((1, 5000, 300_000))), rng.random() < 0.2)
        elif what == 1:
            await stream.read()
        elif what == 2:
            await stream.end(rng.choice((b"", b"a: b\r\n", b"te: x\r\n")))
        elif what == 3:
            stream.reset(rng.choice(CODES))
        elif what == 4:
            await trio.sleep(rng.random() * 0.01)
        else:
            stream.interrupt(PartnerGone("elsewhere"))


async def ask(client: ClientSession, rng: Random) -> None:
    if not client.capacity():
        return
    stream = client.open(fields(b"POST"), rng.random() < 0.3)
    try:
        stream.set_deadline(0.2)
        if rng.random() < 0.7:
            await stream.response()
        await use(stream, rng)
    except TransportError:
        pass
    finally:
        stream.close()


def meddle(session: ClientSession | ServerSession, rng: Random) -> None:
    """What the sidecar does to a session at any time."""
    if rng.random() < 0.03:
        session.stop(PartnerGone("elsewhere"))
    elif rng.random() < 0.05 and isinstance(session, ServerSession):
        session.drain()
    elif rng.random() < 0.05 and isinstance(session, ClientSession):
        session.retire()


async def game(n: Net, seed: int) -> None:
    rng = random.Random(seed)

    async def serve(stream: ServerStream) -> None:
        if rng.random() < 0.2:
            stream.interim(103, b"a: b\r\n")
        if rng.random() < 0.9:
            stream.respond(200, b"a: b\r\n", rng.random() < 0.2)
        await use(stream, rng)

    ours, theirs = tcp_pair()
    if rng.random() < 0.5:  # a peer that soon takes nothing more
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    server, limits = seed % 2 == 0, rng.choice(LIMITS)
    session: ClientSession | ServerSession
    session = n.server(theirs, serve, QUICK, limits) if server else n.client(theirs, QUICK, limits)
    raw, ids = (h2.PREFACE if server else b"") + h2.settings(), []
    async with trio.open_nursery() as nursery:
        for _ in range(rng.randrange(2, 40)):
            if session.dead is not None:
                break
            if isinstance(session, ClientSession) and rng.random() < 0.5:
                ids.append(1 + 2 * len(ids))
                nursery.start_soon(ask, session, rng)
            meddle(session, rng)
            raw += b"".join(frames(rng, server, ids) for _ in range(rng.randrange(1, 5)))
            try:
                raw = raw[ours.send(raw) :]
                if rng.random() < 0.4:
                    ours.recv(rng.choice((100, 70_000)))
            except BlockingIOError:
                pass
            except OSError:
                break
            await trio.sleep(rng.choice((0, 0.002)))
        if rng.random() < 0.5:
            ours.close()
        await wait_until(lambda: session.dead is not None)
    ours.close()
    await wait_until(lambda: session.conn.closed and not getattr(session, "tasks", 0))
    assert (session.held, session.streams, session.blocked) == (0, {}, {})


@pytest.mark.parametrize("seed", range(0, 80, 20))
@http2_test
async def test_peers_that_send_anything(n: Net, seed: int) -> None:
    async with trio.open_nursery() as nursery:
        for each in range(seed, seed + 20):
            nursery.start_soon(game, n, each)
