"""How HTTP/2 streams and sessions end: resets, deadlines, dead connections."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import h2.errors
import h2.events
import h2.settings
import pytest
import trio
import trio.testing

from mesh_proxy.base.errors import (
    DeadlineExceeded,
    PartnerGone,
    PeerReset,
    ProtocolFailed,
    StreamReset,
    TransportError,
)
from mesh_proxy.http2.budget import SessionSettings
from mesh_proxy.http2.stream import ClientStream, ServerStream
from mesh_proxy.wire.http2.seam import CANCEL, Http2Limits
from tests.support.http2 import Net, fields, http2_test, tcp_pair, wait_until

PIECE = bytes(16 * 1024)
QUICK = SessionSettings(idle_s=0.2, ping_s=0.1, ping_ack_s=0.1, preface_s=0.2, head_s=0.1, drain_s=0.1)


async def never(stream: ServerStream) -> None:
    await trio.sleep_forever()


async def ok(stream: ServerStream) -> None:
    stream.respond(200, b"", True)


class Partner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[TransportError] = []
        self.event = trio.Event()

    def interrupt(self, error: TransportError) -> None:
        self.told.append(error)
        self.event.set()


async def _write(stream: ClientStream) -> None:
    while True:
        await stream.write(PIECE)


# Resets.


@http2_test
async def test_the_clients_reset_reaches_who_waits_elsewhere(n: Net) -> None:
    partner = Partner()

    async def serve(stream: ServerStream) -> None:
        stream.partner = partner
        await partner.event.wait()
        assert isinstance(stream.gone, StreamReset)
        with pytest.raises(StreamReset):
            stream.respond(200, b"", True)

    client, server = n.pair(serve)
    stream = client.open(fields(), True)
    await wait_until(lambda: server.tasks == 1)
    stream.reset(CANCEL)
    stream.close()
    await wait_until(lambda: partner.told)
    await wait_until(lambda: not server.streams)
    assert [type(e) for e in partner.told] == [PartnerGone]


@pytest.mark.parametrize("waits", ["read", "write"])
@http2_test
async def test_the_clients_reset_reaches_who_waits_on_the_stream(n: Net, waits: str) -> None:
    caught: list[TransportError] = []
    partner = Partner()

    async def serve(stream: ServerStream) -> None:
        stream.partner = partner
        stream.respond(200, b"")
        try:
            while True:
                await (stream.read() if waits == "read" else stream.write(PIECE))
        except TransportError as exc:
            caught.append(exc)

    raw, server = n.raw_client(serve)
    raw.ack = False
    stream_id = await raw.request(end=False, method="POST")
    await raw.until(h2.events.ResponseReceived)
    await wait_until(
        lambda: any(s.sending if waits == "write" else s.reader for s in server.streams.values())
    )
    raw.h2.reset_stream(stream_id, 8)
    await raw.flush()
    await wait_until(lambda: caught)
    assert isinstance(caught[0], StreamReset)
    assert (caught[0].code, caught[0].remote, caught[0].unprocessed) == (8, True, False)
    assert not partner.told
    await raw.stream.aclose()


@pytest.mark.parametrize(
    ("code", "unprocessed"),
    [(h2.errors.ErrorCodes.REFUSED_STREAM, True), (h2.errors.ErrorCodes.INTERNAL_ERROR, False)],
)
@http2_test
async def test_the_servers_reset(n: Net, code: int, unprocessed: bool) -> None:
    raw, client = n.raw_server()
    stream = client.open(fields(), True)
    request = await raw.until(h2.events.RequestReceived)
    raw.h2.reset_stream(request.stream_id, code)
    await raw.flush()
    with pytest.raises(StreamReset) as caught:
        await stream.response()
    assert (caught.value.code, caught.value.remote, caught.value.unprocessed) == (code, True, unprocessed)
    assert stream.unprocessed is unprocessed
    assert client.capacity()
    stream.close()
    await raw.stream.aclose()


@http2_test
async def test_a_reset_here_wakes_who_waits(n: Net) -> None:
    client, server = n.pair(never)
    stream = client.open(fields(), True)
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(StreamReset) as caught:
                await stream.response()
            assert not caught.value.remote

        nursery.start_soon(wait)
        await wait_until(lambda: stream.reader is not None)
        stream.reset(CANCEL)
    stream.close()
    await wait_until(lambda: not server.streams)


@http2_test
async def test_tasks_of_reset_streams_are_bounded(n: Net) -> None:
    """A consumer that does not end at once cannot be multiplied by resets."""
    limits = Http2Limits(streams=4, resets_burst=1000)
    client, server = n.pair(never, limits=limits)
    for index in range(12):
        stream = client.open(fields(), True)
        await wait_until(lambda i=index, s=stream: s.over or server.tasks == min(i + 1, 8))
        if index >= 8:
            await wait_until(lambda s=stream: s.over)
            assert stream.unprocessed
        stream.reset()
        stream.close()
        await wait_until(lambda: not server.streams)
    assert server.tasks == 8


@http2_test
async def test_interrupt_and_deadline_as_on_a_connection(n: Net) -> None:
    client, _ = n.pair(never)
    stream = client.open(fields(b"POST"), False)
    stream.set_deadline(0.03)
    with pytest.raises(DeadlineExceeded):
        await stream.response()
    with pytest.raises(DeadlineExceeded):
        await stream.read()  # it is over for who comes later too
    n.reactor.set_deadline(stream, n.reactor.now + 30)
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(PartnerGone):
                await stream.read()

        nursery.start_soon(wait)
        await wait_until(lambda: stream.reader is not None)
        stream.interrupt(PartnerGone("told"))
    with pytest.raises(PartnerGone):
        await stream.read()
    stream.close()


# The connection's end.


@pytest.mark.parametrize("how", ["reset", "end"])
@http2_test
async def test_a_dead_connection_wakes_every_stream_once(n: Net, how: str) -> None:
    raw, client = n.raw_server()
    streams = [client.open(fields(), True) for _ in range(5)]
    errors: list[TransportError] = []

    async def wait(stream: ClientStream) -> None:
        try:
            await stream.response()
        except TransportError as exc:
            errors.append(exc)
        stream.close()

    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(wait, stream)
        await raw.until(h2.events.RequestReceived, stream_id=streams[4].id)
        if how == "reset":
            raw.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await raw.stream.aclose()
    assert [type(e) for e in errors] == [PeerReset] * 5
    assert len({id(e) for e in errors}) == 5
    assert not any(e.unprocessed for e in errors)
    assert client.dead is not None
    assert not client.capacity()
    with pytest.raises(StreamReset) as caught:
        client.open(fields(), True)
    assert caught.value.unprocessed


@http2_test
async def test_a_request_that_was_never_sent_is_unprocessed(n: Net) -> None:
    raw, client = n.raw_server()
    raw.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
    raw.h2.increment_flow_control_window(2**30)
    await raw.flush()
    sent = client.open(fields(b"POST"), False)
    n.nursery.start_soon(_swallow, _write, sent)
    await wait_until(lambda: client.conn.sending)
    unsent = client.open(fields(), True)
    client.stop(PeerReset("test"))
    for stream, unprocessed in ((sent, False), (unsent, True)):
        with pytest.raises(PeerReset) as caught:
            await stream.response()
        assert caught.value.unprocessed is unprocessed
        stream.close()


async def _swallow(wait: Callable[[ClientStream], Awaitable[None]], stream: ClientStream) -> None:
    with pytest.raises(PeerReset):
        await wait(stream)


@http2_test
async def test_a_dead_connection_interrupts_who_waits_elsewhere(n: Net) -> None:
    partner = Partner()

    async def serve(stream: ServerStream) -> None:
        stream.partner = partner
        await partner.event.wait()

    raw, server = n.raw_client(serve)
    await raw.request()
    await wait_until(lambda: server.tasks == 1)
    await raw.stream.aclose()
    await wait_until(lambda: partner.told and server.tasks == 0)
    assert isinstance(server.dead, PeerReset)


@http2_test
async def test_a_peer_that_breaks_the_protocol_is_told(n: Net) -> None:
    raw, client = n.raw_server()
    stream = client.open(fields(), True)
    await raw.until(h2.events.RequestReceived)
    await raw.stream.send_all(b"\0\0\4\x08\0\0\0\0\0\0\0\0\0")  # WINDOW_UPDATE of nothing
    with pytest.raises(ProtocolFailed):
        await stream.response()
    stream.close()
    assert (await raw.until(h2.events.ConnectionTerminated)).error_code == 1
    await raw.stream.aclose()


@http2_test
async def test_no_preface_in_time(n: Net) -> None:
    one, other = tcp_pair()
    session = n.server(other, ok, QUICK)
    await wait_until(lambda: session.dead is not None)
    assert "preface" in str(session.dead)
    one.close()


@http2_test
async def test_something_else_than_http2(n: Net) -> None:
    one, other = tcp_pair()
    session = n.server(other, ok)
    one.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    await wait_until(lambda: session.going)
    one.close()
    await wait_until(lambda: session.dead is not None)
    assert isinstance(session.dead, ProtocolFailed)


@http2_test
async def test_a_head_that_does_not_end(n: Net) -> None:
    raw, server = n.raw_client(ok, SessionSettings(head_s=0.1))
    await raw.flush()
    await raw.receive()
    # HEADERS without END_HEADERS; more bytes of it do not give it more time
    await raw.stream.send_all(b"\0\0\1\x01\1\0\0\0\1\x82")
    await wait_until(lambda: server.dead is not None)
    assert "header block" in str(server.dead)
    await raw.stream.aclose()


@http2_test
async def test_silence_is_asked_about_and_the_answer_counts(n: Net) -> None:
    raw, client = n.raw_server(QUICK)
    stream = client.open(fields(), True)
    for _ in range(3):
        await raw.until(h2.events.PingReceived)
    assert client.dead is None
    with pytest.raises(DeadlineExceeded, match="PING"):  # now it does not answer
        await stream.response()
    stream.close()
    await raw.stream.aclose()


@http2_test
async def test_an_idle_session_ends_in_order(n: Net) -> None:
    client, server = n.pair(ok, QUICK)
    stream = client.open(fields(), True)
    await stream.response()
    stream.close()
    await wait_until(lambda: client.dead is not None and server.dead is not None)
    assert not client.capacity()


@http2_test
async def test_a_session_with_a_stream_is_not_idle(n: Net) -> None:
    client, _ = n.pair(never, QUICK)
    stream = client.open(fields(), True)
    await trio.sleep(0.4)
    assert client.dead is None
    stream.close()
    await wait_until(lambda: client.dead is not None)
