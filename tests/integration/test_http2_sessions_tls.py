"""HTTP/2 sessions over TLS connections, as between two sidecars."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache

import pytest
import trio

from certs.credentials import ALPN_HTTP2, Credentials
from mesh_proxy.base.errors import PeerReset, TransportError, Truncated
from mesh_proxy.http2.budget import SessionSettings
from mesh_proxy.http2.client import ClientSession
from mesh_proxy.http2.server import ServerSession
from mesh_proxy.http2.stream import ServerStream
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.tls import Handshaker, TlsConn
from mesh_proxy.wire.http2.seam import Http2Limits
from tests.support.http2 import Net, fields, http2_test, tcp_pair, wait_until
from tests.support.mesh import TestCa

BIG = bytes(range(256)) * 4 * 1024 * 4


@cache
def credentials() -> tuple[Credentials, Credentials]:
    ca = TestCa()
    return ca.credentials("client"), ca.credentials("server")


async def pair(
    n: Net, serve: Callable[[ServerStream], Awaitable[None]]
) -> tuple[ClientSession, ServerSession]:
    """Two sessions, after the handshake; the client's settings come with its Finished, which is usual."""
    ours, theirs = credentials()
    one, other = tcp_pair()
    client = TlsConn.over(Conn(n.reactor, one), ours.client[ALPN_HTTP2], server_side=False)
    server = TlsConn.over(Conn(n.reactor, other), theirs.server, server_side=True)
    handshaker = Handshaker()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.handshake, handshaker)
        nursery.start_soon(server.handshake, handshaker)
    assert client.alpn == server.alpn == ALPN_HTTP2
    limits = Http2Limits()
    sessions = (
        ClientSession(client, n.make(False, limits), SessionSettings(), n.budget, limits),
        ServerSession(server, n.make(True, limits), SessionSettings(), n.budget, limits),
    )
    n.nursery.start_soon(sessions[0].run)
    n.nursery.start_soon(sessions[1].run, serve)
    return sessions


async def echo(stream: ServerStream) -> None:
    stream.respond(200, b"")
    while data := await stream.read():
        await stream.write(data)
    await stream.end(stream.trailers)


async def never(stream: ServerStream) -> None:
    await trio.sleep_forever()


@http2_test
async def test_megabytes_both_ways_on_several_streams(n: Net) -> None:
    client, server = await pair(n, echo)
    done = 0

    async def one(index: int) -> None:
        nonlocal done
        stream = client.open(fields(b"POST"), False)

        async def send() -> None:
            for start in range(0, len(BIG), 50_000 + index):
                await stream.write(BIG[start : start + 50_000 + index])
            await stream.end(b"x-index: %d\r\n" % index)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await stream.response()
            parts = []
            while data := await stream.read():
                parts.append(data)
            assert b"".join(parts) == BIG
        assert stream.trailers == b"x-index: %d\r\n" % index
        stream.close()
        done += 1

    async with trio.open_nursery() as nursery:
        for index in range(4):
            nursery.start_soon(one, index)
    assert done == 4
    await wait_until(lambda: not server.streams)


@http2_test
async def test_a_session_ends_with_close_notify(n: Net) -> None:
    client, server = await pair(n, echo)
    stream = client.open(fields(), True)
    await stream.response()
    await stream.read()
    stream.close()
    client.retire()
    await wait_until(lambda: client.dead is not None and server.dead is not None)
    # Not Truncated: both ends said that it was their last byte.
    assert type(server.dead) is PeerReset
    assert type(client.dead) is PeerReset


@http2_test
async def test_an_end_without_close_notify_is_truncation(n: Net) -> None:
    client, server = await pair(n, never)
    stream = client.open(fields(), True)
    await wait_until(lambda: server.streams)
    server.conn.sock.shutdown(1)
    with pytest.raises(Truncated):
        await stream.response()
    stream.close()


@http2_test
async def test_a_broken_record_ends_every_stream(n: Net) -> None:
    client, server = await pair(n, never)
    streams = [client.open(fields(), True) for _ in range(3)]
    await wait_until(lambda: len(server.streams) == 3)
    server.conn.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    for stream in streams:
        with pytest.raises(TransportError):
            await stream.response()
        stream.close()
    await wait_until(lambda: server.dead is not None)
