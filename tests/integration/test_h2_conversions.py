"""What one version of HTTP allows and the other does not, through whole sidecars that convert them."""

from __future__ import annotations

import base64
import hashlib

import pytest
import trio

from mesh_api.sidecar import Inbound, MtlsMode
from mesh_api.traffic import (
    Algorithm,
    Match,
    Outliers,
    PathMatch,
    Respond,
    Retries,
    RetryOn,
    Rewrite,
    Route,
    Settings,
    WeightedTarget,
)
from tests.integration.http2_mesh import HTTP1, HTTP2, Reply, Said, app_of, chain
from tests.integration.http2_peers import OK, Http2Stream, echo, http2_application, http2_client
from tests.integration.http_peers import Message, Peer, answering, application, mesh, mesh_test, ok
from tests.integration.policy_mesh import policy_mesh
from tests.integration.test_h2_policy import TURNS, client_of
from tests.support.mesh import VIP, TestCa, server_snapshot, sidecar, wait_until

pytestmark = pytest.mark.usefixtures("http2_engine")
ALL = Route(to=(WeightedTarget(),))
both_hops = pytest.mark.parametrize("hops", ["one-sidecar", "two-sidecars"])
STRICT = server_snapshot(inbound=Inbound(mtls=MtlsMode.STRICT))


@both_hops
@pytest.mark.parametrize(
    ("head", "interims", "status"),
    [
        (b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n" + ok(), [100], 200),
        (b"HTTP/1.1 103 Early Hints\r\ncontent-length:0\r\nLink: </a>\r\n\r\n" + ok(), [103], 200),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nX: 1\r\n\r\n", [], 204),
    ],
)
@mesh_test
async def test_a_length_where_there_is_no_content(
    hops: str, head: bytes, interims: list[int], status: int
) -> None:
    """Harmless in HTTP/1.1, and malformed in HTTP/2 (RFC 9113, 8.1.1; RFC 9110, 8.6)."""
    async with application(answering(head)) as app, chain(app.addr, hops, HTTP2, HTTP1) as c:
        response = await c.ask()
        assert (response.interims, response.status) == (interims, status)


@both_hops
@pytest.mark.parametrize(
    "name", [b"content_type", b"set_cookie", b"proxy_authorization", b"http2_settings", b"keep_alive"]
)
@mesh_test
async def test_trailers_that_the_next_sidecar_would_refuse(hops: str, name: bytes) -> None:
    """A gateway interface reads them as fields that have no place in trailers."""
    seen: list[Said] = []

    def answer(said: Said) -> Reply:
        seen.append(said)
        return Reply(b"x", trailers=[(name, b"evil"), (b"fine", b"2")] if hops == "one-sidecar" else [])

    versions = (HTTP2, HTTP1) if hops == "two-sidecars" else (HTTP2, HTTP2)
    async with app_of(versions[1], answer) as app, chain(app, hops, *versions) as c:
        response = await c.ask(method=b"POST", body=b"x", trailers=[(name, b"evil"), (b"fine", b"1")])
        assert response.status == 200
        assert seen[0].trailers == [(b"fine", b"1")]
        assert name not in dict(response.trailers)


@pytest.mark.parametrize(
    "authority", [b'a"b', b"a@b", b"<script>", b"a:b:c", b"a:123456", b"a\\b", b":80", b"[a"]
)
@pytest.mark.parametrize("server", [HTTP1, HTTP2])
@mesh_test
async def test_an_http10_target_names_a_host_like_any_other(authority: bytes, server: str) -> None:
    """Without Host it is what the target names (RFC 9112, 3.2.2), which goes on as Host."""
    seen: list[Said] = []

    def answer(said: Said) -> Reply:
        seen.append(said)
        return Reply(b"x")

    async with app_of(server, answer) as app, chain(app, "one-sidecar", HTTP1, server) as c:
        peer = await c.http1()
        await peer.send(b"GET http://%s/ HTTP/1.0\r\n\r\n" % authority)
        assert ((await peer.response()).status, seen) == (400, [])


@pytest.mark.parametrize("server", [HTTP1, HTTP2])
@pytest.mark.parametrize("host", [b"", b"Host:\r\n", b"Host: a\r\n"])
@mesh_test
async def test_an_http10_request_says_its_host_once(host: bytes, server: str) -> None:
    seen: list[Said] = []

    def answer(said: Said) -> Reply:
        seen.append(said)
        return Reply(b"x")

    async with app_of(server, answer) as app, chain(app, "two-sidecars", HTTP1, server) as c:
        for target in (b"http://a/x", b"/x"):
            peer = await c.http1()
            await peer.send(b"GET %s HTTP/1.0\r\n%s\r\n" % (target, host))
            assert (await peer.response()).status == 200
    dialled = b"%s:%d" % (VIP.ip.encode(), VIP.port)
    none = b"" if host and server == HTTP1 else dialled
    assert [said.get(b"host") for said in seen] == [b"a", b"a" if b"a" in host else none]


@pytest.mark.parametrize("server", [HTTP1, HTTP2])
@pytest.mark.parametrize("minor", [0, 1])
@mesh_test
async def test_options_of_the_whole_server_are_not_those_of_its_root(server: str, minor: int) -> None:
    """What is matched is what goes on (RFC 9112, 3.2.4)."""
    seen: list[Said] = []

    def answer(said: Said) -> Reply:
        seen.append(said)
        return Reply(b"x")

    routes = (Route(match=(Match(path=PathMatch(exact="/")),), respond=Respond(status=418)), ALL)
    async with (
        app_of(server, answer) as app,
        chain(app, "one-sidecar", HTTP1, server, routes=routes) as c,
    ):
        for target in (b"http://server", b"*", b"http://server/", b"http://server?x"):
            peer = await c.http1()
            host = b"Host: server\r\n" * (minor or target == b"*")
            await peer.send(b"OPTIONS %s HTTP/1.%d\r\n%s\r\n" % (target, minor, host))
            whole = target in (b"http://server", b"*")
            assert (await peer.response()).status == (200 if whole else 418)
    assert [(said.path, said.get(b"host")) for said in seen] == [(b"*", b"server")] * 2


@pytest.mark.parametrize("content_type", [b"application/grpc", b"application/grpc-web", b"text/plain"])
@mesh_test
async def test_only_grpc_calls_are_retried_by_status_whatever_the_method(content_type: bytes) -> None:
    """A gRPC status of anything else asks for nothing that the methods of the policy do not allow."""
    calls = 0

    async def handle(stream: Http2Stream) -> None:
        nonlocal calls
        calls += 1
        await stream.whole()
        await stream.respond([*OK, (b"content-type", content_type), (b"grpc-status", b"14")])

    two = {"v1": handle, "v2": handle}
    retries = Retries(on=(RetryOn.GRPC_UNAVAILABLE,), attempts=1)
    async with policy_mesh({}, http2=two, settings=TURNS, retries=retries) as m, client_of(m) as peer:
        fields = [(b"content-type", content_type)]
        response = await peer.ask(method=b"POST", fields=fields, body=b"x")
        assert response.get(b"grpc-status") == b"14"
        assert calls == (2 if content_type == b"application/grpc" else 1)


@mesh_test
async def test_a_head_that_an_endpoint_finds_too_large_does_not_eject_it() -> None:
    """Or who has a caller pass large fields on could take its endpoints away, one after the other."""
    settings = Settings(
        algorithm=Algorithm.ROUND_ROBIN, outliers=Outliers(consecutive_5xx=2, base_ejection_s=60)
    )
    two = {"v1": echo, "v2": echo}
    async with policy_mesh({}, http2=two, settings=settings) as m, client_of(m) as peer:
        for _ in range(6):
            stream = await peer.start(fields=[(b"x-%d" % n, b"y") for n in range(196)])
            await stream.until(lambda stream=stream: stream.ended or stream.reset is not None)
            assert stream.status == 503
        assert not m.cluster().outliers.ejected
        assert (await peer.ask()).status == 200


@pytest.mark.parametrize("version", [HTTP1, HTTP2])
@mesh_test
async def test_a_rewrite_leaves_a_connect_what_it_is(version: str) -> None:
    routes = (Route(to=(WeightedTarget(),), rewrite=Rewrite(host="other")),)
    if version == HTTP1:
        seen: list[Message] = []
        async with mesh(
            answering(lambda r: (seen.append(r), b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n")[1]),
            "one-sidecar",
            routes=routes,
        ) as m:
            client = await m.connect()
            await client.send(b"CONNECT s:80 HTTP/1.1\r\nHost: s:80\r\n\r\n")
            assert (await client.response()).status == 405
            assert seen[0].line == b"CONNECT s:80 HTTP/1.1"
        return

    async def refuse(stream: Http2Stream) -> None:
        await stream.respond([(b":status", b"405")])

    async with http2_application(refuse) as app, chain(app.addr, "one-sidecar", routes=routes) as c:
        peer = await c.http2()
        stream_id = peer.conn.get_next_available_stream_id()
        stream = peer.streams[stream_id] = Http2Stream(peer, stream_id)
        peer.conn.send_headers(stream_id, [(b":method", b"CONNECT"), (b":authority", b"s:80")])
        await peer.flush()
        assert (await stream.head()).status == 405
        assert app.requests[0].get(b":authority") == b"s:80"


@pytest.mark.parametrize("early", [b"", b"early bytes"])
@both_hops
@mesh_test
async def test_a_tunnel_whose_client_has_said_all_before_it_opens(hops: str, early: bytes) -> None:
    """What came with the request, and its end, are the tunnel's (RFC 8441, 5)."""
    got = b""

    async def handle(peer: Peer) -> None:
        nonlocal got
        key = (await peer.head()).get(b"sec-websocket-key") or b""
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        await peer.send(
            b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n"
            % base64.b64encode(digest)
        )
        got = await peer.rest()
        await peer.send(b"bye")

    async with application(handle) as app, chain(app.addr, hops, HTTP2, HTTP1) as c:
        peer = await c.http2()
        stream_id = peer.conn.get_next_available_stream_id()
        stream = peer.streams[stream_id] = Http2Stream(peer, stream_id)
        head = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"http")]
        head += [(b":path", b"/"), (b":authority", b"server")]
        peer.conn.send_headers(stream_id, head, end_stream=not early)
        if early:
            peer.conn.send_data(stream_id, early, end_stream=True)
        await peer.flush()
        await stream.whole()
        assert (stream.status, bytes(stream.body), got) == (200, b"bye", early)


@mesh_test
async def test_a_port_that_becomes_strict_ends_what_is_under_way_on_http2() -> None:
    """A call of two directions in plaintext could go on for as long as both ends like."""

    async def handle(stream: Http2Stream) -> None:
        await stream.respond(OK, end=False)
        await stream.send(b"secret")
        await stream.cut()

    async with (
        http2_application(handle) as app,
        sidecar(TestCa().credentials("server"), server_snapshot()) as back,
    ):
        back.aim(inbound=app.addr)
        async with http2_client(back.inbound) as peer:
            calls = [await peer.start(method=b"POST", end=end) for end in (True, False)]
            for call in calls:
                await call.until(lambda call=call: call.body)
            back.app.on_snapshot(STRICT)
            for call in calls:
                assert await call.cut()
            assert (await peer.ask()).status == 403
            await wait_until(lambda: all(request.reset is not None for request in app.requests))
        await wait_until(lambda: not back.app.runtime.relays)


@mesh_test
async def test_a_port_that_becomes_strict_ends_what_is_under_way_on_http1() -> None:
    ended = trio.Event()

    async def handle1(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        try:
            await peer.rest()
        finally:
            ended.set()

    async with (
        application(handle1) as app,
        sidecar(TestCa().credentials("server"), server_snapshot()) as back,
    ):
        back.aim(inbound=app.addr)
        client = Peer(await trio.open_tcp_stream(*back.inbound))
        await client.send(b"GET / HTTP/1.1\r\nHost: s\r\n\r\n")
        await client.until(b"1\r\nx\r\n")
        back.app.on_snapshot(STRICT)
        assert await client.end() == "reset"
        with trio.fail_after(5):
            await ended.wait()
        await wait_until(lambda: not back.app.runtime.relays)
        client.close()


@pytest.mark.parametrize("first", [b"\0\1\2", b"GET / HTTP/1.1\r\nHost: s\r\n\r\n"])
@mesh_test
async def test_a_port_that_becomes_strict_while_the_application_is_dialled(first: bytes) -> None:
    """What was let in before does not go on after."""
    got = b""
    dials, go = trio.Event(), trio.Event()

    async def handle(peer: Peer) -> None:
        nonlocal got
        got = await peer.rest()

    async with (
        application(handle) as app,
        sidecar(TestCa().credentials("server"), server_snapshot()) as back,
    ):
        back.aim(inbound=app.addr)
        dialer = back.app.runtime.dialer
        dial = dialer.dial

        async def slowly(*args: object) -> object:
            dials.set()
            with trio.CancelScope(shield=True):
                await go.wait()
            return await dial(*args)

        dialer.dial = slowly
        client = Peer(await trio.open_tcp_stream(*back.inbound))
        await client.send(first)
        await dials.wait()
        back.app.on_snapshot(STRICT)
        go.set()
        assert await client.end() == "reset"
        await wait_until(lambda: not back.app.runtime.connections)
        assert got == b""
        client.close()
