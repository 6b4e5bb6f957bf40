"""A peer that floods a whole sidecar with HTTP/2 frames loses its connection, and nobody else notices."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from mesh_api.limits import Limits
from mesh_api.sidecar import Protocol
from mesh_api.traffic import HttpVersion, Settings
from mesh_proxy.wire.http2.seam import CANCEL, ENHANCE_YOUR_CALM, STREAM_CLOSED
from tests.integration.http_peers import Application, Handler, Peer, application, mesh_test, ok
from tests.integration.http_peers import plain as plain_endpoint
from tests.support.http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    GET,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    MAX_CONCURRENT,
    PING,
    POST,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    frame,
    headers,
    plain,
    read_frames,
)
from tests.support.mesh import VIP, Sidecar, TestCa, client_snapshot, sidecar, wait_until

STRICT = Limits(
    streams=5,
    resets_burst=10,
    resets_per_second=1,
    control_burst=20,
    control_per_second=1,
    continuations=2,
    head_bytes=2048,
    header_count=16,
    head_seconds=0.3,
)
ENGINES = pytest.mark.parametrize("engine", ["nghttp2", "hyper"])
HELLO = PREFACE + frame(SETTINGS)


def rapid_resets() -> Iterator[bytes]:
    """CVE-2023-44487."""
    for stream in itertools.count(1, 2):
        yield headers(stream, GET, end=True) + frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4))


def made_resets() -> Iterator[bytes]:
    """CVE-2025-8671: the server is made to reset, here by a name that is not in lower case."""
    for stream in itertools.count(1, 2):
        yield headers(stream, [*GET, (b"Upper", b"case")], end=True)


def continuations() -> Iterator[bytes]:
    """CVE-2024-27316."""
    yield headers(1, GET, done=False)
    while True:
        yield frame(CONTINUATION, 0, 1, plain([(b"x", b"y")]))


def empty_data() -> Iterator[bytes]:
    yield headers(1, POST)
    while True:
        yield frame(DATA, 0, 1)


def empty_data_of_an_ended_stream() -> Iterator[bytes]:
    yield headers(1, GET) + frame(RST_STREAM, 0, 1, CANCEL.to_bytes(4))
    while True:
        yield frame(DATA, 0, 1)


SETTING = INITIAL_WINDOW.to_bytes(2) + (70000).to_bytes(4)
FLOODS = {
    "rapid resets": rapid_resets,
    "resets that it provokes": made_resets,
    "continuations": continuations,
    "empty data": empty_data,
    "empty data of an ended stream": empty_data_of_an_ended_stream,
    "pings": lambda: itertools.repeat(frame(PING, 0, 0, b"12345678")),
    "settings": lambda: itertools.repeat(frame(SETTINGS, 0, 0, SETTING)),
    "empty settings": lambda: itertools.repeat(frame(SETTINGS)),
    "window updates": lambda: itertools.repeat(frame(WINDOW_UPDATE, 0, 0, (1).to_bytes(4))),
    "priorities": lambda: itertools.repeat(frame(PRIORITY, 0, 1, (3).to_bytes(4) + b"\x10")),
}


class Http2Peer:
    """A raw client."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._raw = b""

    async def read(self) -> bool:
        data = await self.stream.receive_some(65536)
        self._raw += data
        return bool(data)

    @property
    def frames(self) -> list[Frame]:
        return read_frames(self._raw)

    def of(self, kind: int) -> list[Frame]:
        return [each for each in self.frames if each.kind == kind]


@asynccontextmanager
async def strict(handler: Handler, engine: str) -> AsyncIterator[tuple[Sidecar, Application]]:
    """A sidecar with narrow limits in front of an application that speaks HTTP/1.1."""
    async with application(handler) as app:
        settings = Settings(http_version=HttpVersion.HTTP1)
        endpoints = (plain_endpoint(app.addr),)
        snapshot = client_snapshot(VIP, endpoints=endpoints, protocol=Protocol.HTTP, settings=settings)
        credentials = TestCa().credentials("client")
        async with sidecar(credentials, snapshot, limits=STRICT, http2_engine=engine) as side:
            side.aim(outbound=VIP)
            yield side, app


async def dial(side: Sidecar) -> Http2Peer:
    return Http2Peer(await trio.open_tcp_stream(*side.outbound))


async def run_flood(side: Sidecar, parts: Iterator[bytes]) -> list[Frame]:
    """Send until the sidecar has ended the connection; what it said."""
    peer = await dial(side)

    async def send() -> None:
        for part in itertools.islice(parts, 20_000):
            await peer.stream.send_all(part)

    with trio.fail_after(10):
        try:
            await peer.stream.send_all(HELLO)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while await peer.read():
                    pass
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, OSError):
            pass  # it was closed with our bytes unread
    await trio.aclose_forcefully(peer.stream)
    return peer.frames


async def answer(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(ok())


@ENGINES
@pytest.mark.parametrize("flood", list(FLOODS))
@mesh_test
async def test_a_flood_ends_its_connection_only(flood: str, engine: str) -> None:
    async with strict(answer, engine) as (side, _app):
        beside = Peer(await trio.open_tcp_stream(*side.outbound))
        assert (await beside.get()).status == 200
        frames = await run_flood(side, FLOODS[flood]())
        ended = [each.code for each in frames if each.kind == GOAWAY]
        assert not ended or ended[0] in (ENHANCE_YOUR_CALM, STREAM_CLOSED), frames[-3:]
        assert (await beside.get()).status == 200
        await wait_until(lambda: side.app.runtime.connections == 1)
        beside.close()


@ENGINES
@mesh_test
async def test_what_is_allowed_is_announced_and_no_more_is_served(engine: str) -> None:
    held = trio.Event()

    async def hold(peer: Peer) -> None:
        await peer.head()
        await held.wait()
        await peer.send(ok())

    async with strict(hold, engine) as (side, _app):
        peer = await dial(side)
        # Before the acknowledgement of SETTINGS more streams are only refused.
        await peer.stream.send_all(HELLO + b"".join(headers(1 + 2 * n, GET, end=True) for n in range(7)))
        with trio.fail_after(5):
            while len(peer.of(RST_STREAM)) < 2:
                assert await peer.read()
            settings = peer.of(SETTINGS)[0].payload
            assert MAX_CONCURRENT.to_bytes(2) + STRICT.streams.to_bytes(4) in settings
            assert {each.stream for each in peer.of(RST_STREAM)} == {11, 13}
            held.set()
            while len(peer.of(HEADERS)) < 5:
                assert await peer.read()
        await peer.stream.aclose()


@ENGINES
@pytest.mark.parametrize("what", ["bytes", "count"])
@mesh_test
async def test_a_head_that_is_too_large_is_refused(what: str, engine: str) -> None:
    more = [(b"x-%d" % n, b"v") for n in range(20)] if what == "count" else [(b"x", b"v" * 3000)]
    async with strict(answer, engine) as (side, app):
        peer = await dial(side)
        await peer.stream.send_all(HELLO + headers(1, GET + more, end=True))
        with trio.fail_after(5):
            while not peer.of(RST_STREAM) and not peer.of(GOAWAY):
                assert await peer.read()
        assert not app.peers
        await peer.stream.aclose()


@ENGINES
@pytest.mark.parametrize(
    "start",
    [
        PREFACE[:10],
        HELLO + frame(HEADERS, END_HEADERS, 1, plain(GET))[:15],
        HELLO + headers(1, GET, done=False),
    ],
    ids=["half a preface", "half a frame", "a head without its end"],
)
@mesh_test
async def test_a_head_that_does_not_come_whole_in_time(start: bytes, engine: str) -> None:
    async with strict(answer, engine) as (side, _app):
        peer = await dial(side)
        await peer.stream.send_all(start)
        with trio.fail_after(5):
            try:
                while await peer.read():
                    pass
            except trio.BrokenResourceError:
                pass
        await peer.stream.aclose()
        await wait_until(lambda: not side.app.runtime.connections)
