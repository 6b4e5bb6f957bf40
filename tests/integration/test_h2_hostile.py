"""HTTP/2 peers that give little or ask for much, through whole sidecars."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from mesh_api.limits import Limits
from mesh_api.sidecar import Inbound, MtlsMode, Protocol
from mesh_api.traffic import Settings, Timeouts
from tests.integration.http2_mesh import HTTP1, HTTP2, Chain, Reply, Said, app_of, chain
from tests.integration.http2_peers import (
    OK,
    Handler,
    Http2Peer,
    Http2Stream,
    echo,
    http2_application,
    http2_client,
)
from tests.integration.http_peers import Peer, application, mesh_test
from tests.integration.test_h2_tunnels import TAKES, connect
from tests.support.mesh import VIP, Sidecar, TestCa, client_snapshot, server_snapshot, sidecar, wait_until

pytestmark = pytest.mark.usefixtures("http2_engine")


@asynccontextmanager
async def server_that_takes(
    streams: int, handler: Handler, **changes: object
) -> AsyncIterator[tuple[Http2Peer, Sidecar]]:
    """A client through two sidecars, the second of which takes so many streams on one session."""
    ca = TestCa()
    async with (
        http2_application(handler) as app,
        sidecar(ca.credentials("server"), server_snapshot(), limits=Limits(streams=streams)) as back,
    ):
        back.aim(inbound=app.addr)
        snapshot = client_snapshot(back.inbound, protocol=Protocol.HTTP2, **changes)
        async with sidecar(ca.credentials("client"), snapshot) as front:
            front.aim(outbound=VIP)
            async with http2_client(front.outbound) as peer:
                yield peer, front


@pytest.mark.parametrize("streams", [1, 5])
@mesh_test
async def test_a_server_that_takes_few_streams(streams: int) -> None:
    statuses: Counter[int] = Counter()

    async def one(peer: Http2Peer) -> None:
        statuses[(await peer.ask()).status] += 1

    async with server_that_takes(streams, echo) as (peer, front):
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(one, peer)
        assert statuses == {200: 30}
        assert front.metric("triomesh_http2_resets_total") == 0  # none was sent that had to be refused


@mesh_test
async def test_a_server_that_takes_no_stream_is_not_dialled_again_and_again() -> None:
    settings = Settings(timeouts=Timeouts(connect_s=0.2))
    async with server_that_takes(0, echo, settings=settings) as (peer, front):
        for _ in range(2):
            stream = await peer.ask()
            assert (stream.status, stream.get(b"x-triomesh-error")) != (200, None)
        assert front.metric("triomesh_http2_sessions", side="client") == 1


@mesh_test
async def test_applications_are_not_asked_often_whether_they_are_there() -> None:
    """gRPC's servers end a connection with more than one PING in 5 minutes (`too_many_pings`)."""
    async with http2_application(echo) as app, chain(app.addr) as c:
        await c.ask()
        front, back = ([*side.app.runtime.http2.clients] for side in c.sidecars)
        assert [session.settings.ping_s for session in front] == [30.0]
        assert [session.settings.ping_s > 300 for session in back] == [True]


@pytest.mark.parametrize("server", [HTTP1, HTTP2])
@mesh_test
async def test_interim_responses_without_end(server: str) -> None:
    """Nobody holds them for a client that takes none of them."""

    async def interims(stream: Http2Stream) -> None:
        while True:
            await stream.respond([(b":status", b"103"), (b"x", b"y" * 1000)], end=False)

    async def interims1(peer: Peer) -> None:
        while True:
            await peer.send(b"HTTP/1.1 103 X\r\nX: %s\r\n\r\n" % (b"y" * 1000))

    async with (
        http2_application(interims) as app2,
        application(interims1) as app1,
        chain(app2.addr if server == HTTP2 else app1.addr, "one-sidecar", HTTP2, server) as c,
    ):
        stream = await c.ask()
        assert (stream.status, len(stream.interims)) == (502, 100)


@mesh_test
async def test_extended_connect_is_for_listed_protocols() -> None:
    async with (
        http2_application(echo, TAKES) as app,
        chain(app.addr, "one-sidecar", client_settings={"upgrades": frozenset()}) as c,
    ):
        peer = await c.http2()
        assert (await connect(peer)).status == 501
        assert (await peer.ask()).status == 200
        assert [request.get(b":method") for request in app.requests] == [b"GET"]


@mesh_test
async def test_what_a_connect_says_about_content_does_not_become_a_get() -> None:
    async def handle(peer: Peer) -> None:
        request = await peer.head()
        for name in (b"content-length", b"te", b"expect", b"sec-websocket-accept"):
            assert request.get(name) is None
        assert request.get(b"sec-websocket-key") != b"mine"  # and there is one only
        await peer.send(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

    more = [
        (b"content-length", b"30"),
        (b"te", b"trailers"),
        (b"expect", b"100-continue"),
        (b"sec-websocket-key", b"mine"),
        (b"sec-websocket-accept", b"mine"),
    ]
    async with application(handle) as app, chain(app.addr, "one-sidecar", HTTP2, HTTP1) as c:
        assert (await connect(await c.http2(), more=more)).status == 403


@mesh_test
async def test_a_port_that_becomes_strict_ends_tunnels_and_takes_no_new_stream() -> None:
    async def handle(stream: Http2Stream) -> None:
        await stream.respond(OK, end=False)
        await stream.cut()

    async with (
        http2_application(handle, TAKES) as app,
        sidecar(TestCa().credentials("server"), server_snapshot()) as back,
    ):
        back.aim(inbound=app.addr)
        async with http2_client(back.inbound) as peer:
            tunnel = await connect(peer)
            assert tunnel.status == 200
            back.app.on_snapshot(server_snapshot(inbound=Inbound(mtls=MtlsMode.STRICT)))
            assert await tunnel.cut()
            assert (await peer.ask()).status == 403
            assert not back.app.runtime.relays
            await wait_until(lambda: app.requests[0].reset is not None)


@mesh_test
async def test_readers_that_stall_do_not_stop_other_callers() -> None:
    """What they hold of a session would in the end be all of it, for every caller of the application."""

    async def handle(stream: Http2Stream) -> None:
        await stream.whole()
        await stream.respond(OK, bytes(1_000_000))

    def held(c: Chain) -> float:
        return c.sidecars[1].metric("triomesh_http2_held_bytes")

    async with http2_application(handle) as app, chain(app.addr) as c:
        stalled = await c.http2({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        for _ in range(20):
            (await stalled.start()).hold = True
        await wait_until(lambda: held(c) > 2_000_000)
        assert len((await (await c.http2()).ask()).body) == 1_000_000
        stalled.close()
        await wait_until(lambda: held(c) == 0)


@mesh_test
async def test_a_new_session_that_is_told_to_go_fails_nobody() -> None:
    """Before its first response: what was not processed goes to the same endpoint once more."""

    async def handle(stream: Http2Stream) -> None:
        await stream.whole()
        first = app.peers[0]
        if stream in first.streams.values():
            if sum(each.ended for each in first.streams.values()) < 4:
                return
            async with first._lock:  # its reader may be sending
                await first.stream.send_all(GoAwayFrame(0, last_stream_id=0).serialize())
            return
        await stream.respond(OK)

    async with http2_application(handle) as app, chain(app.addr, "one-sidecar") as c:
        peer = await c.http2()
        streams = [await peer.start(method=b"POST", body=b"x") for _ in range(4)]
        assert [(await stream.whole()).status for stream in streams] == [200] * 4


@pytest.mark.parametrize(
    ("head", "path", "authority"),
    [
        (b"GET / HTTP/1.1\r\nHost:\r\n", b"/", b"%s:%d" % (VIP.ip.encode(), VIP.port)),
        (b"GET / HTTP/1.0\r\n", b"/", b"%s:%d" % (VIP.ip.encode(), VIP.port)),
        (b"GET http://server HTTP/1.1\r\nHost: server\r\n", b"/", b"server"),
        (b"GET http://server?x HTTP/1.1\r\nHost: server\r\n", b"/?x", b"server"),
        (b"OPTIONS http://server HTTP/1.1\r\nHost: server\r\n", b"*", b"server"),
    ],
)
@mesh_test
async def test_requests_without_host_or_path_become_whole(head: bytes, path: bytes, authority: bytes) -> None:
    """A request that is malformed in HTTP/2 could end the session, and with it what others ask."""
    async with http2_application(echo) as app, chain(app.addr, "one-sidecar", HTTP1, HTTP2) as c:
        peer = await c.http1()
        await peer.send(head + b"\r\n")
        assert (await peer.response()).status == 200
        (request,) = app.requests
        assert (request.get(b":path"), request.get(b":authority")) == (path, authority)


@pytest.mark.parametrize("kind", [b"application/grpc", b"text/plain"])
@mesh_test
async def test_a_call_of_two_directions_may_be_silent(kind: bytes) -> None:
    """The bound on a silent client is for requests that nobody answers yet, gRPC's aside."""
    grpc = kind == b"application/grpc"

    async def handle(stream: Http2Stream) -> None:
        if not grpc:
            await stream.respond(OK, end=False)
        await stream.whole()
        if grpc:
            await stream.respond(OK, b"late")
        else:
            await stream.send(b"late", True)

    impatient = {"limits": Limits(body_idle_seconds=0.1)}
    async with (
        http2_application(handle) as app,
        chain(app.addr, "one-sidecar", client_settings=impatient) as c,
    ):
        stream = await (await c.http2()).start(method=b"POST", fields=[(b"content-type", kind)], end=False)
        if not grpc:
            await stream.head()
        await trio.sleep(0.4)
        await stream.send(b"", True)
        assert bytes((await stream.whole()).body) == b"late"


@mesh_test
async def test_a_deadline_of_ages() -> None:
    fields = [(b"content-type", b"application/grpc"), (b"grpc-timeout", b"99999999H")]
    async with http2_application(echo) as app, chain(app.addr) as c:
        assert (await c.ask(method=b"POST", fields=fields, body=b"x")).status == 200
        assert app.requests[0].get(b"grpc-timeout") == b"99999999H"


@mesh_test
async def test_an_endpoint_that_hangs_up_is_dialled_once_for_those_who_wait() -> None:
    dials = 0

    async def hang_up(peer: Peer) -> None:
        nonlocal dials
        dials += 1

    async with application(hang_up) as app, chain(app.addr, "one-sidecar", protocol=Protocol.HTTP2) as c:
        stream = await connect(await c.http2())
        assert (stream.status, dials) == (503, 1)


@mesh_test
async def test_trailers_claim_nothing() -> None:
    """Neither what only sidecars say, nor names that a gateway interface reads as that."""
    seen: list[Said] = []
    claims = (b"x-forwarded-client-cert", b"x_forwarded_client_cert", b"x-triomesh-source", b"x_request_id")

    def answer(said: Said) -> Reply:
        seen.append(said)
        return Reply()

    for version in (HTTP1, HTTP2):
        async with app_of(version, answer) as app, chain(app, "two-sidecars", HTTP2, version) as c:
            trailers = [*((name, b"evil") for name in claims), (b"fine", b"1")]
            assert (await c.ask(method=b"POST", body=b"x", trailers=trailers)).status == 200
    assert [said.trailers for said in seen] == [[(b"fine", b"1")]] * 2
