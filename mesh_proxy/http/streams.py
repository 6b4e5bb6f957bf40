"""The requests of one downstream HTTP/2 connection: what `server.py` is for HTTP/1.

Each stream is served by a task that the session keeps for such; what is decided about its request, and who
does it, is the same code.
"""

from __future__ import annotations

import re

import trio

from mesh_proxy.base.errors import PartnerGone, TransportError
from mesh_proxy.http.answer import fail
from mesh_proxy.http.attempt import send
from mesh_proxy.http.body import StreamBody
from mesh_proxy.http.context import Context, Denied, View
from mesh_proxy.http.exchange import Exchange, Outcome
from mesh_proxy.http.forwarded import without_claims
from mesh_proxy.http.message import Request, trailers_passed_on, without_mesh_fields
from mesh_proxy.http.route import answer_by_route, no_route
from mesh_proxy.http2.stream import ServerStream
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.pool.plan import Plan
from mesh_proxy.wire import grpc
from mesh_proxy.wire.http1 import CHUNKED, LENGTH, NO_BODY, HttpError, RequestHead
from mesh_proxy.wire.http2.seam import RequestFields
from mesh_proxy.wire.path import normalise
from mesh_proxy.wire.targets import check_target

# Names are in lower case here: the engines refuse others (RFC 9113, 8.2.1).
_fields = re.compile(
    rb"\n(host|content-(?:length|type)|x-(?:request-id|triomesh-[^:]*+)|expect|grpc-timeout):[\t ]*+([^\r]*+)"
).findall


class Http2Requests:
    """Serves the streams of one connection."""

    __slots__ = ("_context", "_view")

    def __init__(self, context: Context, view: View) -> None:
        self._context = context
        self._view = view

    async def serve(self, stream: ServerStream) -> None:
        """Serve one request."""
        x = Exchange(self._context, self._view, stream)
        # What a CONNECT brings is for its tunnel, once that is open.
        whole = stream.complete and stream.fields.method != b"CONNECT"
        head = request_head(stream.fields, whole)
        x.begin(head, None if whole else StreamBody(stream, self._context.limits.body_idle_seconds))
        flag: str = ""
        detail = ""
        port = self._view.plaintext_port
        if port:
            self._context.relays[x] = port
        try:
            _, flag, detail = await self._exchange(x, stream, head)
        except PartnerGone as exc:
            flag, detail = Flag.DC, exc.detail
        except HttpError as exc:
            try:
                _, flag, detail = await fail(x, exc.status, Flag.DPE, f"{exc.reason}: {exc}")
            except TransportError as gone:
                flag, detail = Flag.DC, gone.detail
        except (trio.Cancelled, BaseExceptionGroup):
            flag, detail = Flag.DC, "the sidecar stopped"
            raise
        finally:
            if port:
                del self._context.relays[x]
            x.end(flag, detail, stream.received, stream.sent)
            x.close()

    async def _exchange(self, x: Exchange, stream: ServerStream, head: RequestHead) -> Outcome:
        context = self._context
        x.request_id = head.request_id or context.next_request_id()
        for name, value in head.special:
            if name == b"content-type":
                x.grpc = grpc.is_grpc(value)
            elif name == b"grpc-timeout":
                x.grpc_timeout_s = grpc.timeout_s(value)
        if not x.grpc:
            x.grpc_timeout_s = None
        elif isinstance(x.body, StreamBody):
            x.body.unbounded()
        if not head.host:
            raise HttpError(400, "missing-host", "a request without an authority")
        target = head.target
        protocol = stream.fields.protocol
        if protocol and protocol.lower() not in context.upgrades:
            raise HttpError(501, "upgrade-not-listed", "extended CONNECT for a protocol that is not listed")
        if (target[:1] != b"/" or head.method == b"CONNECT") and not protocol:
            check_target(head.method, target, head.host)
        plain = context.path_plain
        if plain is not None and not plain(target):
            head.target = normalise(target, context.path_mode)
        service = self._view.service()
        if isinstance(service, Denied):
            return await fail(x, service.status, service.flag, service.detail)
        plan = service.plan or service.route(head)
        if plan is None:
            return await no_route(x, service)
        x.rule = plan.rule
        x.request = self._forwarded(x, plan, stream, head)
        return await (answer_by_route if plan.answers else send)(x, plan)

    def _forwarded(self, x: Exchange, plan: Plan, stream: ServerStream, head: RequestHead) -> Request:
        """The request as it goes on."""
        was = stream.fields
        block, target = head.block + self._view.identity_line, head.target
        if not head.request_id:
            block += b"x-request-id: %s\r\n" % x.request_id
        if plan.changes_request:
            target, block = plan.changed(target, block)
        fields = RequestFields(was.method, was.scheme, target, was.protocol, block)
        if x.body is not None:
            return Request(fields, b"")
        return Request(fields, stream.take(), trailers_passed_on(stream.trailers))


def request_head(fields: RequestFields, whole: bool) -> RequestHead:
    """An HTTP/2 request's head as the policies read it; its block is without what only sidecars say."""
    head = RequestHead()
    head.method = fields.method
    head.target = fields.target
    head.minor = 1
    head.host = head.request_id = b""
    head.framing, head.length = NO_BODY if whole else CHUNKED, 0
    head.expect_continue = mesh = False
    block = without_claims(fields.block)
    head.special = special = _fields(b"\n" + block)
    for name, value in special:
        if name == b"host":
            head.host = value
        elif name == b"content-length":
            head.length = size = int(value)
            head.framing = LENGTH if size else NO_BODY
        elif name == b"x-request-id":
            head.request_id = head.request_id or value
        elif name == b"expect":
            head.expect_continue = value.lower() == b"100-continue"
        elif name[:11] == b"x-triomesh-":
            mesh = True
    head.block = without_mesh_fields(block) if mesh else block
    head.keep_alive = True
    head.hop = False
    head.nominated = frozenset()
    return head
