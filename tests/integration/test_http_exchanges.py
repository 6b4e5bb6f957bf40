"""Random exchanges, pipelined, in random pieces: each end sees the bytes of the other, on every path."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import trio

from tests.integration.http_peers import Peer, each_path, mesh, mesh_test

OURS = (b"x-request-id", b"x-forwarded-client-cert", b"connection")
"""What sidecars add, and what is of one hop."""
METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"x-Own")
STATUSES = (b"200 OK", b"201 Created", b"204 No Content", b"304 Not Modified", b"404 ", b"299 caf\xc3\xa9")
INTERIMS = (b"100 Continue", b"102 Processing", b"103 Early Hints")
FIELDS = (b"A: 1", b"set-Cookie: a=b", b"set-Cookie: c=d", b"X-Empty:", b"x-list:a,  b", b"X-High: \xe9")
SIZES = (0, 1, 2, 100, 3000, 16_384, 70_000)


@dataclass
class Part:
    """A message as it is sent."""

    head: bytes
    body: bytes = b""


@dataclass
class Exchange:
    method: bytes
    request: Part
    interims: list[bytes]
    response: Part
    ends: bool
    """The response ends with its connection. An application that closes another one may cut a request off."""


def fields(rng: random.Random) -> bytes:
    return b"".join(b"%s\r\n" % line for line in rng.choices(FIELDS, k=rng.randrange(5)))


def framed(rng: random.Random, start: bytes, framing: str) -> Part:
    """A message of this start line and framing, with a random payload."""
    payload = rng.randbytes(rng.choice(SIZES))
    length, chunked = b"Content-Length: %d\r\n" % len(payload), b"Transfer-Encoding: chunked\r\n"
    named = {"length": length, "chunked": chunked}.get(framing, b"")
    head = start + b"\r\n" + fields(rng) + named + fields(rng) + b"\r\n"
    if framing == "chunked":
        return Part(head, chunks(rng, payload))
    return Part(head, payload if framing else b"")


def chunks(rng: random.Random, payload: bytes) -> bytes:
    raw, step = b"", max(rng.choice((1, 50, 5000, 40_000)), len(payload) // 20)
    for at in range(0, len(payload), step):
        piece = payload[at : at + step]
        size = rng.choice((b"%x", b"%X", b"00%x")) % len(piece)
        raw += size + rng.choice((b"", b";e", b';e="a;b"')) + b"\r\n" + piece + b"\r\n"
    return raw + b"0\r\n" + rng.choice((b"", b"X-Sum: 1\r\n", b"a: b\r\nX-Sum:\r\n")) + b"\r\n"


def exchange(rng: random.Random, number: bytes, last: bool) -> Exchange:
    method, status = rng.choice(METHODS), rng.choice(STATUSES)
    line = method + b" /" + number + b" HTTP/1.1\r\nHost: s"
    if last and rng.random() < 0.5:
        line += b"\r\nConnection: close"
    framing = rng.choice(("", "length", "chunked"))
    if framing and rng.random() < 0.2:
        line += b"\r\nExpect: 100-continue"
    kinds = ["length", "chunked", *(["close"] if last else [])]
    response = framed(rng, b"HTTP/1.1 " + status, rng.choice(kinds))
    if status[:3] == b"204":
        response = framed(rng, b"HTTP/1.1 " + status, "")
    bodiless = method == b"HEAD" or status[:3] in (b"204", b"304")
    if bodiless:
        response.body = b""
    interims = [b"HTTP/1.1 " + rng.choice(INTERIMS) + b"\r\n" + fields(rng) + b"\r\n"] * rng.choice(
        (0, 0, 1, 3)
    )
    ends = not bodiless and b"-Length:" not in response.head and b"-Encoding:" not in response.head
    return Exchange(method, framed(rng, line, framing), interims, response, ends)


async def in_pieces(rng: random.Random, peer: Peer, data: bytes) -> None:
    at = 0
    while at < len(data):
        n = rng.choice((1, 5, 900, 16_384, 100_000))
        await peer.send(data[at : at + n])
        at += n
        if rng.random() < 0.5:
            await trio.lowlevel.checkpoint()


def without(raw: bytes) -> bytes:
    """A head, less the header lines that are not the ends' own."""
    lines = raw.split(b"\r\n")
    return b"\r\n".join(line for line in lines if line.partition(b":")[0].lower() not in OURS)


@pytest.mark.parametrize("seed", range(5))
@each_path
@mesh_test
async def test_both_ends_see_what_the_other_sent(hops: str, seed: int) -> None:
    rng = random.Random(seed)
    scripts = [[exchange(rng, b"%d/%d" % (client, n), n == 11) for n in range(12)] for client in range(4)]
    by_path = {b"/%d/%d" % (c, n): each for c, script in enumerate(scripts) for n, each in enumerate(script)}

    async def handle(peer: Peer) -> None:
        own = random.Random(seed)
        while True:
            request = await peer.request()
            this = by_path[request.path]
            assert without(request.raw) == without(this.request.head)
            assert request.body == this.request.body
            await in_pieces(own, peer, b"".join(this.interims) + this.response.head + this.response.body)
            if this.ends:
                return

    async with mesh(handle, hops) as m:

        async def one(script: list[Exchange], own: random.Random) -> None:
            client = await m.connect()
            async with trio.open_nursery() as nursery:
                raw = b"".join(each.request.head + each.request.body for each in script)
                nursery.start_soon(in_pieces, own, client, raw)
                for each in script:
                    for interim in each.interims:
                        assert (await client.response()).raw == interim
                    response = await client.response(each.method)
                    assert without(response.raw) == without(each.response.head)
                    assert response.body == each.response.body

        async with trio.open_nursery() as nursery:
            for number, script in enumerate(scripts):
                nursery.start_soon(one, script, random.Random(f"{seed} {number}"))
