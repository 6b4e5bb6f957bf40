"""The request loop of one downstream HTTP/1.1 connection.

One task reads a request, sends it to an endpoint, relays the response and goes on with the next request, so
pipelined requests are answered in order. Header bytes are forwarded as they came, but for what a hop has to
change. A request body that has not wholly arrived with its head is sent by a helper task, so that a
response may overtake it. Only `Conn`s are read and written here; what a route does with a request is in
`route.py`, attempts at endpoints are in `attempt.py`.
"""

from __future__ import annotations

import trio

from mesh_proxy.base.errors import DeadlineExceeded, PartnerGone, TransportError
from mesh_proxy.http.answer import fail, refuse
from mesh_proxy.http.attempt import send
from mesh_proxy.http.body import Body
from mesh_proxy.http.context import Context, Denied, View
from mesh_proxy.http.exchange import Exchange
from mesh_proxy.http.route import answer_by_route, no_route
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.pool.plan import Plan
from mesh_proxy.wire.http1 import (
    CHUNKED,
    LENGTH,
    ChunkScanner,
    HttpError,
    RequestHead,
    check_target,
    head_end,
    parse_request,
    skip_leading_crlf,
)

HEAD_S = 60.0
"""A request head must be complete this long after its first byte."""


class Http1Server:
    """Serves one downstream connection."""

    __slots__ = ("buf", "context", "down", "serving", "view", "x")

    def __init__(self, context: Context, view: View) -> None:
        self.context = context
        self.view = view
        self.down = view.conn
        self.buf = b""
        self.x = Exchange(context, view)
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
                    if down.between and self.context.stopping and self.x.request_id:
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
                    buf, end = await self._rest_of_head(buf)
                    if end < 0:
                        down.close()  # the client left within a head: there is nobody to answer
                        return
                down.deadline = NEVER
                head = parse_request(buf[:end], limits)
                if not await self._exchange(head, buf, end):
                    if not down.closed:
                        await down.linger_close()
                    return
        except HttpError as exc:
            detail = f"{exc.reason}: {exc}"
            if not self.serving:
                self.x.refused(exc.status, Flag.DPE, detail)
            await refuse(self.x, exc.status, Flag.DPE, detail)
        except DeadlineExceeded:
            # Idle between requests: close quietly. Within a head: nobody to wait for either.
            down.bye()
        except TransportError:
            down.abort()
        finally:
            self.x.close()
            if self.serving:
                down.abort()  # cancelled within an exchange: a FIN would complete a close-delimited body
            else:
                down.close()

    async def _rest_of_head(self, buf: bytes) -> tuple[bytes, int]:
        """Read on until the head is complete; its end is -1 if the client ends before."""
        down = self.down
        limits = self.context.limits
        down.set_deadline(HEAD_S)
        head_buf = bytearray(buf)
        end = -1
        while end < 0:
            data = await down.read()
            if not data:
                break
            if head_buf == b"\r" and data[0] == 10:
                head_buf.clear()  # the empty line that is forgiven, in two reads
                data = data[1:]
            start = max(0, len(head_buf) - 3)
            head_buf += data
            end = head_end(head_buf, start, limits)
        return bytes(head_buf), end

    async def _exchange(self, head: RequestHead, buf: bytes, end: int) -> bool:
        """Serve one request; whether the connection can carry another."""
        if head.target[0] != 47 or head.method == b"CONNECT":
            check_target(head)
        x = self.x
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

        x.begin(head, body)
        self.serving = True
        sent, received = self.down.sent, self.down.received - stop
        flag: str = ""
        detail = ""
        try:
            service = self.view.service()
            if isinstance(service, Denied):
                x.request_id = head.request_id or self.context.next_request_id()
                keep, flag, detail = await fail(x, service.status, service.flag, service.detail)
            else:
                plan = service.plan or service.route(head)
                if plan is None:
                    keep, flag, detail = await no_route(x, service)
                else:
                    x.rule = plan.rule
                    x.message = self._forwarded(plan, buf, end, stop)
                    keep, flag, detail = await (answer_by_route if plan.answers else send)(x, plan)
        except PartnerGone as exc:
            flag, detail, keep = Flag.DC, exc.detail, False
            self.down.abort()
        except (trio.Cancelled, BaseExceptionGroup):  # a group where the body's helper was cancelled too
            flag, detail = Flag.DC, "the sidecar stopped"
            raise
        except HttpError as exc:
            x.status, flag, detail = exc.status, Flag.DPE, str(exc)
            raise
        finally:
            x.end(flag, detail, self.down.received - received, self.down.sent - sent)
        self.serving = False
        if body is not None:
            self.buf = body.rest
        return keep

    def _forwarded(self, plan: Plan, buf: bytes, end: int, stop: int) -> bytes:
        """The request as it goes on: the client's own bytes wherever nothing has to change."""
        x = self.x
        head = x.head
        request_id = head.request_id
        if head.hop or plan.changes_request:
            block = head.forward_block()
            target = head.target
            if not request_id:
                request_id = self.context.next_request_id()
                block += b"x-request-id: " + request_id + b"\r\n"
            if plan.changes_request:
                target, block = plan.changed(target, block)
            if head.minor == 0:
                block += b"connection: close\r\n"
            x.request_id = request_id
            return b"%s %s HTTP/1.%d\r\n%s\r\n%s" % (head.method, target, head.minor, block, buf[end:stop])
        if not request_id:
            x.request_id = request_id = self.context.next_request_id()
            return b"%sx-request-id: %s\r\n\r\n%s" % (buf[: end - 2], request_id, buf[end:stop])
        x.request_id = request_id
        return buf[:stop] if stop < len(buf) else buf
