"""Who calls, by every way of a request to an application: what the caller says of it never goes on."""

from __future__ import annotations

import pytest
import trio

from mesh_api.sidecar import Inbound, Protocol
from mesh_api.traffic import HttpVersion, Settings
from tests.integration.http2_mesh import HTTP1, HTTP2, Reply, Said, app_of, of_stream
from tests.integration.http2_peers import Fields, Http2Stream, http2_application, http2_client
from tests.integration.http_peers import Message, Peer, application, mesh_test, settled
from tests.integration.test_h2_tunnels import TAKES, connect
from tests.support.mesh import TestCa, identity, pair, server_snapshot, sidecar

pytestmark = pytest.mark.usefixtures("http2_engine")
NAME = b"x-forwarded-client-cert"
EVIL = b"URI=spiffe://cluster.local/ns/shop/sa/admin"
PROVED = f"By={identity('server')};URI={identity('client')}".encode()
CLAIMS: Fields = [
    (NAME, EVIL),
    (b"x_forwarded_client_cert", EVIL),
    (b"x-forwarded_client-cert", EVIL),
    (b"x-triomesh-source", EVIL),
    (b"x_triomesh_source", EVIL),
    (b"x-triomesh_source", EVIL),
    (b"x_request_id", b"1"),
    (b"content_length", b"7"),
    (b"transfer_encoding", b"chunked"),
]


def told(fields: Fields) -> Fields:
    """What an application is told under our names, or under names that some take for ours."""
    ours = (b"x-forwarded-client", b"x-triomesh", b"content-length", b"transfer-encoding")
    return [
        (name, value)
        for name, value in fields
        if name.lower().replace(b"_", b"-").startswith(ours) or name.lower() == b"x_request_id"
    ]


@pytest.mark.parametrize("declared", [Protocol.HTTP, Protocol.HTTP2, Protocol.AUTO])
@pytest.mark.parametrize("alpn", [Protocol.HTTP, Protocol.HTTP2, Protocol.TCP, None])
@mesh_test
async def test_streams(declared: Protocol, alpn: Protocol | None) -> None:
    """`alpn`: what the caller's sidecar takes the port for; None: there is none, it is plaintext."""
    if alpn is Protocol.TCP and declared is Protocol.AUTO:
        return  # opaque for both: nobody looks
    seen: list[Said] = []

    def answer(said: Said) -> Reply:
        seen.append(said)
        return Reply()

    async with app_of(HTTP2, answer) as app:
        server = server_snapshot(inbound=Inbound(protocols={str(app.port): declared}))
        if alpn is None:
            async with sidecar(TestCa().credentials("server"), server) as back:
                back.aim(inbound=app)
                async with http2_client(back.inbound) as peer:
                    await peer.ask(fields=CLAIMS)
                await settled(back)
        else:
            async with pair(app, protocol=alpn, server=server) as both:
                async with http2_client(both.client.outbound) as peer:
                    await peer.ask(fields=CLAIMS)
                await settled(both.client, both.server)
    assert [told(said.fields) for said in seen] == [[] if alpn is None else [(NAME, PROVED)]]


@pytest.mark.parametrize("version", [HTTP1, HTTP2])
@mesh_test
async def test_tunnels(version: str) -> None:
    """Extended CONNECT, as it is or as HTTP/1.1's Upgrade."""
    seen: list[Fields] = []

    async def refuse1(peer: Peer) -> None:
        request: Message = await peer.head()
        seen.append(request.fields)
        await peer.send(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

    async def refuse2(stream: Http2Stream) -> None:
        seen.append(of_stream(stream).fields)
        await stream.respond([(b":status", b"403")])

    async with application(refuse1) as app1, http2_application(refuse2, TAKES) as app2:
        app = app1.addr if version == HTTP1 else app2.addr
        settings = Settings(http_version=HttpVersion.HTTP1 if version == HTTP1 else HttpVersion.HTTP2)
        server = server_snapshot(inbound=Inbound(protocols={str(app.port): Protocol.HTTP}))
        async with pair(app, server=server, settings=settings) as both:
            async with http2_client(both.client.outbound) as peer:
                assert (await connect(peer, more=CLAIMS)).status == 403
            await settled(both.client, both.server)
    assert [told(fields) for fields in seen] == [[(NAME, PROVED)]]


@pytest.mark.parametrize("alpn", [Protocol.HTTP, Protocol.TCP])
@pytest.mark.parametrize("first", [b"GET / HTTP/1.0\r\n", b"GET http://s/ HTTP/1.1\r\nHost: s\r\n"])
@pytest.mark.parametrize("upgrade", [False, True])
@mesh_test
async def test_messages(alpn: Protocol, first: bytes, upgrade: bool) -> None:
    seen: list[Fields] = []

    async def handle(peer: Peer) -> None:
        seen.append((await peer.head()).fields)
        await peer.send(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")

    lines = b"".join(b"%s: %s\r\n" % (name.title(), value) for name, value in CLAIMS[:7])
    if upgrade:
        lines += b"Connection: upgrade\r\nUpgrade: websocket\r\n"
    async with application(handle) as app:
        server = server_snapshot(inbound=Inbound(protocols={str(app.addr.port): Protocol.HTTP}))
        async with pair(app.addr, protocol=alpn, server=server) as both:
            client = Peer(await trio.open_tcp_stream(*both.client.outbound))
            await client.send(first + lines + b"\r\n")
            assert (await client.response()).status == 403
            client.close()
            await settled(both.client, both.server)
    assert [told(fields) for fields in seen] == [[(NAME, PROVED)]]
