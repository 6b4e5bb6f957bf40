"""Open one connection to one endpoint: TCP, then mTLS where the endpoint has a sidecar.

The peer's SPIFFE id is checked before a byte of the request is sent.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

import trio

from certs.credentials import Credentials, Holder
from certs.verify import PeerRejected, peer_identity
from mesh_proxy.base.errors import (
    ConnectFailed,
    DeadlineExceeded,
    IdentityMismatch,
    TransportError,
)
from mesh_proxy.http2.process import Http2
from mesh_proxy.net.addr import IP_BIND_ADDRESS_NO_PORT, Addr
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.listen import tune
from mesh_proxy.net.pressure import NO_BOUND
from mesh_proxy.net.reactor import Reactor
from mesh_proxy.net.tls import Handshaker, TlsConn
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.telemetry.stats import ProxyStats


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom a connection must reach: plaintext if `identity` is empty, else mTLS with exactly that id."""

    addr: Addr
    identity: str = ""
    source: str = ""
    """Local address to connect from; empty leaves it to the kernel."""


def _raised(_where: str, exc: Exception) -> None:
    raise exc


class Dialer:
    """Opens connections; one per process."""

    def __init__(
        self,
        reactor: Reactor,
        holder: Holder,
        handshaker: Handshaker,
        stats: ProxyStats,
        wall_offset: float,
        http2: Http2,
        descriptors: int = NO_BOUND,
    ) -> None:
        """Make one.

        Args:
            wall_offset: Unix time minus the reactor's clock, in seconds.
            http2: what sessions are made with.
            descriptors: the first one that a connection may not have.
        """
        self.reactor = reactor
        self.holder = holder
        self.handshaker = handshaker
        self.stats = stats
        self.wall_offset = wall_offset
        self.http2 = http2
        self.descriptors = descriptors
        self.tasks: trio.Nursery | None = None
        """Where sessions run; set when the sidecar runs."""
        self.on_defect: Callable[[str, Exception], None] = _raised
        """Told where a session's task has failed as none should, and of what."""

    async def dial(self, peer: Peer, alpn: str, within_s: float) -> Conn:
        """A ready connection, in at most `within_s` seconds, TLS included.

        Raises ConnectFailed; IdentityMismatch if the peer proved another identity.
        """
        conn = self._start(peer)
        try:
            conn.set_deadline(within_s)
            await conn.wait_connected()
            if peer.identity:
                conn = await self._secure(conn, peer, alpn)
        except DeadlineExceeded:
            conn.abort()
            raise ConnectFailed(f"no connection within {within_s:g} s") from None
        except ConnectFailed:
            conn.abort()
            raise
        except TransportError as exc:
            conn.abort()
            raise ConnectFailed(exc.detail) from exc
        except BaseException:
            conn.abort()
            raise
        conn.deadline = NEVER
        return conn

    def _start(self, peer: Peer) -> Conn:
        addr = peer.addr
        try:
            sock = socket.socket(addr.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as exc:
            raise ConnectFailed(exc.strerror or "no socket") from exc
        if sock.fileno() >= self.descriptors:
            sock.close()
            raise ConnectFailed("descriptors are short")
        try:
            tune(sock)
            if peer.source:
                sock.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((peer.source, 0))
            try:
                sock.connect((addr.ip, addr.port))
            except BlockingIOError:
                pass
            return Conn(self.reactor, sock)
        except OSError as exc:
            sock.close()
            raise ConnectFailed(exc.strerror or "cannot connect") from exc

    async def _secure(self, plain: Conn, peer: Peer, alpn: str) -> TlsConn:
        credentials = self.holder.current
        if credentials is None:
            raise ConnectFailed("this sidecar has no certificate yet")
        conn = TlsConn.over(plain, credentials.client[alpn], server_side=False)
        try:
            await conn.handshake(self.handshaker)
        except TransportError:
            self.stats.handshakes.child("client", "failed").value += 1
            conn.abort()
            raise
        except BaseException:
            conn.abort()
            raise
        try:
            self.admit(conn, credentials, (alpn,))
            if conn.peer != peer.identity:
                raise IdentityMismatch(f"expected {peer.identity}, the peer is {conn.peer}")
        except ConnectFailed:
            self.stats.handshakes.child("client", "refused").value += 1
            conn.abort()
            raise
        self.stats.handshakes.child("client", "ok").value += 1
        return conn

    def admit(self, conn: TlsConn, credentials: Credentials, alpns: tuple[str, ...]) -> None:
        """Accept the peer of a finished handshake: its ALPN is one of ours, its leaf names one SPIFFE id.

        Sets `peer` and `expires` of the connection. Raises ConnectFailed with the reason.
        """
        if conn.alpn not in alpns:
            raise ConnectFailed(f"the peer speaks {conn.alpn or 'no'} mesh protocol")
        try:
            peer = peer_identity(conn.certificate(), credentials.trust_domain)
        except PeerRejected as exc:
            raise ConnectFailed(str(exc)) from exc
        conn.peer = peer.identity
        conn.expires = peer.not_after - self.wall_offset
        # No connection outlives its peer's certificate by more than one lifetime.
        conn.end_life(conn.expires + peer.not_after - peer.not_before)
