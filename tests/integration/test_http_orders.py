"""Messages whose parts come in every order that RFC 9110 allows: 100 (Continue), interim heads, trailers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from mesh_proxy.net.conn import Conn
from tests.integration.http_peers import (
    Message,
    Peer,
    answering,
    application,
    each_mesh,
    each_path,
    fleet,
    mesh,
    mesh_test,
    ok,
    plain,
)
from tests.support.mesh import wait_until

WAITING = b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: s\r\n\r\n"


@each_path
@mesh_test
async def test_continue_before_the_body(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        request = await peer.head()
        assert request.get(b"expect") == b"100-continue"
        await peer.send(CONTINUE)
        assert await peer.exactly(5) == b"hello"
        await peer.send(ok())

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send(WAITING)
        assert (await client.response()).status == 100
        await client.send(b"hello")
        assert (await client.response()).status == 200


@each_path
@mesh_test
async def test_a_client_that_does_not_wait_for_continue(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.send(CONTINUE + ok(request.body))

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send((WAITING + b"hello") * 2 + GET)
        for body in (b"hello", b"hello", b""):
            assert (await client.response()).status == 100
            assert (await client.response()).body == body
        assert len(m.app.peers) == 1


@each_path
@mesh_test
async def test_an_application_that_never_says_continue(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        request = await peer.request()
        await peer.send(ok(request.body))

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send(WAITING)
        await wait_until(lambda: m.app.peers and m.app.peers[0].received)
        await client.send(b"hello")
        assert (await client.response()).body == b"hello"


@each_mesh
@mesh_test
async def test_a_final_response_in_place_of_continue(hops: str) -> None:
    """The body never comes, so neither connection can carry another request."""

    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        assert await peer.end() in ("clean", "reset")

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send(WAITING)
        response = await client.response()
        assert response.status == 413
        assert response.get(b"connection") == b"close"
        assert await client.end() == "clean"


@each_path
@mesh_test
async def test_several_interim_responses_in_order(hops: str) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </%d>\r\n\r\n"
    answer = CONTINUE + hints % 1 + hints % 2 + b"HTTP/1.1 102 Processing\r\n\r\n" + ok(b"end")
    for pieces in (len(answer), 1):

        async def handle(peer: Peer, pieces: int = pieces) -> None:
            while True:
                await peer.request()
                for at in range(0, len(answer), pieces):
                    await peer.send(answer[at : at + pieces])
                    await trio.lowlevel.checkpoint()

        async with mesh(handle, hops) as m:
            client = await m.connect()
            for _ in range(2):
                await client.send(GET)
                got = [await client.response() for _ in range(5)]
                assert [response.status for response in got] == [100, 103, 103, 102, 200]
                assert [response.get(b"link") for response in got[1:3]] == [b"</1>", b"</2>"]
                assert got[4].body == b"end"


@each_path
@pytest.mark.parametrize(
    ("method", "answer", "body"),
    [
        (b"HEAD", b"200 OK\r\nContent-Length: 50\r\n\r\n", b""),
        (b"HEAD", b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
        (b"HEAD", b"200 OK\r\n\r\n", b""),
        (b"GET", b"204 No Content\r\n\r\n", b""),
        (b"GET", b"304 Not Modified\r\nContent-Length: 50\r\n\r\n", b""),
        (b"GET", b"304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
        (b"GET", b"205 Reset Content\r\nContent-Length: 0\r\n\r\n", b""),
        (b"GET", b"205 Reset Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
        (b"OPTIONS", b"200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"DELETE", b"200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    ],
)
@mesh_test
async def test_responses_that_end_with_their_head(
    method: bytes, answer: bytes, body: bytes, hops: str
) -> None:
    async with mesh(b"HTTP/1.1 " + answer, hops) as m:
        client = await m.connect()
        for _ in range(3):
            response = await client.get(method=method)
            assert response.raw + response.body == b"HTTP/1.1 " + answer
            assert response.body == body
        assert len(m.app.peers) == 1, "the connection goes on"


@each_path
@mesh_test
async def test_trailers_and_what_is_said_about_them(hops: str) -> None:
    seen: list[Message] = []
    chunks = b"2;a=b\r\nhi\r\n0\r\nX-Sum: 1\r\nx-other:\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    async with mesh(answering(lambda r: (seen.append(r), head + chunks)[1]), hops) as m:
        client = await m.connect()
        await client.send(
            b"POST / HTTP/1.1\r\nHost: s\r\nTE: trailers, deflate\r\nConnection: TE\r\nTrailer: X-Sum\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + chunks
        )
        response = await client.response()
        assert response.raw + response.body == head + chunks
        (request,) = seen
        said = (request.get(b"te"), request.get(b"connection"))
        assert said == ((b"trailers", b"te") if m.sidecars else (b"trailers, deflate", b"TE"))
        assert request.get(b"trailer") == b"X-Sum"
        assert request.body == chunks


@each_path
@mesh_test
async def test_pipelined_requests_of_every_framing_are_answered_in_order(hops: str) -> None:
    def answer(request: Message) -> bytes:
        if request.path == b"/chunks":
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        return ok(request.path + request.body)

    async with mesh(answering(answer), hops) as m:
        client = await m.connect()
        one = b"GET /1 HTTP/1.1\r\nHost: s\r\n\r\n"
        two = b"POST /chunks HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\nhi"
        three = b"PUT /3 HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
        last = b"GET /4 HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n"
        await client.send((one + two + three) * 10 + last)
        for _ in range(10):
            assert (await client.response()).body == b"/1"
            assert (await client.response()).body == b"3\r\nabc\r\n0\r\n\r\n"
            assert (await client.response()).body == b"/31\r\nx\r\n0\r\n\r\n"
        assert (await client.response()).body == b"/4"
        assert await client.end() == "clean"


async def most_in_a_turn(conn: Conn, work: Callable[[], Awaitable[object]]) -> int:
    """How many bytes one connection is sent at most while nobody else has a turn."""
    most = 0
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal most
            sent = conn.sent
            while True:
                await trio.lowlevel.checkpoint()
                most = max(most, conn.sent - sent)
                sent = conn.sent

        nursery.start_soon(watch)
        await work()
        nursery.cancel_scope.cancel()
    return most


@mesh_test
async def test_thousands_of_requests_in_one_read_do_not_hold_up_the_others() -> None:
    """Answered by the sidecar itself, so that it never has to wait for anything."""
    async with fleet() as m:
        client = await m.connect()
        await client.send(GET)
        first = await client.response()
        (conn,) = m.client.app.runtime.reactor.conns.values()

        async def flood() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, GET * 2000)
                for _ in range(2000):
                    await client.response()

        most = await most_in_a_turn(conn, flood)
        assert 0 < most < 300 * len(first.raw + first.body)


@mesh_test
async def test_thousands_of_interim_responses_do_not_hold_up_the_others() -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.send(hint * 2000 + ok())

    async with application(handle) as app, fleet(plain(app.addr)) as m:
        client = await m.connect()
        await wait_until(lambda: m.client.app.runtime.reactor.conns)
        (conn,) = m.client.app.runtime.reactor.conns.values()

        async def ask() -> None:
            await client.send(GET)
            for _ in range(2000):
                assert (await client.response()).status == 103
            assert (await client.response()).status == 200

        assert 0 < await most_in_a_turn(conn, ask) < 300 * len(hint)
