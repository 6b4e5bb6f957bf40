"""What every HTTP/2 connection of the process is made with, and which ones are open."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from mesh_ops.registry import Registry
from mesh_proxy.http2.budget import Budget, SessionSettings
from mesh_proxy.http2.client import ClientSession
from mesh_proxy.http2.server import ServerSession
from mesh_proxy.net.conn import Conn
from mesh_proxy.wire.http2.seam import Engine, Http2Limits

STRANGER_PING_S = 330.0
"""How often a server is asked that is no sidecar: gRPC's take more than one PING in 5 minutes for abuse and
answer GOAWAY with `too_many_pings` (gRPC proposal A8)."""
MakeEngine = Callable[[bool, Http2Limits], Engine]


class Http2:
    """Makes sessions; one per process."""

    __slots__ = ("_limits", "_make", "_settings", "budget", "clients", "servers")

    def __init__(
        self, make: MakeEngine, limits: Http2Limits, settings: SessionSettings, budget: Budget
    ) -> None:
        self._make = make
        self._limits = limits
        self._settings = settings
        self.budget = budget
        self.servers: dict[ServerSession, bool] = {}
        """Those that are open, and whether their clients are asked to close when the sidecar drains."""
        self.clients: dict[ClientSession, None] = {}

    def server(self, conn: Conn, idle_s: float) -> ServerSession:
        """The server's end of a connection."""
        settings = replace(self._settings, idle_s=idle_s)
        limits = self._limits
        return ServerSession(conn, self._make(True, limits), settings, self.budget, limits)

    def client(self, conn: Conn, idle_s: float) -> ClientSession:
        """The client's end of a connection."""
        settings = replace(self._settings, idle_s=idle_s)
        if not conn.peer:
            settings = replace(settings, ping_s=max(settings.ping_s, STRANGER_PING_S))
        limits = self._limits
        return ClientSession(conn, self._make(False, limits), settings, self.budget, limits)

    def drain(self) -> None:
        """Ask the clients that are to be asked to close."""
        for session, drains in list(self.servers.items()):
            if drains:
                session.drain()

    def show(self, registry: Registry) -> None:
        """Have the sessions that are open told as metrics."""
        sessions = registry.gauge("triomesh_http2_sessions", "HTTP/2 connections that are open.", ("side",))
        streams = registry.gauge("triomesh_http2_streams", "HTTP/2 streams that are open.", ("side",))
        resets = registry.counter(
            "triomesh_http2_resets_total", "HTTP/2 streams that were reset before their end.", ("by",)
        )
        held = registry.gauge("triomesh_http2_held_bytes", "Bytes of HTTP/2 streams that wait to be taken.")
        held.child().set_function(lambda: self.budget.used)
        for side, open_ in (("server", self.servers), ("client", self.clients)):
            sessions.child(side).set_function(partial(len, open_))
            streams.child(side).set_function(partial(_streams, open_))
        resets.child("peer").set_function(lambda: self.budget.resets.received)
        resets.child("sidecar").set_function(lambda: self.budget.resets.sent)


def _streams(sessions: Iterable[ServerSession | ClientSession]) -> int:
    return sum(len(session.streams) for session in sessions)
