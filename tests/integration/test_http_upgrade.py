"""Upgrade and CONNECT by raw bytes: what the endpoint is asked, what is granted, and the tunnel after it."""

from __future__ import annotations

import msgspec
import pytest
import trio

from mesh_api.sidecar import Inbound, MtlsMode, Protocol
from mesh_api.traffic import Breaker, Settings, Timeouts
from tests.integration.http_peers import (
    Handler,
    Message,
    Peer,
    answering,
    application,
    closed_port,
    each_mesh,
    each_path,
    fleet,
    mesh,
    mesh_test,
    ok,
    plain,
    settled,
)
from tests.support.mesh import TestCa, server_snapshot, sidecar, wait_until

ASK = b"GET /ws HTTP/1.1\r\nHost: s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-A: k\r\n\r\n"
GRANTED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nA: 1\r\n\r\n"
CONNECT = b"CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\r\n"
OURS = (b"x-request-id", b"x-forwarded-client-cert")


def switching(
    then: Handler | None = None, seen: list[Message] | None = None, granted: bytes = GRANTED
) -> Handler:
    """Grants the first request, then echoes to the end of what comes."""

    async def handle(peer: Peer) -> None:
        request = await peer.head()
        if seen is not None:
            seen.append(request)
        await peer.send(granted)
        if then is not None:
            await then(peer)
            return
        while True:
            if peer.buf:
                await peer.send(peer._take(len(peer.buf)))
            if not await peer._fill():
                peer.stream.socket.shutdown(1)
                return

    return handle


@each_path
@mesh_test
async def test_a_tunnel(hops: str) -> None:
    seen: list[Message] = []
    async with mesh(switching(seen=seen), hops) as m:
        client = await m.connect()
        await client.send(ASK)
        response = await client.response()
        assert response.status == 101
        assert response.get(b"upgrade") == b"websocket"
        assert (response.get(b"connection") or b"").lower() == b"upgrade"
        assert response.get(b"a") == b"1"
        asked = (
            b"GET /ws HTTP/1.1\r\nHost: s\r\nSec-A: k\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
        )
        assert seen[0].without(*OURS) == (asked if m.sidecars else ASK)
        big = bytes(range(256)) * 4096
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, big)
            assert await client.exactly(len(big)) == big
        for side in m.sidecars:
            assert not [line for line in side.log.poll() if "duration_ms" in line], "logged at its end only"
        client.stream.socket.shutdown(1)
        assert await client.end() == "clean"
        for record in await m.records(status=101):
            assert record["bytes_in"] > len(big)
            assert record["bytes_out"] > len(big)
            assert record.get("flag", "") == ""
        for side in m.sidecars:
            assert side.metric("triomesh_requests_total", code="101") == 1
            assert side.metric("triomesh_request_duration_seconds") == 0, "a tunnel has no latency"


@each_path
@mesh_test
async def test_bytes_beside_the_heads_are_not_lost(hops: str) -> None:
    async def then(peer: Peer) -> None:
        assert await peer.exactly(5) == b"early"
        peer.stream.socket.shutdown(1)
        await peer.rest()

    async with mesh(switching(then, granted=GRANTED + b"first words"), hops) as m:
        client = await m.connect()
        await client.send(ASK + b"early")
        assert (await client.response()).status == 101
        assert await client.rest() == b"first words"
        client.close()
        for record in (await m.records(status=101))[:1]:
            assert record["bytes_in"] == len(ASK) + 5


@each_path
@mesh_test
async def test_half_close_in_either_direction(hops: str) -> None:
    async def last_word(peer: Peer) -> None:
        assert await peer.rest() == b"all"
        await peer.send(b"noted")

    async with mesh(switching(last_word), hops) as m:
        client = await m.connect()
        await client.send(ASK)
        await client.response()
        await client.send_with_fin(b"all")
        assert await client.rest() == b"noted"


@mesh_test
async def test_request_timeouts_end_with_101_and_the_tcp_idle_time_begins() -> None:
    settings = Settings(timeouts=Timeouts(request_s=0.2, stream_idle_s=0.2, tcp_idle_s=1.0))
    async with mesh(switching(), settings=settings) as m:
        client = await m.connect()
        await client.send(ASK)
        assert (await client.response()).status == 101
        began = trio.current_time()
        for _ in range(4):
            await trio.sleep(0.15)  # time has to pass here: nothing else shows that the deadline is gone
            await client.send(b"x")
            assert await client.exactly(1) == b"x"
        assert await client.end() == "reset"
        assert trio.current_time() - began >= 1.0
        assert (await m.record(status=101))["flag"] == "SI"


@each_path
@mesh_test
async def test_a_reset_goes_through_the_tunnel(hops: str) -> None:
    ends = []

    async def then(peer: Peer) -> None:
        ends.append(await peer.end())

    async with mesh(switching(then), hops) as m:
        client = await m.connect()
        await client.send(ASK)
        await client.response()
        client.reset()
        await wait_until(lambda: ends)
        assert ends == ["reset"]
        assert [record["flag"] for record in await m.records(status=101)] == ["DC"] * len(m.sidecars)


@each_mesh
@pytest.mark.parametrize(
    "granted",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket, websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.0 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
@mesh_test
async def test_a_101_that_does_not_fit(granted: bytes, hops: str) -> None:
    async with mesh(switching(granted=granted), hops) as m:
        client = await m.connect()
        await client.send(ASK)
        response = await client.response()
        assert response.status == 502
        assert b"malformed response" in (response.get(b"x-triomesh-error") or b"")
        assert (await client.get()).status == 502, "the client's connection lives on"


@each_mesh
@pytest.mark.parametrize(
    "fields",
    [
        b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        b"Connection: Upgrade\r\nUpgrade: TLS/1.0, IRC/6.9\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket/13\r\n",
        b"Upgrade: websocket\r\n",
        b"Connection: Upgrade\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n",
    ],
)
@mesh_test
async def test_an_upgrade_that_is_not_passed_on(fields: bytes, hops: str) -> None:
    """Not on the list, not said to be of this hop, or with a body: the request goes on without it."""
    seen: list[Message] = []
    async with mesh(answering(lambda r: (seen.append(r), ok())[1]), hops) as m:
        client = await m.connect()
        body = b"hi" if b"Content-Length" in fields else b""
        await client.send(b"GET / HTTP/1.1\r\nHost: s\r\n" + fields + b"\r\n" + body)
        assert (await client.response()).status == 200
        assert seen[0].body == body
        assert {name.lower() for name, _ in seen[0].fields} - {b"content-length", *OURS} == {b"host"}


@each_mesh
@mesh_test
async def test_only_listed_protocols_are_offered_on(hops: str) -> None:
    seen: list[Message] = []
    async with mesh(switching(seen=seen), hops) as m:
        client = await m.connect()
        await client.send(
            b"GET / HTTP/1.1\r\nHost: s\r\nConnection: keep-alive, upgrade\r\nUpgrade: h2c, WebSocket\r\n\r\n"
        )
        assert (await client.response()).status == 101
        assert seen[0].get(b"upgrade") == b"WebSocket"
        assert seen[0].get(b"connection") == b"upgrade"


@mesh_test
async def test_the_list_is_a_setting() -> None:
    granted = GRANTED.replace(b"websocket", b"chat/2")
    async with application(switching(granted=granted)) as app, fleet(plain(app.addr)) as m:
        m.client.app.runtime.upgrades = frozenset((b"chat/2",))
        client = await m.connect()
        await client.send(ASK.replace(b"websocket", b"Chat/2"))
        assert (await client.response()).get(b"upgrade") == b"chat/2"
        await client.send(b"hello")
        assert await client.exactly(5) == b"hello"


@each_path
@mesh_test
async def test_a_refused_upgrade_is_an_ordinary_response(hops: str) -> None:
    answers = iter([ok(b"no"), ok(b"next"), ok(b"more")])
    async with mesh(answering(lambda r: next(answers)), hops) as m:
        client = await m.connect()
        await client.send(ASK + b"GET / HTTP/1.1\r\nHost: s\r\n\r\n")
        assert [(await client.response()).body for _ in range(2)] == [b"no", b"next"]
        assert (await client.get()).body == b"more"
        assert len(m.app.peers) == 1


@each_mesh
@mesh_test
async def test_an_upgrade_without_its_version_is_not_for_http10(hops: str) -> None:
    async with mesh(answering(lambda r: ok(b"%d" % len(r.all(b"upgrade")))), hops) as m:
        client = await m.connect()
        await client.send(ASK.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await client.response()).body == b"0"


@mesh_test
async def test_another_endpoint_is_asked_if_one_is_not_there() -> None:
    async with application(switching()) as app, fleet(plain(closed_port()), plain(app.addr)) as m:
        for _ in range(4):
            client = await m.connect()
            await client.send(ASK)
            assert (await client.response()).status == 101


@mesh_test
async def test_tunnels_count_against_the_connections_of_the_breaker() -> None:
    settings = Settings(breaker=Breaker(max_connections=1), timeouts=Timeouts(connect_s=0.2))
    async with application(switching()) as app, fleet(plain(app.addr), settings=settings) as m:
        first = await m.connect()
        await first.send(ASK)
        assert (await first.response()).status == 101
        second = await m.connect()
        assert (await second.get()).status == 503
        assert (await m.record(status=503))["flag"] == "UO"
        first.close()
        await m.record(status=101)
        await second.send(ASK)
        assert (await second.response()).status == 101, "there is room again"


@mesh_test
async def test_a_plaintext_tunnel_ends_when_the_port_turns_strict() -> None:
    async with application(switching()) as app:
        inbound = Inbound(protocols={str(app.addr.port): Protocol.HTTP})
        async with sidecar(TestCa().credentials("server"), server_snapshot(inbound=inbound)) as back:
            back.aim(inbound=app.addr)
            peer = Peer(await trio.open_tcp_stream(*back.inbound))
            await peer.send(ASK)
            assert (await peer.response()).status == 101
            strict = msgspec.structs.replace(inbound, mtls=MtlsMode.STRICT)
            back.app.on_snapshot(server_snapshot(inbound=strict))
            assert await peer.end() == "reset"
            peer.close()
            await back.log.wait_for(lambda line: line.get("flag") == "UAEX" and line.get("status") == 101)
            await settled(back)


# CONNECT


@each_path
@mesh_test
async def test_connect_leads_to_the_destination_of_the_connection(hops: str) -> None:
    seen: list[Message] = []
    granted = b"HTTP/1.1 200 Connection established\r\nProxy-Agent: x\r\n\r\nhi "
    async with mesh(switching(seen=seen, granted=granted), hops) as m:
        client = await m.connect()
        await client.send(CONNECT + b"early")
        head = await client.head()
        assert head.raw == b"HTTP/1.1 200 Connection established\r\nProxy-Agent: x\r\n\r\n"
        assert await client.exactly(8) == b"hi early"
        assert seen[0].without(*OURS) == CONNECT
        client.stream.socket.shutdown(1)
        assert await client.end() == "clean"
        for record in await m.records(method="CONNECT"):
            assert (record["status"], record["path"]) == (200, "db.example:5432")
        for side in m.sidecars:
            assert side.metric("triomesh_request_duration_seconds") == 0


@each_mesh
@mesh_test
async def test_a_refused_connect_is_an_ordinary_response_and_the_last(hops: str) -> None:
    async with mesh(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", hops) as m:
        client = await m.connect()
        await client.send(CONNECT + b"GET / HTTP/1.1\r\nHost: s\r\n\r\n")
        response = await client.response()
        assert (response.status, response.body) == (403, b"no")
        assert response.get(b"connection") == b"close"
        assert await client.end() == "clean"
        assert len(m.app.requests) == 0
        assert m.app.peers[0].received.count(b"GET") == 0, "not taken for a request"


@each_mesh
@mesh_test
async def test_connect_of_http10(hops: str) -> None:
    async with mesh(switching(granted=b"HTTP/1.0 200 OK\r\n\r\n"), hops) as m:
        client = await m.connect()
        await client.send(b"CONNECT db.example:5432 HTTP/1.0\r\n\r\n")
        assert (await client.head()).line == b"HTTP/1.1 200 OK"
        await client.send(b"x")
        assert await client.exactly(1) == b"x"


@each_mesh
@mesh_test
async def test_101_upon_connect_is_refused(hops: str) -> None:
    async with mesh(switching(granted=GRANTED), hops) as m:
        client = await m.connect()
        await client.send(CONNECT)
        assert (await client.response()).status == 502
