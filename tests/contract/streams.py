"""Three kinds of connection, each with a peer that is plain blocking code in a thread or a raw socket."""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import asynccontextmanager

import trio

from certs.credentials import ALPN_TCP
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.reactor import Reactor
from mesh_proxy.net.tls import Handshaker, TlsConn
from tests.support.mesh import TestCa

KINDS = ("plain", "tls-client", "tls-server")
_ca = None


def ca():
    global _ca
    if _ca is None:
        test_ca = TestCa()
        _ca = (test_ca.credentials("client"), test_ca.credentials("server"))
    return _ca


def tcp_pair():
    """Two connected sockets; the first is non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.socket()
        ours.connect(listener.getsockname())
        peer, _ = listener.accept()
    ours.setblocking(False)
    for sock in (ours, peer):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.settimeout(10)
    return ours, peer


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Peer:
    """The other end, driven by hand: `sock` is raw, `tls` the engine over it or None."""

    def __init__(self, sock, context=None, *, server_side=False):
        self.sock = sock
        self.tls = None
        if context is not None:
            self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=server_side)

    def handshake(self):
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._push()
                self._pull()
        self._push()

    def _push(self):
        if self.outgoing.pending:
            self.sock.sendall(self.outgoing.read())

    def _pull(self):
        data = self.sock.recv(65536)
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()

    def encode(self, data):
        """The bytes that carry `data`."""
        if self.tls is None:
            return data
        for start in range(0, len(data), 16384):
            self.tls.write(data[start : start + 16384])
        return self.outgoing.read()

    def encode_eof(self):
        """The bytes of a clean end, before the FIN."""
        if self.tls is None:
            return b""
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass
        return self.outgoing.read()

    def send(self, data):
        self.sock.sendall(self.encode(data))

    def send_eof(self):
        self.sock.sendall(self.encode_eof())
        self.sock.shutdown(socket.SHUT_WR)

    def recv(self):
        """The next bytes, b"" after a clean end."""
        if self.tls is None:
            return self.sock.recv(65536)
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                self._pull()
            except ssl.SSLZeroReturnError:
                return b""

    def recv_exactly(self, size):
        data = b""
        while len(data) < size:
            piece = self.recv()
            assert piece, "ended early"
            data += piece
        return data

    def recv_all(self):
        parts = []
        while piece := self.recv():
            parts.append(piece)
        return b"".join(parts)


@asynccontextmanager
async def reactor():
    async with trio.open_nursery() as nursery:
        react = Reactor()
        await nursery.start(react.run)
        yield react
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stream(kind, react=None):
    """(connection, its peer)."""
    if react is None:
        async with reactor() as react, stream(kind, react) as both:
            yield both
        return
    ours, theirs = tcp_pair()
    client, server = ca()
    conn = Conn(react, ours)
    if kind == "plain":
        peer = Peer(theirs)
    else:
        ours_is_client = kind == "tls-client"
        mine = client.client[ALPN_TCP] if ours_is_client else server.server
        other = server.server if ours_is_client else client.client[ALPN_TCP]
        peer = Peer(theirs, other, server_side=ours_is_client)
        conn = TlsConn.over(conn, mine, server_side=not ours_is_client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, peer.handshake)
            await conn.handshake(Handshaker())
    try:
        yield conn, peer
    finally:
        conn.close()
        theirs.close()
        assert conn.fd not in react.conns
