"""Ways round the rules of HTTP: requests that a sidecar would pass on as opaque bytes, unread."""

from __future__ import annotations

import pytest
import trio

from mesh_api.limits import Limits
from mesh_api.sidecar import Inbound, Protocol
from tests.integration.http_peers import (
    Handler,
    Mesh,
    Message,
    Peer,
    answering,
    application,
    mesh,
    mesh_test,
    ok,
    settled,
)
from tests.support.mesh import TestCa, identity, pair, server_snapshot, sidecar, wait_until

CLAIM = b"x-forwarded-client-cert: By=x;URI=spiffe://cluster.local/ns/shop/sa/admin"
SPOOFED = b"GET /a/%2e%2e/x HTTP/1.1\r\nHost: s\r\n" + CLAIM + b"\r\n\r\n"
SHORT = Limits(detect_seconds=1)


def noting(seen: list[Message], answer: bytes) -> Handler:
    return answering(lambda request: (seen.append(request), answer)[1])


@pytest.mark.parametrize(
    "answer",
    [ok(), ok(b""), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
)
@mesh_test
async def test_an_application_that_knows_no_connect_gets_no_tunnel(answer: bytes) -> None:
    seen: list[Message] = []
    async with mesh(noting(seen, answer)) as m:
        client = await m.connect()
        await client.send(b"CONNECT s:80 HTTP/1.1\r\nHost: s:80\r\n\r\n" + SPOOFED)
        response = await client.response()
        assert response.status == 502
        assert b"CONNECT" in response.body
        await client.end()
        assert [request.line for request in seen] == [b"CONNECT s:80 HTTP/1.1"]


@mesh_test
async def test_what_a_caller_takes_for_opaque_is_http_on_a_port_of_http() -> None:
    seen: list[Message] = []
    async with application(noting(seen, ok())) as app:
        inbound = Inbound(protocols={str(app.addr.port): Protocol.HTTP})
        server = server_snapshot(inbound=inbound)
        async with pair(app.addr, protocol=Protocol.TCP, server=server) as both:
            m = Mesh(app, both.client.outbound, (both.client, both.server))
            client = await m.connect()
            await client.send(SPOOFED)
            assert (await client.response()).status == 200
            proved = f"By={identity('server')};URI={identity('client')}".encode()
            assert (seen[0].path, seen[0].get(b"x-forwarded-client-cert")) == (b"/x", proved)
            other = await m.connect()
            await other.send(b"\x00\x01\x02")
            assert (await other.response()).status == 400, "not passed on"
            m.close_clients()
            await settled(both.client, both.server)
        assert len(seen) == 1


@pytest.mark.parametrize("rest", [SPOOFED[2:], b"-protocol of its own\r\n"])
@mesh_test
async def test_a_request_that_begins_too_slowly_is_no_way_round_http(rest: bytes) -> None:
    """Opaque after a while, for there are such protocols; but not if it turns out to be HTTP."""
    got = bytearray()

    async def handle(peer: Peer) -> None:
        while await peer._fill():
            got.extend(peer._take(len(peer.buf)))

    async with (
        application(handle) as app,
        sidecar(TestCa().credentials("server"), server_snapshot(), limits=SHORT) as back,
    ):
        back.aim(inbound=app.addr)
        client = Peer(await trio.open_tcp_stream(*back.inbound))
        await client.send(b"GE")
        await wait_until(lambda: got == b"GE")
        await client.send(rest)
        if rest in SPOOFED:
            assert await client.end() == "reset"
            assert got == b"GE"
        else:
            await wait_until(lambda: got == b"GE" + rest)
        client.close()
        await settled(back)


@mesh_test
async def test_neither_in_the_callers_sidecar() -> None:
    got = bytearray()

    async def handle(peer: Peer) -> None:
        while await peer._fill():
            got.extend(peer._take(len(peer.buf)))

    async with mesh(handle, protocol=Protocol.AUTO, client_settings={"limits": SHORT}) as m:
        client = await m.connect()
        await client.send(b"GE")
        await wait_until(lambda: got == b"GE")
        await client.send(SPOOFED[2:])
        assert await client.end() == "reset"
        assert got == b"GE"
        assert (await m.record(protocol="TCP"))["flag"] == "DPE"
