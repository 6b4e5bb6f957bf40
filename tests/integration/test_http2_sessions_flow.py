"""Flow control of HTTP/2 sessions: who is slow slows only himself, and memory is bounded."""

from __future__ import annotations

import h2.settings
import pytest
import trio
import trio.testing

from mesh_proxy.base.errors import DeadlineExceeded, StreamReset
from mesh_proxy.http2.budget import SessionSettings
from mesh_proxy.http2.stream import QUEUED_BYTES, ClientStream, ServerStream
from mesh_proxy.wire.http2.seam import Http2Limits
from tests.support.http2 import Net, fields, http2_test, wait_until

PIECE = bytes(16 * 1024)
SMALL = Http2Limits(stream_window=64 * 1024, connection_window=128 * 1024)


async def flood(stream: ServerStream) -> None:
    """Send without end."""
    stream.respond(200, b"")
    while True:
        await stream.write(PIECE)


async def endless(stream: ClientStream) -> None:
    while True:
        await stream.write(PIECE)


@http2_test
async def test_a_stalled_reader_beside_a_fast_one(n: Net) -> None:
    """More stalled streams than the connection's window could hold: the fast one still goes on."""
    client, _ = n.pair(flood, limits=SMALL)
    slow = [client.open(fields(), True) for _ in range(6)]
    for stream in slow:
        await stream.response()
    await wait_until(lambda: all(s.buffered == SMALL.stream_window for s in slow))
    fast = client.open(fields(), True)
    await fast.response()
    while fast.received < 3_000_000:
        await fast.read()
    for stream in slow:
        assert stream.received == SMALL.stream_window
        stream.close()
    fast.close()


@http2_test
async def test_tiny_frames_that_nobody_reads_are_held_together(n: Net) -> None:
    parked: list[ServerStream] = []

    async def serve(stream: ServerStream) -> None:
        parked.append(stream)
        await trio.sleep_forever()

    client, _ = n.pair(serve)
    stream = client.open(fields(b"POST"), False)
    for _ in range(5000):
        await stream.write(b"ab")
        await trio.lowlevel.checkpoint()
    await wait_until(lambda: parked and parked[0].received == 10_000)
    assert len(parked[0]._chunks) < 20
    assert parked[0].take() == b"ab" * 5000
    stream.close()


@http2_test
async def test_a_server_holds_no_more_than_its_windows(n: Net) -> None:
    gate = trio.Event()
    streams: list[ServerStream] = []

    async def serve(stream: ServerStream) -> None:
        streams.append(stream)
        await gate.wait()
        total = 0
        while data := await stream.read():
            total += len(data)
        stream.respond(200, b"x-total: %d\r\n" % total, True)

    client, server = n.pair(serve, limits=SMALL)
    ups = [client.open(fields(b"POST"), False) for _ in range(4)]

    async def upload(index: int) -> None:
        for _ in range(40):
            await ups[index].write(PIECE)
        await ups[index].end()

    async with trio.open_nursery() as nursery:
        for index in range(4):
            nursery.start_soon(upload, index)
        await wait_until(lambda: len(streams) == 4 and all(s.buffered == 65536 for s in streams))
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert server.held == 4 * 65536
        assert n.budget.used == server.held
        gate.set()
    for stream in ups:
        assert (await stream.response())[1] == b"x-total: %d\r\n" % (40 * len(PIECE))
        stream.close()
    assert server.held == 0


@pytest.mark.parametrize("bound", ["session", "process"])
@http2_test
async def test_beyond_the_bound_credit_is_for_what_was_taken(n: Net, bound: str) -> None:
    """No session holds more than its connection window then; all go on once there is room again."""
    held = 64 * 1024 if bound == "session" else 10_000_000
    if bound == "process":
        n.budget.limit = 64 * 1024
    client, _ = n.pair(flood, SessionSettings(held_bytes=held), SMALL)
    streams = [client.open(fields(), True) for _ in range(8)]
    await wait_until(lambda: client.held >= SMALL.connection_window)
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert client.held <= SMALL.connection_window + 64 * 1024
    for stream in streams[:7]:
        stream.close()
    last = streams[7]
    while last.received < 2_000_000:
        await last.read()
    last.close()


@http2_test
async def test_room_in_the_budget_wakes_the_sessions_that_wait(n: Net) -> None:
    n.budget.limit = 100 * 1024
    one, _ = n.pair(flood, limits=SMALL)
    other, _ = n.pair(flood, limits=SMALL)
    hogs = [one.open(fields(), True) for _ in range(3)]
    await wait_until(lambda: one in n.budget.waiting)
    stalled = other.open(fields(), True)
    second = other.open(fields(), True)
    await wait_until(lambda: other in n.budget.waiting)
    for stream in hogs:
        stream.close()
    stalled.close()
    while second.received < 1_000_000:
        await second.read()
    second.close()


@http2_test
async def test_a_writer_waits_for_its_own_window_only(n: Net) -> None:
    raw, client = n.raw_server()
    raw.ack = False
    await raw.receive()
    stream = client.open(fields(b"POST"), False)
    written = 0

    async def write() -> None:
        nonlocal written
        while written < 1_000_000:
            await stream.write(PIECE)
            written += len(PIECE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        quiet = False
        while not (quiet and stream.sending):
            with trio.move_on_after(0.05) as scope:
                await raw.receive()
            quiet = scope.cancelled_caught
        # The peer's window, what may be queued, and the piece that went over it.
        assert 65535 + QUEUED_BYTES - len(PIECE) <= written <= 65535 + QUEUED_BYTES + len(PIECE)
        raw.h2.increment_flow_control_window(1_000_000, stream.id)
        raw.h2.increment_flow_control_window(1_000_000)
        while written < 1_000_000:
            with trio.move_on_after(0.05):
                await raw.receive()
    stream.close()


@http2_test
async def test_a_peer_that_gives_no_window_is_given_up(n: Net) -> None:
    n.reactor.stall_s = 0.1
    settings = SessionSettings(ping_s=0.05)
    raw, client = n.raw_server(settings)
    raw.ack = False
    stream = client.open(fields(b"POST"), False)

    async def write() -> None:
        with pytest.raises(DeadlineExceeded, match="took no byte"):
            await endless(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.until_end)
        await write()
        nursery.cancel_scope.cancel()
    assert not client.streams
    stream.close()


@http2_test
async def test_a_response_that_the_peer_never_takes_is_given_up(n: Net) -> None:
    """The consumer is gone already: what is queued does not stay for ever."""
    n.reactor.stall_s = 0.1

    async def serve(stream: ServerStream) -> None:
        stream.respond(200, b"")
        await stream.write(bytes(QUEUED_BYTES + 60_000), end=True)

    raw, server = n.raw_client(serve, SessionSettings(ping_s=0.05))
    raw.ack = False
    await raw.request()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raw.until_end)
        await wait_until(lambda: server.ending)
        await wait_until(lambda: not server.streams)
        nursery.cancel_scope.cancel()
    await raw.stream.aclose()


@http2_test
async def test_a_peer_that_reads_nothing_at_all(n: Net) -> None:
    """The socket is full: the connection's own bound ends it, and every sender."""
    n.reactor.stall_s = 0.1
    raw, server = n.raw_client(flood)
    raw.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
    raw.h2.increment_flow_control_window(2**30)
    await raw.request()
    await wait_until(lambda: server.dead is not None)
    assert isinstance(server.dead, DeadlineExceeded)
    await raw.stream.aclose()


@http2_test
async def test_a_blocked_send_does_not_stop_the_reader(n: Net) -> None:
    """A peer that does not read but resets: its streams are freed although nothing can be sent."""
    raw, server = n.raw_client(flood)
    raw.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
    raw.h2.increment_flow_control_window(2**30)
    stream_id = await raw.request()
    await wait_until(lambda: server.blocked and server.conn.sending)
    raw.h2.reset_stream(stream_id, 8)
    await raw.flush()
    await wait_until(lambda: not server.streams and not server.blocked)
    await raw.stream.aclose()


@http2_test
async def test_unread_data_of_an_ended_stream_is_given_back(n: Net) -> None:
    """Streams that are left with data in them take nothing from the connection's window."""

    async def serve(stream: ServerStream) -> None:
        stream.respond(200, b"")
        await stream.write(bytes(60_000), end=True)

    client, _ = n.pair(serve, limits=SMALL)
    for _ in range(20):
        stream = client.open(fields(), True)
        await wait_until(lambda s=stream: s.complete)
        stream.close()
    assert client.held == 0
    for _ in range(20):
        stream = client.open(fields(), True)
        await stream.response()
        stream.close()
    last = client.open(fields(), True)
    await last.response()
    while await last.read():
        pass
    assert last.received == 60_000
    last.close()


@http2_test
async def test_a_reset_while_the_other_end_floods(n: Net) -> None:
    client, server = n.pair(flood, limits=SMALL)
    for _ in range(10):
        stream = client.open(fields(), True)
        while stream.received < 300_000:
            await stream.read()
        stream.reset()
        stream.take()
        with pytest.raises(StreamReset):
            await stream.read()
        stream.close()
    await wait_until(lambda: not server.streams)
    assert client.held == 0
