import itertools
import os
import ssl

import pytest
import trio
import trio.testing

from certs.credentials import ALPN_TCP
from mesh_proxy.base.errors import Overloaded, PeerReset, TlsFailed
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.tls import Handshaker, TlsConn
from tests.contract.streams import Peer, ca, reactor, reset, stream, tcp_pair
from tests.support.mesh import run, wait_until

in_thread = trio.to_thread.run_sync


def server_conn(react):
    ours, theirs = tcp_pair()
    _, server = ca()
    return TlsConn.over(Conn(react, ours), server.server, server_side=True), theirs


def test_one_handshake_too_many():
    async def main():
        async with reactor() as react:
            handshaker = Handshaker(waiting=2)
            made = [server_conn(react) for _ in range(3)]
            async with trio.open_nursery() as nursery:
                for conn, _ in made[:2]:
                    nursery.start_soon(conn.handshake, handshaker)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(Overloaded):
                    await made[2][0].handshake(handshaker)
                nursery.cancel_scope.cancel()
            assert handshaker.active == 0
            for conn, theirs in made:
                conn.close()
                theirs.close()

    run(main)


def test_an_established_connection_is_served_while_many_shake_hands():
    async def main():
        async with reactor() as react, stream("plain", react) as (live, peer):
            handshaker = Handshaker(workers=2)
            client, _ = ca()
            context = client.client[ALPN_TCP]
            done = 0
            slowest = 0.0

            async def one():
                nonlocal done
                conn, theirs = server_conn(react)
                theirs.setblocking(False)
                other = TlsConn.over(Conn(react, theirs), context, server_side=False)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(conn.handshake, handshaker)
                    nursery.start_soon(other.handshake, handshaker)
                assert conn.alpn == other.alpn == ALPN_TCP
                done += 1
                conn.close()
                other.close()

            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(one)
                rounds = 0
                while done < 100:
                    started = trio.current_time()
                    peer.send(b"ping")
                    assert await live.read() == b"ping"
                    slowest = max(slowest, trio.current_time() - started)
                    rounds += 1
                    await trio.sleep(0.001)
            assert rounds > 10
            assert slowest < 0.5
            assert handshaker.active == 0

    run(main)


@pytest.mark.parametrize("first", [b"\x16\x03\x01\x00\x05zzzzz", b"GET / HTTP/1.1\r\n\r\n", os.urandom(50)])
def test_garbage_for_a_handshake(first):
    async def main():
        async with reactor() as react:
            conn, theirs = server_conn(react)
            theirs.sendall(first + b"\0" * 20000)
            handshaker = Handshaker()
            with pytest.raises(TlsFailed) as info:
                await conn.handshake(handshaker)
            assert "ssl.c" not in info.value.detail
            assert handshaker.active == 0
            conn.abort()
            theirs.close()

    run(main)


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_the_peer_leaves_within_the_handshake(how):
    async def main():
        async with reactor() as react:
            conn, theirs = server_conn(react)
            if how == "fin":
                theirs.close()
            else:
                reset(theirs)
            with pytest.raises(PeerReset):
                await conn.handshake(Handshaker())
            conn.abort()

    run(main)


def test_no_certificate_is_named():
    async def main():
        async with reactor() as react:
            conn, theirs = server_conn(react)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            peer = Peer(theirs, context)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, peer.handshake)
                with pytest.raises(TlsFailed, match="did not return a certificate"):
                    await conn.handshake(Handshaker())
                conn.abort()
            theirs.close()

    run(main)


def test_application_bytes_with_the_last_flight():
    """The client's first bytes may come in the segment of its Finished."""

    async def main():
        async with reactor() as react:
            conn, theirs = server_conn(react)
            client, _ = ca()
            peer = Peer(theirs, client.client[ALPN_TCP])

            def play():
                push, peer._push = peer._push, lambda: None
                with pytest.raises(ssl.SSLWantReadError):
                    peer.tls.do_handshake()
                push()
                while True:
                    peer._pull()
                    try:
                        peer.tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        pass
                peer.tls.write(b"early bird")
                push()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, play)
                await conn.handshake(Handshaker())
            await conn.wait_readable()
            assert await conn.read() == b"early bird"
            assert conn.certificate()["subjectAltName"]
            conn.close()
            theirs.close()

    run(main)


async def pieces_of(conn, pieces, send):
    """What is read while `pieces` are sent, each once the one before has been taken."""
    got = b""

    async def reader():
        nonlocal got
        while data := await conn.read():
            got += data

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        for piece in pieces:
            before = conn.received
            send(piece)
            await wait_until(lambda: conn.received == before + len(piece))  # noqa: B023
            await trio.testing.wait_all_tasks_blocked()
    return got


@pytest.mark.parametrize("kind", ["tls-client", "tls-server"])
def test_records_are_cut_anywhere(kind):
    """A record may come in any pieces, its header too; the end comes behind them all."""

    async def main():
        async with stream(kind) as (conn, peer):
            data = [os.urandom(size) for size in (1, 300, 16384, 3, 16384, 40)]
            records = [peer.encode(part) for part in data]
            blob = b"".join(records) + peer.encode_eof()
            cuts, start = {len(blob)}, 0
            for record in records:
                cuts |= {start + at for at in (0, 1, 4, 5, 6, len(record) // 2, len(record) - 1)}
                start += len(record)
            ends = sorted(cuts)
            pieces = [blob[a:b] for a, b in itertools.pairwise(ends)]
            assert await pieces_of(conn, pieces, peer.sock.sendall) == b"".join(data)

    run(main)


def test_the_beginning_of_a_record_is_nothing_to_read():
    """Nor is it in our way when we end first; what was told before and after it arrives."""

    async def main():
        async with stream("tls-server") as (conn, peer):
            records = peer.encode(b"whole") + peer.encode(b"halved")
            peer.sock.sendall(records[:-3])
            assert await conn.read() == b"whole"
            with trio.move_on_after(0.05) as scope:
                await conn.wait_readable()
            assert scope.cancelled_caught
            await conn.write_eof()
            peer.sock.sendall(records[-3:] + peer.encode(b"and more") + peer.encode_eof())
            got = b""
            while data := await conn.read():
                got += data
            assert got == b"halvedand more"
            assert await in_thread(peer.recv) == b""

    run(main)


def test_the_engine_is_asked_only_for_what_it_has():
    """An error within is an exception of the ssl module, which costs more than a small record."""

    async def main():
        async with stream("tls-server") as (conn, peer):
            want_read = 0

            class Engine:
                def __init__(self, obj):
                    self.obj = obj

                def read(self, most):
                    nonlocal want_read
                    try:
                        return self.obj.read(most)
                    except ssl.SSLWantReadError:
                        want_read += 1
                        raise

            conn._obj = Engine(conn._obj)
            blob = peer.encode(bytes(1_000_000)) + peer.encode_eof()
            pieces = [blob[start : start + 50_000] for start in range(0, len(blob), 50_000)]
            assert await pieces_of(conn, pieces, peer.sock.sendall) == bytes(1_000_000)
            assert want_read == 0

    run(main)


def test_prefix_goes_into_the_handshake():
    async def main():
        async with reactor() as react:
            ours, theirs = tcp_pair()
            client, server = ca()
            peer = Peer(theirs, client.client[ALPN_TCP])
            plain = Conn(react, ours)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, peer.handshake)
                plain.unread(await plain.read())
                conn = TlsConn.over(plain, server.server, server_side=True)
                assert plain.closed
                await conn.handshake(Handshaker())
            peer.send(b"x")
            assert await conn.read() == b"x"
            conn.close()
            theirs.close()

    run(main)
