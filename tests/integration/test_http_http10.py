"""HTTP/1.0 clients: their requests go on in the sidecar's version, responses come in a form they can read."""

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
)
from tests.support.mesh import VIP, wait_until

KEEP = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-t\r\nA: 1\r\n\r\n"


async def of_either_version(peer: Peer) -> None:
    """Echoes, and tells a client of HTTP/1.0 whether the connection goes on."""
    while True:
        request = await peer.request()
        old = request.line.endswith(b" HTTP/1.0")
        fields = [b"Connection: " + (b"close" if request.closes else b"keep-alive")] if old else []
        head, end, body = ok(request.body or request.path, *fields).partition(b"\r\n\r\n")
        await peer.send(head + end + (b"" if request.line.startswith(b"HEAD ") else body))
        if request.closes:
            return


@each_path
@mesh_test
async def test_a_body_each_way_and_the_end(hops: str) -> None:
    """Said by length, or by the end of the connection."""

    async def until_the_end(peer: Peer) -> None:
        await peer.request()
        await peer.send_with_fin(b"HTTP/1.1 200 OK\r\n\r\nto the end")

    post = b"POST / HTTP/1.0\r\nHost: s\r\nContent-Length: 5\r\n\r\nhello"
    for handler, body in ((of_either_version, b"hello"), (until_the_end, b"to the end")):
        async with mesh(handler, hops) as m:
            client = await m.connect()
            await client.send(post)
            assert (await client.response()).body == body
            assert await client.end() == "clean"


@each_mesh
@mesh_test
async def test_the_request_goes_on_as_http11(hops: str) -> None:
    seen: list[Message] = []

    def answer(request: Message) -> bytes:
        seen.append(request)
        return ok(b"done")

    async with mesh(answering(answer), hops) as m:
        client = await m.connect()
        await client.send(
            b"POST /old HTTP/1.0\r\nA: 1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi"
        )
        response = await client.response()
        assert response.body == b"done"
        assert response.get(b"connection") == b"close"
        assert await client.end() == "clean"
        request = seen[0].without(b"x-request-id", b"x-forwarded-client-cert")
        host = f"host: {VIP}".encode()
        assert request == b"POST /old HTTP/1.1\r\n" + host + b"\r\nA: 1\r\nContent-Length: 2\r\n\r\n"
        assert seen[0].body == b"hi"
        assert (await m.record(protocol="HTTP/1.0"))["status"] == 200


@each_mesh
@mesh_test
async def test_a_host_that_was_said_is_kept_and_connections_behind_are_used_again(hops: str) -> None:
    hosts = []
    async with mesh(answering(lambda r: (hosts.append(r.get(b"host")), ok())[1]), hops) as m:
        for host in (b"one", b""):
            client = await m.connect()
            await client.send(b"GET / HTTP/1.0\r\nHost: %s\r\n\r\n" % host)
            assert (await client.response()).status == 200
            assert await client.end() == "clean"
        assert hosts == [b"one", b""]
        assert len(m.app.peers) == 1


@each_path
@mesh_test
async def test_keep_alive_where_the_length_is_known(hops: str) -> None:
    async with mesh(of_either_version, hops) as m:
        client = await m.connect()
        for _ in range(3):
            await client.send(KEEP)
            response = await client.response()
            assert response.get(b"connection") == b"keep-alive"
            assert response.body == b"/"
        await client.send(b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.response(b"HEAD")).get(b"connection") == b"keep-alive"
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await client.response()).get(b"connection") == b"close"
        assert await client.end() == "clean"


@each_mesh
@pytest.mark.parametrize("pieces", [1, 7, 1000])
@mesh_test
async def test_chunks_are_taken_apart(pieces: int, hops: str) -> None:
    body = b"2;ext=1\r\nab\r\n" + b"A\r\n0123456789\r\n" * 20 + b"0\r\nx-t: 1\r\n\r\n"

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(CHUNKS)
            for at in range(0, len(body), pieces):
                await peer.send(body[at : at + pieces])
                await trio.lowlevel.checkpoint()

    async with mesh(handle, hops) as m:
        for _ in range(2):
            client = await m.connect()
            await client.send(KEEP)
            head = await client.head()
            assert head.raw == b"HTTP/1.1 200 OK\r\nA: 1\r\nconnection: close\r\n\r\n"
            assert await client.rest() == b"ab" + b"0123456789" * 20
        assert len(m.app.peers) == 1, "the endpoint's connection lives on"


@each_mesh
@mesh_test
async def test_a_chunked_response_that_breaks_off_resets_the_client(hops: str) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKS + b"5\r\nab")
        await wait_until(lambda: client.received.endswith(b"ab"))
        peer.reset()

    async with mesh(handle, hops) as m:
        client = await m.connect()
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        await client.until(b"\r\n\r\nab")
        assert await client.end() == "reset"


@each_mesh
@mesh_test
async def test_interim_responses_are_not_for_http10(hops: str) -> None:
    answer = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok()
    async with mesh(answer, hops) as m:
        client = await m.connect()
        await client.send(KEEP)
        assert (await client.response()).status == 200


@each_path
@mesh_test
async def test_keep_alive_of_an_http10_endpoint(hops: str) -> None:
    answer = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"
    async with mesh(answer, hops) as m:
        client = await m.connect()
        for _ in range(3):
            response = await client.get()
            meshed = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
            assert response.raw + response.body == (meshed + b"ok" if m.sidecars else answer)
        assert len(m.app.peers) == 1


@mesh_test
async def test_an_answer_of_the_sidecar_keeps_an_http10_connection() -> None:
    async with mesh(ok(), endpoints=()) as m:
        client = await m.connect()
        for _ in range(2):
            await client.send(KEEP)
            response = await client.response()
            assert response.status == 503
            assert response.get(b"connection") == b"keep-alive"


@each_mesh
@mesh_test
async def test_a_response_to_head_names_no_coding(hops: str) -> None:
    """RFC 9112, 6.1: Transfer-Encoding is for those who have said that they speak HTTP/1.1."""
    async with mesh(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nA: 1\r\n\r\n", hops) as m:
        client = await m.connect()
        await client.send(b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.head()).raw == b"HTTP/1.1 200 OK\r\nA: 1\r\nconnection: keep-alive\r\n\r\n"
