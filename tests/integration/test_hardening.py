"""Defects of the data path that a review found, each as the smallest exchange that shows it."""

# ruff: noqa: SIM117
from __future__ import annotations

import contextlib
import ctypes
import gc
import socket
import ssl

import pytest
import trio

from mesh_api.sidecar import Endpoint as EndpointSpec
from mesh_api.sidecar import Inbound, MtlsMode, Pod, Protocol, Snapshot, TlsMode, Workload
from mesh_proxy.net.conn import Conn
from tests.integration.http_peers import Peer, answering, application, fleet, mesh_test, ok, plain
from tests.support.mesh import (
    VIP,
    TestCa,
    client_snapshot,
    identity,
    pair,
    server_snapshot,
    sidecar,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: s\r\n\r\n"


@mesh_test
async def test_a_cancelled_close_delimited_response_is_no_complete_one() -> None:
    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nfirst half")
        await trio.sleep_forever()

    async with application(handle) as app:
        snapshot = client_snapshot(VIP, endpoints=(plain(app.addr),), protocol=Protocol.HTTP)
        async with sidecar(TestCa().credentials("client"), snapshot, drain_s=0.05) as front:
            front.aim(outbound=VIP)
            peer = Peer(await trio.open_tcp_stream(*front.outbound))
            await peer.send(GET)
            await peer.until(b"first half")
            front.app.stop.set()  # the grace period passes with the response still under way
            assert await peer.end() == "reset"
            peer.close()


@mesh_test
async def test_a_pod_that_joins_the_mesh_while_the_client_is_silent_gets_no_plaintext() -> None:
    seen: list[bytes] = []

    async def handle(peer: Peer) -> None:
        seen.append((await peer.request()).raw)
        await peer.send(ok())

    def snapshot(tls: TlsMode) -> Snapshot:
        pod = Pod(name="p", namespace="shop", addresses=("127.0.0.1",), identity=identity("server"), tls=tls)
        return Snapshot(workload=Workload(name="client", namespace="shop"), pods=(pod,))

    async with application(handle) as app:
        async with sidecar(TestCa().credentials("client"), snapshot(TlsMode.NONE)) as front:
            front.aim(outbound=app.addr)
            peer = Peer(await trio.open_tcp_stream(*front.outbound))
            await trio.sleep(0.1)
            front.app.on_snapshot(snapshot(TlsMode.MESH))
            await peer.send(GET)
            await trio.sleep(0.3)
            peer.close()
            assert seen == []


@pytest.mark.parametrize("junk", [b"\x17\x03\x03\x00\x20" + b"\0" * 32, b"HTTP/1.1 400 Bad\r\n\r\n"])
@mesh_test
async def test_a_post_that_was_received_is_not_replayed_after_a_bad_record(junk: bytes) -> None:
    """The peer completes the handshake, reads the whole request, then its stream carries a corrupt record."""
    ca = TestCa()
    server = ca.credentials("server")
    got: list[bytes] = []

    async def handle(peer: Peer) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = server.server.wrap_bio(incoming, outgoing, server_side=True)
        done = False
        while True:
            try:
                if not done:
                    tls.do_handshake()
                    done = True
                data = tls.read(65536)
                break
            except ssl.SSLWantReadError:
                if outgoing.pending:
                    await peer.send(outgoing.read())
                incoming.write(await peer.stream.receive_some(65536))
        got.append(data)
        await peer.send(junk)
        await trio.sleep(1)

    async with application(handle) as one, application(handle) as two:
        endpoints = tuple(
            EndpointSpec(address=a.addr.ip, port=a.addr.port, tls=TlsMode.MESH, identity=identity("server"))
            for a in (one, two)
        )
        snapshot = client_snapshot(VIP, endpoints=endpoints, protocol=Protocol.HTTP)
        async with sidecar(ca.credentials("client"), snapshot) as front:
            front.aim(outbound=VIP)
            peer = Peer(await trio.open_tcp_stream(*front.outbound))
            await peer.send(b"POST /pay HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\nhi")
            await peer.head()
            peer.close()
            assert len(got) == 1


@mesh_test
async def test_no_retry_after_an_interim_response() -> None:
    served = 0

    async def handle(peer: Peer) -> None:
        nonlocal served
        await peer.request()
        served += 1
        await peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n")
        await trio.sleep(0.05)

    async with application(handle) as one, application(handle) as two:
        async with fleet(plain(one.addr), plain(two.addr)) as f:
            peer = await f.connect()
            await peer.send(GET)
            while (await peer.head()).status < 200:
                pass
            assert served == 1


@mesh_test
async def test_connect_with_a_path_is_refused() -> None:
    async with application(answering(ok(b"tunnel"))) as app, fleet(plain(app.addr)) as f:
        peer = await f.connect()
        await peer.send(b"CONNECT /x HTTP/1.1\r\nHost: s\r\n\r\n")
        message = await peer.head()
        assert message.status in (400, 501)
        assert not app.peers


@mesh_test
async def test_urgent_data_does_not_hold_back_what_follows() -> None:
    """recv stops short at the urgent mark although more bytes are there: no later edge tells of them."""
    got = bytearray()

    async def handle(peer: Peer) -> None:
        while data := await peer.stream.receive_some(65536):
            got.extend(data)

    async with application(handle) as app, fleet(plain(app.addr), protocol=Protocol.TCP) as f:
        peer = await f.connect()
        await peer.send(b"first")
        await wait_until(lambda: bytes(got) == b"first")
        sock = peer.stream.socket
        # All three are in the kernel before the loop comes round.
        raw = socket.socket(fileno=socket.dup(sock.fileno()))
        raw.send(b"a")
        raw.send(b"!", socket.MSG_OOB)
        raw.send(b"rest")
        raw.close()
        with trio.move_on_after(2):
            while not bytes(got).endswith(b"rest"):
                await trio.sleep(0.01)
        peer.close()
        assert bytes(got).endswith(b"rest"), bytes(got)


@mesh_test
async def test_connections_that_lived_through_a_configuration_change_are_freed() -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        try:
            while True:
                await peer.stream.send_all(b"x" * 65536)
        except trio.BrokenResourceError:
            pass

    async with application(handle) as app, fleet(plain(app.addr)) as f:
        gc.unfreeze()
        gc.collect()
        before = {id(o) for o in gc.get_objects() if isinstance(o, Conn)}
        peers = [await f.connect() for _ in range(5)]
        for peer in peers:
            await peer.send(GET)
        conns = f.client.app.runtime.reactor.conns
        await wait_until(lambda: sum(c._stall is not None for c in conns.values()) == 5)
        f.client.app.on_snapshot(client_snapshot(VIP, endpoints=(plain(app.addr),), protocol=Protocol.HTTP))
        for peer in peers:
            peer.reset()
        await wait_until(lambda: not f.client.app.runtime.connections)
        await trio.sleep(0.1)
        gc.collect()
        gc.unfreeze()
        left = [o for o in gc.get_objects() if isinstance(o, Conn) and o.closed and id(o) not in before]
        # The reactor's loop may still name the last one.
        assert len(left) <= 1


@mesh_test
async def test_an_abandoned_request_body_is_given_up() -> None:
    """No bound of any kind ends an exchange whose client stopped sending: neither deadline nor keepalive."""
    async with application(answering(ok())) as app, fleet(plain(app.addr)) as f:
        peer = await f.connect()
        await peer.send(b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 100\r\n\r\nhalf")
        await wait_until(lambda: app.peers)
        await trio.sleep(0.1)
        conns = list(f.client.app.runtime.reactor.conns.values())
        assert len(conns) == 2
        for conn in conns:
            keepalive = conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert keepalive or conn.deadline < float("inf")


@mesh_test
async def test_a_silent_stranger_does_not_hold_an_application_connection_after_strict() -> None:
    async def handle(peer: Peer) -> None:
        await peer.stream.receive_some(1)

    async with application(handle) as app:
        async with sidecar(TestCa().credentials("server"), server_snapshot()) as back:
            back.aim(inbound=app.addr)
            peer = Peer(await trio.open_tcp_stream(*back.inbound))
            await wait_until(lambda: app.peers)
            back.app.on_snapshot(server_snapshot(inbound=Inbound(mtls=MtlsMode.STRICT)))
            with trio.move_on_after(5.5):
                while back.app.runtime.connections:
                    await trio.sleep(0.05)
            left = back.app.runtime.connections
            peer.close()
            assert left == 0


@mesh_test
async def test_bytes_behind_an_urgent_mark_are_nobodys_response() -> None:
    poisoned = False

    async def handle(peer: Peer) -> None:
        nonlocal poisoned
        while True:
            await peer.request()
            if poisoned:
                await trio.sleep(0.2)
                await peer.send(ok(b"mine"))
                continue
            poisoned = True
            raw = socket.socket(fileno=socket.dup(peer.stream.socket.fileno()))
            raw.send(ok(b"first"))
            raw.send(b"!", socket.MSG_OOB)
            raw.send(ok(b"poison"))
            raw.close()

    async with application(handle) as app, fleet(plain(app.addr)) as f:
        alice, mallory = await f.connect(), await f.connect()
        assert (await mallory.get()).body == b"first"
        await trio.sleep(0.1)
        assert (await alice.get()).body == b"mine"


@mesh_test
async def test_key_updates_of_a_peer_that_does_not_read_do_not_grow_memory() -> None:
    lib = ctypes.CDLL("libssl.so.3")
    lib.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    ca = TestCa()
    async with application(answering(ok())) as app:
        async with sidecar(ca.credentials("server"), server_snapshot()) as back:
            back.aim(inbound=app.addr)
            stream = await trio.open_tcp_stream(*back.inbound)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = ca.credentials("client").client["triomesh-h1"].wrap_bio(incoming, outgoing)
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await stream.send_all(outgoing.read())
                    incoming.write(await stream.receive_some(65536))
            await stream.send_all(outgoing.read())
            ptr = ctypes.c_void_p.from_address(id(tls._sslobj) + object.__basicsize__ + 8).value
            with trio.move_on_after(8), contextlib.suppress(trio.BrokenResourceError):
                for _ in range(400):
                    for _ in range(1000):
                        assert lib.SSL_key_update(ptr, 1) == 1
                        tls.do_handshake()
                    await stream.send_all(outgoing.read())
                    await trio.lowlevel.checkpoint()
            conns = [c for c in back.app.runtime.reactor.conns.values() if hasattr(c, "_owed")]
            owed = sum(len(c._owed) + c._out.pending for c in conns)
            await stream.aclose()
            assert owed < 256 * 1024, owed


@mesh_test
async def test_a_connection_that_the_application_closed_is_not_used_again() -> None:
    """The end has come before the request is written, but the reactor has not told of it yet."""

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok())  # and a FIN, without having announced it

    statuses = []
    async with application(handle) as app, fleet(plain(app.addr)) as f:
        peer = await f.connect()
        for _ in range(100):
            await peer.send(b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\nhi" * 2)
            statuses += [(await peer.response()).status, (await peer.response()).status]
    assert set(statuses) == {200}, statuses.count(503)


@mesh_test
async def test_no_stream_outlives_its_peers_certificate_by_more_than_a_lifetime() -> None:
    """A response without an end, over a connection whose peer's time is up."""
    go = trio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await go.wait()

    async with application(handle) as app, pair(app.addr) as mesh:
        peer = Peer(await trio.open_tcp_stream(*mesh.client.outbound))
        await peer.send(GET)
        await peer.head()
        reactor = mesh.client.app.runtime.reactor
        (up,) = [conn for conn in reactor.conns.values() if conn.peer]
        lifetime = up.expires - reactor.now
        assert up._life_end is not None
        assert up.expires + lifetime <= up._life_end.deadline <= up.expires + lifetime + 130
        up.end_life(reactor.now + 0.05)
        assert await peer.end() == "reset"
        peer.close()
        go.set()
        line = await mesh.client.log.wait_for(lambda line: line.get("flag") == "UC")
        assert "certificate has ended" in str(line["detail"])
