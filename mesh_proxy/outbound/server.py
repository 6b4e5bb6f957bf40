"""The calling side: from a redirected connection of a local program to an endpoint of its destination.

Order: original address - look-up (known, not in the mesh, no answer) - protocol, declared or detected - the
request loop for HTTP, a relay for everything else. Where the protocol is not declared and the client stays
silent, a tentative connection is opened beside the wait, so that a server that speaks first can; not where
routes ask for HTTP, which it could go past.
"""

from __future__ import annotations

import socket
from collections import OrderedDict

import trio

from mesh_api.sidecar import Destination, Pod, Protocol
from mesh_proxy.base.errors import DeadlineExceeded
from mesh_proxy.discovery.contents import Absent, Answer
from mesh_proxy.http.serve import serve_http, serve_http1, serve_http2
from mesh_proxy.net.addr import Addr
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.outbound.opaque import Opaque, Tentative
from mesh_proxy.outbound.tentative import open_tentative
from mesh_proxy.outbound.view import DIRECTION, IDLE_S, OutboundView, is_downgrade, service_of
from mesh_proxy.pool.service import Service
from mesh_proxy.runtime import Refused, Runtime
from mesh_proxy.wire.detect import Verdict, classify

ANSWER_S = 2.0
"""How long a connection is held for a look-up without an answer."""
SILENT_S = 0.02
"""A client that has not spoken by then may be waiting for the server to speak."""
SERVER_FIRST_S = 600.0
MAX_SERVER_FIRST = 1024


class Outbound:
    """Handles connections on the outbound port."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._server_first: OrderedDict[Addr, float] = OrderedDict()

    async def handle(self, sock: socket.socket) -> None:
        """Serve one accepted connection to its end; never raises but for cancellation."""
        await self.runtime.serve_accepted(DIRECTION, sock, self._address, self._serve)

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
        service = service_of(self.runtime, answer, addr)
        if service is None:
            raise Refused("egress", f"{addr} is outside the mesh, which the egress mode refuses")
        protocol = _declared(answer, addr)
        if protocol is Protocol.AUTO and not service.only_http and self._known_server_first(addr):
            protocol = Protocol.TCP
        if protocol is Protocol.TCP:
            await Opaque(self.runtime, conn, addr, service, source).run(None)
        elif protocol is Protocol.AUTO:
            await self._detect(conn, addr, service, source)
        else:
            await serve_http(self.runtime, OutboundView(self.runtime, conn, addr, service, source))

    # -- detection ----------------------------------------------------------------------------------------

    async def _detect(self, conn: Conn, addr: Addr, service: Service, source: str) -> None:
        with trio.move_on_after(SILENT_S):
            await conn.wait_readable()
        tentative: Tentative | None = None
        refused = False
        try:
            if not conn.readable and not service.only_http:
                tentative = await open_tentative(conn, service, IDLE_S)
                refused = tentative is None
                service, tentative = self._current(addr, service, tentative)
                if tentative is not None and not conn.readable:
                    if tentative.decided:
                        self._remember_server_first(addr)
                    self.runtime.stats.detect.child(DIRECTION, "server-first").value += 1
                    await Opaque(self.runtime, conn, addr, service, source).run(tentative)
                    return
            # Without a connection a silent client is told so before long: it may be waiting for the server.
            detect_s = self.runtime.limits.detect_seconds
            verdict = await self._client_verdict(conn, detect_s if refused else IDLE_S)
            service, tentative = self._current(addr, service, tentative)
            self.runtime.stats.detect.child(DIRECTION, verdict.value).value += 1
            if verdict is Verdict.HTTP1 or verdict is Verdict.HTTP2:
                if tentative is not None:
                    tentative.drop()
                view = OutboundView(self.runtime, conn, addr, service, source)
                await (serve_http1 if verdict is Verdict.HTTP1 else serve_http2)(self.runtime, view)
            else:
                undecided = bool(conn.prefix) and classify(conn.prefix) is Verdict.NEED_MORE
                await Opaque(self.runtime, conn, addr, service, source).run(tentative, undecided)
        finally:
            if tentative is not None:
                tentative.drop()

    def _current(
        self, addr: Addr, service: Service, tentative: Tentative | None
    ) -> tuple[Service, Tentative | None]:
        """The destination after a wait: the client may have been silent for long, and the mesh has moved on.

        A tentative connection to an endpoint that is no longer one (or no longer plaintext) is dropped.
        """
        answer = self.runtime.store.lookup(addr)
        found = service_of(self.runtime, answer, addr)
        if answer is Absent.NO_ANSWER and self.runtime.store.forgot(addr):
            found = service
        elif found is not None and (isinstance(answer, Absent) or is_downgrade(service, found)):
            found = found if found is service else None
        if found is None:
            if tentative is not None:
                tentative.drop()
            raise Refused("no-answer", f"flag NC: {addr} is no longer a destination of the mesh")
        if tentative is not None and (found is not service or found.only_http or tentative.endpoint.retired):
            tentative.drop()
            tentative = None
        return found, tentative

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
            conn.set_deadline(self.runtime.limits.detect_seconds)
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


_LOOPBACK = frozenset(("127.0.0.1", "::1"))


def _declared(answer: Answer, addr: Addr) -> Protocol:
    if isinstance(answer, Destination):
        return answer.protocol
    if isinstance(answer, Pod):
        return Protocol.TCP if addr.port in answer.opaque_ports else Protocol.AUTO
    # Outside the mesh there is nothing to decide by protocol: bytes go through as they are.
    return Protocol.TCP
