"""Odd timing and odd peers: late bytes, silence, too many connections."""

from __future__ import annotations

import pytest
import trio

from mesh_api.limits import Limits
from mesh_api.sidecar import Endpoint, TlsMode
from mesh_api.traffic import Settings, Timeouts
from tests.integration.http_peers import (
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

GET = b"GET / HTTP/1.1\r\nHost: s\r\n\r\n"


@mesh_test
async def test_late_bytes_on_an_idle_connection_are_nobodys_response() -> None:
    go = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(b"first"))
        await go.wait()
        await peer.send(ok(b"evil"))
        await peer.request()
        await peer.send(ok(b"second"))

    async with application(handle) as app, fleet(plain(app.addr)) as m:
        client = await m.connect()
        assert (await client.get()).body == b"first"
        conns = m.client.app.runtime.reactor.conns
        go.set()
        await wait_until(lambda: len(conns) == 1)
        # The next connection is asked anew; its first answer is the right one.
        assert (await client.get()).body == b"first"


@each_mesh
@mesh_test
async def test_a_head_request_whose_answer_has_a_body_all_the_same(hops: str) -> None:
    async with mesh(ok(b"body"), hops) as m:
        client = await m.connect()
        for _ in range(3):
            response = await client.get(method=b"HEAD")
            assert response.raw == b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
        assert not client.buf


@each_mesh
@mesh_test
async def test_an_early_response_is_delivered_though_the_application_closes(hops: str) -> None:
    """413, then close with unread bytes: a reset right behind the response."""

    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        peer.close()

    async with mesh(handle, hops) as m:
        for _ in range(10):
            client = await m.connect()
            async with trio.open_nursery() as nursery:

                async def upload(client: Peer = client) -> None:
                    try:
                        await client.send(b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 3000000\r\n\r\n")
                        await client.send(bytes(3_000_000))
                    except OSError:
                        pass

                nursery.start_soon(upload)
                response = await client.response()
                assert response.body == b"big"
                nursery.cancel_scope.cancel()


@each_path
@mesh_test
async def test_an_early_response_reaches_a_client_that_sends_its_whole_request_first(hops: str) -> None:
    """As many clients do; a server that takes the rest (nginx lingers) would be heard without us."""

    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        peer.stream.socket.shutdown(1)
        await peer.rest()

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 8000000\r\n\r\n")
        await client.send(bytes(8_000_000))
        response = await client.response()
        assert (response.status, response.body) == (413, b"big")
        assert await client.end() == "clean"


@each_path
@mesh_test
async def test_response_that_starts_while_the_request_goes_on(hops: str) -> None:
    """Both directions of one exchange at once: each piece is answered before the next is sent."""

    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            line = await peer.until(b"\r\n")
            await peer.send(line + await peer.until(b"\r\n"))
            if line == b"0\r\n":
                return await peer.rest() and None

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send(b"POST / HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert (await client.head()).status == 200
        for n in range(20):
            chunk = b"3\r\n%03d\r\n" % n
            await client.send(chunk)
            assert await client.exactly(len(chunk)) == chunk
        await client.send(b"0\r\n\r\n")
        assert await client.exactly(5) == b"0\r\n\r\n"


@mesh_test
async def test_a_head_that_does_not_end_is_given_up() -> None:
    async with mesh(ok(), client_settings={"limits": Limits(head_seconds=0.05)}) as m:
        client = await m.connect()
        await client.send(GET[:-2])
        assert await client.end() == "clean"
        assert not m.app.peers


@mesh_test
async def test_idle_pooled_connections_end_by_themselves() -> None:
    async with mesh(ok(), settings=Settings(timeouts=Timeouts(pool_idle_s=0.05))) as m:
        client = await m.connect()
        conns = m.client.app.runtime.reactor.conns
        for _ in range(2):
            assert (await client.get()).status == 200
            await wait_until(lambda: len(conns) == 1)
        assert m.client.metric("triomesh_handshakes_total", result="ok") == 2


@mesh_test
async def test_connections_over_the_bound_are_reset() -> None:
    async with mesh(ok(), client_settings={"limits": Limits(connections=2)}) as m:
        first, second = await m.connect(), await m.connect()
        assert (await first.get()).status == (await second.get()).status == 200
        try:
            third = await m.connect()
        except ConnectionResetError:
            pass
        else:
            assert await third.end() == "reset"
        second.close()
        await wait_until(lambda: m.client.app.runtime.connections == 1)
        assert (await (await m.connect()).get()).status == 200
        assert m.client.metric("triomesh_refused_total", reason="too-many-connections") == 1


@mesh_test
async def test_many_handshakes_at_once() -> None:
    """A cold pool and sixty clients: every request is answered, each connection is opened once."""

    async def slowly(peer: Peer) -> None:
        while True:
            await peer.request()
            await wait_until(lambda: len(peers) == 60)
            await peer.send(ok())

    async with mesh(slowly, settings=Settings(timeouts=Timeouts(connect_s=5))) as m:
        peers = m.app.peers

        async def one() -> None:
            assert (await (await m.connect()).get()).status == 200

        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(one)
        assert m.client.metric("triomesh_handshakes_total", result="ok") == 60


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"])
@mesh_test
async def test_a_mesh_endpoint_that_is_no_sidecar(answer: bytes) -> None:
    async def handle(peer: Peer) -> None:
        await peer._fill()
        await peer.send_with_fin(answer)

    async with application(handle) as app:
        who = "spiffe://cluster.local/ns/shop/sa/server"
        endpoint = Endpoint(address=app.addr.ip, port=app.addr.port, tls=TlsMode.MESH, identity=who)
        async with fleet(endpoint) as m:
            response = await (await m.connect()).get()
            assert (response.get(b"x-triomesh-error") or b"").startswith(b"flag=UF; side=client")
            assert not any(b"GET" in peer.received for peer in app.peers), "no byte of the request went out"


@mesh_test
async def test_a_body_of_single_bytes_costs_linear_time() -> None:
    """Keeping a body for a replay must not look at all of it again for every piece."""
    async with mesh(answering(lambda r: ok(b"%d" % len(r.body)))) as m:
        client = await m.connect()
        await client.send(b"PUT / HTTP/1.1\r\nHost: s\r\nContent-Length: 20000\r\n\r\n")
        for _ in range(20_000):
            await client.send(b"x")
        assert (await client.response()).body == b"20000"
