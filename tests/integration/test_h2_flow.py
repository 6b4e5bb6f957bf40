"""Flow control from end to end: who is slow slows only its own stream, and what is held is bounded."""

from __future__ import annotations

import pytest
import trio
from h2.errors import ErrorCodes

from tests.integration.http2_mesh import chain
from tests.integration.http2_peers import OK, Http2Stream, http2_application
from tests.integration.http_peers import mesh_test
from tests.integration.test_h2_failures import CANCEL, both_hops, logged, upstream

pytestmark = pytest.mark.usefixtures("http2_engine")


@both_hops
@mesh_test
async def test_a_slow_reader_slows_only_its_own_stream(hops: str) -> None:
    big = b"z" * (8 * 1024 * 1024)

    async def handle(stream: Http2Stream) -> None:
        await stream.whole()
        await stream.respond(OK, big if stream.get(b":path") == b"/big" else b"small")

    async with http2_application(handle) as app, chain(app.addr, hops) as c:
        peer = await c.http2()
        slow = await peer.start(b"/big")
        slow.hold = True
        await slow.until(lambda: len(slow.body) >= 65535)
        for _ in range(20):
            assert bytes((await peer.ask(b"/small")).body) == b"small"
        assert not slow.ended
        up = app.requests[0]
        assert not up.ended or len(slow.body) < len(big)
        for side in c.sidecars:
            assert side.app.runtime.http2.budget.used < 2 * 1024 * 1024
        await slow.take()
        await slow.whole()
        assert len(slow.body) == len(big)


@both_hops
@mesh_test
async def test_a_slow_application_slows_only_its_own_stream(hops: str) -> None:
    async def handle(stream: Http2Stream) -> None:
        if stream.get(b":path") == b"/slow":
            stream.hold = True
            await stream.until(lambda: len(stream.body) >= 65535)
            await stream.until(lambda: not stream.hold)
        await stream.whole()
        await stream.respond(OK, b"%d" % len(stream.body))

    async with http2_application(handle) as app, chain(app.addr, hops) as c:
        peer = await c.http2()
        slow = await peer.start(b"/slow", b"POST", end=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.send, b"y" * (4 * 1024 * 1024), True)
            up = await upstream(app)
            await up.until(lambda: len(up.body) >= 65535)
            for n in range(20):
                assert bytes((await peer.ask(b"/quick", b"POST", body=b"x" * n)).body) == b"%d" % n
            for side in c.sidecars:
                assert side.app.runtime.http2.budget.used < 2 * 1024 * 1024
            await up.take()
        assert bytes((await slow.whole()).body) == b"%d" % (4 * 1024 * 1024)


@both_hops
@mesh_test
async def test_a_client_that_cancels_while_it_reads_nothing(hops: str) -> None:
    async def handle(stream: Http2Stream) -> None:
        await stream.whole()
        await stream.respond(OK, b"z" * (8 * 1024 * 1024))

    async with http2_application(handle) as app, chain(app.addr, hops) as c:
        stream = await (await c.http2()).start(b"/stuck")
        stream.hold = True
        await stream.until(lambda: len(stream.body) >= 65535)
        await stream.cancel()
        assert await (await upstream(app)).cut() == CANCEL
        assert (await logged(c, path="/stuck"))["flag"] == "DC"


@both_hops
@mesh_test
async def test_a_response_that_overtakes_the_request(hops: str) -> None:
    async def handle(stream: Http2Stream) -> None:
        await stream.respond([(b":status", b"413")], b"too much")

    async with http2_application(handle) as app, chain(app.addr, hops) as c:
        stream = await (await c.http2()).start(b"/", b"POST", end=False)
        await stream.send(b"some")
        await stream.until(lambda: stream.ended)
        assert (stream.status, bytes(stream.body)) == (413, b"too much")
        assert await stream.cut() == ErrorCodes.NO_ERROR
        assert await (await upstream(app)).cut() in (CANCEL, ErrorCodes.NO_ERROR)
