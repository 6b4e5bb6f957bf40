"""The parts that every connection of the process shares, with one owner: the application.

Nothing here decides anything about traffic; inbound and outbound are given this and nothing else.
"""

from __future__ import annotations

import os
import random
import socket
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import trio

from certs.credentials import Holder
from mesh_api.traffic import PathNormalization
from mesh_ops.heap import release_heap
from mesh_ops.log_writer import LogWriter
from mesh_ops.registry import Registry
from mesh_proxy.base.errors import DeadlineExceeded, TransportError
from mesh_proxy.bounds import http2_budget, http2_limits, session_settings
from mesh_proxy.discovery.store import ConfigStore
from mesh_proxy.http.context import Stoppable
from mesh_proxy.http2.process import Http2
from mesh_proxy.net.addr import Addr, LocalAddresses, peer_addr
from mesh_proxy.net.cgroup import Memory
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.listen import reset
from mesh_proxy.net.pressure import ACCEPT, Pressure, descriptor_limit
from mesh_proxy.net.reactor import Reactor
from mesh_proxy.net.relay import Relay
from mesh_proxy.net.tls import Handshaker
from mesh_proxy.pool.dial import Dialer
from mesh_proxy.pool.services import Services
from mesh_proxy.settings import Settings
from mesh_proxy.telemetry.access_log import Record, format_record
from mesh_proxy.telemetry.stats import ProxyStats, TcpStats
from mesh_proxy.telemetry.tap import Taps
from mesh_proxy.wire.http2.engines import load
from mesh_proxy.wire.path import GLANCE

DEFECT = "defect"
"""Why a connection was ended that met an error of our own; label of a metric, and the event's name."""
FRAMES = 6
OriginalDst = Callable[[socket.socket], Addr]
"""How the address that a client dialled is learned; raises OSError. Tests and benchmarks pass their own."""


class Refused(Exception):
    """The connection is not accepted; `reason` is a metric label."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


class Runtime:
    """Shared parts of one sidecar process; the `Context` of the request loop."""

    def __init__(
        self,
        settings: Settings,
        store: ConfigStore,
        holder: Holder,
        log: LogWriter,
        registry: Registry,
        original_dst: OriginalDst,
        wall_clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.store = store
        self.holder = holder
        self.log = log
        self.registry = registry
        self.original_dst = original_dst
        self.stats = ProxyStats(registry)
        self.limits = limits = settings.limits
        self.pressure = Pressure(
            limits.connections,
            descriptor_limit(),
            limits.memory_percent,
            Memory(settings.cgroup_directory),
            self._release_memory,
            self._event,
        )
        self.engine = engine = load(settings.http2_engine)
        self.http2 = Http2(engine.make, http2_limits(limits), session_settings(limits), http2_budget(limits))
        self.http2.show(registry)
        self.reactor = Reactor(limits.stall_seconds)
        self.reactor.now = now = trio.current_time()
        self.wall_offset = wall_clock() - now
        self.handshaker = Handshaker(settings.handshake_workers)
        self.dialer = Dialer(
            self.reactor,
            holder,
            self.handshaker,
            self.stats,
            self.wall_offset,
            self.http2,
            self.pressure.dial_below,
        )
        self.dialer.on_defect = self.defect
        self.rng = random.Random(os.urandom(16))
        self.services = Services(self.dialer, self.stats, self.rng, store, self._routes_refused)
        self.local = LocalAddresses(settings.pod_ips)
        self.own_ports = settings.own_ports
        self.draining = False
        self.stopping = False
        self.log_all = False
        self.normalise_paths(PathNormalization.BASE)
        self.upgrades = settings.upgrades
        self.taps = Taps()
        self.connections = 0
        self.relays: dict[Stoppable, int] = {}
        """Inbound plaintext relays and requests, and their port, which a change of its mode may end."""
        self._id_prefix = os.urandom(8).hex().encode()
        self._id_next = int.from_bytes(os.urandom(6), "big")

    def normalise_paths(self, mode: PathNormalization) -> None:
        """Say what is done to the paths of requests from now on."""
        self.path_mode = mode
        self.path_plain = GLANCE[mode]

    def next_request_id(self) -> bytes:
        """A new request id: 32 hexadecimal digits, unique to this process by its random first half."""
        self._id_next += 1
        return b"%s%016x" % (self._id_prefix, self._id_next)

    def record(self, record: Record) -> None:
        """Write one access-log record; never waits, a full queue drops it and counts."""
        self.log.put(format_record(record))

    def admit(self, sock: socket.socket) -> bool:
        """Whether one more downstream connection is within the bounds; counts it if so."""
        reason = self.pressure.refusal(sock.fileno(), self.connections)
        if reason:
            self.stats.refused.child("any", reason).value += 1
            self.pressure.say(reason, trio.current_time(), connections=self.connections)
            return False
        self.connections += 1
        return True

    def _release_memory(self) -> None:
        self.services.close_idle()
        release_heap()

    def _event(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        self.log.log(level, event, **fields)

    def drain(self, draining: bool) -> None:
        """Ask inbound callers to close, or no longer; a GOAWAY is not taken back."""
        self.draining = draining
        if draining:
            self.http2.drain()

    def close_idle(self) -> None:
        """Close the inbound connections on which nothing is under way, now and from now on."""
        self.stopping = True
        for conn in list(self.reactor.conns.values()):
            if conn.between and conn.reader is not None:
                conn.interrupt(DeadlineExceeded("draining"))

    def _routes_refused(self, destination: str, problem: str) -> None:
        """Routes that the control plane let through cannot be used."""
        self.stats.config_updates.child("rejected").value += 1
        self.log.log(
            "error",
            "routes refused",
            destination=destination,
            error=problem,
            consequence="the last good ones stay in force; without any, requests are answered with 404",
        )

    def exhausted(self, reason: str) -> None:
        """Accepting failed for want of a resource."""
        self.stats.refused.child("any", ACCEPT).value += 1
        self.pressure.say(ACCEPT, trio.current_time(), error=reason)

    def defect(self, where: str, exc: Exception) -> None:
        """A connection's task has failed as none should: say so, as much as helps to mend it."""
        self.stats.refused.child("any", DEFECT).value += 1
        while isinstance(exc, ExceptionGroup):
            exc = exc.exceptions[0]
        frames = traceback.extract_tb(exc.__traceback__)[-FRAMES:]
        self.log.log(
            "error",
            DEFECT,
            where=where,
            error=repr(exc),
            trace=" > ".join(f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in frames),
            consequence="this connection is ended, the others go on; please report it",
        )

    async def serve_accepted(
        self,
        direction: str,
        sock: socket.socket,
        address: Callable[[socket.socket], Addr],
        serve: Callable[[Conn, Addr, str], Awaitable[None]],
    ) -> None:
        """Serve an accepted connection, which `admit` has counted, to its end; only cancellation is raised.

        A defect of ours ends this connection and no other.

        `address` learns its original destination, `serve` does the rest; both may raise Refused.
        """
        open_connections = self.stats.connections.child(direction)
        open_connections.value += 1
        conn: Conn | None = None
        source = destination = ""
        try:
            source = str(peer_addr(sock))
            addr = address(sock)
            destination = str(addr)
            conn = Conn(self.reactor, sock)
            await serve(conn, addr, source)
        except Refused as exc:
            self.refused(direction, exc.reason, source, destination, exc.detail)
        except (TransportError, OSError) as exc:
            detail = exc.detail if isinstance(exc, TransportError) else exc.strerror or ""
            self.refused(direction, "broken", source, destination, detail)
        except Exception as exc:
            self.defect(f"{direction} connection from {source} to {destination}", exc)
        finally:
            if conn is not None:
                conn.abort()
            else:
                reset(sock)
            open_connections.value -= 1
            self.connections -= 1

    def refused(self, direction: str, reason: str, source: str, destination: str, detail: str = "") -> None:
        """Count and log a connection that was refused before any routing."""
        self.stats.refused.child(direction, reason).value += 1
        self.log.log(
            "warning",
            "connection refused",
            direction=direction,
            reason=reason,
            source=source,
            destination=destination,
            detail=detail,
        )

    def relay_record(
        self,
        direction: str,
        relay: Relay | None,
        flag: str,
        detail: str,
        started: float,
        *,
        source: str,
        source_identity: str,
        destination: str,
        upstream: str,
        mtls: bool,
        rule: str,
        subset: str = "",
        attempts: int = 1,
        sni: str = "",
    ) -> None:
        """Log the end of an opaque connection: always after an error, else where the configuration asks."""
        if not flag and not self.log_all:
            return
        now = self.reactor.now
        self.record(
            Record(
                time=started + self.wall_offset,
                direction=direction,
                protocol="TCP",
                flag=str(flag),
                detail=detail,
                side=("client" if direction == "outbound" else "server") if flag else "",
                duration_ms=(now - started) * 1000,
                bytes_in=relay.to_up if relay else 0,
                bytes_out=relay.to_down if relay else 0,
                source=source,
                source_identity=source_identity,
                destination=destination,
                rule=rule,
                subset=subset,
                upstream=upstream,
                attempts=attempts,
                mtls=mtls,
                sni=sni,
            )
        )

    async def run_relay(self, relay: Relay, stats: TcpStats) -> None:
        """Run a relay and count it."""
        stats.opened(relay)
        try:
            await relay.run()
        finally:
            stats.closed(relay, str(relay.flag))
