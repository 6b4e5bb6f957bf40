import gc
import socket
import weakref

import pytest
import trio

from mesh_proxy.base.errors import DeadlineExceeded
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.reactor import Reactor
from mesh_proxy.net.wheel import Timed
from tests.contract.streams import reactor, stream, tcp_pair
from tests.support.mesh import run, wait_until


class Alarm(Timed):
    def __init__(self, rung):
        super().__init__()
        self.rung = rung

    def on_deadline(self):
        self.rung.append(trio.current_time())


def test_alarms_ring_once_in_order_and_not_early():
    async def main():
        async with reactor() as react:
            rung = []
            start = react.now = trio.current_time()
            alarms = [Alarm(rung) for _ in range(3)]
            for n, alarm in enumerate(alarms):
                react.set_deadline(alarm, start + 0.15 - n * 0.05)
            forgotten = Alarm(rung)
            react.set_deadline(forgotten, start + 0.01)
            react.wheel.forget(forgotten)
            await wait_until(lambda: len(rung) == 3)
            assert rung == sorted(rung)
            assert rung[0] >= start + 0.05
            assert rung[2] < start + 1

    run(main)


def test_after_its_end_registering_is_an_oserror():
    """A connection accepted while the process stops must not bring it down with another error."""

    async def main():
        async with trio.open_nursery() as nursery:
            react = Reactor()
            await nursery.start(react.run)
            nursery.cancel_scope.cancel()
        ours, theirs = tcp_pair()
        with ours, theirs, pytest.raises(OSError, match="stopped"):
            Conn(react, ours)
        assert not react.conns

    run(main)


def test_a_closed_connection_is_not_kept_by_its_deadline():
    async def main():
        async with reactor() as react:
            async with stream("plain", react) as (conn, _peer):
                conn.set_deadline(3600)
                conn.set_deadline(60)
                with trio.move_on_after(0.05):
                    await conn.write(b"x" * 50_000_000)
                held = weakref.ref(conn.sock)
            del conn
            gc.collect()
            assert held() is None or not react.wheel._buckets
            assert not react.wheel._buckets

    run(main)


def test_a_deadline_that_passed_while_nobody_waited():
    async def main():
        async with stream("plain") as (conn, peer):
            conn.set_deadline(0.02)
            await trio.sleep(0.1)
            with pytest.raises(DeadlineExceeded):
                await conn.read()
            conn.set_deadline(5)
            peer.send(b"x")
            assert await conn.read() == b"x"

    run(main)


def test_an_event_for_a_descriptor_that_was_forgotten():
    async def main():
        async with reactor() as react:
            ours, theirs = tcp_pair()
            conn = Conn(react, ours)
            react.forget(conn.fd)
            theirs.sendall(b"x")
            await trio.sleep(0.02)
            assert not conn.readable
            with socket.socket():
                pass
            ours.close()
            theirs.close()

    run(main)


def test_thousands_of_connections_are_served_in_more_than_one_batch():
    async def main():
        async with reactor() as react:
            pairs = [tcp_pair() for _ in range(400)]
            conns = [Conn(react, ours) for ours, _ in pairs]
            answered = 0

            async def one(conn):
                nonlocal answered
                assert await conn.read() == b"x"
                answered += 1

            async with trio.open_nursery() as nursery:
                for conn in conns:
                    nursery.start_soon(one, conn)
                for _, theirs in pairs:
                    theirs.sendall(b"x")
            assert answered == 400
            for conn, (_, theirs) in zip(conns, pairs, strict=True):
                conn.close()
                theirs.close()
            assert not react.conns

    run(main)
