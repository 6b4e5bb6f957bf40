"""Answers of the sidecar's own: errors that say what was wrong and who decided it."""

from __future__ import annotations

from http import HTTPStatus

from mesh_proxy.base.errors import TransportError
from mesh_proxy.http.exchange import Exchange
from mesh_proxy.policy.answers import TEXT, Answer
from mesh_proxy.policy.edits import Edits
from mesh_proxy.policy.outcome import error_header

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_REASONS |= {414: b"URI Too Long", 431: b"Request Header Fields Too Large"}


def status_line(status: int) -> bytes:
    """The first line of a response, without its CRLF; a status that nobody registered has no phrase."""
    return b"HTTP/1.1 %d %s" % (status, _REASONS.get(status, b""))


async def fail(x: Exchange, status: int, flag: str, detail: str) -> tuple[bool, str, str]:
    """Answer a request with an error; whether the connection can carry another, flag and detail."""
    return await answer(x, _error(x, status, flag, detail)), flag, detail


async def answer(x: Exchange, given: Answer, edits: Edits | None = None) -> bool:
    """Answer a request ourselves, with `edits` of its fields; whether the connection can carry another."""
    x.status = given.status
    head = x.head
    keep = head.keep_alive and head.minor == 1 and x.body is None
    if x.view.drains and x.context.draining:
        keep = False
    try:
        await x.down.write(_message(x, given, keep, head.method == b"HEAD", edits))
    except TransportError:
        x.down.abort()
        return False
    return keep


async def refuse(x: Exchange, status: int, flag: str, detail: str) -> None:
    """Answer a request that cannot be read, and close."""
    x.rule = ""
    x.upstream = x.cluster = None
    try:
        await x.down.write(_message(x, _error(x, status, flag, detail), False, False))
        await x.down.linger_close()
    except TransportError:
        x.down.abort()


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
    status = given.status
    bodiless = status == 204 or status == 304
    block = b"server: triomesh\r\n%s%s%s" % (
        b"content-type: %s\r\n" % given.content_type if given.content_type and not bodiless else b"",
        given.fields,
        b"x-request-id: %s\r\n" % x.request_id if x.request_id else b"",
    )
    return b"%s\r\n%s%s%s\r\n%s" % (
        status_line(status),
        block if edits is None else edits.apply(block),
        b"" if bodiless else b"content-length: %d\r\n" % len(given.text),
        b"" if keep else b"connection: close\r\n",
        b"" if no_body or bodiless else given.text,
    )
