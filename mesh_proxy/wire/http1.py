"""HTTP/1.x message heads and chunked framing, for a proxy that keeps the bytes it was given.

Everything that two parsers could read in two ways is refused, because the next hop may be the other parser:
a bare CR or LF, a folded line, a second Content-Length, a length beside a transfer coding, and the like.

Reading a message takes two steps. `head_end` finds where the head stops and says early when it can never
become valid; it is the only function that sees an incomplete head. `parse_request` and `parse_response` then
run one regex over the complete head, and a second that extracts the few headers a proxy has to understand,
so that a header nobody asks about costs no Python at all. Every repetition that meets network bytes is
possessive: no input makes a match retry. When the regex refuses a head, `_diagnose` works out why; only
refused messages pay for that.
"""

from __future__ import annotations

import re

from mesh_api.limits import Limits
from mesh_proxy.wire.chunks import ChunkScanner
from mesh_proxy.wire.http1_response import ResponseHead, parse_response
from mesh_proxy.wire.message import (
    CHUNKED,
    DEFAULT_LIMITS,
    FIELD_LINES,
    HOP,
    HOP_NAMES,
    LENGTH,
    NO_BODY,
    NOTHING,
    TARGET,
    TOKEN,
    UNTIL_CLOSE,
    WS,
    HttpError,
    bad_line_end,
    connection_options,
    length_ok,
    without,
)
from mesh_proxy.wire.refusals import (
    check_sizes,
    diagnose_request,
    first_line_too_long,
    head_too_large,
    too_many_headers,
)
from mesh_proxy.wire.targets import HOST_NAME

__all__ = [
    "CHUNKED",
    "DEFAULT_LIMITS",
    "LENGTH",
    "NO_BODY",
    "UNTIL_CLOSE",
    "ChunkScanner",
    "HttpError",
    "Limits",
    "RequestHead",
    "ResponseHead",
    "head_end",
    "parse_request",
    "parse_response",
    "skip_leading_crlf",
]


_request = re.compile(
    rb"(" + TOKEN + rb"++) (" + TARGET + rb"++) HTTP/1\.([01])\r\n" + FIELD_LINES + rb"\r\n"
).fullmatch
# The headers a proxy acts on. First letters are spelled as sets because the engine can then skip a
# non-matching alternative without entering it; the CR LF in front gives the search a literal to look for.
# Gateway interfaces read _ as -, so names that differ from ours in that only are found too.
_request_fields = re.compile(
    rb"\r\n([Hh](?i:ost|ttp2-settings)|[Cc](?i:on(?:nection|tent[-_]length))"
    rb"|[Tt](?i:e|ransfer[-_]encoding)"
    rb"|[Xx][-_](?i:request[-_]id|forwarded[-_]client[-_]cert|triomesh[-_]" + TOKEN + rb"*+)"
    rb"|[Ee](?i:xpect)|[Kk](?i:eep-alive)|[Pp](?i:roxy-connection)|[Uu](?i:pgrade)):[\t ]*+([^\r]*+)"
).findall
_drop_hop = re.compile(rb"\r\n(?:" + HOP + rb"|[Xx]-(?i:triomesh-)" + TOKEN + rb"*+):[^\r]*+").sub
_host_ok = re.compile(rb"(?:" + HOST_NAME + rb"(?::[0-9]{0,5}+)?+)?+").fullmatch


class RequestHead:
    """A request's first line and what its headers mean to a proxy; the header bytes stay as they came."""

    __slots__ = (
        "block",
        "expect_continue",
        "framing",
        "hop",
        "host",
        "keep_alive",
        "length",
        "method",
        "minor",
        "nominated",
        "request_id",
        "special",
        "target",
    )

    method: bytes
    target: bytes
    minor: int
    block: bytes  # header lines, each with its CRLF, without the empty line that ends the head
    framing: int
    length: int  # the body's length when framing is LENGTH (never zero: that is NO_BODY), else 0
    keep_alive: bool
    expect_continue: bool
    host: bytes
    request_id: bytes  # b"" when absent
    special: list[tuple[bytes, bytes]]  # (lower-case name, value) of the headers listed at the top
    hop: bool  # whether forward_block() differs from block
    nominated: frozenset[bytes]  # further names that go no further: Connection's, and claims of the caller

    def __repr__(self) -> str:
        return f"<RequestHead {self.method!r} {self.target!r} HTTP/1.{self.minor} framing={self.framing}>"

    def forward_block(self) -> bytes:
        """The header lines for the next hop: `block` itself when nothing has to go."""
        if not self.hop:
            return self.block
        kept = _drop_hop(b"", b"\r\n" + self.block)[2:]
        if self.nominated:
            kept = without(kept, self.nominated)
        # This hop passes trailers on, so what the client says about them is true of it (RFC 9110, 10.1.4).
        return kept + b"connection: te\r\nte: trailers\r\n" if self.minor and self._takes_trailers() else kept

    def _takes_trailers(self) -> bool:
        return any(
            name == b"te" and b"trailers" in [part.strip(WS) for part in value.lower().split(b",")]
            for name, value in self.special
        )


def skip_leading_crlf(buf: bytes | bytearray) -> int:
    """How many bytes (0 or 2) to drop before a request line: one empty line is forgiven.

    To be asked once per message; a caller that asks again after dropping forgives any number.
    """
    return 2 if buf.startswith(b"\r\n") else 0


def head_end(buf: bytes | bytearray, start: int, limits: Limits) -> int:
    """Index just past the empty line that ends the head at the front of `buf`, or -1 when it is not there.

    `start` is where the previous search may be resumed: max(0, length of buf at that time - 3).
    The error's status is the one for a request; a malformed response is a 502 whatever it says.
    """
    found = buf.find(b"\r\n\r\n", start)
    if found >= 0:
        if found + 4 > limits.head_bytes:
            raise head_too_large(limits)
        return found + 4
    size = len(buf)
    if start and buf[start - 1] == 13:
        start -= 1  # resumed inside a CRLF
    error = bad_line_end(buf, start, 400)
    if error is not None:
        raise error
    if size >= limits.head_bytes:
        raise head_too_large(limits)
    # Looked at only while growth crosses the limit, so that a slow sender does not have it scanned again.
    if start <= limits.line_bytes + 2 <= size and buf.find(b"\r\n", 0, limits.line_bytes + 2) < 0:
        raise first_line_too_long(limits)
    return -1


def parse_request(head: bytes, limits: Limits) -> RequestHead:
    """Parse a complete request head, its final empty line included."""
    if len(head) > limits.line_bytes:
        check_sizes(head, limits, 431)
    match = _request(head)
    if match is None:
        raise diagnose_request(head)
    request = RequestHead()
    request.method, request.target, minor = match.groups()
    after = match.end(3)
    request.block = head[after + 2 : -2]
    if len(head) > 4 * limits.header_count and head.count(b"\n", after + 2) - 1 > limits.header_count:
        raise too_many_headers(limits, 431)
    request.minor = 1 if minor == b"1" else 0
    host: bytes | None = None
    request_id = length = coding = b""
    close = keep = expect = hop = False
    nominated = NOTHING
    special: list[tuple[bytes, bytes]] = []
    for name, value in _request_fields(head, after):
        name = name.lower()
        value = value.rstrip(WS)
        special.append((name, value))
        if name == b"host":
            if host is not None:
                raise HttpError(400, "repeated-host", "more than one Host header")
            if _host_ok(value) is None:
                raise HttpError(400, "bad-host", "the Host header is not a host name with an optional port")
            host = value
        elif name == b"x-request-id":
            request_id = request_id or value
        elif name == b"content-length":
            if length:
                raise HttpError(400, "repeated-content-length", "more than one Content-Length header")
            if length_ok(value) is None:
                raise HttpError(400, "bad-content-length", "Content-Length is not one decimal number")
            length = value
        elif name == b"transfer-encoding":
            if coding:
                raise HttpError(
                    501, "unsupported-transfer-encoding", "more than one Transfer-Encoding header"
                )
            if value.lower() != b"chunked":
                raise HttpError(501, "unsupported-transfer-encoding", "only the chunked coding is supported")
            coding = value
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise HttpError(417, "unsupported-expectation", "the only expectation known is 100-continue")
            expect = True
        else:
            hop = True
            if name == b"connection":
                lowered = value.lower()
                if lowered == b"keep-alive":
                    keep = True
                elif lowered == b"close":
                    close = True
                else:
                    options = connection_options(lowered, 400)
                    keep = keep or b"keep-alive" in options
                    close = close or b"close" in options
                    nominated |= options - HOP_NAMES - {b"close"}
            elif b"_" in name or name == b"x-forwarded-client-cert":
                nominated |= {_claim(name)}
    if request.minor:
        if host is None:
            raise HttpError(400, "missing-host", "an HTTP/1.1 request without a Host header")
        request.keep_alive = not close
        request.expect_continue = expect
    else:
        request.keep_alive = keep and not close
        request.expect_continue = False  # a 1.0 client could not read the answer
    if coding:
        if length:
            raise HttpError(400, "length-and-coding", "Content-Length beside Transfer-Encoding")
        if not request.minor:
            raise HttpError(400, "coding-in-http10", "Transfer-Encoding in an HTTP/1.0 request")
        request.framing = CHUNKED
        request.length = 0
    elif length:
        request.length = size = int(length)
        request.framing = LENGTH if size else NO_BODY
    else:
        request.framing = NO_BODY
        request.length = 0
    request.host = host or b""
    request.request_id = request_id
    request.special = special
    request.hop = hop
    request.nominated = nominated
    return request


def _claim(name: bytes) -> bytes:
    """A name that only sidecars may say something under, or that looks like one of them: not passed on."""
    if name in (b"content_length", b"transfer_encoding"):
        raise HttpError(
            400,
            "underscore-header",
            f"{name.decode('ascii')}, which some would take for the field with a hyphen",
        )
    return name
