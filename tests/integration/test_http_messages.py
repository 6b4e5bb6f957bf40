"""Requests and responses byte for byte, in every framing and in awkward pieces, with and without sidecars."""

from __future__ import annotations

import pytest
import trio

from tests.integration.http_peers import (
    Message,
    Peer,
    answering,
    each_mesh,
    each_path,
    mesh,
    mesh_test,
    ok,
    post,
)
from tests.support.mesh import DIRECT, TWO, wait_until

BIG = bytes(range(256)) * 20480  # 5 MiB
GET = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n"


def echo(request: Message) -> bytes:
    return ok(request.body)


@each_path
@pytest.mark.parametrize("size", [0, 11, 64 * 1024, len(BIG)])
@mesh_test
async def test_content_length_bodies_both_ways(size: int, hops: str) -> None:
    body = BIG[:size]
    async with mesh(answering(echo), hops) as m:
        client = await m.connect()
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, post(body))
                response = await client.response()
            assert response.status == 200
            assert response.body == body
        assert len(m.app.peers) == 1


@each_path
@mesh_test
async def test_large_bodies_at_the_same_time(hops: str) -> None:
    async with mesh(answering(echo), hops) as m:

        async def one() -> None:
            client = await m.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, post(BIG))
                assert (await client.response()).body == BIG

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)


@each_path
@mesh_test
async def test_chunked_both_ways_with_extensions_and_trailers(hops: str) -> None:
    chunks = b'5;name="v;x"\r\nhello\r\nA;b\r\n0123456789\r\n000\r\nX-Sum: 1\r\nX-Note: two words\r\n\r\n'

    def answer(request: Message) -> bytes:
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + request.body

    async with mesh(answering(answer), hops) as m:
        client = await m.connect()
        for _ in range(2):
            await client.send(
                b"PUT /c HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
            )
            response = await client.response()
            assert response.body == chunks
        assert len(m.app.peers) == 1


@each_path
@mesh_test
async def test_large_chunked_bodies_both_ways(hops: str) -> None:
    chunks = (
        b"".join(b"%x\r\n%s\r\n" % (n, BIG[:n]) for n in [1, 70_000, 16384, 3, 1_000_000] * 2) + b"0\r\n\r\n"
    )

    def answer(request: Message) -> bytes:
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + request.body

    async with mesh(answering(answer), hops) as m:
        client = await m.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                client.send, b"PUT / HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
            )
            response = await client.response()
        assert response.body == chunks


@each_path
@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nX-A: b\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: x\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"),
        (b"GET", b"HTTP/1.1 299 \xc3\xa9t\xc3\xa9\r\nContent-Length: 0\r\n\r\n"),
    ],
)
@mesh_test
async def test_responses_without_a_body(method: bytes, answer: bytes, hops: str) -> None:
    async with mesh(answer, hops) as m:
        client = await m.connect()
        for _ in range(3):
            assert (await client.get(method=method)).raw == answer
        assert len(m.app.peers) == 1


@each_path
@mesh_test
async def test_interim_responses_are_passed_on(hops: str) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    processing = b"HTTP/1.1 102 Processing\r\n\r\n"

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(early)
            await peer.send(processing + early + ok(b"done"))

    async with mesh(handle, hops) as m:
        client = await m.connect()
        for _ in range(2):
            await client.send(GET)
            assert (await client.response()).raw == early
            assert (await client.response()).raw == processing
            assert (await client.response()).raw == early
            assert (await client.response()).body == b"done"


@each_mesh
@mesh_test
async def test_interim_responses_are_kept_from_an_http10_client(hops: str) -> None:
    async with mesh(b"HTTP/1.1 103 Early Hints\r\n\r\n" + ok(b"done"), hops) as m:
        client = await m.connect()
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        response = await client.response()
        assert response.status == 200
        assert response.body == b"done"
        assert await client.end() == "clean"


@each_path
@mesh_test
async def test_expect_continue_accepted(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        while True:
            head = await peer.head()
            assert head.get(b"expect") == b"100-continue"
            assert not peer.buf
            await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await peer.send(ok(await peer.body(head)))

    async with mesh(handle, hops) as m:
        client = await m.connect()
        for _ in range(2):
            await client.send(post(b"", b"Expect: 100-continue").replace(b"Length: 0", b"Length: 5"))
            assert (await client.response()).status == 100
            await client.send(b"hello")
            assert (await client.response()).body == b"hello"
        assert len(m.app.peers) == 1


@each_path
@pytest.mark.parametrize("status", [417, 413])
@mesh_test
async def test_expect_continue_refused(status: int, hops: str) -> None:
    async def handle(peer: Peer) -> None:
        await peer.head()
        answer = b"HTTP/1.1 %d No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
        await peer.send_with_fin(answer % status)
        await peer.rest()

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send(post(b"", b"Expect: 100-continue").replace(b"Length: 0", b"Length: 5"))
        response = await client.response()
        assert (response.status, response.body) == (status, b"no")
        assert response.get(b"connection") == b"close", "the body will not be read"
        assert await client.end() == "clean"


@each_mesh
@mesh_test
async def test_unknown_expectation_is_refused(hops: str) -> None:
    async with mesh(ok(), hops) as m:
        client = await m.connect()
        await client.send(post(b"", b"Expect: the-unexpected"))
        assert (await client.response()).status == 417
        assert not m.app.peers


@each_path
@mesh_test
async def test_connections_are_kept_alive(hops: str) -> None:
    async with mesh(ok(), hops) as m:
        clients = [await m.connect() for _ in range(5)]
        for _ in range(20):
            for client in clients:
                assert (await client.get()).body == b"ok"
        assert len(m.app.peers) == (1 if m.sidecars else 5)
        if hops == TWO:
            assert m.client.metric("triomesh_handshakes_total", result="ok") == 1


@each_path
@mesh_test
async def test_client_asks_to_close(hops: str) -> None:
    async with mesh(ok(b"ok", b"Connection: close") if hops == DIRECT else ok(), hops) as m:
        client = await m.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n")
        response = await client.response()
        assert response.get(b"connection") == b"close"
        assert await client.end() == "clean"
        assert (await (await m.connect()).get()).status == 200
        if m.sidecars:
            assert len(m.app.peers) == 1, "the client's wish ends at its own hop"


@each_mesh
@mesh_test
async def test_application_asks_to_close(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(b"ok", b"Connection: close"))

    async with mesh(handle, hops) as m:
        client = await m.connect()
        for _ in range(3):
            response = await client.get()
            assert response.get(b"connection") is None
        assert len(m.app.peers) == 3


@each_path
@mesh_test
async def test_close_delimited_response_ends_clean(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send_with_fin(b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\n" + BIG)

    async with mesh(handle, hops) as m:
        client = await m.connect()
        response = await client.get()
        assert response.get(b"connection") == (b"close" if m.sidecars else None)
        assert response.body == BIG


@each_path
@mesh_test
async def test_http10_response_from_the_application(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send_with_fin(b"HTTP/1.0 200 OK\r\nX-A: b\r\n\r\nold")

    async with mesh(handle, hops) as m:
        client = await m.connect()
        response = await client.get()
        assert response.line == (b"HTTP/1.1 200 OK" if m.sidecars else b"HTTP/1.0 200 OK")
        assert response.body == b"old"


@each_path
@mesh_test
async def test_a_hundred_pipelined_requests_are_answered_in_order(hops: str) -> None:
    async with mesh(answering(lambda r: ok(r.path)), hops) as m:
        client = await m.connect()
        await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: s\r\n\r\n" % n for n in range(100)))
        for n in range(100):
            assert (await client.response()).body == b"/%d" % n
        assert len(m.app.peers) == 1


@each_path
@mesh_test
async def test_pipelined_requests_with_bodies_and_a_fin(hops: str) -> None:
    async with mesh(answering(lambda r: ok(r.path + b" " + r.body)), hops) as m:
        client = await m.connect()
        parts = []
        for n in range(30):
            parts.append(b"POST /%d HTTP/1.1\r\nHost: s\r\nContent-Length: 3\r\n\r\nabc" % n)
            parts.append(
                b"PUT /%d HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n" % n
            )
        await client.send_with_fin(b"".join(parts))
        for n in range(30):
            assert (await client.response()).body == b"/%d abc" % n
            assert (await client.response()).body == b"/%d 2\r\nde\r\n0\r\n\r\n" % n
        assert await client.end() == "clean"


@each_path
@mesh_test
async def test_request_and_response_byte_by_byte(hops: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            for i in range(len(answer)):
                await peer.send(answer[i : i + 1])
                await trio.lowlevel.checkpoint()

    async with mesh(handle, hops) as m:
        client = await m.connect()
        for request in (
            b"POST /a HTTP/1.1\r\nHost: s\r\nContent-Length: 4\r\n\r\nabcd",
            b"PUT / HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: 1\r\n\r\n",
        ):
            for i in range(len(request)):
                await client.send(request[i : i + 1])
                await trio.lowlevel.checkpoint()
            response = await client.response()
            assert response.raw + response.body == answer


@each_path
@mesh_test
async def test_every_split_of_a_request(hops: str) -> None:
    request = b"\r\nPOST /a HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\nab"
    async with mesh(answering(lambda r: ok(r.body)), hops) as m:
        client = await m.connect()
        for cut in range(1, len(request)):
            before = m.heard()
            await client.send(request[:cut])
            # The first hop has read the first part before the second is sent.
            await wait_until(lambda n=before + cut: m.heard() >= n)
            await client.send(request[cut:])
            assert (await client.response()).body == b"ab", cut
        assert len(m.app.peers) == 1


@each_path
@mesh_test
async def test_head_and_body_in_odd_pieces(hops: str) -> None:
    body = BIG[:200_001]
    request = post(body)
    async with mesh(answering(echo), hops) as m:
        client = await m.connect()
        for piece in (1999, 16384, 16385, 65537):
            async with trio.open_nursery() as nursery:

                async def feed(piece: int = piece) -> None:
                    for i in range(0, len(request), piece):
                        await client.send(request[i : i + piece])
                        await trio.lowlevel.checkpoint()

                nursery.start_soon(feed)
                assert (await client.response()).body == body
