"""HTTP/2 sessions that talk to each other: messages in all shapes, on both engines."""

from __future__ import annotations

import h2.events
import pytest
import trio
import trio.testing

from mesh_proxy.base.errors import StreamReset
from mesh_proxy.http2.client import ClientSession
from mesh_proxy.http2.stream import ClientStream, ServerStream
from mesh_proxy.wire.http2.seam import CANCEL, RequestFields
from tests.support.http2 import Net, fields, http2_test, wait_until

BIG = bytes(range(256)) * 4 * 1024 * 3


async def hello(stream: ServerStream) -> None:
    stream.respond(200, b"content-length: 5\r\n")
    await stream.write(b"hello", end=True)


async def echo(stream: ServerStream) -> None:
    """Answer with the request's body as it comes, and its trailers."""
    stream.respond(200, b"x-path: " + stream.fields.target + b"\r\n")
    while data := await stream.read():
        await stream.write(data)
    await stream.end(stream.trailers)


async def rest(stream: ClientStream) -> bytes:
    parts = []
    while data := await stream.read():
        parts.append(data)
    return b"".join(parts)


async def get(client: ClientSession, target: bytes = b"/") -> tuple[int, bytes, bytes]:
    stream = client.open(fields(target=target), True)
    try:
        status, block, _ = await stream.response()
        return status, block, await rest(stream)
    finally:
        stream.close()


async def answered(stream: ClientStream) -> None:
    await stream.response()
    await rest(stream)


@http2_test
async def test_one_request(n: Net) -> None:
    heads: list[RequestFields] = []

    async def serve(stream: ServerStream) -> None:
        heads.append(stream.fields)
        assert stream.complete
        await hello(stream)

    client, server = n.pair(serve)
    assert client.fresh
    status, block, body = await get(client, b"/one?a=b")
    assert (status, body) == (200, b"hello")
    assert b"content-length: 5\r\n" in block
    assert (heads[0].method, heads[0].scheme, heads[0].target) == (b"GET", b"http", b"/one?a=b")
    assert heads[0].block == b"host: test\r\n"
    assert not client.fresh
    assert client.uses == 1
    await wait_until(lambda: not client.streams and not server.streams)


@http2_test
async def test_a_response_without_a_body_says_so(n: Net) -> None:
    async def serve(stream: ServerStream) -> None:
        stream.respond(204, b"", True)

    client, _ = n.pair(serve)
    stream = client.open(fields(), True)
    assert await stream.response() == (204, b"", True)
    assert stream.complete
    assert await stream.read() == b""
    stream.close()


@http2_test
async def test_what_came_with_the_head_is_there_without_a_wait(n: Net) -> None:
    taken: list[tuple[bool, bytes]] = []

    async def serve(stream: ServerStream) -> None:
        taken.append((stream.complete, stream.take()))
        await hello(stream)

    raw, _ = n.raw_client(serve)
    stream_id = raw.h2.get_next_available_stream_id()
    raw.h2.send_headers(
        stream_id, [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")]
    )
    raw.h2.send_data(stream_id, b"abc", end_stream=True)
    assert await raw.body(stream_id) == b"hello"
    assert taken == [(True, b"abc")]


@http2_test
async def test_bodies_of_megabytes_both_ways_at_once(n: Net) -> None:
    client, server = n.pair(echo)
    stream = client.open(fields(b"POST", b"/big"), False)

    async def send() -> None:
        for start in range(0, len(BIG), 100_000):
            await stream.write(BIG[start : start + 100_000])
        await stream.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert (await stream.response())[0] == 200
        assert await rest(stream) == BIG
    assert stream.sent == stream.received == len(BIG)
    stream.close()
    await wait_until(lambda: not client.streams and not server.streams)


@http2_test
async def test_trailers_both_ways(n: Net) -> None:
    client, _ = n.pair(echo)
    stream = client.open(fields(b"POST"), False)
    await stream.write(b"body")
    await stream.end(b"x-sum: 4\r\n")
    await stream.response()
    assert await rest(stream) == b"body"
    assert stream.trailers == b"x-sum: 4\r\n"
    stream.close()


@http2_test
async def test_trailers_without_a_body(n: Net) -> None:
    client, _ = n.pair(echo)
    stream = client.open(fields(b"POST"), False)
    await stream.end(b"x-sum: 0\r\n")
    await stream.response()
    assert await rest(stream) == b""
    assert stream.trailers == b"x-sum: 0\r\n"
    stream.close()


@http2_test
async def test_interim_responses_come_in_order(n: Net) -> None:
    async def serve(stream: ServerStream) -> None:
        stream.interim(100, b"")
        stream.interim(103, b"link: </a>\r\n")
        stream.respond(200, b"", True)

    client, _ = n.pair(serve)
    stream = client.open(fields(), True)
    assert await stream.response() == (100, b"", False)
    assert await stream.response() == (103, b"link: </a>\r\n", False)
    assert (await stream.response())[0] == 200
    stream.close()


@http2_test
async def test_many_streams_share_few_sends(n: Net) -> None:
    client, server = n.pair(hello)
    await get(client)
    before = client.flushes, server.flushes
    streams = [client.open(fields(), True) for _ in range(50)]
    for stream in streams:
        await stream.response()
        assert await rest(stream) == b"hello"
        stream.close()
    assert client.flushes - before[0] <= 5
    assert server.flushes - before[1] <= 10


@http2_test
async def test_tasks_are_kept_but_not_many(n: Net) -> None:
    gate = trio.Event()

    async def serve(stream: ServerStream) -> None:
        await gate.wait()
        await hello(stream)

    client, server = n.pair(serve)
    streams = [client.open(fields(), True) for _ in range(90)]
    await wait_until(lambda: server.tasks == 90)
    gate.set()
    for stream in streams:
        await stream.response()
        stream.close()
    await wait_until(lambda: server.tasks == 64)
    await get(client)
    assert server.tasks == 64


@http2_test
async def test_a_tunnel_by_extended_connect(n: Net) -> None:
    seen: list[bytes] = []

    async def serve(stream: ServerStream) -> None:
        seen.append(stream.fields.protocol)
        await echo(stream)

    client, _ = n.pair(serve)
    await get(client)
    assert client.engine.peer_connect_protocol
    head = RequestFields(b"CONNECT", b"http", b"/chat", b"websocket", b"host: test\r\n")
    stream = client.open(head, False)
    assert (await stream.response())[0] == 200
    for message in (b"one", b"two"):
        await stream.write(message)
        assert await stream.read() == message
    await stream.end()
    assert await stream.read() == b""
    assert seen[-1] == b"websocket"
    stream.close()


@http2_test
async def test_half_closed_the_other_way(n: Net) -> None:
    """The response ends first; the client still sends, and the server reads."""
    got = bytearray()

    async def serve(stream: ServerStream) -> None:
        stream.respond(200, b"")
        await stream.end()
        while data := await stream.read():
            got.extend(data)

    client, server = n.pair(serve)
    stream = client.open(fields(b"POST"), False)
    await stream.response()
    assert await rest(stream) == b""
    await stream.write(b"late")
    await stream.end()
    await wait_until(lambda: not server.streams)
    assert got == b"late"
    stream.close()
    assert not stream.gone


@http2_test
async def test_an_unread_request_body_is_declined_after_the_response(n: Net) -> None:
    """RFC 9113, 8.1: NO_ERROR after a complete response; the response is not lost."""
    raw, server = n.raw_client(hello)
    stream_id = await raw.request(end=False, method="POST")
    assert await raw.body(stream_id) == b"hello"
    assert (await raw.until(h2.events.StreamReset)).error_code == 0
    await wait_until(lambda: not server.streams)


@http2_test
async def test_a_response_stays_readable_after_no_error(n: Net) -> None:
    client, _ = n.pair(hello)
    stream = client.open(fields(b"POST"), False)
    await wait_until(lambda: stream.over)
    assert (await stream.response())[0] == 200
    assert await rest(stream) == b"hello"
    with pytest.raises(StreamReset) as caught:
        await stream.write(b"more")
    assert (caught.value.code, caught.value.remote) == (0, True)
    stream.close()


@http2_test
async def test_a_large_response_to_an_unread_request_arrives_whole(n: Net) -> None:
    async def serve(stream: ServerStream) -> None:
        stream.respond(200, b"")
        await stream.write(BIG, end=True)

    client, server = n.pair(serve)
    stream = client.open(fields(b"POST"), False)
    await stream.response()
    assert await rest(stream) == BIG
    await wait_until(lambda: not server.streams)
    stream.close()


@http2_test
async def test_what_a_server_leaves_unfinished_is_reset(n: Net) -> None:
    async def serve(stream: ServerStream) -> None:
        if stream.fields.target == b"/head":
            stream.respond(200, b"")

    client, _ = n.pair(serve)
    for target in (b"/", b"/head"):
        stream = client.open(fields(target=target), True)
        with pytest.raises(StreamReset) as caught:
            await answered(stream)
        assert (caught.value.code, caught.value.remote) == (2, True)
        stream.close()


@http2_test
async def test_use_after_the_end(n: Net) -> None:
    client, _ = n.pair(hello)
    stream = client.open(fields(), True)
    await stream.response()
    await stream.end()  # ended already: no error
    with pytest.raises(Exception, match="ended"):
        await stream.write(b"x")
    stream.close()
    stream.close()
    stream.reset(CANCEL)
    with pytest.raises(Exception, match="closed here"):
        await stream.read()


@http2_test
async def test_one_reader_and_one_sender_at_a_time(n: Net) -> None:
    async def serve(stream: ServerStream) -> None:
        await trio.sleep_forever()

    client, _ = n.pair(serve)
    stream = client.open(fields(b"POST"), False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.read)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.read()
        nursery.start_soon(stream.write, BIG)
        await wait_until(lambda: stream.sending)
        with pytest.raises(trio.BusyResourceError):
            await stream.write(BIG)
        nursery.cancel_scope.cancel()
    stream.close()
