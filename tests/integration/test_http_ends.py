"""How messages and connections end: cut, half-closed, reset, overtaken by the answer; with slow ends, too."""

from __future__ import annotations

import pytest
import trio

from tests.integration.http_peers import Peer, each_mesh, each_path, mesh, mesh_test, ok, post
from tests.support.mesh import wait_until

BIG = bytes(range(256)) * 20480  # 5 MiB
GET = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n"


@each_path
@pytest.mark.parametrize("head", [b"", b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n"])
@mesh_test
async def test_response_cut_by_a_reset_is_not_a_clean_end(head: bytes, hops: str) -> None:
    go = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n5\r\nhello\r\n")
        await go.wait()
        peer.reset()

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send(GET)
        await client.head()
        assert await client.exactly(10) == b"5\r\nhello\r\n"
        go.set()
        assert await client.end() == "reset"
        assert [record["status"] for record in await m.records(flag="UC")] == [200] * len(m.sidecars)


@each_path
@pytest.mark.parametrize("head", [b"Content-Length: 1000\r\n", b"Transfer-Encoding: chunked\r\n"])
@mesh_test
async def test_response_cut_by_a_fin_is_not_a_clean_end(head: bytes, hops: str) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send_with_fin(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n5\r\nhello\r\n")

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send(GET)
        await client.head()
        try:
            assert await client.exactly(10) == b"5\r\nhello\r\n"
        except trio.BrokenResourceError:
            pass
        else:
            assert await client.end() == ("reset" if m.sidecars else "clean")


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


@each_path
@mesh_test
async def test_last_bytes_and_fin_in_one_segment(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        request = await peer.request()
        await peer.send_with_fin(ok(request.body, b"Connection: close"))

    async with mesh(handle, hops) as m:
        for size in (5, 16384 - 60, 300_000):
            client = await m.connect()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_with_fin, post(BIG[:size]))
                response = await client.response()
            assert response.body == BIG[:size]
            assert await client.end() == "clean"


@each_path
@mesh_test
async def test_half_close_after_the_request_still_gets_the_response(hops: str) -> None:
    go = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.send(ok(BIG))

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send_with_fin(GET)
        await wait_until(lambda: m.app.peers and m.app.peers[0].received)
        if m.sidecars:
            await wait_until(lambda: any(conn.ended for conn in m.conns_of_clients()))
        go.set()
        assert (await client.response()).body == BIG
        assert await client.end() == "clean"


@each_path
@pytest.mark.parametrize("body", [b"", b"x" * 100], ids=["no-body", "body"])
@mesh_test
async def test_client_reset_during_the_wait_resets_the_application(body: bytes, hops: str) -> None:
    """`body` is announced longer than it is, so that a helper task is reading when the reset comes."""
    ends = []

    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.exactly(len(body))
        ends.append(await peer.end())

    async with mesh(handle, hops) as m:
        client = await m.connect()
        request = post(body)
        await client.send(request.replace(b"Length: 100", b"Length: 200"))
        await wait_until(lambda: m.app.peers and m.app.peers[0].received.endswith(request[-4:]))
        client.reset()
        await wait_until(lambda: ends)
        assert ends == ["reset"]
        assert [record["status"] for record in await m.records(flag="DC")] == [0] * len(m.sidecars)
        for side in m.sidecars:
            assert side.metric("triomesh_requests_total", flag="DC", code="0") == 1


@each_mesh
@mesh_test
async def test_client_reset_while_the_response_is_relayed(hops: str) -> None:
    async with mesh(ok(BIG * 2), hops) as m:
        client = await m.connect(rcvbuf=4096)
        await client.send(GET)
        await client.head()
        client.reset()
        assert [record["status"] for record in await m.records(flag="DC")] == [200] * len(m.sidecars)


@each_mesh
@mesh_test
async def test_client_that_ends_within_its_body_is_a_client_gone(hops: str) -> None:
    async with mesh(ok(), hops) as m:
        client = await m.connect()
        await client.send_with_fin(post(b"abc").replace(b"Length: 3", b"Length: 4"))
        assert await client.end() == "reset"
        record = await m.record(flag="DC")
        assert "within the request body" in str(record["detail"])


@each_path
@mesh_test
async def test_response_overtakes_a_big_upload(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await peer.rest()

    async with mesh(handle, hops) as m:
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
        assert response.get(b"connection") == (b"close" if m.sidecars else None)


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


@each_mesh
@mesh_test
async def test_bounded_memory_with_a_slow_reader(hops: str) -> None:
    size = 50 * 1024 * 1024
    sent = [0]

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        piece = bytes(262_144)
        view = memoryview(piece)
        while sent[0] < size:
            sent[0] += await peer.stream.socket.send(view[: size - sent[0]])

    async with mesh(handle, hops) as m:
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


@each_mesh
@mesh_test
async def test_bounded_memory_with_a_slow_application(hops: str) -> None:
    size = 50 * 1024 * 1024
    go = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.head()
        await go.wait()
        left = size - len(peer.buf)
        while left:
            left -= len(await peer.stream.receive_some(1 << 20))
        await peer.send(ok())

    async with mesh(handle, hops) as m:
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
