"""Requests and responses through two sidecars, byte for byte, in every framing and in awkward pieces."""

from __future__ import annotations

import pytest
import trio

from tests.integration.http_peers import Message, Peer, answering, mesh, mesh_test, ok
from tests.support.mesh import wait_until

BIG = bytes(range(256)) * 20480  # 5 MiB
GET = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n"


def post(body: bytes, *fields: bytes) -> bytes:
    lines = b"".join(b"%s\r\n" % field for field in fields)
    return b"POST /up HTTP/1.1\r\nHost: server\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), lines, body)


def echo(request: Message) -> bytes:
    return ok(request.body)


@pytest.mark.parametrize("size", [0, 11, 64 * 1024, len(BIG)])
@mesh_test
async def test_content_length_bodies_both_ways(size: int) -> None:
    body = BIG[:size]
    async with mesh(answering(echo)) as m:
        client = await m.connect()
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, post(body))
                response = await client.response()
            assert response.status == 200
            assert response.body == body
        assert len(m.app.peers) == 1


@mesh_test
async def test_large_bodies_at_the_same_time() -> None:
    async with mesh(answering(echo)) as m:

        async def one() -> None:
            client = await m.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, post(BIG))
                assert (await client.response()).body == BIG

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)


@mesh_test
async def test_chunked_both_ways_with_extensions_and_trailers() -> None:
    chunks = b'5;name="v;x"\r\nhello\r\nA;b\r\n0123456789\r\n000\r\nX-Sum: 1\r\nX-Note: two words\r\n\r\n'

    def answer(request: Message) -> bytes:
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + request.body

    async with mesh(answering(answer)) as m:
        client = await m.connect()
        for _ in range(2):
            await client.send(
                b"PUT /c HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
            )
            response = await client.response()
            assert response.body == chunks
        assert len(m.app.peers) == 1


@mesh_test
async def test_large_chunked_bodies_both_ways() -> None:
    chunks = (
        b"".join(b"%x\r\n%s\r\n" % (n, BIG[:n]) for n in [1, 70_000, 16384, 3, 1_000_000] * 2) + b"0\r\n\r\n"
    )

    def answer(request: Message) -> bytes:
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + request.body

    async with mesh(answering(answer)) as m:
        client = await m.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                client.send, b"PUT / HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
            )
            response = await client.response()
        assert response.body == chunks


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
async def test_responses_without_a_body(method: bytes, answer: bytes) -> None:
    async with mesh(answer) as m:
        client = await m.connect()
        for _ in range(3):
            assert (await client.get(method=method)).raw == answer
        assert len(m.app.peers) == 1


@mesh_test
async def test_interim_responses_are_passed_on() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    processing = b"HTTP/1.1 102 Processing\r\n\r\n"

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(early)
            await peer.send(processing + early + ok(b"done"))

    async with mesh(handle) as m:
        client = await m.connect()
        for _ in range(2):
            await client.send(GET)
            assert (await client.response()).raw == early
            assert (await client.response()).raw == processing
            assert (await client.response()).raw == early
            assert (await client.response()).body == b"done"


@mesh_test
async def test_interim_responses_are_kept_from_an_http10_client() -> None:
    async with mesh(b"HTTP/1.1 103 Early Hints\r\n\r\n" + ok(b"done")) as m:
        client = await m.connect()
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        response = await client.response()
        assert response.status == 200
        assert response.body == b"done"
        assert await client.end() == "clean"


@mesh_test
async def test_expect_continue_accepted() -> None:
    async def handle(peer: Peer) -> None:
        while True:
            head = await peer.head()
            assert head.get(b"expect") == b"100-continue"
            assert not peer.buf
            await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await peer.send(ok(await peer.body(head)))

    async with mesh(handle) as m:
        client = await m.connect()
        for _ in range(2):
            await client.send(post(b"", b"Expect: 100-continue").replace(b"Length: 0", b"Length: 5"))
            assert (await client.response()).status == 100
            await client.send(b"hello")
            assert (await client.response()).body == b"hello"
        assert len(m.app.peers) == 1


@pytest.mark.parametrize("status", [417, 413])
@mesh_test
async def test_expect_continue_refused(status: int) -> None:
    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nno" % status)
        await peer.rest()

    async with mesh(handle) as m:
        client = await m.connect()
        await client.send(post(b"", b"Expect: 100-continue").replace(b"Length: 0", b"Length: 5"))
        response = await client.response()
        assert (response.status, response.body) == (status, b"no")
        assert response.get(b"connection") == b"close", "the body will not be read"
        assert await client.end() == "clean"


@mesh_test
async def test_unknown_expectation_is_refused() -> None:
    async with mesh(ok()) as m:
        client = await m.connect()
        await client.send(post(b"", b"Expect: the-unexpected"))
        assert (await client.response()).status == 417
        assert not m.app.peers


@mesh_test
async def test_connections_are_kept_alive() -> None:
    async with mesh(ok()) as m:
        clients = [await m.connect() for _ in range(5)]
        for _ in range(20):
            for client in clients:
                assert (await client.get()).body == b"ok"
        assert len(m.app.peers) == 1
        assert m.client.metric("triomesh_handshakes_total", result="ok") == 1


@mesh_test
async def test_client_asks_to_close() -> None:
    async with mesh(ok()) as m:
        client = await m.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n")
        response = await client.response()
        assert response.get(b"connection") == b"close"
        assert await client.end() == "clean"
        assert (await (await m.connect()).get()).status == 200
        assert len(m.app.peers) == 1, "the client's wish ends at its own hop"


@mesh_test
async def test_application_asks_to_close() -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(b"ok", b"Connection: close"))

    async with mesh(handle) as m:
        client = await m.connect()
        for _ in range(3):
            response = await client.get()
            assert response.get(b"connection") is None
        assert len(m.app.peers) == 3


@mesh_test
async def test_close_delimited_response_ends_clean() -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send_with_fin(b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\n" + BIG)

    async with mesh(handle) as m:
        client = await m.connect()
        response = await client.get()
        assert response.get(b"connection") == b"close"
        assert response.body == BIG


@mesh_test
async def test_http10_response_from_the_application() -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send_with_fin(b"HTTP/1.0 200 OK\r\nX-A: b\r\n\r\nold")

    async with mesh(handle) as m:
        client = await m.connect()
        response = await client.get()
        assert response.line == b"HTTP/1.1 200 OK"
        assert response.body == b"old"


@pytest.mark.parametrize("head", [b"", b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n"])
@mesh_test
async def test_response_cut_by_a_reset_is_not_a_clean_end(head: bytes) -> None:
    go = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n5\r\nhello\r\n")
        await go.wait()
        peer.reset()

    async with mesh(handle) as m:
        client = await m.connect()
        await client.send(GET)
        await client.head()
        assert await client.exactly(10) == b"5\r\nhello\r\n"
        go.set()
        assert await client.end() == "reset"
        for side in ("client", "server"):
            assert (await m.record(side, flag="UC"))["status"] == 200


@pytest.mark.parametrize("head", [b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n"])
@mesh_test
async def test_response_cut_by_a_fin_is_not_a_clean_end(head: bytes) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send_with_fin(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n5\r\nhello\r\n")

    async with mesh(handle) as m:
        client = await m.connect()
        await client.send(GET)
        await client.head()
        try:
            assert await client.exactly(10) == b"5\r\nhello\r\n"
        except trio.BrokenResourceError:
            pass
        else:
            assert await client.end() == "reset"


@mesh_test
async def test_tls_truncation_is_not_a_clean_end() -> None:
    """The server's sidecar vanishes behind a FIN: no close_notify, so the body may be cut."""

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await trio.sleep_forever()

    async with mesh(handle) as m:
        client = await m.connect()
        await client.send(GET)
        await client.head()
        assert await client.exactly(5) == b"hello"
        (tls,) = [c for c in m.server.app.runtime.reactor.conns.values() if c.peer]
        tls.sock.shutdown(1)
        assert await client.end() == "reset"
        record = await m.record(flag="UC")
        assert "close_notify" in str(record["detail"])


@mesh_test
async def test_a_hundred_pipelined_requests_are_answered_in_order() -> None:
    async with mesh(answering(lambda r: ok(r.path))) as m:
        client = await m.connect()
        await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: s\r\n\r\n" % n for n in range(100)))
        for n in range(100):
            assert (await client.response()).body == b"/%d" % n
        assert len(m.app.peers) == 1


@mesh_test
async def test_pipelined_requests_with_bodies_and_a_fin() -> None:
    async with mesh(answering(lambda r: ok(r.path + b" " + r.body))) as m:
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


@mesh_test
async def test_request_and_response_byte_by_byte() -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            for i in range(len(answer)):
                await peer.send(answer[i : i + 1])
                await trio.lowlevel.checkpoint()

    async with mesh(handle) as m:
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


@mesh_test
async def test_every_split_of_a_request() -> None:
    request = b"\r\nPOST /a HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\nab"
    async with mesh(answering(lambda r: ok(r.body))) as m:
        client = await m.connect()
        reactor = m.client.app.runtime.reactor
        for cut in range(1, len(request)):
            before = sum(c.received for c in reactor.conns.values() if not c.peer)
            await client.send(request[:cut])
            # The sidecar has read the first part before the second is sent.
            await wait_until(
                lambda n=before + cut: sum(c.received for c in reactor.conns.values() if not c.peer) >= n
            )
            await client.send(request[cut:])
            assert (await client.response()).body == b"ab", cut
        assert len(m.app.peers) == 1


@mesh_test
async def test_head_and_body_in_odd_pieces() -> None:
    body = BIG[:200_001]
    request = post(body)
    async with mesh(answering(echo)) as m:
        client = await m.connect()
        for piece in (1999, 16384, 16385, 65537):
            async with trio.open_nursery() as nursery:

                async def feed(piece: int = piece) -> None:
                    for i in range(0, len(request), piece):
                        await client.send(request[i : i + piece])
                        await trio.lowlevel.checkpoint()

                nursery.start_soon(feed)
                assert (await client.response()).body == body


@mesh_test
async def test_last_bytes_and_fin_in_one_segment() -> None:
    async def handle(peer: Peer) -> None:
        request = await peer.request()
        await peer.send_with_fin(ok(request.body, b"Connection: close"))

    async with mesh(handle) as m:
        for size in (5, 16384 - 60, 300_000):
            client = await m.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_with_fin, post(BIG[:size]))
                response = await client.response()
            assert response.body == BIG[:size]
            assert await client.end() == "clean"


@mesh_test
async def test_half_close_after_the_request_still_gets_the_response() -> None:
    go = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.send(ok(BIG))

    async with mesh(handle) as m:
        client = await m.connect()
        await client.send_with_fin(GET)
        conns = m.client.app.runtime.reactor.conns
        await wait_until(lambda: m.app.peers and any(c.ended and not c.peer for c in conns.values()))
        go.set()
        assert (await client.response()).body == BIG
        assert await client.end() == "clean"


@pytest.mark.parametrize("body", [b"", b"x" * 100], ids=["no-body", "body"])
@mesh_test
async def test_client_reset_during_the_wait_resets_the_application(body: bytes) -> None:
    """`body` is announced longer than it is, so that a helper task is reading when the reset comes."""
    ends = []

    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.exactly(len(body))
        ends.append(await peer.end())

    async with mesh(handle) as m:
        client = await m.connect()
        request = post(body)
        await client.send(request.replace(b"Length: 100", b"Length: 200"))
        await wait_until(lambda: m.app.peers and m.app.peers[0].received.endswith(request[-4:]))
        client.reset()
        await wait_until(lambda: ends)
        assert ends == ["reset"]
        for side in ("client", "server"):
            record = await m.record(side, flag="DC")
            assert record["status"] == 0
            sidecar = m.client if side == "client" else m.server
            assert sidecar.metric("triomesh_requests_total", flag="DC", code="0") == 1


@mesh_test
async def test_client_reset_while_the_response_is_relayed() -> None:
    async with mesh(ok(BIG * 2)) as m:
        client = await m.connect(rcvbuf=4096)
        await client.send(GET)
        await client.head()
        client.reset()
        for side in ("client", "server"):
            assert (await m.record(side, flag="DC"))["status"] == 200


@mesh_test
async def test_client_that_ends_within_its_body_is_a_client_gone() -> None:
    async with mesh(ok()) as m:
        client = await m.connect()
        await client.send_with_fin(post(b"abc").replace(b"Length: 3", b"Length: 4"))
        assert await client.end() == "reset"
        record = await m.record(flag="DC")
        assert "within the request body" in str(record["detail"])


@mesh_test
async def test_response_overtakes_a_big_upload() -> None:
    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await peer.rest()

    async with mesh(handle) as m:
        client = await m.connect()

        async def upload() -> None:
            try:
                await client.send(post(BIG * 4))
            except trio.BrokenResourceError:
                pass
            except OSError:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            response = await client.response()
            nursery.cancel_scope.cancel()
        assert (response.status, response.body) == (413, b"big")
        assert response.get(b"connection") == b"close"


@mesh_test
async def test_a_body_cut_short_by_the_response_spoils_no_connection() -> None:
    """The client has sent everything, but the last piece to the application was still under way."""
    seen: list[bytes] = []
    stuck = trio.Event()
    done = trio.Event()

    async def handle(peer: Peer) -> None:
        while True:
            head = await peer.head()
            seen.append(head.line)
            if head.path == b"/slow":
                # Answer, on a connection that stays open, without reading the body.
                await stuck.wait()
                await peer.send(ok(b"early"))
                await done.wait()
            await peer.body(head)
            await peer.send(ok(b"late"))

    async with mesh(handle) as m:
        client = await m.connect(m.server.inbound)
        await client.get()
        # A window towards the application into which the body does not fit.
        conns = list(m.server.app.runtime.reactor.conns.values())
        (up,) = [c for c in conns if c.sock.getpeername()[1] == m.app.addr.port]
        (down,) = [c for c in conns if c is not up]
        room, send = [5000], up._send

        def narrow(data: bytes) -> int:
            if not room[0]:
                raise BlockingIOError
            n = send(bytes(data[: room[0]]))
            room[0] -= n
            return n

        up._send = narrow
        await client.send(b"POST /slow HTTP/1.1\r\nHost: s\r\nContent-Length: 16000\r\n\r\n")
        await wait_until(lambda: len(seen) == 2)
        before = down.received
        await client.send(bytes(16000))
        await wait_until(lambda: down.received == before + 16000 and up.writer is not None)
        stuck.set()
        assert (await client.response()).body == b"early"
        client.close()
        other = await m.connect(m.server.inbound)
        await other.send(b"GET /next HTTP/1.1\r\nHost: s\r\n\r\n")
        done.set()
        assert (await other.response()).body == b"late"
        assert seen == [b"GET / HTTP/1.1", b"POST /slow HTTP/1.1", b"GET /next HTTP/1.1"]


@mesh_test
async def test_bounded_memory_with_a_slow_reader() -> None:
    size = 50 * 1024 * 1024
    sent = [0]

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        piece = bytes(262_144)
        view = memoryview(piece)
        while sent[0] < size:
            sent[0] += await peer.stream.socket.send(view[: size - sent[0]])

    async with mesh(handle) as m:
        client = await m.connect(rcvbuf=65536)
        await client.send(GET)
        await client.head()
        await stalled(lambda: sent[0])
        assert 0 < sent[0] < 24 * 1024 * 1024, sent
        got = len(client.buf)
        client.buf.clear()
        while got < size:
            got += len(await client.stream.receive_some(1 << 20))
        assert got == size


@mesh_test
async def test_bounded_memory_with_a_slow_application() -> None:
    size = 50 * 1024 * 1024
    go = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.head()
        await go.wait()
        left = size - len(peer.buf)
        while left:
            left -= len(await peer.stream.receive_some(1 << 20))
        await peer.send(ok())

    async with mesh(handle) as m:
        client = await m.connect()
        async with trio.open_nursery() as nursery:

            async def upload() -> None:
                await client.send(b"PUT / HTTP/1.1\r\nHost: s\r\nContent-Length: %d\r\n\r\n" % size)
                await client.send(bytes(size))

            nursery.start_soon(upload)
            await stalled(lambda: client.sent)
            assert client.sent < 32 * 1024 * 1024, client.sent
            go.set()
            assert (await client.response()).status == 200


async def stalled(count: object) -> None:
    """Wait until `count()` is above 0 and has not changed for 50 polls."""
    last, same = -1, 0

    def check() -> bool:
        nonlocal last, same
        now = count()  # type: ignore[operator]
        same = same + 1 if now and now == last else 0
        last = now
        return same >= 50

    await wait_until(check)
