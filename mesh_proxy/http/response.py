"""The way of a response from the endpoint to the client, once it will be passed on."""

from __future__ import annotations

from mesh_proxy.base.errors import (
    DeadlineExceeded,
    PartnerGone,
    PeerReset,
    TlsFailed,
    TransportError,
    Truncated,
)
from mesh_proxy.http.exchange import AttemptFailed, Exchange
from mesh_proxy.net.conn import Conn
from mesh_proxy.policy.edits import dropper
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.policy.retry import Phase
from mesh_proxy.pool.plan import Plan
from mesh_proxy.wire.dechunk import Dechunker
from mesh_proxy.wire.http1 import (
    CHUNKED,
    LENGTH,
    NO_BODY,
    UNTIL_CLOSE,
    ChunkScanner,
    HttpError,
    ResponseHead,
)

_drop_coding = dropper(("trailer", "transfer-encoding"))


class Cut(Exception):
    """The endpoint's response ended too early: the client's connection is cut, or its stream reset."""

    def __init__(self, flag: str, detail: str, code: int = 0) -> None:
        """`code`: what an HTTP/2 client's stream is reset with, if the endpoint's was."""
        super().__init__(detail)
        self.flag = flag
        self.detail = detail
        self.code = code


async def interim(x: Exchange, response: ResponseHead, rest: bytes, up: Conn) -> None:
    """Pass a 1xx response on; `rest`, which came after it, is read next."""
    if response.status == 101:
        raise HttpError(502, "unexpected-upgrade", "the endpoint switched protocols without being asked")
    if x.head.minor:
        try:
            await x.conn.write(b"%s\r\n%s\r\n" % (response.line, response.forward_block(False)))
        except TransportError as exc:
            raise PartnerGone(exc.detail) from exc
    if rest:
        up.unread(rest)
        await x.conn.take_turns()


async def relay(
    x: Exchange, plan: Plan, response: ResponseHead, buf: bytes, end: int, up: Conn
) -> tuple[bool, str, str, bool]:
    """Relay a final response; errors from here on cut the client's connection.

    Returns whether the client's connection can carry another request, flag, detail, and whether the
    endpoint's can.
    """
    down = x.conn
    view = x.view
    head = x.head
    body = x.body
    x.status = response.status
    framing = response.framing
    have = len(buf) - end
    keep = head.keep_alive and framing != UNTIL_CLOSE and (framing != CHUNKED or head.minor == 1)
    if keep and ((x.context.draining and view.drains) or down.expires <= x.reactor.now):
        keep = False
    if body is not None and not body.done:
        keep = False  # nobody will read what is still to come
    reuse = response.keep_alive and up.expires > x.reactor.now

    scanner: ChunkScanner | None = None
    dechunk: Dechunker | None = None
    if framing == LENGTH:
        left = response.length - have
        if left < 0:
            buf = buf[: end + response.length]
            left, reuse = 0, False
    elif framing == CHUNKED:
        scanner = ChunkScanner(x.context.limits)
        used = _first_chunks(x, scanner, buf[end:])
        if used < have:
            buf = buf[: end + used]
            reuse = False
        left = 0 if scanner.done else 1
        if not head.minor:
            dechunk = Dechunker()  # an HTTP/1.0 client reads to the connection's end
            buf = buf[:end] + dechunk.feed(buf[end:])
    elif framing == NO_BODY:
        if have:
            buf = buf[:end]
            reuse = False
        left = 0
    else:
        left, reuse = 1, False

    try:
        edits = plan.response_edits
        if response.hop or not keep or not response.minor or not head.minor or edits is not None:
            block = response.forward_block(view.keep_mesh_error and bool(up.peer))
            if edits is not None:
                block = edits.apply(block)
            if not head.minor:
                block = _drop_coding(block)  # which HTTP/1.0 does not know, a response to HEAD included
            if not keep:
                block += b"connection: close\r\n"
            elif not head.minor:
                block += b"connection: keep-alive\r\n"
            line = response.line if response.minor else b"HTTP/1.1" + response.line[8:]
            await down.write(b"%s\r\n%s\r\n%s" % (line, block, buf[end:]))
        else:
            await down.write(buf)
        if left and await _rest(x, framing, left, scanner, dechunk, up):
            reuse = False
    except Cut as exc:
        down.abort()
        return False, exc.flag, exc.detail, False
    except (PartnerGone, PeerReset, Truncated, TlsFailed, DeadlineExceeded) as exc:
        down.abort()
        idle = x.idle is not None and x.idle.fired
        return False, Flag.SI if idle else Flag.DC, exc.detail, False
    return keep, "", "", reuse


def _first_chunks(x: Exchange, scanner: ChunkScanner, data: bytes) -> int:
    """Check what came of a chunked body with its head; nothing has been passed on yet."""
    try:
        return scanner.feed(data)
    except HttpError as exc:
        x.status = 0
        raise AttemptFailed(Phase.RESPONSE_STARTED, Flag.UPE, f"malformed response: {exc}") from exc


async def _rest(
    x: Exchange, framing: int, left: int, scanner: ChunkScanner | None, dechunk: Dechunker | None, up: Conn
) -> bool:
    """Relay the rest of a response body; whether the endpoint sent more than its message."""
    down = x.conn
    idle = x.idle
    read = up.read_parts
    while True:
        try:
            parts = await read()
        except DeadlineExceeded:
            raise late(x) from None
        except PartnerGone:
            raise
        except TransportError as exc:
            raise Cut(Flag.UC, exc.detail) from exc
        if not parts:
            if framing == UNTIL_CLOSE:
                return False
            raise Cut(Flag.UC, "the endpoint closed the connection within the response body")
        extra = False
        if framing == LENGTH:
            size = sum(map(len, parts))
            if size > left:
                parts, size, extra = [b"".join(parts)[:left]], left, True
            left -= size
            done = left == 0
        elif scanner is not None:
            data = b"".join(parts)
            try:
                used = scanner.feed(data)
            except HttpError as exc:
                raise Cut(Flag.UPE, f"malformed response: {exc}") from exc
            if used < len(data):
                data, extra = data[:used], True
            done = scanner.done
            if dechunk is not None:
                data = dechunk.feed(data)
            parts = [data] if data else []
        else:
            done = False
        if idle is not None:
            idle.touch()
        if parts:
            await down.write_parts(parts)
        if done:
            return extra
        if idle is not None:
            idle.touch()


def late(x: Exchange) -> Cut:
    """What did not come in time."""
    idle = x.idle
    if idle is None or not idle.fired:
        return Cut(Flag.UT, "the response was not complete within the request timeout")
    if x.body is not None and not x.body.done:
        return Cut(Flag.SI, f"no byte of the request or the response for {idle.idle_s:g} s")
    return Cut(Flag.UT, f"no byte of the response for {idle.idle_s:g} s (stream idle timeout)")
