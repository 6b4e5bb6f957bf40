"""The request loop of one downstream HTTP/1.1 connection.

One task reads a request, sends it to an endpoint, relays the response and goes on with the next request, so
pipelined requests are answered in order. Header bytes are forwarded as they came, but for what a hop has to
change. A request body that has not wholly arrived with its head is sent by a helper task, so that a
response may overtake it. Only `Conn`s are read and written here; who is asked, and whether again, is decided
by pool and policy.
"""

from __future__ import annotations

import trio

from certs.credentials import ALPN_HTTP1
from mesh_proxy.base.errors import (
    ConnectFailed,
    DeadlineExceeded,
    PartnerGone,
    PeerReset,
    TlsFailed,
    TransportError,
    Truncated,
)
from mesh_proxy.http.body import Body
from mesh_proxy.http.context import Context, Denied, View
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.reactor import BROKEN
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.policy.outcome import Flag, error_header
from mesh_proxy.policy.retry import BUDGET, Phase, decide
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.pool.service import Service
from mesh_proxy.telemetry.access_log import Record
from mesh_proxy.wire.http1 import (
    CHUNKED,
    LENGTH,
    NO_BODY,
    UNTIL_CLOSE,
    ChunkScanner,
    HttpError,
    RequestHead,
    ResponseHead,
    check_target,
    head_end,
    parse_request,
    parse_response,
    skip_leading_crlf,
)

HEAD_S = 60.0
"""A request head must be complete this long after its first byte."""

_REASONS = {
    400: b"Bad Request",
    403: b"Forbidden",
    408: b"Request Timeout",
    414: b"URI Too Long",
    417: b"Expectation Failed",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}


class AttemptFailed(Exception):
    """No response began on one attempt."""

    def __init__(self, phase: Phase, flag: str, detail: str) -> None:
        super().__init__(detail)
        self.phase = phase
        self.flag = flag
        self.detail = detail


class Http1Server:
    """Serves one downstream connection."""

    __slots__ = (
        "attempts",
        "buf",
        "context",
        "down",
        "reactor",
        "request_id",
        "retry_reason",
        "serving",
        "status",
        "upstream",
        "view",
    )

    def __init__(self, context: Context, view: View) -> None:
        self.context = context
        self.view = view
        self.down = view.conn
        self.reactor = context.reactor
        self.buf = b""
        self.status = 0
        self.attempts = 0
        self.upstream: Endpoint | None = None
        self.retry_reason = ""
        self.request_id = b""
        self.serving = False
        """Within a request that will be counted."""

    async def run(self) -> None:
        """Serve requests until the connection ends; the connection is closed afterwards in any case."""
        down = self.down
        limits = self.context.limits
        try:
            while True:
                # The next head: mostly it comes with one read.
                buf = self.buf
                if not buf:
                    down.set_deadline(self.view.idle_s)
                    down.between = self.view.drains
                    # A connection that has just come still brings its first request.
                    if down.between and self.context.stopping and self.request_id:
                        down.bye()
                        return
                    buf = await down.read()
                    down.between = False
                    if not buf:
                        down.close()
                        return
                if buf[0] == 13:
                    buf = buf[skip_leading_crlf(buf) :]
                end = head_end(buf, 0, limits)
                if end < 0:
                    down.set_deadline(HEAD_S)
                    head_buf = bytearray(buf)
                    while end < 0:
                        data = await down.read()
                        if not data:
                            down.close()  # the client left within a head: there is nobody to answer
                            return
                        if head_buf == b"\r" and data[0] == 10:
                            head_buf.clear()  # the empty line that is forgiven, in two reads
                            data = data[1:]
                        start = max(0, len(head_buf) - 3)
                        head_buf += data
                        end = head_end(head_buf, start, limits)
                    buf = bytes(head_buf)
                down.deadline = NEVER
                head = parse_request(buf[:end], limits)
                if not await self._exchange(head, buf, end):
                    if not down.closed:
                        await down.linger_close()
                    return
        except HttpError as exc:
            await self._refuse(exc, counted=self.serving)
        except DeadlineExceeded:
            # Idle between requests: close quietly. Within a head: nobody to wait for either.
            down.bye()
        except TransportError:
            down.abort()
        finally:
            if self.serving:
                down.abort()  # cancelled within an exchange: a FIN would complete a close-delimited body
            else:
                down.close()

    # -- one request ------------------------------------------------------------------------------------

    async def _exchange(self, head: RequestHead, buf: bytes, end: int) -> bool:
        """Serve one request; whether the connection can carry another."""
        if head.target[0] != 47 or head.method == b"CONNECT":
            check_target(head)
        # The body, as far as it has come.
        body: Body | None = None
        stop = end
        if head.framing == LENGTH:
            stop = end + head.length
            if stop > len(buf):
                body = Body(self.down, stop - len(buf), None)
                stop = len(buf)
        elif head.framing == CHUNKED:
            scanner = ChunkScanner(self.context.limits)
            stop = end + scanner.feed(buf[end:])
            if not scanner.done:
                body = Body(self.down, 0, scanner)
        self.buf = buf[stop:] if stop < len(buf) else b""

        # The request as it goes on: the client's own bytes wherever nothing has to change.
        request_id = head.request_id
        if head.hop:
            block = head.forward_block()
            line = b"%s %s HTTP/1.%d\r\n" % (head.method, head.target, head.minor)
            if not request_id:
                request_id = self.context.next_request_id()
                block += b"x-request-id: " + request_id + b"\r\n"
            if head.minor == 0:
                block += b"connection: close\r\n"
            message = line + block + b"\r\n" + buf[end:stop]
        elif not request_id:
            request_id = self.context.next_request_id()
            message = b"%sx-request-id: %s\r\n\r\n%s" % (buf[: end - 2], request_id, buf[end:stop])
        else:
            message = buf[:stop] if stop < len(buf) else buf
        self.request_id = request_id

        self.serving = True
        service = self.view.service()
        started = self.reactor.now
        self.status = self.attempts = 0
        self.upstream = None
        self.retry_reason = ""
        sent, received = self.down.sent, self.down.received
        flag: str = ""
        detail = ""
        try:
            if isinstance(service, Denied):
                flag, detail = service.flag, service.detail
                keep = await self._answer(service.status, flag, detail, head, body, "")
            else:
                keep, flag, detail = await self._attempts(service, head, message, body, started)
        except PartnerGone as exc:
            flag, detail, keep = Flag.DC, exc.detail, False
            self.down.abort()
        except (trio.Cancelled, BaseExceptionGroup):  # a group where the body's helper was cancelled too
            flag, detail = Flag.DC, "the sidecar stopped"
            raise
        except HttpError as exc:
            self.status, flag, detail = exc.status, Flag.DPE, str(exc)
            raise
        finally:
            self._count(head, flag, detail, started, sent, received - stop)
        self.serving = False
        if body is not None:
            self.buf = body.rest
        return keep

    async def _attempts(
        self, service: Service, head: RequestHead, message: bytes, body: Body | None, started: float
    ) -> tuple[bool, str, str]:
        """Try endpoints until a response begins or retrying is over; (keep, flag, detail)."""
        reactor = self.reactor
        request_s = service.timeouts.request_s
        deadline = NEVER if request_s is None else started + request_s
        cluster = service.choose()
        tried: list[Endpoint] = []
        fresh_only = False
        failed: AttemptFailed | None = None
        service.budget.deposit(started)
        while True:
            endpoint = cluster.pick(tried, reactor.now)
            if endpoint is None:
                if failed is None:
                    what = f"subset {cluster.subset}" if cluster.subset else "destination"
                    failed = AttemptFailed(Phase.NOT_CONNECTED, Flag.UH, f"the {what} has no endpoint")
                break
            self.upstream = endpoint
            self.attempts += 1
            endpoint.inflight += 1
            begun = reactor.now
            up: Conn | None = None
            try:
                up = None if fresh_only else endpoint.take()
                if up is None:
                    up = await self._connect(endpoint, service, deadline)
                    self.context.stats.upstream_connections.child(service.label).value += 1
                reused = not up.fresh
                try:
                    keep = await self._attempt(up, endpoint, head, message, body, deadline)
                finally:
                    if self.status:
                        cluster.balancer.observe(
                            endpoint, reactor.now - begun, self.status >= 500, reactor.now
                        )
                return keep
            except AttemptFailed as exc:
                failed = exc.with_traceback(None)  # a frame kept here would be a cycle
                stale = up is not None and reused and exc.flag is Flag.UC
                if not stale:
                    cluster.balancer.observe(endpoint, reactor.now - begun, True, reactor.now)
                if exc.flag is Flag.UT:
                    break
                if stale:
                    fresh_only = True  # a pooled connection had died: the endpoint itself is not to blame
                else:
                    tried.append(endpoint)
                replayable = body is None or body.kept is not None
                decision = decide(exc.phase, head.method, replayable, self.attempts, service.retries.attempts)
                self.retry_reason = decision.text
                if not decision.retry or self.down.ended & BROKEN:
                    self.context.stats.retries.child(service.label, decision.reason).value += 1
                    break
                if len(tried) == len(cluster.endpoints):
                    self.retry_reason = "every endpoint has been tried"
                    self.context.stats.retries.child(service.label, "no-endpoint-left").value += 1
                    break
                if not service.budget.withdraw(reactor.now):
                    self.retry_reason = BUDGET.text
                    self.context.stats.retries.child(service.label, "budget").value += 1
                    break
                self.context.stats.retries.child(service.label, "tried").value += 1
            finally:
                endpoint.inflight -= 1
                if up is not None:
                    self.down.partner = None
        status = 504 if failed.flag is Flag.UT else 502 if failed.flag is Flag.UPE else 503
        at = self.upstream.text if self.upstream is not None else ""
        keep_alive = await self._answer(status, failed.flag, failed.detail, head, body, at, service.rule)
        return keep_alive, failed.flag, failed.detail

    async def _connect(self, endpoint: Endpoint, service: Service, deadline: float) -> Conn:
        within = min(service.timeouts.connect_s, deadline - self.reactor.now)
        try:
            up = await endpoint.dialer.dial(endpoint.peer, ALPN_HTTP1, within)
        except ConnectFailed as exc:
            late = deadline <= trio.current_time()
            raise AttemptFailed(Phase.NOT_CONNECTED, Flag.UT if late else Flag.UF, exc.detail) from exc
        return up

    async def _attempt(
        self,
        up: Conn,
        endpoint: Endpoint,
        head: RequestHead,
        message: bytes,
        body: Body | None,
        deadline: float,
    ) -> tuple[bool, str, str]:
        """Send the request on `up` and relay the response; `up` is given back or closed."""
        down = self.down
        if down.ended & BROKEN:
            up.abort()
            raise PartnerGone("the client reset the connection")
        down.partner = up
        if deadline != NEVER:
            self.reactor.set_deadline(up, deadline)
        reuse = False
        try:
            if body is None:
                keep, flag, detail, reuse = await self._talk(up, head, message)
                return keep, flag, detail
            async with trio.open_nursery() as nursery:
                failure: Exception | None = None
                try:
                    keep, flag, detail, reuse = await self._talk(up, head, message, body, nursery)
                except (AttemptFailed, TransportError) as exc:
                    failure = exc
                nursery.cancel_scope.cancel()
            if body.bad is not None and self.status == 0:
                raise body.bad
            if failure is not None:
                raise failure
            if not body.sent:
                # The response overtook the body, so the endpoint may still take what comes for a part of it.
                reuse = False
                keep = keep and body.done
            return keep, flag, detail
        finally:
            if reuse:
                endpoint.give(up)
            else:
                up.abort()

    async def _talk(
        self,
        up: Conn,
        head: RequestHead,
        message: bytes,
        body: Body | None = None,
        nursery: trio.Nursery | None = None,
    ) -> tuple[bool, str, str, bool]:
        """One request and its response on `up`; (keep downstream, flag, detail, reuse upstream)."""
        limits = self.context.limits
        before = up.sent
        buf = b""
        interim = False
        try:
            await up.write(message)
            if body is not None and nursery is not None:
                nursery.start_soon(body.send, up)
            while True:
                buf = await up.read()
                if not buf:
                    raise PeerReset("the endpoint closed the connection before it responded")
                end = head_end(buf, 0, limits)
                while end < 0:
                    data = await up.read()
                    if not data:
                        raise PeerReset("the endpoint closed the connection within the response head")
                    start = max(0, len(buf) - 3)
                    buf += data
                    end = head_end(buf, start, limits)
                response = parse_response(buf[:end], head.method, limits)
                if response.status >= 200:
                    break
                interim = True
                await self._interim(response, head, buf[end:], up)
        except PartnerGone:
            raise
        except DeadlineExceeded:
            raise AttemptFailed(
                Phase.SENT_NO_RESPONSE, Flag.UT, "no response within the request timeout"
            ) from None
        except HttpError as exc:
            raise AttemptFailed(Phase.RESPONSE_STARTED, Flag.UPE, f"malformed response: {exc}") from exc
        except TransportError as exc:
            raise AttemptFailed(_phase(up, before, interim or bool(buf), exc), Flag.UC, exc.detail) from exc
        return await self._relay(response, head, buf, end, up, body)

    async def _interim(self, response: ResponseHead, head: RequestHead, rest: bytes, up: Conn) -> None:
        """Pass a 1xx response on; `rest`, which came after it, is read next."""
        if response.status == 101:
            raise HttpError(502, "unexpected-upgrade", "the endpoint switched protocols without being asked")
        if head.minor:
            try:
                await self.down.write(b"%s\r\n%s\r\n" % (response.line, response.forward_block(False)))
            except TransportError as exc:
                raise PartnerGone(exc.detail) from exc
        if rest:
            up.unread(rest)

    async def _relay(
        self, response: ResponseHead, head: RequestHead, buf: bytes, end: int, up: Conn, body: Body | None
    ) -> tuple[bool, str, str, bool]:
        """Relay a final response; errors from here on cut the client's connection."""
        down = self.down
        view = self.view
        self.status = response.status
        framing = response.framing
        have = len(buf) - end
        keep = head.keep_alive and head.minor == 1 and framing != UNTIL_CLOSE
        if keep and ((self.context.draining and view.drains) or down.expires <= self.reactor.now):
            keep = False
        if body is not None and not body.done:
            keep = False  # nobody will read what is still to come
        reuse = response.keep_alive and head.minor == 1 and up.expires > self.reactor.now

        scanner: ChunkScanner | None = None
        if framing == LENGTH:
            left = response.length - have
            if left < 0:
                buf = buf[: end + response.length]
                left, reuse = 0, False
        elif framing == CHUNKED:
            scanner = ChunkScanner(self.context.limits)
            try:
                if not head.minor:
                    raise HttpError(502, "chunks-for-http10", "a chunked response to an HTTP/1.0 request")
                used = scanner.feed(buf[end:])
            except HttpError as exc:
                self.status = 0
                raise AttemptFailed(Phase.RESPONSE_STARTED, Flag.UPE, f"malformed response: {exc}") from exc
            if used < have:
                buf = buf[: end + used]
                reuse = False
            left = 0 if scanner.done else 1
        elif framing == NO_BODY:
            if have:
                buf = buf[:end]
                reuse = False
            left = 0
        else:
            left, reuse = 1, False

        try:
            if response.hop or not keep or not response.minor:
                block = response.forward_block(view.keep_mesh_error and bool(up.peer))
                if not keep:
                    block += b"connection: close\r\n"
                line = response.line if response.minor else b"HTTP/1.1" + response.line[8:]
                await down.write(b"%s\r\n%s\r\n%s" % (line, block, buf[end:]))
            else:
                await down.write(buf)
            if left:
                error = await self._relay_body(framing, left, scanner, up)
                if error:
                    reuse = False
        except _UpstreamCut as exc:
            down.abort()
            return False, exc.flag, exc.detail, False
        except (PartnerGone, PeerReset, Truncated, TlsFailed, DeadlineExceeded) as exc:
            down.abort()
            return False, Flag.DC, exc.detail, False
        return keep, "", "", reuse

    async def _relay_body(self, framing: int, left: int, scanner: ChunkScanner | None, up: Conn) -> bool:
        """Relay the rest of a response body; whether the endpoint sent more than its message."""
        down = self.down
        read = up.read
        while True:
            try:
                data = await read()
            except DeadlineExceeded:
                raise _UpstreamCut(
                    Flag.UT, "the response was not complete within the request timeout"
                ) from None
            except PartnerGone:
                raise
            except TransportError as exc:
                raise _UpstreamCut(Flag.UC, exc.detail) from exc
            if not data:
                if framing == UNTIL_CLOSE:
                    return False
                raise _UpstreamCut(Flag.UC, "the endpoint closed the connection within the response body")
            extra = False
            if framing == LENGTH:
                if len(data) > left:
                    data, extra = data[:left], True
                left -= len(data)
                done = left == 0
            elif scanner is not None:
                try:
                    used = scanner.feed(data)
                except HttpError as exc:
                    raise _UpstreamCut(Flag.UPE, f"malformed response: {exc}") from exc
                if used < len(data):
                    data, extra = data[:used], True
                done = scanner.done
            else:
                done = False
            await down.write(data)
            if done:
                return extra

    # -- answers of our own -----------------------------------------------------------------------------

    async def _answer(
        self,
        status: int,
        flag: str,
        detail: str,
        head: RequestHead,
        body: Body | None,
        endpoint: str,
        rule: str = "",
    ) -> bool:
        """Answer a request ourselves; whether the connection can carry another."""
        self.status = status
        keep = head.keep_alive and head.minor == 1 and body is None
        if self.view.drains and self.context.draining:
            keep = False
        try:
            await self.down.write(
                self._response(status, flag, detail, endpoint, rule, keep, head.method == b"HEAD")
            )
        except TransportError:
            self.down.abort()
            return False
        return keep

    def _response(
        self, status: int, flag: str, detail: str, endpoint: str, rule: str, keep: bool, no_body: bool
    ) -> bytes:
        view = self.view
        if view.explain:
            error = error_header(flag, view.side, rule, endpoint, detail)
            text = f"{flag}: {detail}\n".encode()
        else:
            error = flag.encode()
            text = f"{flag}\n".encode()
        return (
            b"HTTP/1.1 %d %s\r\nserver: triomesh\r\ncontent-type: text/plain; charset=utf-8\r\n%s%s%s%s\r\n%s"
            % (
                status,
                _REASONS[status],
                b"content-length: %d\r\n" % len(text),
                b"x-triomesh-error: %s\r\n" % error,
                b"x-request-id: %s\r\n" % self.request_id if self.request_id else b"",
                b"" if keep else b"connection: close\r\n",
                b"" if no_body else text,
            )
        )

    async def _refuse(self, exc: HttpError, *, counted: bool) -> None:
        """Answer a malformed request and close."""
        detail = f"{exc.reason}: {exc}"
        if not counted:
            self.request_id = b""
            self.upstream = None
            self.view.stats.done(exc.status, Flag.DPE, 0.0)
            self.context.record(self._record(None, exc.status, Flag.DPE, detail, 0.0, 0, 0))
        try:
            await self.down.write(self._response(exc.status, Flag.DPE, detail, "", "", False, False))
            await self.down.linger_close()
        except TransportError:
            self.down.abort()

    def _count(
        self, head: RequestHead, flag: str, detail: str, started: float, sent: int, received: int
    ) -> None:
        """Statistics and the access log of one exchange; `sent` and `received` as they were before it."""
        duration_s = self.reactor.now - started
        stats = self.view.stats
        endpoint = self.upstream
        if endpoint is not None and self.view.per_endpoint:
            stats = endpoint.stats
        stats.done(self.status, flag, duration_s)
        if flag or self.context.log_all:
            down = self.down
            self.context.record(
                self._record(
                    head, self.status, flag, detail, duration_s, down.received - received, down.sent - sent
                )
            )

    def _record(
        self,
        head: RequestHead | None,
        status: int,
        flag: str,
        detail: str,
        duration_s: float,
        bytes_in: int,
        bytes_out: int,
    ) -> Record:
        view = self.view
        return Record(
            time=self.reactor.now - duration_s + self.context.wall_offset,
            direction=view.direction,
            protocol="HTTP/1.1" if head is None or head.minor else "HTTP/1.0",
            method=head.method if head else b"",
            path=head.target if head else b"",
            host=head.host if head else b"",
            status=status,
            flag=str(flag),
            detail=detail,
            side=view.side if flag else "",
            duration_ms=duration_s * 1000,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            source=view.source,
            source_identity=self.down.peer,
            destination=view.destination,
            upstream=self.upstream.text if self.upstream else "",
            attempts=self.attempts,
            retry_reason=self.retry_reason,
            mtls=bool(self.down.peer) or bool(self.upstream and self.upstream.peer.identity),
            request_id=self.request_id,
        )


class _UpstreamCut(Exception):
    def __init__(self, flag: str, detail: str) -> None:
        super().__init__(detail)
        self.flag = flag
        self.detail = detail


_REFUSALS = frozenset(
    (
        "tlsv1 alert unknown ca",
        "sslv3 alert bad certificate",
        "sslv3 alert certificate expired",
        "sslv3 alert certificate revoked",
        "sslv3 alert certificate unknown",
        "sslv3 alert unsupported certificate",
        "tlsv13 alert certificate required",
        "tlsv1 alert access denied",
    )
)


def _phase(up: Conn, sent_before: int, responded: bool, exc: TransportError) -> Phase:
    """How far a failed attempt had come (what may have been processed)."""
    if responded:
        return Phase.RESPONSE_STARTED
    if up.fresh and isinstance(exc, TlsFailed) and exc.detail in _REFUSALS:
        # TLS 1.3: the peer's refusal of our certificate comes as the first thing after the handshake.
        return Phase.NOT_CONNECTED
    if up.sent == sent_before:
        return Phase.NOTHING_SENT
    return Phase.SENT_NO_RESPONSE
