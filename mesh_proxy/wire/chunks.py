"""Chunked framing (RFC 9112, 7.1), followed and checked while the bytes go on as they are.

Chunk boundaries and extensions are passed on: RFC 9112, 7.1.1 lets a recipient ignore the extensions it
does not know, and a line with them is bounded. A trailer field that would change how the message is framed,
routed, authenticated or read (RFC 9110, 6.5.1) is refused, not dropped: the next hop may merge it.
"""

from __future__ import annotations

import re

from mesh_api.limits import Limits
from mesh_proxy.wire.message import (
    DEFAULT_LIMITS,
    HOP_NAMES,
    KEPT_PREFIXES,
    TEXT,
    TOKEN,
    HttpError,
    bad_line_end,
)

_DATA, _DATA_CR, _DATA_LF, _DONE, _SIZE, _TRAILER = range(6)  # from _SIZE on: inside a line
_MAX_CHUNK = 2**53

_chunk_line = re.compile(rb"([0-9A-Fa-f]{1,16}+)(?:;" + TEXT + rb"*+)?+\r\n")
_size_line = _chunk_line.match
_next_chunk = re.compile(rb"\r\n" + _chunk_line.pattern).match
_partial_size = re.compile(rb"(?:[0-9A-Fa-f]{1,16}+(?:;" + TEXT + rb"*+)?+\r?+)?+").fullmatch
_partial_line = re.compile(TEXT + rb"*+\r?+").fullmatch
_trailer_line = re.compile(rb"(" + TOKEN + rb"++):" + TEXT + rb"*+\r\n").fullmatch

_NOT_IN_TRAILERS = HOP_NAMES | {
    b"authorization",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"set-cookie",
    b"transfer-encoding",
    b"www-authenticate",
    b"x-request-id",
}


class ChunkScanner:
    """Follows a chunked body as it is relayed, and refuses one that another parser might cut elsewhere.

    The bytes themselves are passed on unchanged, chunk boundaries and extensions included. What `feed` has
    accepted may be sent on at once: an unfinished line is checked too, so nothing goes out that could only
    be the beginning of something malformed. `status` is what a refusal says: 400 for a request, 502 for a
    response.
    """

    __slots__ = ("_left", "_limits", "_line", "_lines", "_state", "_status", "_trailer", "done", "payload")

    def __init__(self, limits: Limits = DEFAULT_LIMITS, status: int = 400) -> None:
        self.done = False
        self.payload = 0
        self._limits = limits
        self._status = status
        self._state = _SIZE
        self._left = 0  # payload bytes of the current chunk still to come
        self._line = b""  # an unfinished size or trailer line
        self._trailer = 0  # bytes of trailer lines seen
        self._lines = 0

    def feed(self, data: bytes | bytearray) -> int:
        """Take the next bytes; return how many belong to this message (all of them, unless it ended)."""
        at = 0
        end = len(data)
        state = self._state
        longest = self._limits.chunk_line_bytes + 2
        while at < end:
            if state == _DATA:
                left = self._left
                if end - at < left:
                    self._left = left - (end - at)
                    self.payload += end - at
                    at = end
                    break
                at += left
                self.payload += left
                match = _next_chunk(data, at)
                if match is None:
                    state = _DATA_CR
                    continue
                if match.end() - at - 2 > longest:
                    raise self._line_too_long()
                at = match.end()
                state = self._open_chunk(match[1])
            elif state >= _SIZE:
                newline = data.find(b"\n", at)
                if newline < 0:
                    self._keep(bytes(data[at:]), state)
                    at = end
                    break
                line = self._line + data[at : newline + 1] if self._line else bytes(data[at : newline + 1])
                self._line = b""
                at = newline + 1
                if state == _SIZE:
                    match = _size_line(line)
                    if match is None:
                        raise self._bad_size(line)
                    if len(line) > longest:
                        raise self._line_too_long()
                    state = self._open_chunk(match[1])
                elif self._close_trailer_line(line):
                    state = _DONE
                    self.done = True
                    break
            elif state == _DATA_CR:
                if data[at] != 13:
                    raise self._error("bad-chunk-end", "chunk data is not followed by CRLF")
                at += 1
                state = _DATA_LF
            elif state == _DATA_LF:
                if data[at] != 10:
                    raise self._error("bad-chunk-end", "chunk data is not followed by CRLF")
                at += 1
                state = _SIZE
            else:
                break
        self._state = state
        return at

    def _open_chunk(self, digits: bytes) -> int:
        size = int(digits, 16)
        if size == 0:
            return _TRAILER
        if size > _MAX_CHUNK:
            raise self._error("bad-chunk-size", "a chunk size that is too large")
        self._left = size
        return _DATA

    def _keep(self, tail: bytes, state: int) -> None:
        """Remember the beginning of a line, having checked that it can still become a good one."""
        line = self._line
        if line.endswith(b"\r") or _partial_line(tail) is None:
            raise self._bad_line(line + tail)
        line += tail
        if state == _SIZE:
            if len(line) > self._limits.chunk_line_bytes + 1:
                raise self._line_too_long()
            if _partial_size(line) is None:
                raise self._bad_size(line)
        elif self._trailer + len(line) > self._limits.trailer_bytes:
            raise self._trailer_too_large()
        self._line = line

    def _close_trailer_line(self, line: bytes) -> bool:
        """Check one whole trailer line; True when it is the empty one that ends the message."""
        self._trailer += len(line)
        if self._trailer > self._limits.trailer_bytes:
            raise self._trailer_too_large()
        if line == b"\r\n":
            return True
        match = _trailer_line(line)
        if match is None:
            raise self._bad_line(line)
        self._lines += 1
        if self._lines > self._limits.header_count:
            raise self._trailer_too_large()
        name = match[1].lower()
        meant = name.replace(b"_", b"-")  # what a gateway interface would make of it
        if meant in _NOT_IN_TRAILERS or meant.startswith(KEPT_PREFIXES):
            raise self._error("forbidden-trailer", f"{name.decode('ascii')} is not allowed in a trailer")
        return False

    def _error(self, reason: str, text: str) -> HttpError:
        return HttpError(self._status, reason, text)

    def _line_too_long(self) -> HttpError:
        limit = self._limits.chunk_line_bytes
        return self._error("chunk-line-too-long", f"a chunk-size line is longer than {limit} bytes")

    def _trailer_too_large(self) -> HttpError:
        return HttpError(
            502 if self._status == 502 else 431, "trailer-too-large", "the trailer section is over its limits"
        )

    def _bad_line(self, line: bytes) -> HttpError:
        error = bad_line_end(line, 0, self._status)
        if error is not None:
            return error
        return self._error("bad-trailer", "a malformed trailer line")

    def _bad_size(self, line: bytes) -> HttpError:
        error = bad_line_end(line, 0, self._status)
        if error is not None:
            return error
        return self._error("bad-chunk-size", "a chunk size that is not 1 to 16 hexadecimal digits")
