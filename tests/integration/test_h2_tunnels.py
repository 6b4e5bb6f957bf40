"""WebSocket over HTTP/2 by extended CONNECT (RFC 8441), to applications of either version."""

from __future__ import annotations

import base64
import hashlib

import pytest
import trio
from h2.settings import SettingCodes

from mesh_api.traffic import Settings, Timeouts
from tests.integration.http2_mesh import HTTP1, HTTP2, Chain, chain
from tests.integration.http2_peers import OK, Fields, Http2Peer, Http2Stream, http2_application
from tests.integration.http_peers import Peer, application, mesh_test, ok

pytestmark = pytest.mark.usefixtures("http2_engine")
TAKES = {SettingCodes.ENABLE_CONNECT_PROTOCOL: 1}
QUICK = Settings(timeouts=Timeouts(request_s=0.2))
both_hops = pytest.mark.parametrize("hops", ["one-sidecar", "two-sidecars"])


async def connect(peer: Http2Peer, protocol: bytes = b"websocket", more: Fields | None = None) -> Http2Stream:
    """Ask for a tunnel."""
    stream_id = peer.conn.get_next_available_stream_id()
    stream = peer.streams[stream_id] = Http2Stream(peer, stream_id)
    head = [
        (b":method", b"CONNECT"),
        (b":protocol", protocol),
        (b":scheme", b"http"),
        (b":path", b"/chat"),
        (b":authority", b"server"),
        (b"sec-websocket-version", b"13"),
        *(more or []),
    ]
    peer.conn.send_headers(stream_id, head)
    await peer.flush()
    return await stream.head()


async def talk(stream: Http2Stream, pause: float = 0) -> None:
    """Say two things, which are echoed."""
    assert stream.status == 200
    await stream.send(b"one")
    await stream.until(lambda: bytes(stream.body) == b"one")
    await trio.sleep(pause)
    await stream.send(b"two")
    await stream.until(lambda: bytes(stream.body) == b"onetwo")
    await stream.send(b"", True)
    await stream.whole()


async def the_record(c: Chain) -> dict[str, object]:
    return await c.sidecars[0].log.wait_for(lambda line: line.get("method") == "CONNECT")


@both_hops
@mesh_test
async def test_http2_to_http2(hops: str) -> None:
    async def handle(stream: Http2Stream) -> None:
        assert stream.get(b":protocol") == b"websocket"
        await stream.respond(OK, end=False)
        sent = 0
        while not stream.ended:
            await stream.until(lambda at=sent: len(stream.body) > at or stream.ended)
            data = bytes(stream.body[sent:])
            sent += len(data)
            if data:
                await stream.send(data)
        await stream.send(b"", True)

    async with http2_application(handle, TAKES) as app, chain(app.addr, hops, settings=QUICK) as c:
        await talk(await connect(await c.http2()), pause=0.3)  # longer than the request's time-out
        record = await the_record(c)
        assert (record["status"], record.get("flag")) == (200, None)
        assert c.sidecars[0].metric("triomesh_request_duration_seconds") == 0
        assert c.sidecars[0].metric("triomesh_requests_total", code="200") == 1


@both_hops
@mesh_test
async def test_http2_to_http1(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        request = await peer.head()
        assert request.line == b"GET /chat HTTP/1.1"
        assert request.get(b"upgrade") == b"websocket"
        key = request.get(b"sec-websocket-key") or b""
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        await peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: chat\r\n\r\n" % accept
        )
        while data := await peer.stream.receive_some(1000):
            await peer.send(data)

    async with application(handle) as app, chain(app.addr, hops, HTTP2, HTTP1) as c:
        stream = await connect(await c.http2())
        assert stream.get(b"sec-websocket-protocol") == b"chat"
        assert stream.get(b"sec-websocket-accept") is None
        await talk(stream, pause=0.3)
        assert (await the_record(c))["status"] == 200


@both_hops
@pytest.mark.parametrize(
    "answer",
    [
        ok(b"no"),
        b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: no\r\n\r\n",
        b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n",
    ],
)
@mesh_test
async def test_an_http1_application_that_does_not_agree(hops: str, answer: bytes) -> None:
    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.send(answer)
        assert await peer.rest() == b""  # what the client says is not taken for requests

    async with application(handle) as app, chain(app.addr, hops, HTTP2, HTTP1) as c:
        peer = await c.http2()
        stream = await connect(peer)
        assert stream.status == 502


@mesh_test
async def test_what_is_not_converted() -> None:
    async with (
        application(lambda peer: peer.rest()) as app,
        chain(app.addr, "one-sidecar", HTTP2, HTTP1) as c,
    ):
        assert (await connect(await c.http2(), b"other")).status == 501


@mesh_test
async def test_an_application_without_extended_connect() -> None:
    async def handle(stream: Http2Stream) -> None:
        await stream.respond(OK)

    async with http2_application(handle) as app, chain(app.addr, "one-sidecar") as c:
        peer = await c.http2()
        assert (await connect(peer)).status == 501
        assert (await peer.ask()).status == 200
