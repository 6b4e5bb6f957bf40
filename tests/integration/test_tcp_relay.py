"""Opaque TCP through a pair of sidecars: client -> mTLS -> server -> application."""

import os
import socket
import struct
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from mesh_api.sidecar import Endpoint, Protocol, TlsMode
from mesh_api.traffic import Algorithm, Retries, Settings, Timeouts
from mesh_proxy.net.addr import Addr
from tests.support.mesh import TestCa, client_snapshot, identity, pair, run, sidecar, wait_until

BROKEN = (trio.BrokenResourceError,)


def reset(stream):
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


class Application:
    """Accepts connections and hands them to the test."""

    def __init__(self, listener):
        self.listener = listener
        self.addr = Addr(*listener.socket.getsockname()[:2])
        self.accepted = 0

    async def accept(self):
        with trio.fail_after(5):
            stream = await self.listener.accept()
        self.accepted += 1
        return stream


@asynccontextmanager
async def application():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield Application(listener)


@asynccontextmanager
async def connected(**options):
    """(pair, client stream, application stream) with a first exchange done."""
    options.setdefault("protocol", Protocol.TCP)
    async with application() as app, pair(app.addr, **options) as mesh:
        client = await mesh.connect()
        await client.send_all(b"hello")
        served = await app.accept()
        assert await exactly(served, 5) == b"hello"
        await served.send_all(b"world")
        assert await exactly(client, 5) == b"world"
        yield mesh, client, served
        await client.aclose()
        await served.aclose()


async def exactly(stream, size):
    data = b""
    with trio.fail_after(10):
        while len(data) < size:
            piece = await stream.receive_some()
            assert piece, f"ended after {len(data)} of {size}"
            data += piece
    return data


async def everything(stream):
    parts = []
    with trio.fail_after(10):
        while piece := await stream.receive_some():
            parts.append(piece)
    return b"".join(parts)


def refused_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def endpoint(addr, name="server"):
    return Endpoint(
        address=addr.ip, port=addr.port, tls=TlsMode.MESH, identity=identity(name), workload="server-v1"
    )


def is_tcp(line):
    return line.get("protocol") == "TCP"


def test_echo_is_logged_and_counted_on_both_sides():
    async def main():
        async with connected() as (mesh, client, served):
            blob = os.urandom(3_000_000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, blob)
                assert await exactly(served, len(blob)) == blob
            await client.send_eof()
            assert await everything(served) == b""
            await served.send_all(b"after your end")
            await served.send_eof()
            assert await everything(client) == b"after your end"
            for side in (mesh.client, mesh.server):
                line = await side.log.wait_for(is_tcp)
                assert not line.get("flag"), line
                assert line["mtls"] is True
                assert line["bytes_in"] == len(blob) + 5
                assert line["bytes_out"] == 19
                await wait_until(lambda side=side: side.app.runtime.connections == 0)
                assert side.metric("triomesh_tcp_connections_closed_total", flag="") == 1
                assert not side.app.runtime.reactor.conns
            assert line["source_identity"] == identity("client")

    run(main)


def test_the_server_ends_first_and_goes_on_reading():
    async def main():
        async with connected() as (mesh, client, served):
            await served.send_all(b"all I have to say")
            await served.send_eof()
            assert await everything(client) == b"all I have to say"
            blob = os.urandom(6_000_000)
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _():
                    await client.send_all(blob)
                    await client.send_eof()

                # The application begins to read late: the client's end is there before its bytes are.
                await wait_until(lambda: mesh.server.app.runtime.connections == 1)
                await trio.sleep(0.3)
                assert await everything(served) == blob
            line = await mesh.client.log.wait_for(is_tcp)
            assert not line.get("flag"), line

    run(main)


@pytest.mark.parametrize("half_closed", [False, True])
def test_client_reset_reaches_the_application(half_closed):
    async def main():
        async with connected() as (mesh, client, served):
            if half_closed:
                await served.send_eof()
                assert await everything(client) == b""
            reset(client)
            with pytest.raises(BROKEN):
                await everything(served)
            assert (await mesh.client.log.wait_for(is_tcp))["flag"] == "DC"
            assert (await mesh.server.log.wait_for(is_tcp))["flag"] == "DC"

    run(main)


@pytest.mark.parametrize("half_closed", [False, True])
def test_application_reset_reaches_the_client(half_closed):
    async def main():
        async with connected() as (mesh, client, served):
            if half_closed:
                await client.send_eof()
                assert await everything(served) == b""
            reset(served)
            with pytest.raises(BROKEN):
                await everything(client)
            assert (await mesh.client.log.wait_for(is_tcp))["flag"] == "UC"
            assert (await mesh.server.log.wait_for(is_tcp))["flag"] == "UC"

    run(main)


def test_application_reset_under_an_upload_is_never_a_clean_end():
    async def main():
        for _ in range(10):
            async with connected() as (_mesh, client, served):
                with trio.move_on_after(0.2):
                    await client.send_all(b"x" * 100_000_000)
                # From here on the client only reads: a failed send would take the reset out of the socket.
                await exactly(served, 100_000)
                reset(served)
                with pytest.raises(BROKEN):
                    await everything(client)


def test_tcp_cut_under_tls_is_a_reset_for_both_ends():
    """FIN without close_notify between the sidecars must not look like a clean end."""

    async def main():
        async with connected() as (mesh, client, served):
            relays = [c for c in mesh.client.app.runtime.reactor.conns.values() if c.peer]
            assert len(relays) == 1
            relays[0].sock.shutdown(socket.SHUT_RDWR)
            with pytest.raises(BROKEN):
                await everything(served)
            with pytest.raises(BROKEN):
                await everything(client)
            assert (await mesh.server.log.wait_for(is_tcp))["flag"] == "DC"

    run(main)


def test_idle_timeout():
    async def main():
        async with connected(settings=Settings(timeouts=Timeouts(tcp_idle_s=0.3))) as (mesh, client, served):
            for _ in range(8):  # bytes in either direction keep it alive
                await served.send_all(b".")
                assert await exactly(client, 1) == b"."
                await trio.sleep(0.06)
            with pytest.raises(BROKEN):
                await everything(client)
            with pytest.raises(BROKEN):
                await everything(served)
            line = await mesh.client.log.wait_for(is_tcp)
            assert line["flag"] == "SI"
            assert "0.3 s" in line["detail"]

    run(main)


def test_a_long_lived_connection_survives_configuration_and_certificates():
    async def main():
        async with connected() as (mesh, client, served):
            for _ in range(5):
                mesh.client.app.on_snapshot(mesh.snapshot(protocol=Protocol.TCP, name="renamed"))
                mesh.client.app.on_snapshot(mesh.snapshot(protocol=Protocol.TCP, endpoints=()))
                mesh.client.app.holder.swap(mesh.ca.credentials("client"))
                mesh.server.app.holder.swap(mesh.ca.credentials("server"))
                await client.send_all(b"ping")
                assert await exactly(served, 4) == b"ping"
                await served.send_all(b"pong")
                assert await exactly(client, 4) == b"pong"

    run(main)


def test_ends_one_lifetime_after_the_peers_certificate():
    async def main():
        async with connected() as (mesh, client, served):
            now = mesh.client.app.runtime.reactor.now
            # Certificates have whole seconds, so the bound of a live connection is moved by hand.
            conn = next(c for c in mesh.client.app.runtime.reactor.conns.values() if c.peer)
            assert 3500 < conn.expires - now < 3700
            credentials = mesh.client.app.holder.current
            leaf_s = credentials.not_after - credentials.not_before
            assert conn._life_end.deadline == pytest.approx(conn.expires + leaf_s)
            conn.end_life(now + 0.2)
            with pytest.raises(BROKEN):
                await everything(client)
            with pytest.raises(BROKEN):
                await everything(served)
            line = await mesh.client.log.wait_for(is_tcp)
            assert (line["flag"], line["detail"]) == ("UAEX", "the peer's certificate has ended")

    run(main)


def test_endpoint_down():
    async def main():
        gone = Addr("127.0.0.1", refused_port())
        ca = TestCa()
        snapshot = client_snapshot(gone, protocol=Protocol.TCP)
        async with sidecar(ca.credentials("client"), snapshot) as front:
            front.aim(outbound=Addr("10.255.0.1", 80))
            client = await trio.open_tcp_stream(*front.outbound)
            with pytest.raises(BROKEN):
                await everything(client)
            line = await front.log.wait_for(is_tcp)
            assert line["flag"] == "UF"
            assert "refused" in line["detail"]
            assert str(gone) in line["detail"]
            assert line["upstream"] == str(gone)
            assert front.metric("triomesh_tcp_connections_closed_total", flag="UF") == 1
            await client.aclose()

    run(main)


def test_no_endpoint():
    async def main():
        snapshot = client_snapshot(Addr("127.0.0.1", 1), protocol=Protocol.TCP, endpoints=())
        async with sidecar(TestCa().credentials("client"), snapshot) as front:
            front.aim(outbound=Addr("10.255.0.1", 80))
            client = await trio.open_tcp_stream(*front.outbound)
            with pytest.raises(BROKEN):
                await everything(client)
            assert (await front.log.wait_for(is_tcp))["flag"] == "UH"
            await client.aclose()

    run(main)


def test_another_endpoint_is_tried():
    async def main():
        async with application() as app, pair(app.addr, protocol=Protocol.TCP) as mesh:
            gone = Addr("127.0.0.1", refused_port())
            mesh.client.app.on_snapshot(
                mesh.snapshot(
                    protocol=Protocol.TCP,
                    endpoints=(endpoint(gone), endpoint(mesh.server.inbound)),
                    retries=Retries(attempts=1),
                    settings=Settings(algorithm=Algorithm.ROUND_ROBIN),  # so that the dead one is met
                )
            )
            for n in range(6):
                client = await mesh.connect()
                await client.send_all(b"x")
                served = await app.accept()
                assert await exactly(served, 1) == b"x"
                await client.aclose()
                await served.aclose()
                await wait_until(
                    lambda n=n: len([x for x in mesh.client.log.poll() if x.get("protocol") == "TCP"]) > n
                )
            lines = [x for x in mesh.client.log.lines if x.get("protocol") == "TCP"]
            assert {line.get("flag", "") for line in lines} == {""}
            assert max(line["attempts"] for line in lines) == 2

    run(main)


def test_application_down():
    async def main():
        async with pair(Addr("127.0.0.1", refused_port()), protocol=Protocol.TCP) as mesh:
            client = await mesh.connect()
            await client.send_all(b"x")
            with pytest.raises(BROKEN):
                await everything(client)
            line = await mesh.server.log.wait_for(is_tcp)
            assert line["flag"] == "UF"
            assert "refused" in line["detail"]
            await client.aclose()

    run(main)


def test_back_pressure_through_the_pair():
    async def main():
        async with connected() as (mesh, client, served):
            sent = 0
            with trio.move_on_after(1.0):
                while True:
                    await client.send_all(b"x" * 65536)
                    sent += 65536
            assert sent < 64 * 1024 * 1024
            del mesh
            reset(client)
            with pytest.raises(BROKEN):
                await everything(served)

    run(main)


def test_many_connections_leave_nothing():
    async def main():
        async with application() as app, pair(app.addr, protocol=Protocol.TCP) as mesh:

            async def serve():
                async with trio.open_nursery() as nursery:
                    while True:
                        nursery.start_soon(echo, await app.listener.accept())

            async def echo(stream):
                async with stream:
                    await stream.send_all(await stream.receive_some())

            async def one():
                async with await mesh.connect() as client:
                    await client.send_all(b"ping")
                    assert await everything(client) == b"ping"

            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                async with trio.open_nursery() as clients:
                    for _ in range(40):
                        clients.start_soon(one)
                nursery.cancel_scope.cancel()
            for side in (mesh.client, mesh.server):
                runtime = side.app.runtime
                await wait_until(lambda runtime=runtime: not runtime.connections)
                assert not runtime.reactor.conns
                assert not runtime.relays
                assert not any(runtime.reactor.wheel._buckets.values()), "the wheel keeps nobody alive"
                assert sum(e.inflight for s in runtime.services.all() for e in s.endpoints()) == 0

    run(main)


def test_weighted_split_without_endpoint_in_one_arm():
    async def main():
        async with application() as app, pair(app.addr, protocol=Protocol.TCP) as mesh:
            mesh.client.app.on_snapshot(
                msgspec.structs.replace(mesh.snapshot(protocol=Protocol.TCP), destinations=())
            )
            client = await mesh.connect()  # now an address outside the mesh that nobody answers
            mesh.client.app.on_snapshot(mesh.snapshot(protocol=Protocol.TCP))
            await client.aclose()

    run(main)
