"""HTTP/2 sessions that take no new stream: GOAWAY, drain, retirement, certificates that end, bounds."""

from __future__ import annotations

import h2.errors
import h2.events
import h2.settings
import pytest
import trio
import trio.testing

from mesh_proxy.base.errors import (
    IdentityEnded,
    ProtocolFailed,
    StreamReset,
)
from mesh_proxy.http2.budget import SessionSettings
from mesh_proxy.http2.client import ClientSession
from mesh_proxy.http2.stream import ServerStream
from mesh_proxy.wire.http2.seam import ENHANCE_YOUR_CALM, Http2Limits
from tests.support.http2 import Net, fields, http2_test, wait_until
from tests.support.http2_frames import goaway

QUICK = SessionSettings(idle_s=0.2, ping_s=0.1, ping_ack_s=0.1, preface_s=0.2, head_s=0.1, drain_s=0.1)


async def never(stream: ServerStream) -> None:
    await trio.sleep_forever()


async def ok(stream: ServerStream) -> None:
    stream.respond(200, b"", True)


@http2_test
async def test_goaway_ends_what_was_not_processed_and_nothing_else(n: Net) -> None:
    raw, client = n.raw_server()
    first = client.open(fields(), True)
    second = client.open(fields(), True)
    await raw.until(h2.events.RequestReceived, stream_id=second.id)
    raw.h2.close_connection(0, last_stream_id=first.id)
    raw.h2.state_machine.state = h2.connection.ConnectionState.SERVER_OPEN  # h2 sends nothing after it
    await raw.flush()
    with pytest.raises(StreamReset) as caught:
        await second.response()
    assert caught.value.unprocessed
    assert not client.capacity()
    with pytest.raises(StreamReset):
        client.open(fields(), True)
    assert client.dead is None
    await raw.respond(first.id, b"body")
    assert (await first.response())[0] == 200
    assert await first.read() == b"body"
    first.close()
    second.close()
    await raw.stream.aclose()
    await wait_until(lambda: client.dead is not None)


@http2_test
async def test_goaways_whose_last_stream_falls(n: Net) -> None:
    """RFC 9113, 6.8: first an announcement, then what was taken; here once more, with less."""
    raw, client = n.raw_server()
    streams = [client.open(fields(), True) for _ in range(4)]
    await raw.until(h2.events.RequestReceived, stream_id=streams[3].id)
    for last, failed in ((2**31 - 1, 0), (streams[2].id, 1), (streams[0].id, 3)):
        await raw.stream.send_all(goaway(last))
        await wait_until(lambda f=failed: client.going and sum(stream.over for stream in streams) == f)
        assert not client.capacity()
    for stream in streams[1:]:
        with pytest.raises(StreamReset) as caught:
            await stream.response()
        assert caught.value.unprocessed
    await raw.respond(streams[0].id, b"body")
    await streams[0].response()
    assert await streams[0].read() == b"body"
    for stream in streams:
        stream.close()
    await raw.stream.aclose()
    await wait_until(lambda: client.dead is not None)


@http2_test
async def test_a_client_that_says_goaway_and_goes_on(n: Net) -> None:
    """It speaks of streams that a server opens, which there are none of; what it asks is answered."""
    gate = trio.Event()

    async def serve(stream: ServerStream) -> None:
        if stream.fields.target == b"/waits":
            await gate.wait()
        stream.respond(200, b"", True)

    raw, server = n.raw_client(serve)
    waits = await raw.request(path="/waits")
    await wait_until(lambda: server.streams)
    await raw.stream.send_all(goaway(0))
    await wait_until(lambda: server.going)
    for _ in range(3):
        stream_id = await raw.request()
        await raw.until(h2.events.StreamEnded, stream_id=stream_id)
    gate.set()
    await raw.until(h2.events.StreamEnded, stream_id=waits)
    await raw.until_end()
    await wait_until(lambda: server.dead is not None)


@http2_test
async def test_a_server_drains(n: Net) -> None:
    """What is open is served, what the client sends before it knows is served, then the connection ends."""
    gate = trio.Event()
    served: list[bytes] = []

    async def serve(stream: ServerStream) -> None:
        await gate.wait()
        served.append(stream.fields.target)
        stream.respond(200, b"", True)

    client, server = n.pair(serve)
    first = client.open(fields(target=b"/1"), True)
    await wait_until(lambda: server.streams)
    server.drain()
    second = client.open(fields(target=b"/2"), True)
    await wait_until(lambda: client.going and server.going)
    assert not client.capacity()
    gate.set()
    for stream in (first, second):
        assert (await stream.response())[0] == 200
        stream.close()
    assert sorted(served) == [b"/1", b"/2"]
    await wait_until(lambda: client.dead is not None and server.dead is not None)


@http2_test
async def test_a_drain_does_not_wait_for_a_peer_that_does_not_answer(n: Net) -> None:
    raw, server = n.raw_client(ok, QUICK)
    await raw.flush()
    await raw.receive()
    server.drain()
    await wait_until(lambda: server.going)
    await raw.stream.aclose()


@http2_test
async def test_an_idle_server_that_drains_closes_at_once(n: Net) -> None:
    client, server = n.pair(ok)
    stream = client.open(fields(), True)
    await stream.response()
    stream.close()
    server.drain()
    await wait_until(lambda: client.dead is not None and server.dead is not None)


@http2_test
async def test_a_retired_client_ends_with_its_last_stream(n: Net) -> None:
    gate = trio.Event()

    async def serve(stream: ServerStream) -> None:
        await gate.wait()
        stream.respond(200, b"", True)

    client, server = n.pair(serve)
    told: list[ClientSession] = []
    client.on_free = told.append
    stream = client.open(fields(), True)
    client.retire()
    assert not client.capacity()
    gate.set()
    assert (await stream.response())[0] == 200
    stream.close()
    await wait_until(lambda: client.dead is not None and server.dead is not None)
    assert told


@http2_test
async def test_a_certificate_that_ended_takes_no_new_stream(n: Net) -> None:
    gate = trio.Event()

    async def serve(stream: ServerStream) -> None:
        await gate.wait()
        stream.respond(200, b"", True)

    client, server = n.pair(serve, QUICK)
    stream = client.open(fields(), True)
    await wait_until(lambda: server.streams)
    server.conn.expires = n.reactor.now
    await wait_until(lambda: client.going)  # the server told it
    client.conn.expires = n.reactor.now
    assert not client.capacity()
    gate.set()
    assert (await stream.response())[0] == 200
    stream.close()
    await wait_until(lambda: client.dead is not None and server.dead is not None)


@http2_test
async def test_the_end_of_an_identitys_life_ends_the_streams(n: Net) -> None:
    client, _ = n.pair(never)
    stream = client.open(fields(), True)
    client.conn.end_life(n.reactor.now + 0.05)
    with pytest.raises(IdentityEnded):
        await stream.response()
    stream.close()


@http2_test
async def test_the_servers_bound_on_streams_is_the_clients_capacity(n: Net) -> None:
    client, server = n.pair(never, limits=Http2Limits(streams=3))
    first = client.open(fields(), True)
    await wait_until(lambda: server.streams and client.engine.peer_max_streams == 3)
    others = [client.open(fields(), True) for _ in range(2)]
    assert not client.capacity()
    freed: list[ClientSession] = []
    client.on_free = freed.append
    first.reset()
    assert not client.capacity()  # nor is the stream free before its RST_STREAM is on its way
    freed.clear()
    await wait_until(client.capacity)
    assert freed == [client]
    for stream in (first, *others):
        stream.close()


@http2_test
async def test_a_bound_that_falls_below_what_is_open(n: Net) -> None:
    raw, client = n.raw_server()
    streams = [client.open(fields(), True) for _ in range(3)]
    await raw.until(h2.events.RequestReceived, stream_id=streams[2].id)
    raw.h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    await raw.flush()
    await wait_until(lambda: client.engine.peer_max_streams == 1)
    assert not client.capacity()
    for stream in streams:
        await raw.respond(stream.id)
        assert (await stream.response())[0] == 200
        stream.close()
    assert client.capacity()
    await raw.stream.aclose()


@http2_test
async def test_a_flood_ends_the_session(n: Net) -> None:
    raw, server = n.raw_client(ok, limits=Http2Limits(control_burst=50, control_per_s=1))
    await raw.flush()
    for _ in range(200):
        raw.h2.ping(b"12345678")
    await raw.flush()
    assert (await raw.until(h2.events.ConnectionTerminated)).error_code == ENHANCE_YOUR_CALM
    await raw.stream.aclose()
    await wait_until(lambda: server.dead is not None)
    assert isinstance(server.dead, ProtocolFailed)
