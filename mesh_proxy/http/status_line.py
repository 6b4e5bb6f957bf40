"""First lines of HTTP/1.1 responses."""

from __future__ import annotations

from http import HTTPStatus

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_REASONS |= {414: b"URI Too Long", 431: b"Request Header Fields Too Large"}


def status_line(status: int) -> bytes:
    """The first line of a response, without its CRLF; a status that nobody registered has no phrase."""
    return b"HTTP/1.1 %d %s" % (status, _REASONS.get(status, b""))
