"""Cancellation of HTTP/2 sessions and their consumers at every wait; nothing is left behind."""

from __future__ import annotations

import gc

import h2.errors
import h2.events
import h2.settings
import pytest
import trio
import trio.testing

from mesh_proxy.base.errors import (
    PartnerGone,
    PeerReset,
    StreamReset,
    TransportError,
)
from mesh_proxy.http2.budget import SessionSettings
from mesh_proxy.http2.client import ClientSession
from mesh_proxy.http2.server import ServerSession
from mesh_proxy.http2.stream import ClientStream, ServerStream, Stream
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.wheel import Timed
from mesh_proxy.wire.http2.seam import CANCEL, Http2Limits
from tests.support.http2 import Net, fields, http2_test, tcp_pair, wait_until

PIECE = bytes(16 * 1024)


async def never(stream: ServerStream) -> None:
    await trio.sleep_forever()


async def answered(stream: ClientStream) -> None:
    await stream.response()
    while await stream.read():
        pass


async def _read(stream: ClientStream) -> None:
    await stream.read()


async def _response(stream: ClientStream) -> None:
    await stream.response()


async def _write(stream: ClientStream) -> None:
    while True:
        await stream.write(PIECE)


@pytest.mark.parametrize("wait", [_read, _response, _write])
@http2_test
async def test_a_cancelled_consumer_of_a_client(n: Net, wait) -> None:
    client, server = n.pair(never)
    codes: list[object] = []
    stream = client.open(fields(b"POST"), False)
    await wait_until(lambda: server.streams)
    (other,) = server.streams.values()

    async def consume() -> None:
        try:
            await wait(stream)
        finally:
            stream.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await wait_until(lambda: stream.reader or stream.writer)
        nursery.cancel_scope.cancel()
    assert not client.streams
    assert not client.blocked
    await wait_until(lambda: not server.streams)
    assert isinstance(other.gone, StreamReset)
    codes.append(other.gone.code)
    assert codes == [CANCEL]


@pytest.mark.parametrize("state", ["elsewhere", "read", "write", "parked"])
@http2_test
async def test_a_cancelled_server(n: Net, state: str) -> None:
    """Its tasks end, its streams are reset, its connection is closed."""
    waiting = trio.Event()

    async def serve(stream: ServerStream) -> None:
        if state == "parked":
            return
        waiting.set()
        if state == "elsewhere":
            await trio.sleep_forever()
        stream.respond(200, b"")
        while True:
            await (stream.read() if state == "read" else stream.write(PIECE))

    one, other = tcp_pair()
    client = n.client(one)
    nursery_ready = trio.Event()
    scope = trio.CancelScope()
    box = []

    async def run() -> None:
        session = ServerSession(
            Conn(n.reactor, other), n.make(True, Http2Limits()), SessionSettings(), n.budget, Http2Limits()
        )
        box.append(session)
        nursery_ready.set()
        with scope:
            await session.run(serve)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await nursery_ready.wait()
        (server,) = box
        stream = client.open(fields(b"POST"), False)
        if state == "parked":
            await wait_until(lambda: stream.over)
        else:
            await waiting.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        scope.cancel()
    assert server.tasks == 0
    assert server.dead is not None
    assert not server.streams
    with pytest.raises(TransportError):
        await answered(stream)
    stream.close()
    await wait_until(lambda: client.dead is not None)


@pytest.mark.parametrize("end", ["good", "deadline", "reset", "interrupt"])
@http2_test
async def test_a_stream_is_freed_with_its_last_reference(n: Net, end: str) -> None:
    """No cycle is left, after a good end or a bad one."""

    async def serve(stream: ServerStream) -> None:
        if end == "good":
            stream.respond(200, b"", True)
        else:
            await stream.read()

    async def use() -> None:
        stream = client.open(fields(b"POST"), end == "good")
        await wait_until(lambda: server.streams or stream.complete)
        if end == "deadline":
            n.reactor.set_deadline(stream, n.reactor.now + 0.02)
        elif end == "interrupt":
            stream.interrupt(PartnerGone("told"))
        elif end == "reset":
            stream.reset()
        try:
            await stream.response()
        except TransportError:
            assert end != "good"
        finally:
            stream.close()

    client, server = n.pair(serve)
    gc.collect()
    gc.disable()
    try:
        await use()
        await wait_until(lambda: not server.streams)
        if end == "deadline":
            await _next_deadline(n)  # the reactor still knows the last one
        await trio.testing.wait_all_tasks_blocked()
        assert not [o for o in gc.get_objects() if isinstance(o, Stream)]
    finally:
        gc.enable()


async def _next_deadline(n: Net) -> None:
    passed = trio.Event()

    class Item(Timed):
        def on_deadline(self) -> None:
            passed.set()

    n.reactor.set_deadline(Item(), n.reactor.now)
    await passed.wait()


@pytest.mark.parametrize("state", ["idle", "open", "socket-full", "leaving", "complaining"])
@http2_test
async def test_a_cancelled_client_session(n: Net, state: str) -> None:
    """Wherever its two tasks wait: the connection is closed, streams end, waiters are told."""
    one, other = tcp_pair()
    peer = n.raw(other, client=False)
    session = ClientSession(
        Conn(n.reactor, one), n.make(False, Http2Limits()), SessionSettings(), n.budget, Http2Limits()
    )
    freed: list[ClientSession] = []
    session.on_free = freed.append
    stream: ClientStream | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        if state == "socket-full":
            peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
            peer.h2.increment_flow_control_window(2**30)
        await peer.flush()
        await wait_until(lambda: freed)
        if state in ("open", "socket-full"):
            stream = session.open(fields(b"POST"), False)
        if state == "socket-full":
            nursery.start_soon(_write, stream)
            await wait_until(lambda: session.conn.sending)
        elif state == "leaving":
            session.leave()
        elif state == "complaining":
            await peer.stream.send_all(b"\0\0\4\x08\0\0\0\0\0\0\0\0\0")
            await wait_until(lambda: session.going)
        await trio.testing.wait_all_tasks_blocked(0.01)
        freed.clear()
        nursery.cancel_scope.cancel()
    assert session.dead is not None
    assert session.conn.closed
    assert freed == [session]
    if stream is not None:
        with pytest.raises(PeerReset):
            await stream.read()
        stream.close()


@http2_test
async def test_requests_that_are_given_up_do_not_pile_up_behind_a_peer_that_reads_nothing(n: Net) -> None:
    ours, theirs = tcp_pair()
    client = n.client(ours)
    block = b"host: test\r\n" + b"".join(b"x-%d: %d\r\n" % (i, i * 0x9E3779B97F4A7C15) for i in range(500))
    opened = 0
    with trio.fail_after(20):
        while client.capacity():
            stream = client.open(fields(block=block.replace(b"x-", b"x-%d-" % opened)), True)
            opened += 1
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            stream.close()
    assert not client.streams
    assert client.open_to_new  # it goes on once the peer reads
    theirs.setblocking(False)
    with theirs, trio.fail_after(20):
        while not client.capacity():
            try:
                theirs.recv(1 << 20)
            except BlockingIOError:
                await trio.sleep(0.001)
