"""The receiving side: from a redirected connection to the application of this pod.

Order: original address (one of this pod, no port of ours) - first bytes - mTLS of the mesh, the
application's own TLS, or plaintext, as the mode allows - identity - the application at the address that was
dialled, never at localhost, from a source address that the rules let pass.
"""

from __future__ import annotations

import socket

import trio

from certs.credentials import ALPN_ALL, ALPN_HTTP2, ALPN_TCP
from mesh_api.sidecar import MtlsMode, Protocol
from mesh_proxy.base.errors import ConnectFailed, DeadlineExceeded, PartnerGone, TransportError
from mesh_proxy.http.context import Denied
from mesh_proxy.http.forwarded import caller_line
from mesh_proxy.http.serve import serve_http1, serve_http2
from mesh_proxy.net.addr import Addr
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.relay import Relay, refuse_late_http, wait_either
from mesh_proxy.net.tls import TlsConn
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.pool.service import Service
from mesh_proxy.runtime import Refused, Runtime
from mesh_proxy.wire.client_hello import NotTls
from mesh_proxy.wire.client_hello import parse as parse_hello
from mesh_proxy.wire.detect import Verdict, classify

DIRECTION = "inbound"
ANSWER_S = 2.0
"""How long a silent client is held for want of an answer about its address."""
SILENT_S = 0.05
"""An unmeshed client that has not spoken by then may be waiting for the server to speak."""
MESH_IDLE_S = 75.0
"""Longer than a caller's sidecar keeps its idle connections, so that it is the one to close."""
PLAIN_IDLE_S = 3600.0
STRICT_NOW = "this port takes mTLS only now"
_HTTP = frozenset((Protocol.HTTP, Protocol.HTTP2))
_MESH_ALPN = frozenset(alpn.encode() for alpn in ALPN_ALL)


class InboundView:
    """One inbound HTTP connection's look: always the application behind us."""

    __slots__ = (
        "_app",
        "_runtime",
        "conn",
        "destination",
        "drains",
        "explain",
        "identity_line",
        "idle_s",
        "keep_mesh_error",
        "plaintext_port",
        "port",
        "source",
        "stats",
    )
    direction = DIRECTION
    side = "server"

    def __init__(self, runtime: Runtime, conn: Conn, app: Service, addr: Addr, source: str) -> None:
        meshed = bool(conn.peer)
        self._runtime = runtime
        self._app = app
        self.conn = conn
        self.port = addr.port
        self.source = source
        self.destination = str(addr)
        self.stats = runtime.stats.request_stats(DIRECTION, app.label, app.label, meshed, conn.peer)
        self.explain = meshed
        self.keep_mesh_error = False
        self.drains = True
        self.idle_s = MESH_IDLE_S if meshed else PLAIN_IDLE_S
        credentials = runtime.holder.current
        self.identity_line = caller_line(conn.peer, credentials.identity if credentials else "")
        self.plaintext_port = 0 if meshed else addr.port

    def service(self) -> Service | Denied:
        if not self.conn.peer and self._runtime.store.inbound_mtls(self.port) is MtlsMode.STRICT:
            return Denied(403, Flag.UAEX, "this port takes mTLS only")
        return self._app


class Inbound:
    """Handles connections on the inbound port."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._silent: dict[Conn, int] = {}
        """Connections that wait for either side to speak, and their port."""

    async def handle(self, sock: socket.socket) -> None:
        """Serve one accepted connection to its end; never raises but for cancellation."""
        await self._runtime.serve_accepted(DIRECTION, sock, self._address, self._serve)

    def _address(self, sock: socket.socket) -> Addr:
        runtime = self._runtime
        try:
            addr = runtime.original_dst(sock)
        except OSError as exc:
            raise Refused("no-original-address", exc.strerror or "") from exc
        if addr.port in runtime.own_ports:
            raise Refused("own-port")
        if addr.ip not in runtime.local:
            raise Refused("not-this-pod", str(addr))
        return addr

    async def _serve(self, conn: Conn, addr: Addr, source: str) -> None:
        runtime = self._runtime
        mode = runtime.store.inbound_mtls(addr.port)
        declared = runtime.store.inbound_protocol(addr.port)
        client_ip = source.rpartition(":")[0].strip("[]")
        # A client that has no sidecar may be silent for long where plaintext is accepted.
        stranger = mode is not MtlsMode.STRICT and not runtime.store.is_mesh_pod(client_ip)
        app: Conn | None = None
        try:
            if stranger and declared not in _HTTP:
                with trio.move_on_after(0.0 if declared is Protocol.TCP else SILENT_S):
                    await conn.wait_readable()
                stranger = conn.readable or not await self._is_meshed(conn, client_ip)
                if stranger and not conn.readable:
                    app = await self._let_server_speak(conn, addr)
                    if not conn.readable:
                        await self._relay(conn, addr, source, app)
                        return
            conn.set_deadline(PLAIN_IDLE_S if stranger else runtime.limits.detect_seconds)
            await self._by_first_bytes(conn, addr, source, mode, declared, app)
        except DeadlineExceeded:
            waited = f"no usable first bytes within {runtime.limits.detect_seconds:g} s"
            raise Refused("detect-timeout", waited) from None
        finally:
            if app is not None:
                app.abort()

    async def _is_meshed(self, conn: Conn, client_ip: str) -> bool:
        """Whether a silent client has a sidecar, which will speak; not learnt if the client speaks first."""
        meshed = False

        async def ask() -> None:
            nonlocal meshed
            meshed = await self._runtime.store.resolve_peer(client_ip, ANSWER_S)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            try:
                await conn.wait_readable()
            except TransportError:
                pass  # whoever reads next meets it
            nursery.cancel_scope.cancel()
        return meshed

    async def _let_server_speak(self, conn: Conn, addr: Addr) -> Conn:
        """Open the application connection and wait for either side; the client's bytes stay unread."""
        runtime = self._runtime
        app = await self._dial_app(addr)
        conn.set_deadline(PLAIN_IDLE_S)
        self._silent[conn] = addr.port
        try:
            await wait_either(conn, app)
        except BaseException as exc:
            app.abort()
            if isinstance(exc, TransportError) and runtime.store.inbound_mtls(addr.port) is MtlsMode.STRICT:
                raise Refused("plaintext", "this port takes mTLS of the mesh only now") from exc
            raise
        finally:
            del self._silent[conn]
        return app

    async def _by_first_bytes(
        self, conn: Conn, addr: Addr, source: str, mode: MtlsMode, declared: Protocol, app: Conn | None
    ) -> None:
        """Decide by what the client sends; `app` is an application connection opened meanwhile."""
        runtime = self._runtime
        first = await conn.read()
        conn.set_deadline(runtime.limits.detect_seconds)
        if first and first[0] == 0x16 and mode is not MtlsMode.DISABLE:
            first, ours = await self._hello(conn, first, mode)
            if ours:
                conn.unread(first)
                await self._meshed(await self._terminate(conn), addr, source, declared, app)
                return
        if mode is MtlsMode.STRICT:
            if not first:
                return
            what = "tls-not-of-the-mesh" if first[0] == 0x16 else "plaintext"
            raise Refused(what, "this port takes mTLS of the mesh only")
        await self._in_clear(conn, first, addr, source, declared, app)

    async def _in_clear(
        self, conn: Conn, first: bytes, addr: Addr, source: str, declared: Protocol, app: Conn | None
    ) -> None:
        """Serve what begins with `first`, and is not in TLS of the mesh any more, if it ever was."""
        verdict = Verdict.OPAQUE
        if first and declared is not Protocol.TCP:
            first, verdict = await detect(conn, first)
        self._runtime.stats.detect.child(DIRECTION, verdict.value).value += 1
        conn.unread(first)
        conn.deadline = NEVER
        http2 = verdict is Verdict.HTTP2
        if http2 or verdict is Verdict.HTTP1 or (first and declared in _HTTP and verdict is not Verdict.TLS):
            if app is not None:
                app.abort()
            await self._http(conn, addr, source, http2)
        else:
            undecided = bool(first) and classify(first) is Verdict.NEED_MORE
            await self._relay(conn, addr, source, app, undecided)

    async def _hello(self, conn: Conn, first: bytes, mode: MtlsMode) -> tuple[bytes, bool]:
        """Read a whole ClientHello; (bytes read, whether it asks for the mesh)."""
        while True:
            try:
                hello = parse_hello(first)
            except NotTls as exc:
                if mode is MtlsMode.STRICT:
                    raise Refused("not-tls", exc.reason) from None
                return first, False
            if hello is not None:
                return first, not _MESH_ALPN.isdisjoint(hello.alpn)
            data = await conn.read()
            if not data:
                raise Refused("not-tls", "the client ended within its ClientHello")
            first += data

    async def _terminate(self, conn: Conn) -> TlsConn:
        """Complete the mesh's handshake and check who came."""
        runtime = self._runtime
        credentials = runtime.holder.current
        if credentials is None:
            raise Refused("no-certificate", "this sidecar has no certificate yet")
        tls = TlsConn.over(conn, credentials.server, server_side=True)
        started = trio.current_time()
        try:
            await tls.handshake(runtime.handshaker)
            runtime.dialer.admit(tls, credentials, ALPN_ALL)
        except (TransportError, ConnectFailed) as exc:
            runtime.stats.handshakes.child("server", "failed").value += 1
            tls.abort()
            raise Refused("handshake", exc.detail) from exc
        except BaseException:
            tls.abort()
            raise
        runtime.stats.handshakes.child("server", "ok").value += 1
        runtime.stats.handshake_duration.child("server").observe(trio.current_time() - started)
        tls.deadline = NEVER
        return tls

    async def _meshed(
        self, tls: TlsConn, addr: Addr, source: str, declared: Protocol, app: Conn | None
    ) -> None:
        try:
            if tls.alpn == ALPN_TCP and declared in _HTTP:
                # What a caller takes for opaque is HTTP here: it would go past every rule, and past the
                # removal of what no caller may say.
                tls.set_deadline(PLAIN_IDLE_S)
                first = await tls.read()
                tls.set_deadline(self._runtime.limits.detect_seconds)
                await self._in_clear(tls, first, addr, source, declared, app)
            elif tls.alpn != ALPN_TCP:
                if app is not None:
                    app.abort()
                await self._http(tls, addr, source, tls.alpn == ALPN_HTTP2)
            else:
                await self._relay(tls, addr, source, app)
        finally:
            tls.abort()

    async def _http(self, conn: Conn, addr: Addr, source: str, http2: bool) -> None:
        view = InboundView(self._runtime, conn, self._app(addr), addr, source)
        await (serve_http2 if http2 else serve_http1)(self._runtime, view)

    async def _relay(
        self, conn: Conn, addr: Addr, source: str, app: Conn | None, undecided: bool = False
    ) -> None:
        """Opaque bytes to the application; `undecided`: what has come of them may begin a request."""
        runtime = self._runtime
        if not conn.peer and runtime.store.inbound_mtls(addr.port) is MtlsMode.STRICT:
            # The mode has changed while nobody spoke.
            raise Refused("plaintext", "this port takes mTLS of the mesh only")
        started = runtime.reactor.now
        service = self._app(addr)
        relay: Relay | None = None
        flag: str = ""
        detail = ""
        try:
            try:
                up = app or await self._dial_app(addr)
            except ConnectFailed as exc:
                flag, detail = Flag.UF, exc.detail
            else:
                if not conn.peer and runtime.store.inbound_mtls(addr.port) is MtlsMode.STRICT:
                    flag, detail = Flag.UAEX, STRICT_NOW  # since the look above
                    up.abort()
            stats = runtime.stats.tcp_stats(DIRECTION, service.label, bool(conn.peer), conn.peer)
            if flag:
                stats.failed(flag)
                conn.abort()
                return
            relay = Relay(conn, up, service.clusters[""].tcp_idle_s)
            if undecided and runtime.store.inbound_protocol(addr.port) is not Protocol.TCP:
                relay.watch = refuse_late_http()
            if not conn.peer:
                runtime.relays[relay] = addr.port
            await runtime.run_relay(relay, stats)
            flag, detail = relay.flag, relay.detail
        finally:
            if relay is not None:
                runtime.relays.pop(relay, None)
            runtime.relay_record(
                DIRECTION,
                relay,
                flag,
                detail,
                started,
                source=source,
                source_identity=conn.peer,
                destination=str(addr),
                upstream=str(addr),
                rule=service.rule,
                mtls=bool(conn.peer),
            )

    def _app(self, addr: Addr) -> Service:
        snapshot = self._runtime.store.snapshot
        label = f"{snapshot.workload.name}.{snapshot.workload.namespace}" if snapshot else "application"
        return self._runtime.services.application(addr, label)

    async def _dial_app(self, addr: Addr) -> Conn:
        cluster = self._app(addr).clusters[""]
        (endpoint,) = cluster.endpoints
        return await self._runtime.dialer.dial(endpoint.peer, "", cluster.connect_s)

    def recheck(self) -> None:
        """The configuration has changed: end the plaintext connections that the mode no longer allows."""
        for conn, port in list(self._silent.items()):
            if self._runtime.store.inbound_mtls(port) is MtlsMode.STRICT:
                conn.interrupt(PartnerGone("the mode of the port has changed"))
        for relay, port in list(self._runtime.relays.items()):
            if self._runtime.store.inbound_mtls(port) is MtlsMode.STRICT:
                relay.stop(Flag.UAEX, STRICT_NOW)


async def detect(conn: Conn, first: bytes) -> tuple[bytes, Verdict]:
    """Read until the protocol is known; a client that stops before is opaque."""
    while True:
        verdict = classify(first)
        if verdict is not Verdict.NEED_MORE:
            return first, verdict
        try:
            data = await conn.read()
        except DeadlineExceeded:
            return first, Verdict.OPAQUE
        if not data:
            # The end is met again by whoever reads next: RDHUP keeps the socket readable.
            return first, Verdict.OPAQUE
        first += data
