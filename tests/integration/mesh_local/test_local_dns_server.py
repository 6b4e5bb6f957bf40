"""The DNS server on sockets of the loopback interface."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager

import dns.message
import trio
import trio.testing

from mesh_local.dns import server
from mesh_local.dns.records import Zones, build
from mesh_local.dns.server import ClusterNames, serve
from mesh_local.network.addressing import families
from tests.support.local_net import Objects, end, service, slice_of

NAME = "web.shop.svc.cluster.local."
QUERY = dns.message.make_query(NAME, "A").to_wire()
ZONES = Zones.of_cluster("cluster.local", families("ipv4"))


def index():
    return build(ZONES, [service("web", "10.96.0.20")], [], [])


@asynccontextmanager
async def running(index=index):
    """The address of a server on one free port, UDP and TCP."""
    with trio.fail_after(20):
        while True:
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as udp, trio.socket.socket() as tcp:
                await udp.bind(("127.0.0.1", 0))
                try:
                    await tcp.bind(udp.getsockname())
                except OSError as exc:
                    if exc.errno != errno.EADDRINUSE:
                        raise
                    continue  # free for UDP is not free for TCP: another one
                tcp.listen()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve, [udp], [trio.SocketListener(tcp)], index)
                    yield udp.getsockname()
                    nursery.cancel_scope.cancel()
                return


async def ask_udp(address, wire=QUERY):
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
        await sock.connect(address)
        await sock.send(wire)
        return dns.message.from_wire(await sock.recv(4096))


async def ask_tcp(stream, wire=QUERY):
    await stream.send_all(len(wire).to_bytes(2) + wire)
    return await read_tcp(stream)


async def read_tcp(stream):
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
        piece = await stream.receive_some()
        assert piece
        data += piece
    return dns.message.from_wire(data[2:])


def test_udp_survives_bad_packets_and_faults(caplog):
    calls = []

    def breaking():
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("broken index")
        return index()

    async def main():
        async with running(breaking) as address:
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                for bad in (QUERY, b"", b"x", bytes(12)):
                    await sock.sendto(bad, address)
                assert str((await ask_udp(address)).answer[0][0]) == "10.96.0.20"

    trio.run(main)
    assert "could not be answered" in caplog.text


def test_answers_that_cannot_be_sent_do_not_stop_the_server():
    """As to a client that forges port 0 as its source: the kernel refuses to send there."""

    class Forged:
        sent = 0

        async def recvfrom(self, _size):
            await trio.lowlevel.checkpoint()
            return QUERY, ("127.0.0.1", 0)

        async def sendto(self, wire, peer):
            self.sent += 1
            if self.sent == 3:
                scope.cancel()
            with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as sock:
                await sock.sendto(wire, peer)

    async def main():
        with trio.fail_after(10), scope:
            await serve([Forged()], [], index)

    scope = trio.CancelScope()
    trio.run(main)
    assert scope.cancelled_caught


def test_tcp_takes_several_queries_in_pieces():
    async def main():
        async with running() as address, await trio.open_tcp_stream(*address) as stream:
            assert (await ask_tcp(stream)).answer
            framed = len(QUERY).to_bytes(2) + QUERY
            for byte in framed:
                await stream.send_all(bytes([byte]))
            assert (await read_tcp(stream)).answer

    trio.run(main)


def test_tcp_ends_at_nonsense():
    async def main():
        async with running() as address:
            for nonsense in (b"\x00\x00", b"\xff\xff" + bytes(10), b"\x00\x03abc"):
                async with await trio.open_tcp_stream(*address) as stream:
                    await stream.send_all(nonsense)
                    try:
                        assert await stream.receive_some() == b""
                    except trio.BrokenResourceError:
                        pass  # bytes were left unread
            async with await trio.open_tcp_stream(*address) as stream:
                assert (await ask_tcp(stream)).answer

    trio.run(main)


def test_idle_connections_end_and_make_room(monkeypatch):
    monkeypatch.setattr(server, "_IDLE_S", 0.2)
    monkeypatch.setattr(server, "_CONNECTIONS", 2)

    async def main():
        async with running() as address:
            idle = [await trio.open_tcp_stream(*address) for _ in range(2)]
            async with await trio.open_tcp_stream(*address) as stream:
                assert (await ask_tcp(stream)).answer
            for stream in idle:
                assert await stream.receive_some() == b""
                await stream.aclose()

    trio.run(main)


def test_names_follow_the_objects():
    services, slices, pods = Objects(), Objects(synced=False), Objects()
    names = ClusterNames(ZONES, services, slices, pods)

    async def main():
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(names.wait_synced)
                await trio.testing.wait_all_tasks_blocked()
                assert nursery.child_tasks
                slices.synced.set()

    trio.run(main)
    assert not names.current().exists("db.shop.svc.cluster.local.")
    assert names.current() is names.current()
    services.put(service("db", "None"))
    slices.put(slice_of("db", end("10.244.0.2")))
    assert names.current().at("db.shop.svc.cluster.local.") == {"A": ["10.244.0.2"]}
