"""An HTTP/2 stream behaves like a connection wherever their names are equal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from mesh_proxy.base.errors import DeadlineExceeded, PartnerGone, PeerReset, TransportError
from mesh_proxy.http2.stream import Stream
from mesh_proxy.net.conn import Conn
from tests.support.http2 import fields, make_engine, net, run, tcp_pair, wait_until

KINDS = ("conn", "client", "server")
BIG = bytes(32 * 1024 * 1024)
Link = Conn | Stream


@asynccontextmanager
async def links(kind: str, engine: str) -> AsyncIterator[tuple[Link, Link]]:
    """What is tested, and its other end."""
    make_engine(engine)
    async with net(engine) as n:
        if kind == "conn":
            one, other = (Conn(n.reactor, sock) for sock in tcp_pair())
            yield one, other
            one.close()
            other.close()
            return
        served: list[Stream] = []
        over = trio.Event()

        async def serve(stream: Any) -> None:
            stream.respond(200, b"")
            served.append(stream)
            await over.wait()

        client, _ = n.pair(serve)
        stream = client.open(fields(b"POST"), False)
        await stream.response()
        yield (stream, served[0]) if kind == "client" else (served[0], stream)
        stream.close()
        over.set()


@pytest.fixture(params=[("conn", "nghttp2"), *((k, e) for k in KINDS[1:] for e in ("nghttp2", "hyper"))])
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


def on(kind: tuple[str, str], test: Callable[[Link, Link], Awaitable[None]]) -> None:
    async def main() -> None:
        async with links(*kind) as (one, other):
            await test(one, other)

    run(main)


def test_bytes_both_ways_are_counted(kind):
    async def main(one, other):
        for message in (b"x", b"hello" * 1000):
            await other.write(message)
            got = b""
            while len(got) < len(message):
                got += await one.read()
            assert got == message
            await one.write(message)
            got = b""
            while len(got) < len(message):
                got += await other.read()
            assert got == message
        assert (one.sent, one.received) == (5001, 5001)

    on(kind, main)


def test_a_sender_waits_for_a_reader(kind):
    async def main(one, other):
        sent = trio.Event()

        async def send():
            for start in range(0, len(BIG), 1 << 20):
                await one.write(BIG[start : start + (1 << 20)])
            sent.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await wait_until(lambda: one.sending)
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert not sent.is_set()
            got = 0
            while got < len(BIG):
                got += len(await other.read())
        assert not one.sending

    on(kind, main)


def test_the_deadline_ends_every_wait(kind):
    async def main(one, other):
        async def expect(wait, *args):
            with pytest.raises(DeadlineExceeded):
                await wait(*args)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, one.read)
            nursery.start_soon(expect, one.write, BIG)
            await wait_until(lambda: one.reader is not None and one.sending)
            one.set_deadline(0.02)
        with pytest.raises(DeadlineExceeded):
            await one.read()

    on(kind, main)


def test_a_deadline_can_be_moved(kind):
    async def main(one, other):
        one.set_deadline(0.02)
        one.set_deadline(30)
        one.set_deadline(0.05)
        one.set_deadline(30)
        with trio.move_on_after(0.15) as scope:
            await one.read()
        assert scope.cancelled_caught

    on(kind, main)


def test_interrupt_wakes_who_waits_and_stops_who_comes_later(kind):
    async def main(one, other):
        async def expect(wait, *args):
            with pytest.raises(PartnerGone, match="told"):
                await wait(*args)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, one.read)
            nursery.start_soon(expect, one.write, BIG)
            await wait_until(lambda: one.reader is not None and one.sending)
            one.interrupt(PartnerGone("told"))
        await expect(one.read)

    on(kind, main)


def test_cancellation_leaves_nothing_parked(kind):
    async def main(one, other):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.read)
            nursery.start_soon(one.write, BIG)
            await wait_until(lambda: one.reader is not None and one.sending)
            nursery.cancel_scope.cancel()
        assert one.reader is None
        assert one.writer is None
        await other.write(b"still")
        assert await one.read() == b"still"

    on(kind, main)


def test_closing_wakes_who_waits_and_stops_who_comes_later(kind):
    async def main(one, other):
        async def expect(wait, *args):
            with pytest.raises(PeerReset if not isinstance(one, Stream) else TransportError):
                await wait(*args)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, one.read)
            nursery.start_soon(expect, one.write, BIG)
            await wait_until(lambda: one.reader is not None and one.sending)
            one.close()
        assert one.closed
        one.close()
        if isinstance(one, Stream):
            await expect(one.read)
            await expect(one.write, b"x")

    on(kind, main)
