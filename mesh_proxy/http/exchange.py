"""The state of one request that is being served, shared by the steps that serve it.

There is one object for each HTTP/1 connection, which the request loop sets up anew for each request, and one
for each stream of an HTTP/2 connection.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh_proxy.base.errors import PartnerGone
from mesh_proxy.http.body import Arriving
from mesh_proxy.http.context import Context, View
from mesh_proxy.http.idle import StreamIdle
from mesh_proxy.http.message import Down, Request
from mesh_proxy.http2.stream import ServerStream
from mesh_proxy.net.reactor import BROKEN
from mesh_proxy.net.roles import Interruptible
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.policy.retry import Phase
from mesh_proxy.pool.cluster import Cluster
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.telemetry.access_log import Record
from mesh_proxy.telemetry.stats import RequestStats, is_failure
from mesh_proxy.wire import grpc
from mesh_proxy.wire.http1 import RequestHead
from mesh_proxy.wire.upgrade import Asked

Outcome = tuple[bool, str, str]
"""Whether the client's connection can carry another request; flag and detail of what went wrong, or empty."""
_NO_HEAD = RequestHead()


class AttemptFailed(Exception):
    """One attempt has brought no response that is passed on."""

    def __init__(self, phase: Phase, flag: str, detail: str, status: int = 0) -> None:
        super().__init__(detail)
        self.phase = phase
        self.flag = flag
        self.detail = detail
        self.status = status
        """Of the endpoint's response, if that is why."""
        self.final = False
        """There is no time left for another attempt, or no sense in it."""
        self.reuse = False
        """The connection can carry another request."""
        self.stale = False
        """A pooled connection had died: the endpoint is not to blame."""
        self.refused = False
        """The endpoint has refused an HTTP/2 stream: where no other is left, it may take the next."""
        self.innocent = False
        """The endpoint could not answer: the client had not sent its whole request, or asked for too much."""
        self.pause_s = -1.0
        """How long to wait before the next attempt, if that is decided already."""


class Exchange:
    """One request and its response."""

    __slots__ = (
        "_idle",
        "asked",
        "attempts",
        "body",
        "cluster",
        "conn",
        "context",
        "counted",
        "deadline",
        "down",
        "grpc",
        "grpc_status",
        "grpc_timeout_s",
        "head",
        "idle",
        "message",
        "reactor",
        "request",
        "request_id",
        "retry_reason",
        "rule",
        "started",
        "status",
        "stream",
        "switched",
        "tried",
        "upstream",
        "view",
    )

    def __init__(self, context: Context, view: View, stream: ServerStream | None = None) -> None:
        """`stream`: where the request has come on an HTTP/2 connection."""
        self.context = context
        self.view = view
        self.conn = view.conn
        self.stream = stream
        self.down: Down = stream or view.conn
        self.reactor = context.reactor
        self.request_id = b""
        self.message = b""
        """An HTTP/1 request as it goes on, as much of it as has come."""
        self.request: Request | None = None
        """An HTTP/2 request, likewise."""
        self.grpc = False
        """Its client reads gRPC: answers of our own are in its terms."""
        self.grpc_timeout_s: float | None = None
        """What the client has set."""
        self.deadline = NEVER
        """On the reactor's clock: when the whole request must be over."""
        self.tried: Sequence[Endpoint] = ()
        """Endpoints that have failed."""
        self.idle: StreamIdle | None = None
        """Watches the present attempt, where the destination has a stream idle time-out."""
        self._idle: StreamIdle | None = None
        self.begin(_NO_HEAD, None)

    def begin(self, head: RequestHead, body: Arriving | None) -> None:
        """Start with a request."""
        self.head = head
        self.body = body
        """The part of its body that is still arriving."""
        self.started = self.reactor.now
        self.status = 0
        """Of the response that the client gets; 0 while there is none."""
        self.grpc_status = -1
        """Of a gRPC response; -1 while there is none."""
        self.asked: Asked | None = None
        """What the client wants its connection to become."""
        self.switched = 0.0
        """On the reactor's clock: since when it is that."""
        self.attempts = 0
        self.retry_reason = ""
        self.rule = ""
        """What decides about this request: policy and route, or the destination."""
        self.cluster: Cluster | None = None
        self.upstream: Endpoint | None = None
        self.counted: RequestStats = self.view.stats
        """Where this request counts: outbound, at its arm and endpoint."""

    def gone(self) -> bool:
        """The client has reset its connection or stream, or has lost it."""
        return self.down.doom is not None or bool(self.conn.ended & BROKEN)

    def observed(self) -> int:
        """The status of the response, as it speaks for or against the endpoint."""
        return self.status if self.grpc_status <= 0 else grpc.as_http(self.grpc_status)

    def stop(self, flag: str, detail: str) -> None:
        """End at once what is under way, if anything is; a tunnel of HTTP/1 is told by itself."""
        if self.head is _NO_HEAD or (self.switched and self.stream is None):
            return
        error = PartnerGone(f"{flag}: {detail}")
        partner = self.down.partner
        self.down.interrupt(error)
        if partner is not None:
            partner.interrupt(error)

    def watch(self, up: Interruptible, idle_s: float) -> StreamIdle:
        """Watch the attempt on `up` for silence."""
        if self._idle is None:
            self._idle = StreamIdle(self.reactor, self.down)
        self._idle.start(up, idle_s)
        return self._idle

    def close(self) -> None:
        """There will be no further request."""
        if self._idle is not None:
            self._idle.forget()

    def end(self, flag: str, detail: str, bytes_in: int, bytes_out: int) -> None:
        """Statistics and the access log; bytes as the client's connection has carried them."""
        duration_s = self.reactor.now - self.started
        status = self.status if self.grpc_status <= 0 else grpc.COUNTED + self.grpc_status
        if self.switched:
            self.counted.tunnelled(status, flag, bytes_in, bytes_out)
        else:
            self.counted.done(status, flag, duration_s, bytes_in, bytes_out)
        if self.context.taps.active is not None:
            self.context.taps.add(
                self.counted.key,
                self.view.source,
                self.head.method,
                self.head.target,
                is_failure(status, flag),
                duration_s,
            )
        if flag or self.context.log_all:
            self._record(self.head, flag, detail, duration_s, bytes_in, bytes_out)
        self.head = _NO_HEAD
        self.message = b""

    def refused(self, status: int, flag: str, detail: str) -> None:
        """The same for a request whose head could not be read."""
        self.begin(_NO_HEAD, None)
        self.request_id = b""
        self.status = status
        self.view.stats.done(status, flag, 0.0)
        self._record(None, flag, detail, 0.0, 0, 0)

    def _record(
        self,
        head: RequestHead | None,
        flag: str,
        detail: str,
        duration_s: float,
        bytes_in: int,
        bytes_out: int,
    ) -> None:
        view = self.view
        upstream = self.upstream
        record = Record(
            time=self.reactor.now - duration_s + self.context.wall_offset,
            direction=view.direction,
            protocol="HTTP/2" if self.stream else "HTTP/1.1" if head is None or head.minor else "HTTP/1.0",
            method=head.method if head else b"",
            path=head.target if head else b"",
            host=head.host if head else b"",
            status=self.status,
            flag=str(flag),
            detail=detail,
            side=view.side if flag else "",
            duration_ms=duration_s * 1000,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            source=view.source,
            source_identity=self.conn.peer,
            destination=view.destination,
            rule=self.rule,
            subset=self.cluster.subset if self.cluster else "",
            upstream=upstream.text if upstream else "",
            attempts=self.attempts,
            retry_reason=self.retry_reason,
            mtls=bool(self.conn.peer) or bool(upstream and upstream.peer.identity),
            request_id=self.request_id,
        )
        self.context.record(record)
