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
from tests.support.mesh import run

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
