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
from mesh_proxy.policy.edits import dropper
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.pool.plan import Plan
from mesh_proxy.wire.http1 import (
    LENGTH,
    NO_BODY,
    ChunkScanner,
    HttpError,
    RequestHead,
    head_end,
    parse_request,
    skip_leading_crlf,
)
from mesh_proxy.wire.path import normalise
from mesh_proxy.wire.targets import authority_of, check_target, in_short
from mesh_proxy.wire.upgrade import Asked, asked

_drop_expect = dropper(("expect",))
_drop_host = dropper(("host",))


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
        port = self.view.plaintext_port
        if port:
            self.context.relays[self.x] = port
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
                else:
                    await down.take_turns()  # one read brings thousands of requests
                dropped = skip_leading_crlf(buf) if buf[0] == 13 else 0
                if dropped:
                    buf = buf[dropped:]
                end = head_end(buf, 0, limits)
                if end < 0:
                    buf, end = await self._rest_of_head(buf, dropped > 0)
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
            if port:
                del self.context.relays[self.x]
            self.x.close()
            if self.serving:
                down.abort()  # cancelled within an exchange: a FIN would complete a close-delimited body
            else:
                down.close()

    async def _rest_of_head(self, buf: bytes, forgiven: bool) -> tuple[bytes, int]:
        """Read on until the head is complete; its end is -1 if the client ends before.

        `forgiven`: an empty line before it has been dropped already.
        """
        down = self.down
        limits = self.context.limits
        down.set_deadline(limits.head_seconds)
        head_buf = bytearray(buf)
        end = -1
        while end < 0:
            data = await down.read()
            if not data:
                break
            if head_buf == b"\r" and data[0] == 10 and not forgiven:
                head_buf.clear()  # the empty line that is forgiven, in two reads
                data = data[1:]
                forgiven = True
            start = max(0, len(head_buf) - 3)
            head_buf += data
            end = head_end(head_buf, start, limits)
        return bytes(head_buf), end

    async def _exchange(self, head: RequestHead, buf: bytes, end: int) -> bool:
        """Serve one request; whether the connection can carry another."""
        context = self.context
        target = head.target
        if target[0] != 47 or head.method == b"CONNECT":
            if not head.minor and not head.host:
                head.host = authority_of(head.method, target)
            check_target(head.method, target, head.host)
            head.target = in_short(head.method, target)
        plain = context.path_plain
        if plain is not None and not plain(head.target):
            head.target = normalise(head.target, context.path_mode)
        rewritten = target is not head.target or not head.minor
        wants = asked(head, context.upgrades) if head.hop or head.method == b"CONNECT" else None
        x = self.x
        body, stop = (None, end) if head.framing == NO_BODY else self._body(head, buf, end)
        self.buf = buf[stop:] if stop < len(buf) else b""
        early = len(self.buf)

        x.begin(head, body)
        self.serving = True
        sent, received = self.down.sent, self.down.received - stop
        if wants is not None:
            self._ask(wants)
        flag: str = ""
        detail = ""
        try:
            service = self.view.service()
            if isinstance(service, Denied):
                x.request_id = head.request_id or context.next_request_id()
                keep, flag, detail = await fail(x, service.status, service.flag, service.detail)
            else:
                plan = service.plan or service.route(head)
                if plan is None:
                    keep, flag, detail = await no_route(x, service)
                else:
                    x.rule = plan.rule
                    x.message = self._forwarded(plan, buf, end, stop, rewritten)
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
            if x.switched:
                received -= early
            x.end(flag, detail, self.down.received - received, self.down.sent - sent)
        self.serving = False
        if body is not None:
            self.buf = body.rest
        return keep

    def _body(self, head: RequestHead, buf: bytes, end: int) -> tuple[Body | None, int]:
        """What of the body is still to come, and where that part of it ends which has come with the head."""
        limits = self.context.limits
        if head.framing == LENGTH:
            stop = end + head.length
            if stop <= len(buf):
                return None, stop
            return Body(self.down, stop - len(buf), None, limits.body_idle_seconds), len(buf)
        scanner = ChunkScanner(limits)
        stop = end + scanner.feed(buf[end:])
        return (None if scanner.done else Body(self.down, 0, scanner, limits.body_idle_seconds)), stop

    def _ask(self, wants: Asked) -> None:
        """The request may end in a tunnel, whose first bytes are those behind the request."""
        self.x.asked = wants
        if not wants.offered:
            self.x.head.keep_alive = False  # what follows a CONNECT that failed was not meant as a request
        if self.buf:
            self.down.unread(self.buf)
            self.buf = b""

    def _forwarded(self, plan: Plan, buf: bytes, end: int, stop: int, rewritten: bool) -> bytes:
        """The request as it goes on: the client's own bytes wherever nothing has to change."""
        x = self.x
        head = x.head
        added = self.view.identity_line
        if not head.request_id:
            x.request_id = request_id = self.context.next_request_id()
            added += b"x-request-id: %s\r\n" % request_id
        else:
            x.request_id = head.request_id
        if head.hop or rewritten or plan.changes_request:
            block = head.forward_block() + added
            target = head.target
            if not head.minor:
                block = self._block_of_http10(head, block)
            if plan.changes_request:
                target, block = plan.changed(target, block)
            if x.asked is not None:
                block += x.asked.lines
            return b"%s %s HTTP/1.1\r\n%s\r\n%s" % (head.method, target, block, buf[end:stop])
        if added:
            return b"%s%s\r\n%s" % (buf[: end - 2], added, buf[end:stop])
        return buf[:stop] if stop < len(buf) else buf

    def _block_of_http10(self, head: RequestHead, block: bytes) -> bytes:
        """Header lines of an HTTP/1.0 request as it goes on, in the sidecar's own version (RFC 9112, 2.3)."""
        special = dict(head.special)
        if b"expect" in special:
            block = _drop_expect(block)  # a 1.0 client does not wait for 100 (RFC 9110, 10.1.1)
        if special.get(b"host") == head.host:
            return block
        # RFC 9112, 3.3: where nothing names a host it is the address of the connection that the client means.
        host = head.host or self.view.destination.encode()
        return b"host: %s\r\n%s" % (host, _drop_host(block))
