"""Resets, cancellation, time-outs and ends of connections with HTTP/2 on one side or both."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes
from msgspec.structs import replace

from mesh_api.traffic import Delay, Fault, HttpVersion, Route, Settings, Timeouts, WeightedTarget
from tests.integration.http2_mesh import HTTP1, HTTP2, Chain, chain
from tests.integration.http2_peers import OK, Http2Application, Http2Stream, echo, http2_application
from tests.integration.http_peers import Peer, application, mesh_test, ok
from tests.support.mesh import wait_until

pytestmark = pytest.mark.usefixtures("http2_engine")
CANCEL = int(ErrorCodes.CANCEL)
both_hops = pytest.mark.parametrize("hops", ["one-sidecar", "two-sidecars"])


async def logged(c: Chain, **fields: object) -> dict[str, object]:
    """The client's sidecar's record with these fields."""
    return await c.sidecars[0].log.wait_for(
        lambda line: "duration_ms" in line and fields.items() <= line.items()
    )


async def upstream(app: Http2Application, count: int = 1) -> Http2Stream:
    """The last of so many streams that the application has been given."""
    await wait_until(lambda: len(app.requests) >= count)
    return app.requests[-1]


async def silent(stream: Http2Stream) -> None:
    """An application that says nothing."""


async def half(stream: Http2Stream) -> None:
    """An application that stops within its response."""
    await stream.respond(OK, b"half", end=False)


@both_hops
@pytest.mark.parametrize("body", [b"", b"part"])
@mesh_test
async def test_a_client_that_cancels_before_the_response(hops: str, body: bytes) -> None:
    async with http2_application(silent) as app, chain(app.addr, hops) as c:
        peer = await c.http2()
        stream = await peer.start(b"/wait", b"POST", body=body, end=not body)
        up = await upstream(app)
        await stream.cancel()
        assert await up.cut() == CANCEL
        assert (await logged(c, path="/wait"))["flag"] == "DC"
        other = await peer.start(b"/next")  # the connections go on
        await upstream(app, 2)
        await other.cancel()


@both_hops
@mesh_test
async def test_a_client_that_cancels_within_the_response(hops: str) -> None:
    async with http2_application(half) as app, chain(app.addr, hops) as c:
        peer = await c.http2()
        stream = await peer.start(b"/half")
        await stream.until(lambda: bytes(stream.body) == b"half")
        await stream.cancel()
        assert await (await upstream(app)).cut() == CANCEL
        assert (await logged(c, path="/half"))["flag"] == "DC"


@both_hops
@mesh_test
async def test_a_client_whose_connection_ends(hops: str) -> None:
    async with http2_application(half) as app, chain(app.addr, hops) as c:
        peer = await c.http2()
        streams = [await peer.start(b"/%d" % n) for n in range(3)]
        await streams[2].until(lambda: all(stream.body for stream in streams))
        peer.close()
        for up in app.requests:
            assert await up.cut() == CANCEL
        assert (await logged(c, path="/0"))["flag"] == "DC"


@both_hops
@mesh_test
async def test_an_http1_client_that_goes_is_a_cancel_upstream(hops: str) -> None:
    async with http2_application(silent) as app, chain(app.addr, hops, HTTP1, HTTP2) as c:
        peer = await c.http1()
        await peer.send(b"GET /gone HTTP/1.1\r\nHost: s\r\n\r\n")
        up = await upstream(app)
        peer.reset()
        assert await up.cut() == CANCEL
        assert (await logged(c, path="/gone"))["flag"] == "DC"


@both_hops
@mesh_test
async def test_a_cancelled_stream_ends_an_http1_exchange(hops: str) -> None:
    ended: list[str] = []

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        ended.append(await peer.end())

    async with application(handle) as app, chain(app.addr, hops, HTTP2, HTTP1) as c:
        stream = await (await c.http2()).start()
        await stream.until(lambda: bytes(stream.body) == b"half")
        await stream.cancel()
        await wait_until(lambda: ended == ["reset"])


@both_hops
@pytest.mark.parametrize(
    ("code", "told"),
    [
        (ErrorCodes.CANCEL, ErrorCodes.CANCEL),
        (ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.ENHANCE_YOUR_CALM),
        (ErrorCodes.INTERNAL_ERROR, ErrorCodes.INTERNAL_ERROR),
        (ErrorCodes.REFUSED_STREAM, ErrorCodes.INTERNAL_ERROR),
    ],
)
@mesh_test
async def test_a_reset_within_the_response_is_passed_on(
    hops: str, code: ErrorCodes, told: ErrorCodes
) -> None:
    async def handle(stream: Http2Stream) -> None:
        await half(stream)
        await stream.until(lambda: len(stream.body) > 0 or stream.ended)
        await trio.sleep(0.02)
        await stream.cancel(code)

    async with http2_application(handle) as app, chain(app.addr, hops) as c:
        stream = await (await c.http2()).start(b"/cut")
        assert await stream.cut() == told
        assert bytes(stream.body) == b"half"
        assert (await logged(c, path="/cut"))["flag"] == "UC"


@both_hops
@mesh_test
async def test_a_reset_within_the_response_cuts_an_http1_client(hops: str) -> None:
    async def handle(stream: Http2Stream) -> None:
        await half(stream)
        await trio.sleep(0.02)
        await stream.cancel()

    async with http2_application(handle) as app, chain(app.addr, hops, HTTP1, HTTP2) as c:
        peer = await c.http1()
        await peer.send(b"GET /cut HTTP/1.1\r\nHost: s\r\n\r\n")
        assert (await peer.head()).status == 200
        with pytest.raises(trio.BrokenResourceError):
            await peer.rest()
        assert (await logged(c, path="/cut"))["flag"] == "UC"


@both_hops
@mesh_test
async def test_an_http1_response_that_is_cut_resets_the_stream(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    async with application(handle) as app, chain(app.addr, hops, HTTP2, HTTP1) as c:
        stream = await (await c.http2()).start()
        assert await stream.cut() == ErrorCodes.INTERNAL_ERROR
        assert (stream.status, bytes(stream.body)) == (200, b"half")


@both_hops
@pytest.mark.parametrize("how", ["reset", "close"])
@mesh_test
async def test_an_application_that_dies_within_responses(hops: str, how: str) -> None:
    async with http2_application(half) as app, chain(app.addr, hops) as c:
        peer = await c.http2()
        streams = [await peer.start(b"/%d" % n) for n in range(3)]
        await streams[2].until(lambda: all(stream.body for stream in streams))
        sock = app.peers[0].stream.socket
        if how == "reset":
            Peer(app.peers[0].stream).reset()
        else:
            sock.close()
        for stream in streams:
            assert await stream.cut() == ErrorCodes.INTERNAL_ERROR


@both_hops
@mesh_test
async def test_time_out_before_the_response(hops: str) -> None:
    settings = Settings(timeouts=Timeouts(request_s=0.1))
    async with http2_application(silent) as app, chain(app.addr, hops, settings=settings) as c:
        stream = await (await c.http2()).ask(b"/late")
        assert stream.status == 504
        assert (stream.get(b"x-triomesh-error") or b"").startswith(b"flag=UT; side=client")
        assert await (await upstream(app)).cut() == CANCEL


@both_hops
@mesh_test
async def test_time_out_within_the_response(hops: str) -> None:
    settings = Settings(timeouts=Timeouts(request_s=0.15))
    async with http2_application(half) as app, chain(app.addr, hops, settings=settings) as c:
        stream = await (await c.http2()).start(b"/late")
        assert await stream.cut() == ErrorCodes.INTERNAL_ERROR
        assert await (await upstream(app)).cut() == CANCEL
        assert (await logged(c, path="/late"))["flag"] == "UT"


@mesh_test
async def test_stream_idle_time_out() -> None:
    settings = Settings(timeouts=Timeouts(stream_idle_s=0.1))
    async with http2_application(half) as app, chain(app.addr, settings=settings) as c:
        stream = await (await c.http2()).start(b"/idle")
        assert await stream.cut() == ErrorCodes.INTERNAL_ERROR
        assert "idle" in str((await logged(c, path="/idle"))["detail"])


@mesh_test
async def test_a_goaway_moves_requests_to_a_new_session() -> None:
    async with http2_application(echo) as app, chain(app.addr, "one-sidecar") as c:
        peer = await c.http2()
        assert (await peer.ask(b"/1")).status == 200
        first = app.peers[0]
        first.conn.close_connection()
        await first.flush()
        for n in range(5):
            assert (await peer.ask(b"/%d" % n, b"POST", body=b"x")).status == 200
        assert len(app.peers) == 2
        await wait_until(lambda: first.ended)


@both_hops
@mesh_test
async def test_draining_announces_the_end_and_serves_on(hops: str) -> None:
    go = trio.Event()

    async def handle(stream: Http2Stream) -> None:
        await stream.whole()
        if stream.get(b":path") == b"/slow":
            await go.wait()
        await stream.respond(OK, b"done")

    async with http2_application(handle) as app, chain(app.addr, hops) as c:
        peer = await c.http2()
        slow = await peer.start(b"/slow")
        await upstream(app)
        server = c.sidecars[-1].app.runtime
        server.drain(True)
        assert bytes((await peer.ask(b"/next")).body) == b"done"
        go.set()
        assert bytes((await slow.whole()).body) == b"done"
        if hops == "two-sidecars":
            await wait_until(lambda: not server.connections)
        assert bytes((await peer.ask(b"/after")).body) == b"done"


@mesh_test
async def test_an_inbound_http2_client_is_told_to_go() -> None:
    async with http2_application(echo) as app, chain(app.addr) as c:
        back = c.sidecars[1]
        c.addr = back.inbound
        peer = await c.http2()
        assert (await peer.ask(b"/x")).status == 200
        back.app.runtime.drain(True)
        await wait_until(lambda: peer.goaway is not None and peer.ended)


@mesh_test
async def test_an_http1_application_behind_a_request_for_http2() -> None:
    async def handle(peer: Peer) -> None:
        await peer.until(b"SM\r\n\r\n")
        await peer.send(ok(b"what?"))

    settings = Settings(http_version=HttpVersion.HTTP2)
    async with application(handle) as app, chain(app.addr, "one-sidecar", settings=settings) as c:
        stream = await (await c.http2()).ask(b"/x")
        assert stream.status == 502
        assert b"flag=UPE" in (stream.get(b"x-triomesh-error") or b"")


@mesh_test
async def test_a_client_that_cancels_within_a_pause() -> None:
    delay = Fault(delay=Delay(percent=100, fixed_s=60))
    routes = (Route(to=(WeightedTarget(),), fault=delay),)
    async with http2_application(silent) as app, chain(app.addr, routes=routes) as c:
        stream = await (await c.http2()).start(b"/held")
        front = c.sidecars[0]
        await wait_until(lambda: front.metric("triomesh_http2_streams", side="server") == 1)
        await trio.testing.wait_all_tasks_blocked(0.02)
        await stream.cancel()
        assert (await logged(c, path="/held"))["flag"] == "DC"
        assert not app.requests


@mesh_test
async def test_an_endpoint_that_leaves_ends_its_streams_in_their_time() -> None:
    go = trio.Event()

    async def handle(stream: Http2Stream) -> None:
        await stream.whole()
        await go.wait()
        await stream.respond(OK, b"done")

    async with http2_application(handle) as app, chain(app.addr) as c:
        peer = await c.http2()
        stream = await peer.start(b"/slow")
        await upstream(app)
        front = c.sidecars[0].app
        snapshot = front.store.snapshot
        assert snapshot is not None
        front.on_snapshot(replace(snapshot, destinations=(replace(snapshot.destinations[0], endpoints=()),)))
        assert (await peer.ask(b"/none")).status == 503
        go.set()
        assert bytes((await stream.whole()).body) == b"done"
        await wait_until(lambda: not front.runtime.http2.clients)


@mesh_test
async def test_sessions_streams_and_resets_are_told() -> None:
    async with http2_application(half) as app, chain(app.addr) as c:
        peer = await c.http2()
        streams = [await peer.start(b"/%d" % n) for n in range(3)]
        await streams[2].until(lambda: all(stream.body for stream in streams))
        for side in c.sidecars:
            for end in ("server", "client"):
                assert side.metric("triomesh_http2_sessions", side=end) == 1
                assert side.metric("triomesh_http2_streams", side=end) == 3
        await streams[0].cancel()
        await logged(c, path="/0")
        front = c.sidecars[0]
        assert front.metric("triomesh_http2_resets_total", by="peer") == 1
        assert front.metric("triomesh_http2_resets_total", by="sidecar") == 1
        assert front.metric("triomesh_http2_streams", side="server") == 2
