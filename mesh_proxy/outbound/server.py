"""The calling side: from a redirected connection of a local program to an endpoint of its destination.

Order: original address - look-up (known, not in the mesh, no answer) - protocol, declared or detected - the
request loop for HTTP, a relay for everything else. Where the protocol is not declared and the client stays
silent, a tentative connection is opened beside the wait, so that a server that speaks first can.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import trio

from certs.credentials import ALPN_TCP
from mesh_api.sidecar import Destination, EgressMode, Pod, Protocol
from mesh_proxy.base.errors import ConnectFailed, DeadlineExceeded, TransportError
from mesh_proxy.discovery.contents import Absent, Answer
from mesh_proxy.http.context import Denied
from mesh_proxy.http.server import Http1Server
from mesh_proxy.net.addr import Addr
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.relay import Relay
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.policy.retry import Phase, decide
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.pool.service import Service
from mesh_proxy.runtime import Refused, Runtime
from mesh_proxy.wire.detect import Verdict, classify, server_undecided

DIRECTION = "outbound"
ANSWER_S = 2.0
"""How long a connection is held for a look-up without an answer."""
SILENT_S = 0.02
"""A client that has not spoken by then may be waiting for the server to speak."""
DETECT_S = 5.0
IDLE_S = 3600.0
SERVER_FIRST_S = 600.0
MAX_SERVER_FIRST = 1024
_HELD_BYTES = 64 * 1024


class OutboundView:
    """One outbound HTTP connection's look: looked up again when the configuration has changed."""

    __slots__ = (
        "_addr",
        "_generation",
        "_last",
        "_outbound",
        "_service",
        "conn",
        "destination",
        "source",
        "stats",
    )
    direction = DIRECTION
    side = "client"
    per_endpoint = True
    explain = True
    keep_mesh_error = True
    drains = False
    idle_s = IDLE_S

    def __init__(self, outbound: Outbound, conn: Conn, addr: Addr, service: Service, source: str) -> None:
        self._outbound = outbound
        self._addr = addr
        self._service: Service | Denied = service
        self._last = service
        self._generation = outbound.runtime.store.generation
        self.conn = conn
        self.source = source
        self.destination = str(addr)
        self.stats = outbound.runtime.stats.request_stats(DIRECTION, service.label, "", False)

    def service(self) -> Service | Denied:
        store = self._outbound.runtime.store
        if store.generation != self._generation:
            self._generation = store.generation
            answer = store.lookup(self._addr)
            if answer is not Absent.NO_ANSWER or not store.forgot(self._addr):
                self._service = self._moved(answer)
        return self._service

    def _moved(self, answer: Answer) -> Service | Denied:
        """What began in the mesh never goes on in plaintext, whatever the egress mode and the new owner."""
        if isinstance(answer, Absent):
            return Denied(503, Flag.NC, f"{self._addr} is no longer a destination of the mesh")
        service = self._outbound.service(answer, self._addr)
        if service is None or _downgrade(self._last, service):
            return Denied(503, Flag.NC, f"{self._addr} belongs to somebody outside the mesh now")
        self._last = service
        return service


class Outbound:
    """Handles connections on the outbound port."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._server_first: OrderedDict[Addr, float] = OrderedDict()

    async def handle(self, sock: socket.socket) -> None:
        """Serve one accepted connection to its end; never raises but for cancellation."""
        await self.runtime.serve_accepted(DIRECTION, sock, self._address, self._serve)

    def service(self, answer: Answer, addr: Addr) -> Service | None:
        """The service for an answer; None if the egress mode refuses the address or there is no answer."""
        services = self.runtime.services
        if isinstance(answer, Destination):
            return services.destination(answer)
        if isinstance(answer, Pod):
            return services.pod(answer, addr)
        if answer is Absent.NOT_IN_MESH and self.runtime.store.egress is EgressMode.PASSTHROUGH:
            return services.outside(addr)
        return None

    def _address(self, sock: socket.socket) -> Addr:
        runtime = self.runtime
        try:
            addr = runtime.original_dst(sock)
        except OSError as exc:
            raise Refused("no-original-address", exc.strerror or "") from exc
        if addr.port in runtime.own_ports and (addr.ip in runtime.local or addr.ip in _LOOPBACK):
            raise Refused("own-port")
        return addr

    async def _serve(self, conn: Conn, addr: Addr, source: str) -> None:
        answer = await self.runtime.store.resolve(addr, ANSWER_S)
        if answer is Absent.NO_ANSWER:
            raise Refused("no-answer", f"flag NC: nobody has said within {ANSWER_S:g} s what {addr} is")
        service = self.service(answer, addr)
        if service is None:
            raise Refused("egress", f"{addr} is outside the mesh, which the egress mode refuses")
        protocol = _declared(answer, addr)
        if protocol is Protocol.AUTO and self._known_server_first(addr):
            protocol = Protocol.TCP
        if protocol is Protocol.TCP:
            await self._relay(conn, addr, service, source, None)
        elif protocol is Protocol.HTTP:
            await self._http(conn, addr, service, source)
        else:
            await self._detect(conn, addr, service, source)

    async def _http(self, conn: Conn, addr: Addr, service: Service, source: str) -> None:
        view = OutboundView(self, conn, addr, service, source)
        await Http1Server(self.runtime, view).run()

    # -- detection ----------------------------------------------------------------------------------------

    async def _detect(self, conn: Conn, addr: Addr, service: Service, source: str) -> None:
        with trio.move_on_after(SILENT_S):
            await conn.wait_readable()
        tentative: _Attempt | None = None
        refused = False
        try:
            if not conn.readable:
                tentative = await self._tentative(conn, service)
                refused = tentative is None
                service, tentative = self._current(addr, service, tentative)
                if tentative is not None and not conn.readable:
                    if tentative.decided:
                        self._remember_server_first(addr)
                    self.runtime.stats.detect.child(DIRECTION, "server-first").value += 1
                    await self._relay(conn, addr, service, source, tentative)
                    return
            # Without a connection a silent client is told so before long: it may be waiting for the server.
            verdict = await self._client_verdict(conn, DETECT_S if refused else IDLE_S)
            service, tentative = self._current(addr, service, tentative)
            self.runtime.stats.detect.child(DIRECTION, verdict.value).value += 1
            if verdict is Verdict.HTTP1:
                if tentative is not None:
                    tentative.drop()
                await self._http(conn, addr, service, source)
            else:
                await self._relay(conn, addr, service, source, tentative)
        finally:
            if tentative is not None:
                tentative.drop()

    def _current(
        self, addr: Addr, service: Service, tentative: _Attempt | None
    ) -> tuple[Service, _Attempt | None]:
        """The destination after a wait: the client may have been silent for long, and the mesh has moved on.

        A tentative connection to an endpoint that is no longer one (or no longer plaintext) is dropped.
        """
        answer = self.runtime.store.lookup(addr)
        found = self.service(answer, addr)
        if answer is Absent.NO_ANSWER and self.runtime.store.forgot(addr):
            found = service
        elif found is not None and (isinstance(answer, Absent) or _downgrade(service, found)):
            found = found if found is service else None
        if found is None:
            if tentative is not None:
                tentative.drop()
            raise Refused("no-answer", f"flag NC: {addr} is no longer a destination of the mesh")
        if tentative is not None and (found is not service or tentative.endpoint.retired):
            tentative.drop()
            tentative = None
        return found, tentative

    async def _tentative(self, conn: Conn, service: Service) -> _Attempt | None:
        """Open a connection beside the wait; returns when the client has spoken or the server's bytes decide.

        The server has decided if the client has still not spoken. None if no connection came up: the
        client's own bytes will meet the error. Nothing is counted yet.
        """
        endpoint = service.choose().pick((), self.runtime.reactor.now)
        if endpoint is None:
            return None
        conn.set_deadline(IDLE_S)
        dialled: list[Conn] = []

        async def dial() -> None:
            dialled.append(await endpoint.dialer.dial(endpoint.peer, ALPN_TCP, service.timeouts.connect_s))

        held = b""
        attempt: _Attempt | None = None
        try:
            await _unless_readable(conn, dial)
            if not dialled:
                return None
            up = dialled[0]
            attempt = _Attempt(endpoint, up)
            while not conn.readable:
                got: list[bytes] = []

                async def read() -> None:
                    got.append(await up.read())  # noqa: B023 - awaited within this turn

                await _unless_readable(conn, read)
                if not got:
                    break
                held += got[0]
                # Bytes that do not decide are held; more of them, or the client's first, will.
                if not got[0]:
                    break  # ended; that says nothing about who speaks first
                if not server_undecided(held) or len(held) > _HELD_BYTES:
                    attempt.decided = True
                    break
            up.unread(held)
        except TransportError:
            if dialled:
                dialled[0].abort()
            return None
        except BaseException:
            if dialled:
                dialled[0].abort()
            raise
        return attempt

    async def _client_verdict(self, conn: Conn, silent_s: float) -> Verdict:
        """Read until the client's protocol is known; the bytes stay unread."""
        first = b""
        conn.set_deadline(silent_s)
        while True:
            try:
                data = await conn.read()
            except DeadlineExceeded:
                break
            if not data:
                break
            first += data
            verdict = classify(first)
            if verdict is not Verdict.NEED_MORE:
                conn.unread(first)
                conn.deadline = NEVER
                return verdict
            conn.set_deadline(DETECT_S)
        conn.unread(first)
        conn.deadline = NEVER
        return Verdict.OPAQUE

    def _known_server_first(self, addr: Addr) -> bool:
        since = self._server_first.get(addr)
        return since is not None and self.runtime.reactor.now - since < SERVER_FIRST_S

    def _remember_server_first(self, addr: Addr) -> None:
        self._server_first[addr] = self.runtime.reactor.now
        self._server_first.move_to_end(addr)
        if len(self._server_first) > MAX_SERVER_FIRST:
            self._server_first.popitem(last=False)

    # -- opaque -------------------------------------------------------------------------------------------

    async def _relay(
        self, conn: Conn, addr: Addr, service: Service, source: str, attempt: _Attempt | None
    ) -> None:
        runtime = self.runtime
        started = runtime.reactor.now
        attempts = 1
        relay: Relay | None = None
        flag: str = ""
        detail = ""
        endpoint: Endpoint | None = attempt.endpoint if attempt else None
        try:
            if attempt is None:
                attempt, tried, flag, detail = await self._connect(service)
                endpoint = attempt.endpoint if attempt else tried[-1] if tried else None
                attempts = len(tried) + (attempt is not None)
                if attempt is None:
                    runtime.stats.tcp_stats(
                        DIRECTION, service.label, bool(endpoint and endpoint.peer.identity)
                    ).closed(flag)
                    conn.abort()
                    return
            attempt.endpoint.inflight += 1
            try:
                up = attempt.conn
                relay = Relay(conn, up, service.timeouts.tcp_idle_s)
                stats = runtime.stats.tcp_stats(DIRECTION, service.label, bool(up.peer))
                await runtime.run_relay(relay, stats)
                flag, detail = relay.flag, relay.detail
            finally:
                attempt.endpoint.inflight -= 1
        finally:
            runtime.relay_record(
                DIRECTION,
                relay,
                flag,
                detail,
                started,
                source=source,
                source_identity="",
                destination=str(addr),
                upstream=endpoint.text if endpoint else "",
                mtls=bool(endpoint and endpoint.peer.identity),
                attempts=attempts,
            )

    async def _connect(self, service: Service) -> tuple[_Attempt | None, list[Endpoint], str, str]:
        """A connection to one endpoint of the service; others are tried while none has come up.

        Also the endpoints that failed, and, without a connection, flag and detail.
        """
        runtime = self.runtime
        cluster = service.choose()
        tried: list[Endpoint] = []
        detail = "the destination has no endpoint"
        service.budget.deposit(runtime.reactor.now)
        while True:
            now = runtime.reactor.now
            endpoint = cluster.pick(tried, now)
            if endpoint is None:
                return None, tried, Flag.UF if tried else Flag.UH, detail
            try:
                up = await endpoint.dialer.dial(endpoint.peer, ALPN_TCP, service.timeouts.connect_s)
            except ConnectFailed as exc:
                detail = f"{endpoint.text}: {exc.detail}"
                cluster.balancer.observe(endpoint, runtime.reactor.now - now, True, runtime.reactor.now)
                tried.append(endpoint)
                decision = decide(Phase.NOT_CONNECTED, b"", True, len(tried), service.retries.attempts)
                if not decision.retry or not service.budget.withdraw(now):
                    return None, tried, Flag.UF, detail
                continue
            return _Attempt(endpoint, up), tried, "", ""


async def _unless_readable(conn: Conn, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`, cancelled as soon as `conn` has bytes or has ended; raises what `work` raises."""
    failure: TransportError | None = None

    async def watch() -> None:
        try:
            await conn.wait_readable()
        except TransportError:
            pass  # whoever reads next meets it
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        try:
            await work()
        except TransportError as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _Attempt:
    """A connection that may become the client's."""

    __slots__ = ("conn", "decided", "endpoint")

    def __init__(self, endpoint: Endpoint, conn: Conn) -> None:
        self.endpoint = endpoint
        self.conn = conn
        self.decided = False
        """The server's own bytes have shown that it speaks first."""

    def drop(self) -> None:
        """Close it if nothing else has: nothing of the client's was ever sent on it."""
        if not self.conn.closed:
            self.conn.bye()


_LOOPBACK = frozenset(("127.0.0.1", "::1"))


def _downgrade(before: Service, now: Service) -> bool:
    """Whether an address has moved from a service of the mesh to one that is reached in plaintext."""
    return now is not before and now.plaintext and not before.plaintext


def _declared(answer: Answer, addr: Addr) -> Protocol:
    if isinstance(answer, Destination):
        return answer.protocol
    if isinstance(answer, Pod):
        return Protocol.TCP if addr.port in answer.opaque_ports else Protocol.AUTO
    # Outside the mesh there is nothing to decide by protocol: bytes go through as they are.
    return Protocol.TCP
