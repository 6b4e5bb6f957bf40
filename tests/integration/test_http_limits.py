"""The limits that an operator sets hold on the wire: what is within goes on, what is beyond is refused."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel

from mesh_api.limits import Limits
from tests.integration.http_peers import Peer, mesh, mesh_test, ok
from tests.support.mesh import wait_until

GET = b"GET / HTTP/1.1\r\nHost: server\r\n"
POST = b"POST / HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n"


def padded(size: int) -> bytes:
    """A head of exactly so many bytes, in lines of less than 200."""
    head = GET
    while len(head) + 2 + 200 < size:
        head += b"X-Pad: " + b"p" * 91 + b"\r\n"
    return head + b"X-Last: " + b"p" * (size - len(head) - 12) + b"\r\n\r\n"


def lines(count: int) -> bytes:
    return GET + b"".join(b"X-%d: 1\r\n" % number for number in range(count - 1)) + b"\r\n"


def trailers(size: int) -> bytes:
    """A chunked request whose trailer section, its last empty line included, has so many bytes."""
    return POST + b"2\r\nok\r\n0\r\nX-T: " + b"t" * (size - 9) + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("limits", "within", "beyond", "statuses"),
    [
        (Limits(head_bytes=1024), padded(1024), padded(1025), {431}),
        (
            Limits(line_bytes=256),
            GET + b"X: " + b"v" * 253 + b"\r\n\r\n",
            GET + b"X: " + b"v" * 254 + b"\r\n\r\n",
            {431},
        ),
        (
            Limits(line_bytes=256),
            b"GET /" + b"p" * 242 + b" HTTP/1.1\r\nHost: s\r\n\r\n",
            b"GET /" + b"p" * 243 + b" HTTP/1.1\r\nHost: s\r\n\r\n",
            {414},
        ),
        (Limits(header_count=16), lines(16), lines(17), {431}),
        (
            Limits(chunk_line_bytes=16),
            POST + b"2;" + b"e" * 14 + b"\r\nok\r\n0\r\n\r\n",
            POST + b"2;" + b"e" * 15 + b"\r\nok\r\n0\r\n\r\n",
            {400},
        ),
        (Limits(trailer_bytes=256), trailers(256), trailers(257), {400, 431}),
    ],
    ids=[
        "head_bytes",
        "line_bytes",
        "line_bytes of the first",
        "header_count",
        "chunk_line_bytes",
        "trailer_bytes",
    ],
)
@mesh_test
async def test_within_and_beyond(limits: Limits, within: bytes, beyond: bytes, statuses: set[int]) -> None:
    async with mesh(ok(), client_settings={"limits": limits}) as m:
        good = await m.connect()
        await good.send(within)
        assert (await good.response()).status == 200
        for cut in (len(beyond), len(beyond) // 2):
            bad = await m.connect()
            await bad.send(beyond[:cut])
            await trio.lowlevel.checkpoint()
            await bad.send(beyond[cut:])
            message = await bad.response()
            assert message.status in statuses
            assert await bad.end() == "clean"
        assert (await good.get()).status == 200


@mesh_test
async def test_a_body_that_stops_is_given_up() -> None:
    async with mesh(ok(), client_settings={"limits": Limits(body_idle_seconds=0.2)}) as m:
        for start in (b"Content-Length: 10\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n5\r\nha"):
            client = await m.connect()
            await client.send(GET.replace(b"GET", b"POST") + start)
            with trio.fail_after(5):
                try:
                    assert (await client.response()).status == 408
                except (EOFError, trio.BrokenResourceError):
                    pass  # closed without an answer: the client is past listening
        await wait_until(lambda: not m.client.app.runtime.connections)


@mesh_test
async def test_a_client_that_reads_nothing_is_given_up() -> None:
    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(ok(b"x" * 4_000_000))

    async with mesh(handle, client_settings={"limits": Limits(stall_seconds=0.3)}) as m:
        client = await m.connect(rcvbuf=4096)
        await client.send(GET + b"\r\n")
        await wait_until(lambda: m.client.app.runtime.connections == 1)
        await wait_until(lambda: not m.client.app.runtime.connections)
        assert await m.record(flag="DC")
