"""One port of one pod: its idle connections, its HTTP/2 sessions, and what the balancer knows of it."""

from __future__ import annotations

import socket

from mesh_api.traffic import Labels
from mesh_proxy.net.addr import Addr
from mesh_proxy.net.conn import Conn
from mesh_proxy.policy.balance import EndpointState
from mesh_proxy.pool.dial import Dialer, Peer
from mesh_proxy.pool.sessions import Sessions

MAX_IDLE = 512
"""Idle connections kept per endpoint."""


class Endpoint(EndpointState):
    """Connections to one peer. Idle ones are reused newest first and closed on any event."""

    __slots__ = (
        "addr",
        "dialer",
        "idle",
        "idle_s",
        "labels",
        "peer",
        "retired",
        "sessions",
        "text",
        "workload",
    )

    def __init__(
        self,
        dialer: Dialer,
        peer: Peer,
        *,
        idle_s: float = 60.0,
        weight: int = 1,
        workload: str = "",
        labels: Labels | None = None,
    ) -> None:
        super().__init__(weight, dialer.reactor.now)
        self.dialer = dialer
        self.peer = peer
        self.addr: Addr = peer.addr
        self.text = str(peer.addr)
        self.idle_s = idle_s
        self.workload = workload
        self.labels = labels or {}
        self.idle: dict[Conn, None] = {}
        self.retired = False
        self.sessions = Sessions(self)

    def __repr__(self) -> str:
        return f"<Endpoint {self.text} inflight={self.inflight} idle={len(self.idle)}>"

    def take(self) -> Conn | None:
        """The newest idle connection that is still good, or None."""
        idle = self.idle
        while idle:
            conn, _ = idle.popitem()
            conn.idle_in = None
            if conn.readable or conn.ended or conn.expires <= self.dialer.reactor.now:
                conn.bye()
                continue
            try:
                conn.sock.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                conn.deadline = float("inf")
                return conn
            except OSError:
                pass
            conn.bye()  # an end, or bytes that answer nothing, not yet told by the reactor
        return None

    def give(self, conn: Conn) -> None:
        """Keep a connection on which an exchange has ended cleanly, or close it if it is of no more use."""
        conn.partner = None
        if conn.readable or conn.ended or conn.doom or self.retired or len(self.idle) >= MAX_IDLE:
            conn.bye()
            return
        conn.fresh = False
        conn.idle_in = self
        conn.set_deadline(self.idle_s)
        self.idle[conn] = None

    def succeed(self, before: Endpoint) -> None:
        """Take over from the same endpoint in a cluster that is gone, which is retired.

        Its idle connections and what the balancer has learned come along. What is still under way there
        ends there, so it disturbs neither limits nor ejections here; HTTP/2 sessions end with it.
        """
        self.ewma_s, self.ewma_at = before.ewma_s, before.ewma_at
        self.penalty_until, self.failures = before.penalty_until, before.failures
        self.since = before.since
        self.idle, before.idle = before.idle, {}
        for conn in self.idle:
            conn.idle_in = self
        before.retire()

    def drop_idle(self, conn: Conn) -> None:
        self.idle.pop(conn, None)
        conn.bye()

    def retire(self) -> None:
        """No new request comes here: close what is idle; what is busy ends by itself."""
        self.retired = True
        while self.idle:
            conn, _ = self.idle.popitem()
            conn.bye()
        self.sessions.retire()
