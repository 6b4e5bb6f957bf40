"""Response heads of HTTP/1.x; how they are read is described in `http1.py`."""

from __future__ import annotations

import re

from mesh_api.limits import Limits
from mesh_proxy.wire.message import (
    CHUNKED,
    FIELD_LINES,
    HOP,
    HOP_NAMES,
    LENGTH,
    NO_BODY,
    NOTHING,
    TEXT,
    TOKEN,
    UNTIL_CLOSE,
    WS,
    HttpError,
    connection_options,
    length_ok,
    without,
)
from mesh_proxy.wire.refusals import check_sizes, diagnose_response, too_many_headers

_response = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: (" + TEXT + rb"*+))?+\r\n" + FIELD_LINES + rb"\r\n"
).fullmatch

_response_fields = re.compile(
    rb"\r\n([Cc](?i:on(?:nection|tent-length))|[Tt](?i:e|ransfer-encoding)|[Kk](?i:eep-alive)"
    rb"|[Xx]-(?i:triomesh-" + TOKEN + rb"*+)|[Uu](?i:pgrade)|[Hh](?i:ttp2-settings)"
    rb"|[Pp](?i:roxy-connection)):[\t ]*+([^\r]*+)"
).findall

_drop_hop = re.compile(rb"\r\n(?:" + HOP + rb"|[Xx]-(?i:triomesh-)" + TOKEN + rb"*+):[^\r]*+").sub
_drop_hop_keep_error = re.compile(
    rb"\r\n(?:" + HOP + rb"|[Xx]-(?i:triomesh-(?!error:))" + TOKEN + rb"*+):[^\r]*+"
).sub


class ResponseHead:
    """A response's status line and what its headers mean to a proxy; the header bytes stay as they came."""

    __slots__ = (
        "announces_body",
        "block",
        "framing",
        "hop",
        "keep_alive",
        "length",
        "line",
        "mesh_error",
        "minor",
        "nominated",
        "reason",
        "special",
        "status",
    )

    status: int
    minor: int
    reason: bytes
    line: bytes  # the status line without its CRLF
    block: bytes
    framing: int
    length: int
    announces_body: bool  # it has Content-Length or Transfer-Encoding, whether a body follows or not
    keep_alive: bool
    special: list[tuple[bytes, bytes]]
    hop: bool
    mesh_error: bytes  # value of x-triomesh-error, b"" when absent
    nominated: frozenset[bytes]

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} HTTP/1.{self.minor} framing={self.framing}>"

    def forward_block(self, keep_mesh_error: bool) -> bytes:
        """The header lines for the next hop: `block` itself when nothing has to go."""
        if not self.hop:
            return self.block
        drop = _drop_hop_keep_error if keep_mesh_error else _drop_hop
        kept = drop(b"", b"\r\n" + self.block)[2:]
        return without(kept, self.nominated) if self.nominated else kept


def parse_response(head: bytes, request_method: bytes, limits: Limits) -> ResponseHead:
    """Parse a complete response head; how its body is framed depends on the request's method too."""
    if len(head) > limits.line_bytes:
        check_sizes(head, limits, 502)
    match = _response(head)
    if match is None:
        raise diagnose_response(head)
    response = ResponseHead()
    minor, code, reason = match.groups()
    after = match.end(2) if reason is None else match.end(3)
    response.line = head[:after]
    response.reason = reason or b""
    response.block = head[after + 2 : -2]
    if len(head) > 4 * limits.header_count and head.count(b"\n", after + 2) - 1 > limits.header_count:
        raise too_many_headers(limits, 502)
    response.minor = 1 if minor == b"1" else 0
    response.status = status = int(code)
    mesh_error = length = coding = b""
    close = keep = hop = False
    nominated = NOTHING
    special: list[tuple[bytes, bytes]] = []
    for name, value in _response_fields(head, after):
        name = name.lower()
        value = value.rstrip(WS)
        special.append((name, value))
        if name == b"content-length":
            if length:
                raise HttpError(502, "repeated-content-length", "more than one Content-Length header")
            if length_ok(value) is None:
                raise HttpError(502, "bad-content-length", "Content-Length is not one decimal number")
            length = value
        elif name == b"transfer-encoding":
            if coding:
                raise HttpError(
                    502, "unsupported-transfer-encoding", "more than one Transfer-Encoding header"
                )
            if value.lower() != b"chunked":
                raise HttpError(502, "unsupported-transfer-encoding", "only the chunked coding is supported")
            coding = value
        else:
            hop = True
            if name == b"connection":
                lowered = value.lower()
                if lowered == b"keep-alive":
                    keep = True
                elif lowered == b"close":
                    close = True
                else:
                    options = connection_options(lowered, 502)
                    keep = keep or b"keep-alive" in options
                    close = close or b"close" in options
                    nominated |= options - HOP_NAMES - {b"close"}
            elif name == b"x-triomesh-error":
                mesh_error = mesh_error or value
    response.keep_alive = not close if response.minor else keep and not close
    response.mesh_error = mesh_error
    response.special = special
    response.hop = hop
    response.nominated = nominated
    response.length = 0
    response.announces_body = bool(coding or length)
    if coding:
        if length:
            raise HttpError(502, "length-and-coding", "Content-Length beside Transfer-Encoding")
        if not response.minor:
            raise HttpError(502, "coding-in-http10", "Transfer-Encoding in an HTTP/1.0 response")
        response.framing = CHUNKED
    elif length:
        response.length = size = int(length)
        response.framing = LENGTH if size else NO_BODY
    else:
        response.framing = UNTIL_CLOSE
    if status < 200 or status == 204:
        if response.framing == CHUNKED or response.framing == LENGTH:
            raise HttpError(502, "body-not-allowed", f"a {status} response that announces a body")
        response.framing = NO_BODY
    elif request_method == b"HEAD" or status == 304:
        response.framing = NO_BODY
        response.length = 0
    elif request_method == b"CONNECT" and status < 300:
        response.framing = NO_BODY  # what follows is a tunnel, whatever the headers say
        response.length = 0
        response.keep_alive = False
    elif response.framing == UNTIL_CLOSE:
        response.keep_alive = False
    return response
