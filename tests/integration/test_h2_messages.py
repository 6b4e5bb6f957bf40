"""Messages of either version through 0, 1 and 2 sidecars: what one end says is what the other hears."""

from __future__ import annotations

import pytest

from tests.integration.http2_mesh import CHAINS, HTTP1, HTTP2, Reply, Said, app_of, chain, unchunked
from tests.integration.http2_peers import OK, Http2Stream, http2_application
from tests.integration.http_peers import Peer, application, mesh_test, ok

pytestmark = pytest.mark.usefixtures("http2_engine")
OWN = {b"x-request-id", b"x-forwarded-client-cert", b"transfer-encoding"}
BIG = bytes(range(256)) * 8192  # 2 MiB, over every window

each_chain = pytest.mark.parametrize(("hops", "client", "server"), CHAINS, ids="-".join)


def heard(said: Said) -> set[tuple[bytes, bytes]]:
    """What the far end has been told, less what sidecars add and framing."""
    return {(name, value) for name, value in said.fields if name not in OWN | {b"content-length"}}


@each_chain
@mesh_test
async def test_what_is_asked_and_answered(hops: str, client: str, server: str) -> None:
    seen: list[Said] = []

    def answer(request: Said) -> Reply:
        seen.append(request)
        fields = [(b"x-a", b"1"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"content-length", b"5")]
        return Reply(b"hello", fields=fields)

    async with app_of(server, answer) as addr, chain(addr, hops, client, server) as c:
        fields = [(b"x-test", b"a, b"), (b"cookie", b"k=v; l=w"), (b"user-agent", b"me")]
        for path in (b"/a?b=c", b"/d%20e"):
            response = await c.ask(path, fields=fields)
            assert (response.status, response.body) == (200, b"hello")
            assert response.get(b"x-a") == b"1"
            assert [value for name, value in response.fields if name == b"set-cookie"] == [b"a=1", b"b=2"]
            assert response.get(b"content-length") == b"5"
            assert (seen[-1].method, seen[-1].path) == (b"GET", path)
            assert heard(seen[-1]) == {(b"host", b"server"), *fields}
            assert seen[-1].framing == ""


@each_chain
@mesh_test
async def test_bodies_and_lengths(hops: str, client: str, server: str) -> None:
    seen: list[Said] = []

    def answer(request: Said) -> Reply:
        seen.append(request)
        return Reply(request.body[::-1])

    async with app_of(server, answer) as addr, chain(addr, hops, client, server) as c:
        for body in (b"", b"x" * 10, b"y" * 70_000, BIG):
            response = await c.ask(b"/", b"POST", body=body)
            assert response.body == body[::-1]
            assert seen[-1].body == body
            assert seen[-1].get(b"content-length") == b"%d" % len(body)


@each_chain
@mesh_test
async def test_trailers_both_ways(hops: str, client: str, server: str) -> None:
    seen: list[Said] = []

    def answer(request: Said) -> Reply:
        seen.append(request)
        return Reply(b"body", trailers=[(b"x-sum", b"7"), (b"x-more", b"8")])

    async with app_of(server, answer) as addr, chain(addr, hops, client, server) as c:
        response = await c.ask(b"/", b"POST", body=b"abc", trailers=[(b"x-check", b"1")])
        assert (response.body, response.trailers) == (b"body", [(b"x-sum", b"7"), (b"x-more", b"8")])
        assert (seen[0].body, seen[0].trailers) == (b"abc", [(b"x-check", b"1")])


@each_chain
@mesh_test
async def test_responses_without_a_body(hops: str, client: str, server: str) -> None:
    def answer(request: Said) -> Reply:
        if request.method == b"HEAD":
            return Reply(fields=[(b"content-length", b"12345")])
        return Reply(status=int(request.path[1:]), fields=[(b"etag", b'"x"')])

    async with app_of(server, answer) as addr, chain(addr, hops, client, server) as c:
        head = await c.ask(b"/", b"HEAD")
        assert (head.status, head.body, head.get(b"content-length")) == (200, b"", b"12345")
        for status in (204, 304):
            response = await c.ask(b"/%d" % status)
            assert (response.status, response.body, response.get(b"etag")) == (status, b"", b'"x"')
            assert response.get(b"content-length") is None
            assert response.framing == ""
        assert (await c.ask(b"/404")).status == 404


@each_chain
@mesh_test
async def test_interim_responses(hops: str, client: str, server: str) -> None:
    def answer(request: Said) -> Reply:
        return Reply(b"done", interims=(103, 103))

    async with app_of(server, answer) as addr, chain(addr, hops, client, server) as c:
        response = await c.ask()
        assert (response.interims, response.status, response.body) == ([103, 103], 200, b"done")


@pytest.mark.parametrize("hops", ["one-sidecar", "two-sidecars"])
@mesh_test
async def test_fields_that_do_not_cross_versions(hops: str) -> None:
    seen: list[Said] = []

    def answer(request: Said) -> Reply:
        seen.append(request)
        return Reply(
            b"ok", fields=[(b"connection", b"x-hop"), (b"x-hop", b"1"), (b"keep-alive", b"timeout=3")]
        )

    async with app_of(HTTP1, answer) as addr, chain(addr, hops, HTTP2, HTTP1) as c:
        response = await c.ask(fields=[(b"te", b"trailers"), (b"x-triomesh-error", b"flag=UH")])

        assert not {b"connection", b"x-hop", b"keep-alive"} & set(dict(response.fields))
        assert not {b"te", b"x-triomesh-error"} & set(dict(seen[0].fields))

    async with app_of(HTTP2, answer) as addr, chain(addr, hops, HTTP1, HTTP2) as c:
        fields = [(b"Connection", b"x-hop, upgrade"), (b"X-Hop", b"1"), (b"Upgrade", b"h2c")]
        fields += [(b"HTTP2-Settings", b"AAMAAABkAARAAAAAAAIAAAAA"), (b"X-Kept", b"2")]
        assert (await c.ask(fields=fields)).body == b"ok"
        assert heard(seen[-1]) == {(b"host", b"server"), (b"x-kept", b"2")}


@pytest.mark.parametrize("hops", ["one-sidecar", "two-sidecars"])
@mesh_test
async def test_http10_client_of_an_http2_application(hops: str) -> None:
    def answer(request: Said) -> Reply:
        return Reply(request.get(b"host") or b"?")

    async with app_of(HTTP2, answer) as addr, chain(addr, hops, HTTP1, HTTP2) as c:
        peer = await c.http1()
        await peer.send(b"GET / HTTP/1.0\r\n\r\n")
        message = await peer.response()
        assert message.status == 200
        assert message.body == b"10.255.0.1:80"
        assert not message.get(b"transfer-encoding")
        assert message.get(b"connection") == b"close"


@mesh_test
async def test_many_streams_share_a_session() -> None:
    async with app_of(HTTP2, lambda r: Reply(r.path)) as addr, chain(addr) as c:
        peer = await c.http2()
        streams = [await peer.start(b"/%d" % n) for n in range(80)]
        for n, stream in enumerate(streams):
            assert bytes((await stream.whole()).body) == b"/%d" % n
        (service,) = c.sidecars[0].app.runtime.services.all()
        (endpoint,) = service.endpoints()
        assert len(endpoint.sessions.up) == 1
        assert c.sidecars[0].metric("triomesh_upstream_connections_opened_total") == 1


@pytest.mark.parametrize(("client", "protocol"), [(HTTP1, "HTTP/1.1"), (HTTP2, "HTTP/2")])
@mesh_test
async def test_the_access_log_names_the_version(client: str, protocol: str) -> None:
    async with (
        app_of(client, lambda r: Reply(b"ok")) as addr,
        chain(addr, "two-sidecars", client, client) as c,
    ):
        await c.ask(b"/logged")
        for side in c.sidecars:
            line = await side.log.wait_for(lambda line: line.get("path") == "/logged")
            assert (line["protocol"], line["status"], line["host"]) == (protocol, 200, "server")


@mesh_test
async def test_an_http1_endpoints_connection_is_used_again() -> None:
    async def handle(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.send(ok(request.body or b"-"))

    async with application(handle) as app, chain(app.addr, "one-sidecar", HTTP2, HTTP1) as c:
        peer = await c.http2()
        for body in (b"", b"x", b"y" * 100_000):
            await peer.ask(b"/", method=b"POST", body=body)
        streamed = await peer.start(b"/", b"POST", end=False)
        await streamed.send(b"one")
        await streamed.send(b"two", True)
        assert unchunked(bytes((await streamed.whole()).body))[0] == b"onetwo"
        await peer.ask()
        assert len(app.peers) == 1


@mesh_test
async def test_an_http1_client_that_waits_for_100_of_an_http2_application() -> None:
    async def handle(stream: Http2Stream) -> None:
        assert stream.get(b"expect") == b"100-continue"
        await stream.respond([(b":status", b"100")], end=False)
        await stream.whole()
        await stream.respond(OK, bytes(stream.body))

    async with http2_application(handle) as app, chain(app.addr, "two-sidecars", HTTP1, HTTP2) as c:
        peer = await c.http1()
        await peer.send(b"PUT / HTTP/1.1\r\nHost: s\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert (await peer.response()).status == 100
        await peer.send(b"body")
        response = await peer.response()
        assert (response.status, unchunked(response.body)[0]) == (200, b"body")
