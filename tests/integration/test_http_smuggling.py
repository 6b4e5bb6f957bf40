"""The corpus of smuggling at whole sidecars: refused by the first, and two in a row never disagree."""

from __future__ import annotations

import pytest
import trio

from mesh_proxy.wire.dechunk import Dechunker
from tests.integration.http_peers import Message, Peer, answering, each_mesh, mesh, mesh_test, ok
from tests.support.http1_corpus import NEXT, WAYS, byte_by_byte, corpus, raw_bytes
from tests.support.mesh import HOPS

each_sidecar = pytest.mark.parametrize("hops", HOPS[1:])


@each_sidecar
@pytest.mark.parametrize("way", WAYS)
@mesh_test
async def test_refused_requests_reach_nobody(way, hops: str) -> None:
    async with mesh(ok(), hops) as m:
        for expected, message in corpus("requests_refused.txt"):
            client = await m.connect()
            try:
                for piece in way(message):
                    await client.send(piece)
                    if way is byte_by_byte:
                        await trio.lowlevel.checkpoint()
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before all of it was sent
            response = await client.response()
            assert response.status == int(expected[:3]), message
            assert response.get(b"connection") == b"close", message
            assert b"DPE" in (response.get(b"x-triomesh-error") or b""), message
            client.close()
        assert not any(NEXT[:9] in peer.received for peer in m.app.peers), "nothing behind it was served"
        bodies = [peer.received.partition(b"\r\n\r\n")[2] for peer in m.app.peers]
        assert not [body for body in bodies if b"0\r\n\r\n" in body], "no whole message has come through"


@each_mesh
@mesh_test
async def test_refused_responses_are_answered_for(hops: str) -> None:
    answers = corpus("responses_refused.txt")
    present = [b""]

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(present[0])
        peer.stream.socket.shutdown(1)
        await peer.rest()

    async with mesh(handle, hops) as m:
        for _, answer in answers:
            present[0] = answer
            client = await m.connect()
            response = await client.get()
            assert response.status == 502, answer
            assert b"malformed response" in (response.get(b"x-triomesh-error") or b""), answer
            client.close()


@each_sidecar
@mesh_test
async def test_sidecars_and_application_see_the_same_messages(hops: str) -> None:
    """Odd but good requests, one behind the other on one connection: each arrives as what it is."""
    cases = corpus("requests_accepted.txt")
    seen: list[Message] = []

    def answer(request: Message) -> bytes:
        seen.append(request)
        return ok(b"%d" % len(seen))

    stream = b"".join(message.removeprefix(b"\r\n") for _, message in cases)
    for pieces in (len(stream), 1):
        seen.clear()
        async with mesh(answering(answer), hops) as m:
            client = await m.connect()
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def send(client: Peer = client, pieces: int = pieces) -> None:
                    for at in range(0, len(stream), pieces):
                        await client.send(stream[at : at + pieces])

                for i in range(len(cases)):
                    assert (await client.response()).body == b"%d" % (i + 1)
            for (expected, message), request in zip(cases, seen, strict=True):
                chunked = request.get(b"transfer-encoding") is not None
                payload = Dechunker().feed(request.body) if chunked else request.body
                assert payload == raw_bytes(expected), message
                assert request.line.split(b" ")[0] == message.strip().split(b" ")[0]
