"""HTTP/2 sessions: what two things do to each other that happen in one turn of the loop."""

from __future__ import annotations

import socket

import h2.events
import h2.settings
import pytest
import trio
import trio.testing

from mesh_proxy.base.errors import PeerReset, ProtocolFailed, StreamReset
from mesh_proxy.http2.budget import SessionSettings
from mesh_proxy.http2.stream import ClientStream, ServerStream
from tests.support.http2 import Net, RawPeer, fields, http2_test, tcp_pair, wait_until
from tests.support.http2_frames import PING, PREFACE, frame, settings

HUGE = 2**31 - 1


async def never(stream: ServerStream) -> None:
    await trio.sleep_forever()


async def ok(stream: ServerStream) -> None:
    stream.respond(200, b"", True)


async def endless(stream: ClientStream | ServerStream) -> None:
    while True:
        await stream.write(bytes(65536))


async def takes_all(raw: RawPeer, streams: int = 100) -> None:
    """Flow control of the h2 library's end stops nobody."""
    codes = h2.settings.SettingCodes
    raw.h2.update_settings({codes.INITIAL_WINDOW_SIZE: HUGE, codes.MAX_CONCURRENT_STREAMS: streams})
    raw.h2.increment_flow_control_window(2**30)
    await raw.flush()


async def fill(sock: socket.socket) -> None:
    """Send until the socket takes nothing more."""
    full = 0
    while full < 20:
        try:
            sock.send(bytes(10_000))
            full = 0
        except BlockingIOError:
            full += 1
            await trio.sleep(0.01)


@http2_test
async def test_a_session_that_is_stopped_takes_no_stream_meanwhile(n: Net) -> None:
    client, _ = n.pair(ok)
    stream = client.open(fields(), True)
    await stream.response()
    stream.close()
    client.stop(PeerReset("not needed any more"))
    assert not client.capacity()
    with pytest.raises(StreamReset) as caught:
        client.open(fields(b"POST"), True)
    assert caught.value.unprocessed
    await wait_until(lambda: client.dead is not None)


@http2_test
async def test_a_response_that_overtakes_the_requests_end_does_not_end_the_session(n: Net) -> None:
    """The stream counts until its end has gone: the engine would open no other, as if there were a GOAWAY."""
    raw, client = n.raw_server()
    await takes_all(raw, streams=2)
    await wait_until(lambda: client.engine.peer_max_streams == 2)
    bulk = client.open(fields(b"POST"), False)
    quick = client.open(fields(b"POST"), False)
    await raw.until(h2.events.RequestReceived, stream_id=quick.id)
    n.nursery.start_soon(_swallow, bulk)
    await wait_until(lambda: client.conn.sending)
    await quick.end()  # behind what the peer does not read
    raw.h2.send_headers(quick.id, [(":status", "200")], end_stream=True)
    await raw.flush()
    await quick.response()
    quick.close()
    assert not client.capacity()
    bulk.interrupt(PeerReset("enough"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.until_end)
        await wait_until(client.capacity)
        client.open(fields(), True).close()
        assert not client.going
        nursery.cancel_scope.cancel()
    bulk.close()


async def _swallow(stream: ClientStream) -> None:
    with pytest.raises(PeerReset):
        await endless(stream)


@http2_test
async def test_streams_that_have_ended_are_freed_while_another_never_stops(n: Net) -> None:
    """A sender that always has more to send has to look at those that are over, too."""

    async def serve(stream: ServerStream) -> None:
        if stream.fields.target == b"/bulk":
            await _bulk(stream)
        await ok(stream)

    async def _bulk(stream: ServerStream) -> None:
        stream.respond(200, b"")
        await endless(stream)

    ours, theirs = tcp_pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    raw = n.raw(ours, client=True)
    server = n.server(theirs, serve)
    await takes_all(raw)
    for _ in range(10):
        await raw.request(path="/bulk")
    await wait_until(lambda: len(server.blocked) == 10)
    for _ in range(60):
        stream_id = await raw.request()
        await raw.until(h2.events.StreamEnded, stream_id=stream_id)
        raw.events.clear()
        await wait_until(lambda: server.conn.sending)
    assert len(server.streams) < 30
    assert len(server.ending) < 30


@http2_test
async def test_an_error_beside_a_send_that_blocks(n: Net) -> None:
    """What the reader has to tell at the end and what the sender has are never sent at once."""
    ours, theirs = tcp_pair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server = n.server(theirs, never)
    ours.setblocking(True)
    ours.send(PREFACE + settings())
    await wait_until(lambda: server.settled)
    await trio.testing.wait_all_tasks_blocked()
    await fill(theirs)  # and no sender waits for it
    # More than one read takes: answers come of the first, the error of the second.
    ours.send(
        frame(0x16, 0, 0, bytes(8000)) + frame(PING, 0, 0, bytes(8)) * 900 + frame(PING, 0, 1, bytes(8))
    )
    await wait_until(lambda: server.dead is not None)
    assert isinstance(server.dead, ProtocolFailed)
    ours.close()


@http2_test
async def test_a_peer_that_reads_slowly_is_there(n: Net) -> None:
    """Bytes that it takes are as good as an answer to PING, which waits behind them."""
    quick = SessionSettings(ping_s=0.1, ping_ack_s=0.2)

    async def serve(stream: ServerStream) -> None:
        stream.respond(200, b"")
        await endless(stream)

    ours, theirs = tcp_pair()
    raw = n.raw(ours, client=True)
    server = n.server(theirs, serve, quick)
    await takes_all(raw)
    await raw.request()
    await wait_until(lambda: server.conn.sending)
    for _ in range(20):
        taken = 0
        while taken < 1_000_000:
            taken += len(await raw.stream.receive_some(1 << 18))
        await trio.sleep(0.05)
    assert server.dead is None
    await wait_until(lambda: server.dead is not None)  # now it takes nothing any more


@http2_test
async def test_interim_responses_that_nobody_takes_are_bounded(n: Net) -> None:
    raw, client = n.raw_server()
    stream = client.open(fields(b"POST"), False)
    await raw.until(h2.events.RequestReceived)
    for _ in range(400):
        if stream.over:
            break
        raw.h2.send_headers(stream.id, [(":status", "103"), ("x", "y" * 4000)])
        await raw.flush()
        await trio.testing.wait_all_tasks_blocked()
    assert stream.over
    with pytest.raises(StreamReset) as caught:
        await stream.response()
    assert not caught.value.remote
    stream.close()
    assert client.dead is None


@http2_test
async def test_a_peer_that_takes_nothing_and_has_no_stream(n: Net) -> None:
    """It has reset what it does not read: neither idleness nor PING would end it while a send is blocked."""
    quick = SessionSettings(idle_s=0.2, ping_s=0.1, ping_ack_s=0.1)

    async def serve(stream: ServerStream) -> None:
        stream.respond(200, b"")
        await endless(stream)

    raw, server = n.raw_client(serve, quick)
    await takes_all(raw)
    stream_id = await raw.request()
    await wait_until(lambda: server.conn.sending)
    raw.h2.reset_stream(stream_id)
    await raw.flush()
    await wait_until(lambda: not server.streams)
    await wait_until(lambda: server.dead is not None)
