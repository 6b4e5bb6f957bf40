"""Messages that two parsers could read in two ways: refused, the connection closed, nothing passed on."""

from __future__ import annotations

import pytest

from mesh_api.sidecar import Inbound, Protocol
from tests.integration.http_peers import (
    Peer,
    answering,
    application,
    each_mesh,
    mesh,
    mesh_test,
    ok,
    settled,
)
from tests.support.mesh import TWO, TestCa, server_snapshot, sidecar, wait_until

HEAD = b"POST / HTTP/1.1\r\nHost: s\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

MALFORMED = {
    "conflicting-lengths": (400, HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    "repeated-length": (400, HEAD + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    "length-list": (400, HEAD + b"Content-Length: 3, 3\r\n\r\nabc"),
    "signed-length": (400, HEAD + b"Content-Length: +3\r\n\r\nabc"),
    "negative-length": (400, HEAD + b"Content-Length: -1\r\n\r\n"),
    "hex-length": (400, HEAD + b"Content-Length: 0x3\r\n\r\nabc"),
    "empty-length": (400, HEAD + b"Content-Length:\r\n\r\n"),
    "huge-length": (400, HEAD + b"Content-Length: 9999999999999999999\r\n\r\n"),
    "length-and-chunked": (400, HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunked-and-length": (400, HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
    "two-codings": (501, HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "gzip-coding": (501, HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "odd-coding": (501, HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "coding-with-tab": (400, HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "chunked-in-http10": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "bad-chunk-size": (400, CHUNKED + b"xyz\r\nabc\r\n0\r\n\r\n"),
    "signed-chunk-size": (400, CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n"),
    "prefixed-chunk-size": (400, CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n"),
    "space-before-chunk-size": (400, CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n"),
    "space-after-chunk-size": (400, CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n"),
    "empty-chunk-size": (400, CHUNKED + b"\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-too-large": (400, CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    "chunk-size-bare-lf": (400, CHUNKED + b"3\nabc\r\n0\r\n\r\n"),
    "chunk-longer-than-said": (400, CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n"),
    "chunk-end-bare-lf": (400, CHUNKED + b"3\r\nabc\n0\r\n\r\n"),
    "chunk-extension-cr": (400, CHUNKED + b"3;a\rb\r\nabc\r\n0\r\n\r\n"),
    "long-chunk-line": (400, CHUNKED + b"3;" + b"a" * 300 + b"\r\nabc\r\n0\r\n\r\n"),
    "bad-trailer": (400, CHUNKED + b"0\r\nno colon\r\n\r\n"),
    "forbidden-trailer": (400, CHUNKED + b"0\r\nContent-Length: 4\r\n\r\n"),
    "mesh-trailer": (400, CHUNKED + b"0\r\nx-triomesh-error: a\r\n\r\n"),
    "big-trailers": (431, CHUNKED + b"0\r\n" + b"a: b\r\n" * 201 + b"\r\n"),
    "bare-lf-head": (400, b"GET / HTTP/1.1\nHost: s\n\n"),
    "bare-lf-field": (400, b"GET / HTTP/1.1\r\nHost: s\nA: b\r\n\r\n"),
    "bare-cr": (400, b"GET / HTTP/1.1\r\nHost: s\rA: b\r\n\r\n"),
    "bare-cr-in-line": (400, b"GET /\r HTTP/1.1\r\nHost: s\r\n\r\n"),
    "nul-in-value": (400, b"GET / HTTP/1.1\r\nHost: s\r\nA: \x00\r\n\r\n"),
    "nul-in-target": (400, b"GET /\x00 HTTP/1.1\r\nHost: s\r\n\r\n"),
    "obs-fold": (400, b"GET / HTTP/1.1\r\nHost: s\r\nA: b\r\n c\r\n\r\n"),
    "fold-first": (400, b"GET / HTTP/1.1\r\n Host: s\r\n\r\n"),
    "space-before-colon": (400, b"GET / HTTP/1.1\r\nHost: s\r\nContent-Length : 3\r\n\r\nabc"),
    "no-colon": (400, b"GET / HTTP/1.1\r\nHost: s\r\nfoo\r\n\r\n"),
    "no-name": (400, b"GET / HTTP/1.1\r\nHost: s\r\n: foo\r\n\r\n"),
    "bad-name": (400, b"GET / HTTP/1.1\r\nHost: s\r\nA(b: foo\r\n\r\n"),
    "missing-host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two-hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    "bad-host": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "host-with-path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "two-spaces": (400, b"GET  / HTTP/1.1\r\nHost: s\r\n\r\n"),
    "tab-in-line": (400, b"GET\t/ HTTP/1.1\r\nHost: s\r\n\r\n"),
    "no-version": (400, b"GET /\r\nHost: s\r\n\r\n"),
    "lower-case-version": (400, b"GET / http/1.1\r\nHost: s\r\n\r\n"),
    "http2-version": (505, b"GET / HTTP/2.0\r\nHost: s\r\n\r\n"),
    "http12-version": (505, b"GET / HTTP/1.2\r\nHost: s\r\n\r\n"),
    "bad-method": (400, b"GE(T / HTTP/1.1\r\nHost: s\r\n\r\n"),
    "fragment": (400, b"GET /a#b HTTP/1.1\r\nHost: s\r\n\r\n"),
    "high-target": (400, b"GET /\xc3\xa9 HTTP/1.1\r\nHost: s\r\n\r\n"),
    "long-target": (414, b"GET /" + b"a" * 33_000 + b" HTTP/1.1\r\nHost: s\r\n\r\n"),
    "long-target-unfinished": (414, b"GET /" + b"a" * 33_000),
    "long-field": (431, b"GET / HTTP/1.1\r\nHost: s\r\nA: " + b"a" * 33_000 + b"\r\n\r\n"),
    "large-head": (431, b"GET / HTTP/1.1\r\nHost: s\r\n" + (b"A: " + b"a" * 1000 + b"\r\n") * 70 + b"\r\n"),
    "large-head-unfinished": (431, b"GET / HTTP/1.1\r\nHost: s\r\n" + (b"A: " + b"a" * 1000 + b"\r\n") * 70),
    "many-fields": (431, b"GET / HTTP/1.1\r\nHost: s\r\n" + b"A: b\r\n" * 201 + b"\r\n"),
    "connect-to-a-path": (400, b"CONNECT / HTTP/1.1\r\nHost: s:443\r\n\r\n"),
    "connect-elsewhere": (400, b"CONNECT s:443 HTTP/1.1\r\nHost: t:443\r\n\r\n"),
    "connect-with-a-body": (400, b"CONNECT s:443 HTTP/1.1\r\nHost: s:443\r\nContent-Length: 1\r\n\r\na"),
    "underscore-length": (400, HEAD + b"Content_Length: 3\r\n\r\nabc"),
    "underscore-coding": (400, HEAD + b"transfer_encoding: chunked\r\n\r\n0\r\n\r\n"),
    "nul-in-path": (400, b"GET /a%00b HTTP/1.1\r\nHost: s\r\n\r\n"),
    "underscore-trailer": (400, CHUNKED + b"0\r\ncontent_length: 4\r\n\r\n"),
    "identity-trailer": (400, CHUNKED + b"0\r\nx-forwarded-client-cert: a\r\n\r\n"),
    "not-http": (400, b"\x16\x03\x01\x00\x00\r\n\r\n"),
}


@pytest.fixture(scope="module", params=sorted(MALFORMED))
def case(request: pytest.FixtureRequest) -> tuple[int, bytes]:
    return MALFORMED[request.param]


@mesh_test
async def test_malformed_request_reaches_nobody(case: tuple[int, bytes]) -> None:
    status, request = case
    async with mesh(ok()) as m:
        client = await m.connect()
        await client.send(request)
        response = await client.response()
        assert response.status == status
        assert response.get(b"connection") == b"close"
        assert (response.get(b"x-triomesh-error") or b"").startswith(b"flag=DPE; side=client")
        assert await client.end() == "clean"
        assert not m.app.peers
        record = await m.record(flag="DPE", direction="outbound")
        assert record["status"] == status
        assert m.client.metric("triomesh_requests_total", flag="DPE") == 1
        assert m.server.metric("triomesh_requests_total") == 0


@mesh_test
async def test_malformed_requests_straight_at_the_inbound_side() -> None:
    """Plaintext callers of a port that is declared HTTP; they are told the flag alone."""
    async with application(answering(ok())) as app:
        inbound = Inbound(protocols={str(app.addr.port): Protocol.HTTP})
        async with sidecar(TestCa().credentials("server"), server_snapshot(inbound=inbound)) as back:
            back.aim(inbound=app.addr)
            async with mesh(ok()) as m:
                for name, (status, request) in MALFORMED.items():
                    if name == "not-http":
                        continue  # the beginning of a ClientHello
                    client = await m.connect(back.inbound)
                    await client.send(request)
                    response = await client.response()
                    assert response.status == status, name
                    assert response.get(b"x-triomesh-error") == b"DPE", name
                    assert response.body == b"DPE\n"
                    assert await client.end() == "clean", name
                assert not app.peers
                await settled(back)


@each_mesh
@mesh_test
async def test_malformed_request_after_good_ones(hops: str) -> None:
    async with mesh(ok(), hops) as m:
        client = await m.connect()
        good = b"GET / HTTP/1.1\r\nHost: s\r\n\r\n"
        await client.send(good + good + b"GET / HTTP/1.1\r\n\r\n" + good)
        assert (await client.response()).status == 200
        assert (await client.response()).status == 200
        assert (await client.response()).status == 400
        assert await client.end() == "clean"
        assert m.app.peers[0].received.count(b"GET") == 2


@each_mesh
@mesh_test
async def test_bad_chunk_after_good_ones_resets_the_application(hops: str) -> None:
    """What was good has gone on; the application must not take it for the whole."""
    ends = []

    async def handle(peer: Peer) -> None:
        await peer.head()
        assert await peer.exactly(8) == b"3\r\nabc\r\n"
        ends.append(await peer.end())

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send(CHUNKED + b"3\r\nabc\r\n")
        await wait_until(lambda: m.app.peers and m.app.peers[0].received.endswith(b"abc\r\n"))
        await client.send(b"zz\r\n")
        response = await client.response()
        assert response.status == 400
        assert await client.end() == "clean"
        await wait_until(lambda: ends)
        assert ends == ["reset"]


RESPONSES = {
    "no-http": b"SSH-2.0-x\r\n\r\n",
    "conflicting-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length-and-chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "bare-lf": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "obs-fold": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "nul": b"HTTP/1.1 200 OK\r\nA: \x00\r\nContent-Length: 0\r\n\r\n",
    "bad-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "bad-status": b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
    "gzip": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "switching": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "body-with-204": b"HTTP/1.1 204 No Content\r\nContent-Length: 1\r\n\r\na",
    "large-head": b"HTTP/1.1 200 OK\r\n" + (b"A: " + b"a" * 1000 + b"\r\n") * 70 + b"\r\n",
    "nominated-length": b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 0\r\n\r\n",
}


@each_mesh
@pytest.mark.parametrize("name", sorted(RESPONSES))
@mesh_test
async def test_malformed_response_is_answered_for(name: str, hops: str) -> None:
    async with mesh(RESPONSES[name], hops) as m:
        client = await m.connect()
        response = await client.get()
        assert response.status == 502
        error = response.get(b"x-triomesh-error") or b""
        assert error.startswith(b"flag=UPE; side=server" if hops == TWO else b"flag=UPE; side=client")
        assert b"malformed response" in error
        assert (await m.records(status=502))[-1]["flag"] == "UPE"
        assert len(m.app.peers) == 1, "not tried again"
        assert (await client.get()).status == 502, "the client's connection lives on"


@each_mesh
@mesh_test
async def test_bad_chunk_late_in_a_response_cuts_the_client(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await go()
        await peer.send(b"zz\r\n")
        await peer.rest()

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: s\r\n\r\n")

        async def go() -> None:
            await wait_until(lambda: b"abc\r\n" in client.received)

        await client.head()
        assert await client.exactly(8) == b"3\r\nabc\r\n"
        assert await client.end() == "reset"
        assert (await m.records(status=200))[-1]["flag"] == "UPE"


@each_mesh
@mesh_test
async def test_bytes_after_a_response_never_reach_the_next_request(hops: str) -> None:
    extra = ok(b"one") + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    answers = iter([extra, ok(b"two"), ok(b"three")])
    async with mesh(answering(lambda r: next(answers)), hops) as m:
        client = await m.connect()
        assert [(await client.get()).body for _ in range(3)] == [b"one", b"two", b"three"]
        assert len(m.app.peers) == 2
