"""One request and its response where at least one side speaks HTTP/2."""

from __future__ import annotations

import trio

from mesh_proxy.base.errors import (
    DeadlineExceeded,
    PartnerGone,
    ProtocolFailed,
    StreamReset,
    TransportError,
)
from mesh_proxy.http.body import Arriving, StreamBody
from mesh_proxy.http.convert import from_http1
from mesh_proxy.http.exchange import AttemptFailed, Exchange
from mesh_proxy.http.http1_call import Http1Call
from mesh_proxy.http.http1_client import Http1Client
from mesh_proxy.http.message import Call, Request, trailers_passed_on, without_mesh_fields
from mesh_proxy.http.response import Cut, late
from mesh_proxy.http.retry import retried_response
from mesh_proxy.http.talk import Talked, refused_certificate, timed_out
from mesh_proxy.http2.stream import ClientStream, ServerStream
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.policy.retry import Phase
from mesh_proxy.pool.cluster import Cluster
from mesh_proxy.pool.plan import Plan
from mesh_proxy.wire import grpc
from mesh_proxy.wire.http1 import HttpError
from mesh_proxy.wire.http2.seam import CANCEL, ENHANCE_YOUR_CALM, INTERNAL_ERROR, RequestFields
from mesh_proxy.wire.websocket import websocket_request

_PASSED_ON = frozenset((CANCEL, ENHANCE_YOUR_CALM))
"""Codes of an endpoint's reset that say as much to the client."""


INTERIMS = 100
"""Interim responses to one request; a client that reads nothing would have us hold them all."""


def outgoing(x: Exchange, deadline: float) -> Request:
    """The request as an attempt sends it that ends by `deadline`."""
    request = x.request if x.request is not None else from_http1(x)
    if x.grpc_timeout_s is not None and deadline - x.reactor.now < x.grpc_timeout_s - 0.001:
        was = request.fields
        block = grpc.with_timeout(was.block, deadline - x.reactor.now)
        fields = RequestFields(was.method, was.scheme, was.target, was.protocol, block)
        return Request(fields, request.first, request.trailers)
    return request


async def converse(
    x: Exchange,
    plan: Plan,
    cluster: Cluster,
    up: Conn | ClientStream,
    request: Request,
    body: Arriving | None = None,
    nursery: trio.Nursery | None = None,
) -> Talked:
    """One request, whose head is on its way if `up` is a stream, and its response.

    Where the request's body is still arriving, it runs by `with_body`. Raises AttemptFailed.
    """
    client = x.stream if x.stream is not None else Http1Client(x.conn, x.head)
    keep_error = x.view.keep_mesh_error and bool(x.upstream and x.upstream.peer.identity)
    before = up.sent
    interims = 0
    connect = x.head.method == b"CONNECT"
    call: Call
    try:
        if isinstance(up, ClientStream):
            call = up
            await _send_first(up, request, body is None)
        else:
            call = http1 = Http1Call(up, x.head.method, x.context.limits, keep_error)
            if connect:
                await http1.ask_tunnel(websocket_request(request.fields, plan.rng))
            else:
                await http1.begin(request.fields, request.first, body is None, request.trailers)
        if body is not None and nursery is not None and not (connect and isinstance(up, Conn)):
            nursery.start_soon(body.convert, call, x.idle, request.dechunk)
        while True:
            status, block, end = await call.response()
            if status >= 200:
                break
            interims += 1
            if interims > INTERIMS:
                raise HttpError(502, "interim-responses", f"more than {INTERIMS} interim responses")
            await _interim(x, client, status, block)
    except PartnerGone:
        raise
    except DeadlineExceeded:
        raise timed_out(x, plan, up.sending, interims > 0) from None
    except HttpError as exc:
        raise AttemptFailed(Phase.RESPONSE_STARTED, Flag.UPE, f"malformed response: {exc}") from exc
    except TransportError as exc:
        raise _failed(up, before, interims > 0, exc) from exc
    if connect and status < 300:
        x.switched = x.reactor.now  # a tunnel has no time-out and no latency (RFC 8441; RFC 9110, 9.3.6)
        up.deadline = NEVER
        if isinstance(up, Conn) and body is not None and nursery is not None:
            # Not before: an endpoint that stays with HTTP would take what the client says for requests.
            nursery.start_soon(body.convert, call, x.idle, None)
    elif plan.per_try_s is not None:
        x.reactor.set_deadline(up, x.deadline)
    if isinstance(body, StreamBody):
        body.unbounded()
    if x.idle is not None:
        x.idle.touch()
    if plan.retry.by_response and not interims:
        retried = retried_response(x, plan, cluster, status, block)
        if retried is not None:
            raise retried
    if isinstance(up, ClientStream):
        block = without_mesh_fields(block, keep_error)
    keep, flag, detail = await _relay(x, plan, client, call, status, block, end)
    return keep, flag, detail, not flag and isinstance(call, Http1Call) and call.reuse


async def _send_first(up: ClientStream, request: Request, whole: bool) -> None:
    """Send what there is of the body."""
    try:
        if request.first:
            await up.write(request.first, whole and not request.trailers)
        if whole and request.trailers:
            await up.end(request.trailers)
    except StreamReset:
        pass  # a response may have come before: the reader meets it, or the reset


async def _interim(x: Exchange, client: ServerStream | Http1Client, status: int, block: bytes) -> None:
    if status == 101:
        raise HttpError(502, "unexpected-upgrade", "the endpoint switched protocols without being asked")
    try:
        client.interim(status, without_mesh_fields(block))  # a block of HTTP/1 comes without them
        if isinstance(client, Http1Client):
            await client.flush()
    except TransportError as exc:
        raise PartnerGone(exc.detail) from exc
    await x.conn.take_turns()


def _failed(up: Conn | ClientStream, before: int, responded: bool, exc: TransportError) -> AttemptFailed:
    """An attempt that ended before its response did begin."""
    if isinstance(exc, ProtocolFailed) or (isinstance(exc, StreamReset) and not exc.remote):
        return AttemptFailed(Phase.RESPONSE_STARTED, Flag.UPE, f"malformed response: {exc.detail}")
    fresh = up.session.fresh if isinstance(up, ClientStream) else up.fresh
    nothing = exc.unprocessed if isinstance(up, ClientStream) else up.sent == before
    if responded:
        phase = Phase.RESPONSE_STARTED
    elif fresh and refused_certificate(exc):
        phase = Phase.NOT_CONNECTED
    else:
        phase = Phase.NOTHING_SENT if nothing else Phase.SENT_NO_RESPONSE
    failed = AttemptFailed(phase, Flag.UC, exc.detail)
    if isinstance(exc, StreamReset) and exc.code == ENHANCE_YOUR_CALM:
        # It is about what was asked: a head over the endpoint's limits, say. Any other would find the same.
        failed.final = failed.innocent = True
    if isinstance(up, ClientStream) and nothing and not responded:
        # A session that has ended meanwhile says nothing about the endpoint; that it refuses a stream does.
        reset = isinstance(exc, StreamReset)
        failed.refused = reset and up.session.open_to_new
        failed.stale = not failed.refused and (reset or not fresh)  # reset: GOAWAY has told the end
    return failed


async def _relay(
    x: Exchange,
    plan: Plan,
    client: ServerStream | Http1Client,
    call: Call,
    status: int,
    block: bytes,
    end: bool,
) -> tuple[bool, str, str]:
    """Relay a final response; errors from here on reset the client's stream, or cut its connection."""
    x.status = status
    if plan.response_edits is not None:
        block = plan.response_edits.apply(block)
    http1 = client if isinstance(client, Http1Client) else None
    if http1 is not None:
        http1.keep = _keep(x)
    try:
        client.respond(status, block, end)
        if end:
            if x.grpc:
                _note_grpc(x, block)
            await client.end()
        else:
            await _body(x, client, http1, call)
    except Cut as exc:
        await _cut(x, client, exc)
        return False, exc.flag, exc.detail
    except TransportError as exc:
        if http1 is not None:
            x.conn.abort()
        idle = x.idle is not None and x.idle.fired
        return False, Flag.SI if idle else Flag.DC, exc.detail
    return http1 is None or http1.keep, "", ""


async def _body(
    x: Exchange, client: ServerStream | Http1Client, http1: Http1Client | None, call: Call
) -> None:
    """Relay a body and its end. Raises Cut, and the errors of the client's end."""
    idle = x.idle
    try:
        data = call.take()
    except HttpError as exc:
        raise Cut(Flag.UPE, f"malformed response: {exc}") from exc
    if http1 is not None and not data:
        await http1.flush()
    while True:
        if not data:
            # More may have come, the end with it, while the last part was written.
            data = await _next(x, call)
        if idle is not None:
            idle.touch()
        if call.complete:
            trailers = trailers_passed_on(call.trailers)
            if x.grpc:
                _note_grpc(x, trailers)
            if data:
                await client.write(data, not trailers)
            if trailers or not data:
                await client.end(trailers)
            return
        await client.write(data)
        if idle is not None:
            idle.touch()
        data = b""


async def _next(x: Exchange, call: Call) -> bytes:
    try:
        return await call.read()
    except DeadlineExceeded:
        raise late(x) from None
    except PartnerGone:
        raise
    except HttpError as exc:
        raise Cut(Flag.UPE, f"malformed response: {exc}") from exc
    except StreamReset as exc:
        code = exc.code if exc.code in _PASSED_ON else INTERNAL_ERROR
        raise Cut(Flag.UC if exc.remote else Flag.UPE, exc.detail, code) from exc
    except TransportError as exc:
        raise Cut(Flag.UC, exc.detail) from exc


async def _cut(x: Exchange, client: ServerStream | Http1Client, cut: Cut) -> None:
    """Tell the client that its response is not whole; in gRPC's terms, unless the endpoint did the same."""
    if x.grpc and not cut.code:
        x.grpc_status = grpc.DEADLINE_EXCEEDED if cut.flag is Flag.UT else grpc.UNAVAILABLE
        try:
            await client.end(grpc.status_fields(x.grpc_status, f"{cut.flag}: {cut.detail}"))
            return
        except TransportError:
            pass
    if isinstance(client, ServerStream):
        # A reset drops what is queued: what did come goes out before it, in the turn of the sender.
        for _ in range(2):
            await trio.lowlevel.checkpoint()
    client.reset(cut.code or INTERNAL_ERROR)


def _note_grpc(x: Exchange, block: bytes) -> None:
    """What a gRPC response says at its end; without a status a client takes it for UNKNOWN."""
    x.grpc_status = grpc.status_in(block)
    if x.grpc_status < 0 and x.status == 200:
        x.grpc_status = grpc.UNKNOWN


def _keep(x: Exchange) -> bool:
    """Whether an HTTP/1 client's connection can carry another request after this one."""
    head = x.head
    if not head.keep_alive or head.minor != 1 or x.conn.expires <= x.reactor.now:
        return False
    if x.context.draining and x.view.drains:
        return False
    return x.body is None or x.body.done
