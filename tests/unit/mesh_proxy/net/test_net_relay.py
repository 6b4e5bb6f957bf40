import gc
import socket
import weakref
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from mesh_proxy.net.conn import Conn
from mesh_proxy.net.relay import Relay, wait_either
from mesh_proxy.net.wheel import NEVER
from tests.contract.streams import KINDS, reactor, reset, stream
from tests.support.mesh import run, wait_until

in_thread = trio.to_thread.run_sync


@asynccontextmanager
async def link(react, kind="plain"):
    """The client's connection and its peer, then those of the endpoint."""
    async with stream(kind, react) as (down, client), stream("plain", react) as (up, server):
        yield down, client, up, server


def test_a_full_shutdown_is_no_reset_for_bytes_under_way():
    """HUP comes once both directions of the client have ended: what it sent before must still arrive."""

    async def main():
        async with reactor() as react, link(react) as (down, client, up, server):
            relay = Relay(down, up, 60)
            size = 12_000_000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay.run)
                server.send_eof()
                assert await in_thread(client.recv) == b""
                for sock in (client.sock, down.sock):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_000_000)
                nursery.start_soon(in_thread, lambda: (client.send(b"x" * size), client.send_eof()))
                await wait_until(lambda: up.writer is not None)
                got = 0
                while got < size - 3_000_000:
                    got += len(await in_thread(server.recv))
                await wait_until(lambda: down.ended or up.writer is not None)
                got += len(await in_thread(server.recv_all))
                assert got == size
            assert not relay.flag

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_the_writers_reset_is_told_even_if_nobody_reads(kind):
    async def main():
        async with reactor() as react, link(react, kind) as (down, client, up, server):
            relay = Relay(down, up, 60)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay.run)
                client.send_eof()
                assert await in_thread(server.recv) == b""
                reset(client.sock)
            assert relay.flag == "DC"
            with pytest.raises(OSError, match=r"pipe|reset"):
                server.sock.sendall(b"x")

    run(main)


def test_a_relay_that_ended_is_not_kept():
    async def main():
        async with reactor() as react:
            async with link(react) as (down, client, up, server):
                down.set_deadline(3600)
                relay = Relay(down, up, 3600)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(relay.run)
                    client.send_eof()
                    server.send_eof()
                assert not react.wheel._buckets
                refs = [weakref.ref(relay.scope)]
                del relay
            del down, up
            gc.collect()
            assert not any(ref() for ref in refs)

    run(main)


def test_stop_before_a_byte():
    async def main():
        async with reactor() as react, link(react) as (down, client, up, server):
            relay = Relay(down, up, 60)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay.run)
                await trio.testing.wait_all_tasks_blocked()
                relay.stop("UAEX", "no more")
                relay.stop("DC", "too late")
            assert (relay.flag, relay.detail) == ("UAEX", "no more")
            for peer in (client, server):
                with pytest.raises(ConnectionResetError):
                    peer.recv()

    run(main)


def test_wait_either():
    async def main():
        async with reactor() as react, link(react) as (one, first, other, second):
            for peer, conn in ((first, one), (second, other)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(wait_either, one, other)
                    await trio.testing.wait_all_tasks_blocked()
                    peer.send(b"x")
                assert await conn.read() == b"x"
                assert one.reader is other.reader is None

    run(main)


def test_deadline_of_an_idle_connection_drops_it():
    async def main():
        async with stream("plain") as (conn, peer):
            dropped = []

            class Owner:
                def drop_idle(self, conn: Conn):
                    dropped.append(conn)
                    conn.bye()

            conn.idle_in = Owner()
            conn.set_deadline(0.05)
            await wait_until(lambda: dropped)
            assert conn.deadline == NEVER
            assert await in_thread(peer.recv) == b""

    run(main)
