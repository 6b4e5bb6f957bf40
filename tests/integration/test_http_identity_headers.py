"""Who calls, as the application is told: from the proved certificate, never from what a caller says."""

from __future__ import annotations

import pytest
import trio

from mesh_api.sidecar import Inbound, Protocol
from tests.integration.http_peers import (
    Message,
    Peer,
    answering,
    application,
    each_path,
    fleet,
    mesh,
    mesh_test,
    ok,
    plain,
    settled,
)
from tests.support.mesh import TestCa, identity, server_snapshot, sidecar

NAME = b"x-forwarded-client-cert"
CLAIM = b"By=spiffe://cluster.local/ns/shop/sa/server;URI=spiffe://cluster.local/ns/shop/sa/admin"
SPELLINGS = [NAME, b"X-Forwarded-Client-Cert", b"x_forwarded_client_cert", b"X-FORWARDED_client-cert"]
PROVED = f"By={identity('server')};URI={identity('client')}".encode()
TRACE = (
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
    b"tracestate: congo=t61rcWkgMzE,rojo=00f067aa0ba902b7\r\nb3: 80f198ee56343ba8-1\r\n"
    b"X-B3-TraceId: 80f198ee56343ba864fe8b2a57d3eff7\r\nX-B3-SpanId: e457b5a2e4d86bd1\r\nX-B3-Sampled: 1\r\n"
    b"X-Forwarded-For: 10.1.1.1\r\nX-Forwarded-Proto: https\r\nForwarded: for=10.1.1.1\r\n"
)


def claims(request: Message) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in request.fields if name.lower().replace(b"_", b"-") == NAME]


def asking(*lines: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: s\r\n" + b"".join(b"%s\r\n" % line for line in lines) + b"\r\n"


@mesh_test
async def test_the_proved_identity_is_told_and_claims_are_not() -> None:
    seen: list[Message] = []
    async with mesh(answering(lambda r: (seen.append(r), ok())[1])) as m:
        client = await m.connect()
        await client.send(asking())
        await client.response()
        for spelling in SPELLINGS:
            await client.send(asking(spelling + b": " + CLAIM, b"a: 1", NAME + b": " + CLAIM))
            await client.response()
        assert [claims(request) for request in seen] == [[(NAME, PROVED)]] * (1 + len(SPELLINGS))
        assert seen[1].get(b"a") == b"1"


@pytest.mark.parametrize("spelling", SPELLINGS)
@mesh_test
async def test_a_caller_without_a_sidecar_can_say_nothing(spelling: bytes) -> None:
    seen: list[Message] = []
    async with application(answering(lambda r: (seen.append(r), ok())[1])) as app:
        inbound = Inbound(protocols={str(app.addr.port): Protocol.HTTP})
        async with sidecar(TestCa().credentials("server"), server_snapshot(inbound=inbound)) as back:
            back.aim(inbound=app.addr)
            peer = Peer(await trio.open_tcp_stream(*back.inbound))
            await peer.send(asking(spelling + b": " + CLAIM))
            assert (await peer.response()).status == 200
            assert claims(seen[0]) == []
            peer.close()
            await settled(back)


@mesh_test
async def test_no_claim_leaves_the_pod_either() -> None:
    seen: list[Message] = []
    async with (
        application(answering(lambda r: (seen.append(r), ok())[1])) as app,
        fleet(plain(app.addr)) as m,
    ):
        client = await m.connect()
        for spelling in SPELLINGS:
            await client.send(asking(spelling + b": " + CLAIM))
            await client.response()
        assert [claims(request) for request in seen] == [[]] * len(SPELLINGS)


@each_path
@mesh_test
async def test_traces_and_forwarded_fields_pass_unchanged(hops: str) -> None:
    seen: list[Message] = []
    async with mesh(answering(lambda r: (seen.append(r), ok())[1]), hops) as m:
        client = await m.connect()
        head = b"GET / HTTP/1.1\r\nHost: s\r\n" + TRACE + b"\r\n"
        await client.send(head)
        await client.response()
        assert seen[0].without(b"x-request-id", NAME) == head
