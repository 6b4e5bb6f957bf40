"""Ends: cancellation in every wait, what is left over, and what the access log and the metrics say."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from mesh_api.sidecar import Endpoint, Inbound, MtlsMode, TlsMode
from mesh_proxy.net.addr import Addr
from tests.integration.http_peers import (
    Application,
    Peer,
    answering,
    application,
    each_mesh,
    fleet,
    mesh,
    mesh_test,
    ok,
    plain,
    settled,
)
from tests.support.mesh import VIP, Sidecar, TestCa, identity, server_snapshot, sidecar, wait_until

BIG = bytes(8 * 1024 * 1024)
GET = b"GET / HTTP/1.1\r\nHost: s\r\n\r\n"


async def cancelled(
    sidecar: Sidecar, target: Addr, direction: str, script: Callable[[Peer], Awaitable[None]]
) -> None:
    """Serve one connection in a nursery of its own, and cancel that once `script` has brought it there."""
    runtime = sidecar.app.runtime
    runtime.original_dst = lambda _: target
    handle = sidecar.app.outbound.handle if direction == "outbound" else sidecar.app.inbound.handle
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        stream = await trio.open_tcp_stream(*listener.getsockname())
        sock, _ = listener.accept()
    sock.setblocking(False)
    peer = Peer(stream)
    async with stream, trio.open_nursery() as nursery:
        assert runtime.admit(sock)
        nursery.start_soon(handle, sock)
        await script(peer)
        nursery.cancel_scope.cancel()
    await settled(sidecar)


async def nothing(peer: Peer) -> None:
    await trio.testing.wait_all_tasks_blocked()


async def half_a_head(peer: Peer) -> None:
    await peer.send(GET[:20])
    await trio.testing.wait_all_tasks_blocked()


async def request(peer: Peer) -> None:
    await peer.send(GET)
    await trio.testing.wait_all_tasks_blocked(0.02)


async def half_a_body(peer: Peer) -> None:
    await peer.send(b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 9\r\n\r\nabc")
    await trio.testing.wait_all_tasks_blocked(0.02)


async def response_not_read(peer: Peer) -> None:
    await peer.send(GET)
    await peer.head()
    await trio.testing.wait_all_tasks_blocked(0.02)


async def upload_not_read(peer: Peer) -> None:
    await peer.send(b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: %d\r\n\r\n" % (len(BIG) * 10))
    with trio.move_on_after(0.1):
        await peer.send(BIG * 10)


async def silent(peer: Peer) -> None:
    await peer.head()
    await trio.sleep_forever()


async def half_a_response(peer: Peer) -> None:
    await peer.head()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
    await trio.sleep_forever()


STATES = {
    "waiting-for-a-head": (nothing, silent),
    "within-a-head": (half_a_head, silent),
    "waiting-for-a-response": (request, silent),
    "waiting-for-a-body": (half_a_body, silent),
    "sending-a-body": (upload_not_read, silent),
    "relaying-a-response": (request, half_a_response),
    "relaying-both": (half_a_body, half_a_response),
    "client-reads-nothing": (response_not_read, answering(ok(BIG))),
}


@pytest.mark.parametrize("direction", ["outbound", "inbound"])
@pytest.mark.parametrize("state", sorted(STATES))
@mesh_test
async def test_cancelled_while(state: str, direction: str) -> None:
    script, handler = STATES[state]
    async with application(handler) as app:
        if direction == "outbound":
            async with fleet(plain(app.addr)) as m:
                await cancelled(m.client, VIP, direction, script)
                await _no_application_connection(app)
                served = m.client.metric("triomesh_requests_total", flag="DC")
        else:
            async with sidecar(TestCa().credentials("server"), server_snapshot()) as back:
                await cancelled(back, app.addr, direction, script)
                await _no_application_connection(app)
                served = back.metric("triomesh_requests_total", flag="DC")
        assert served == (0 if script in (nothing, half_a_head) else 1)


async def _no_application_connection(app: Application) -> None:
    """They were reset: what the application was sent is not the whole."""
    for peer in app.peers:
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await peer.rest()


@pytest.mark.parametrize("tls", [TlsMode.MESH, TlsMode.NONE])
@mesh_test
async def test_cancelled_while_dialling(tls: TlsMode) -> None:
    """A full backlog for TCP; a peer that never answers the ClientHello for TLS."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        addr = Addr(*listener.getsockname())
        fillers = []
        if tls is TlsMode.NONE:
            for _ in range(3):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(addr)
                fillers.append(filler)
        endpoint = Endpoint(address=addr.ip, port=addr.port, tls=tls, identity=identity("server"))
        async with fleet(endpoint) as m:
            await cancelled(m.client, VIP, "outbound", request)
            assert m.client.metric("triomesh_requests_total", flag="DC", code="0") == 1
        for filler in fillers:
            filler.close()


@mesh_test
async def test_cancelling_a_whole_sidecar_under_load_leaks_no_descriptor() -> None:
    async with application(answering(lambda r: ok(bytes(100_000)))) as app:
        before = len(os.listdir("/proc/self/fd"))
        async with sidecar(TestCa().credentials("server"), server_snapshot()) as back:
            back.aim(inbound=app.addr)
            streams = [await trio.open_tcp_stream(*back.inbound) for _ in range(20)]
            for stream in streams:
                await stream.send_all(GET * 50)
            await wait_until(lambda: back.metric("triomesh_requests_total") > 50)
        for stream in streams:
            await stream.aclose()
        assert back.app.runtime.connections == 0
        assert not back.app.runtime.reactor.conns
        for peer in app.peers:
            peer.close()
        assert len(os.listdir("/proc/self/fd")) == before


@mesh_test
async def test_access_log_records() -> None:
    async with mesh(ok(b"hello")) as m:
        client = await m.connect()
        await client.send(
            b"PUT /a/b?c=%64 HTTP/1.1\r\nHost: shop.example:80\r\nX-Request-Id: r-1\r\n"
            b"Content-Length: 3\r\n\r\nabc"
        )
        response = await client.response()
        outbound = await m.record("client", request_id="r-1")
        inbound = await m.record("server", request_id="r-1")
        common = {
            "protocol": "HTTP/1.1",
            "method": "PUT",
            "path": "/a/b?c=%64",
            "host": "shop.example:80",
            "status": 200,
            "attempts": 1,
            "mtls": True,
        }
        assert common.items() <= outbound.items()
        assert common.items() <= inbound.items()
        assert outbound["direction"] == "outbound"
        assert outbound["destination"] == str(VIP)
        assert outbound["upstream"] == str(m.server.inbound)
        assert inbound["direction"] == "inbound"
        assert inbound["source_identity"] == identity("client")
        assert inbound["destination"] == inbound["upstream"] == str(m.app.addr)
        for record in (outbound, inbound):
            assert "flag" not in record
            assert "detail" not in record
            assert str(record["source"]).startswith("127.0.0.1:")
            assert 0 <= record["duration_ms"] < 1000
        assert outbound["bytes_out"] == len(response.raw) + len(response.body)


@each_mesh
@mesh_test
async def test_bytes_of_pipelined_requests_are_counted_once(hops: str) -> None:
    request = b"PUT /%d HTTP/1.1\r\nHost: s\r\nX-Request-Id: p\r\nContent-Length: 3\r\n\r\nabc"
    async with mesh(ok(), hops) as m:
        client = await m.connect()
        await client.send(b"".join(request % n for n in range(4)))
        for _ in range(4):
            await client.response()
        for n in range(4):
            assert (await m.record(path=f"/{n}"))["bytes_in"] == len(request % n)


@mesh_test
async def test_errors_are_logged_even_when_the_rest_is_not() -> None:
    async with mesh(ok()) as m:
        m.server.app.on_snapshot(server_snapshot(access_log=False))
        client = await m.connect()
        assert (await client.get()).status == 200
        await m.app.stop_listening()
        for peer in m.app.peers:
            peer.close()
        await wait_until(lambda: len(m.server.app.runtime.reactor.conns) == 1)
        assert (await client.get()).status == 503
        await m.record("server", flag="UF")
        assert len([line for line in m.server.log.poll() if "duration_ms" in line]) == 1


@mesh_test
async def test_metrics_count_requests_on_both_sides() -> None:
    answers = iter([ok(), ok(), b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", ok()])
    async with mesh(answering(lambda r: next(answers))) as m:
        client = await m.connect()
        assert [(await client.get()).status for _ in range(4)] == [200, 200, 404, 200]

        def count(side: Sidecar, **labels: str) -> float:
            return side.metric("triomesh_requests_total", flag="", mtls="true", **labels)

        labels = {"direction": "outbound", "destination": "server.shop:80"}
        labels["destination_workload"] = "server-v1"
        assert count(m.client, code="200", **labels) == 3
        assert count(m.client, code="404", **labels) == 1
        labels = {"direction": "inbound", "destination": "server.shop", "source": identity("client")}
        await wait_until(lambda: count(m.server, **labels) == 4)
        assert count(m.server, code="404", **labels) == 1
        assert m.client.metric("triomesh_request_duration_seconds") == 4
        assert m.client.metric("triomesh_connections", direction="outbound") == 1
        assert m.server.metric("triomesh_connections", direction="inbound") == 1
        assert m.client.metric("triomesh_upstream_connections_opened_total") == 1


@mesh_test
async def test_a_strict_port_takes_no_plaintext() -> None:
    async with mesh(ok(), server=server_snapshot(inbound=Inbound(mtls=MtlsMode.STRICT))) as m:
        client = await m.connect(m.server.inbound)
        await client.send(GET)
        assert await client.end() == "reset"
        assert m.server.metric("triomesh_refused_total", reason="plaintext") == 1
        assert (await (await m.connect()).get()).status == 200


@each_mesh
@mesh_test
async def test_many_clients_that_vanish_leave_nothing(hops: str) -> None:
    """Clients that reset at a random moment of a big exchange."""
    async with mesh(answering(lambda r: ok(r.body)), hops) as m:

        async def one(n: int) -> None:
            client = await m.connect()
            body = bytes(300_000)

            async def upload() -> None:
                try:
                    await client.send(b"PUT / HTTP/1.1\r\nHost: s\r\nContent-Length: 300000\r\n\r\n" + body)
                except (trio.ClosedResourceError, OSError):
                    pass

            async with trio.open_nursery() as nursery:
                nursery.start_soon(upload)
                for _ in range(n):
                    await trio.lowlevel.checkpoint()
                client.reset()

        async with trio.open_nursery() as nursery:
            for n in range(60):
                nursery.start_soon(one, n * 3)
