"""Answers of the sidecar's own: errors that say what was wrong and who decided it."""

from __future__ import annotations

from mesh_proxy.base.errors import TransportError
from mesh_proxy.http.exchange import Exchange
from mesh_proxy.http.status_line import status_line
from mesh_proxy.http2.stream import ServerStream
from mesh_proxy.policy.answers import TEXT, Answer, for_grpc
from mesh_proxy.policy.edits import Edits
from mesh_proxy.policy.outcome import error_header
from mesh_proxy.wire import grpc


async def fail(x: Exchange, status: int, flag: str, detail: str) -> tuple[bool, str, str]:
    """Answer a request with an error; whether the connection can carry another, flag and detail."""
    given = _error(x, status, flag, detail)
    if x.grpc:
        given = for_grpc(given, flag, f"{flag}: {detail}" if x.view.explain else flag)
    return await answer(x, given), flag, detail


async def answer(x: Exchange, given: Answer, edits: Edits | None = None) -> bool:
    """Answer a request ourselves, with `edits` of its fields; whether the connection can carry another."""
    x.status = given.status
    if x.stream is not None:
        return await _answer_stream(x, x.stream, given, edits)
    head = x.head
    keep = head.keep_alive and x.body is None
    if x.view.drains and x.context.draining:
        keep = False
    try:
        await x.conn.write(_message(x, given, keep, head.method == b"HEAD", edits))
    except TransportError:
        x.conn.abort()
        return False
    return keep


async def _answer_stream(x: Exchange, stream: ServerStream, given: Answer, edits: Edits | None) -> bool:
    """The same on an HTTP/2 stream, of which nobody reads on afterwards."""
    if x.grpc:
        x.grpc_status = grpc.status_in(given.fields)
    text = b"" if x.head.method == b"HEAD" or given.status in (204, 304) else given.text
    try:
        stream.respond(given.status, _block(x, given, edits), not text)
        if text:
            await stream.write(text, True)
    except TransportError:
        return False
    return True


async def refuse(x: Exchange, status: int, flag: str, detail: str) -> None:
    """Answer a request that cannot be read, and close."""
    x.rule = ""
    x.upstream = x.cluster = None
    try:
        await x.conn.write(_message(x, _error(x, status, flag, detail), False, False))
        await x.conn.linger_close()
    except TransportError:
        x.conn.abort()


def error_field(x: Exchange, flag: str, detail: str) -> bytes:
    """The header line of an error; callers outside the mesh are told the flag only."""
    if not x.view.explain:
        return b"x-triomesh-error: %s\r\n" % flag.encode()
    at = x.upstream.text if x.upstream is not None else ""
    subset = x.cluster.subset if x.cluster is not None else ""
    return b"x-triomesh-error: %s\r\n" % error_header(flag, x.view.side, x.rule, at, detail, subset)


def _error(x: Exchange, status: int, flag: str, detail: str) -> Answer:
    text = f"{flag}: {detail}\n" if x.view.explain else f"{flag}\n"
    return Answer(status, error_field(x, flag, detail), TEXT, text.encode())


def _message(x: Exchange, given: Answer, keep: bool, no_body: bool, edits: Edits | None = None) -> bytes:
    return b"%s\r\n%s%s\r\n%s" % (
        status_line(given.status),
        _block(x, given, edits),
        b"connection: close\r\n" if not keep else b"" if x.head.minor else b"connection: keep-alive\r\n",
        b"" if no_body or given.status in (204, 304) else given.text,
    )


def _block(x: Exchange, given: Answer, edits: Edits | None) -> bytes:
    bodiless = given.status in (204, 304)
    block = b"server: triomesh\r\n%s%s%s" % (
        b"content-type: %s\r\n" % given.content_type if given.content_type and not bodiless else b"",
        given.fields,
        b"x-request-id: %s\r\n" % x.request_id if x.request_id else b"",
    )
    if edits is not None:
        block = edits.apply(block)
    if bodiless or (x.grpc and not given.text):
        return block
    return block + b"content-length: %d\r\n" % len(given.text)
