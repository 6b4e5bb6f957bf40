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
from dataclasses import dataclass
from typing import Final

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
    "check_target",
    "head_end",
    "parse_request",
    "parse_response",
    "skip_leading_crlf",
]

NO_BODY: Final = 0
LENGTH: Final = 1
CHUNKED: Final = 2
UNTIL_CLOSE: Final = 3


class HttpError(Exception):
    """A message that is refused: `status` to answer with, `reason` as one machine-readable word."""

    def __init__(self, status: int, reason: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one message may make us hold."""

    head_bytes: int = 65536  # the whole head, its final empty line included
    line_bytes: int = 32768  # the first line or one header line, without CRLF
    header_count: int = 200  # header lines, and likewise trailer lines
    chunk_line_bytes: int = 256  # one chunk-size line with its extensions, without CRLF
    trailer_bytes: int = 16384  # the whole trailer section


DEFAULT_LIMITS: Final = Limits()

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]"
_FIELDS = rb"(?:" + _TOKEN + rb"++:" + _TEXT + rb"*+\r\n)*+"

_request = re.compile(
    rb"(" + _TOKEN + rb"++) ([\x21\x22\x24-\x7e]++) HTTP/1\.([01])\r\n" + _FIELDS + rb"\r\n"
).fullmatch
_response = re.compile(
    rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: (" + _TEXT + rb"*+))?+\r\n" + _FIELDS + rb"\r\n"
).fullmatch

# The headers a proxy acts on. First letters are spelled as sets because the engine can then skip a
# non-matching alternative without entering it; the CR LF in front gives the search a literal to look for.
_HOP = (
    rb"[Cc](?i:onnection)|[Kk](?i:eep-alive)|[Pp](?i:roxy-connection)|[Tt](?i:e|railer)|[Uu](?i:pgrade)"
    rb"|[Hh](?i:ttp2-settings)"
)
_request_fields = re.compile(
    rb"\r\n([Hh](?i:ost|ttp2-settings)|[Cc](?i:on(?:nection|tent-length))|[Tt](?i:e|railer|ransfer-encoding)"
    rb"|[Xx]-(?i:request-id|triomesh-" + _TOKEN + rb"*+)|[Ee](?i:xpect)|[Kk](?i:eep-alive)"
    rb"|[Pp](?i:roxy-connection)|[Uu](?i:pgrade)):[\t ]*+([^\r]*+)"
).findall
_response_fields = re.compile(
    rb"\r\n([Cc](?i:on(?:nection|tent-length))|[Tt](?i:e|railer|ransfer-encoding)|[Kk](?i:eep-alive)"
    rb"|[Xx]-(?i:triomesh-" + _TOKEN + rb"*+)|[Uu](?i:pgrade)|[Hh](?i:ttp2-settings)"
    rb"|[Pp](?i:roxy-connection)):[\t ]*+([^\r]*+)"
).findall

_drop_hop = re.compile(rb"\r\n(?:" + _HOP + rb"|[Xx]-(?i:triomesh-)" + _TOKEN + rb"*+):[^\r]*+").sub
_drop_hop_keep_error = re.compile(
    rb"\r\n(?:" + _HOP + rb"|[Xx]-(?i:triomesh-(?!error:))" + _TOKEN + rb"*+):[^\r]*+"
).sub

_HOST_NAME = rb"(?:[A-Za-z0-9._~%!$&'()*+;=\-]++|\[[0-9A-Fa-fv:.]++\])"
_host_ok = re.compile(rb"(?:" + _HOST_NAME + rb"(?::[0-9]{0,5}+)?+)?+").fullmatch
_length_ok = re.compile(rb"[0-9]{1,18}+").fullmatch
_name_ok = re.compile(_TOKEN + rb"++").fullmatch
_value_ok = re.compile(_TEXT + rb"*+").fullmatch
_target_ok = re.compile(rb"[\x21\x22\x24-\x7e]++").fullmatch
_absolute = re.compile(rb"(?i:https?+)://([^/?@]++)(?:[/?].*+)?+").fullmatch
_other_version = re.compile(rb"HTTP/[0-9]++(?:\.[0-9]++)?+").fullmatch

# Matches as far as an unfinished head can still become a valid one.
_plausible = re.compile(_TEXT + rb"*+(?:\r\n" + _TEXT + rb"*+)*+(?:\r\Z)?+").match

_WS = b" \t"
_KEPT_WHATEVER_CONNECTION_SAYS = frozenset(
    (
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"set-cookie",
        b"expect",
        b"forwarded",
        b"x-request-id",
    )
)
_KEPT_PREFIXES = (b"x-triomesh-", b"x-forwarded-")
_HOP_NAMES = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"http2-settings",
    )
)
_NOTHING: Final[frozenset[bytes]] = frozenset()


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
    nominated: frozenset[bytes]  # further names that Connection asks to remove

    def __repr__(self) -> str:
        return f"<RequestHead {self.method!r} {self.target!r} HTTP/1.{self.minor} framing={self.framing}>"

    def forward_block(self) -> bytes:
        """The header lines for the next hop: `block` itself when nothing has to go."""
        if not self.hop:
            return self.block
        kept = _drop_hop(b"", b"\r\n" + self.block)[2:]
        return _without(kept, self.nominated) if self.nominated else kept


class ResponseHead:
    """A response's status line and what its headers mean to a proxy; the header bytes stay as they came."""

    __slots__ = (
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
        return _without(kept, self.nominated) if self.nominated else kept


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
            raise _head_too_large(limits)
        return found + 4
    size = len(buf)
    if start and buf[start - 1] == 13:
        start -= 1  # resumed inside a CRLF
    error = _line_ends(buf, start, 400)
    if error is not None:
        raise error
    if size >= limits.head_bytes:
        raise _head_too_large(limits)
    # Looked at only while growth crosses the limit, so that a slow sender does not have it scanned again.
    if start <= limits.line_bytes + 2 <= size and buf.find(b"\r\n", 0, limits.line_bytes + 2) < 0:
        raise _first_line_too_long(limits)
    return -1


def parse_request(head: bytes, limits: Limits) -> RequestHead:
    """Parse a complete request head, its final empty line included."""
    if len(head) > limits.line_bytes:
        _check_sizes(head, limits, 431)
    match = _request(head)
    if match is None:
        raise _diagnose_request(head)
    request = RequestHead()
    request.method, request.target, minor = match.groups()
    after = match.end(3)
    request.block = head[after + 2 : -2]
    if len(head) > 4 * limits.header_count and head.count(b"\n", after + 2) - 1 > limits.header_count:
        raise _too_many_headers(limits, 431)
    request.minor = 1 if minor == b"1" else 0
    host: bytes | None = None
    request_id = length = coding = b""
    close = keep = expect = hop = False
    nominated = _NOTHING
    special: list[tuple[bytes, bytes]] = []
    for name, value in _request_fields(head, after):
        name = name.lower()
        value = value.rstrip(_WS)
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
            if _length_ok(value) is None:
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
                    options = _connection_options(lowered, 400)
                    keep = keep or b"keep-alive" in options
                    close = close or b"close" in options
                    nominated |= options - _HOP_NAMES - {b"close"}
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


def check_target(head: RequestHead) -> None:
    """Refuse a request target that is neither a path nor says the same as the Host header.

    Absolute form (RFC 9112 3.2.2) must name the authority that Host names, since the next hop may believe
    either; asterisk form belongs to OPTIONS; authority form to CONNECT, which is not supported.
    """
    target = head.target
    if head.method == b"CONNECT":
        raise HttpError(501, "connect-not-supported", "CONNECT is not supported")
    if target.startswith(b"/"):
        return
    if target == b"*":
        if head.method != b"OPTIONS":
            raise HttpError(400, "bad-target", "the target * belongs to OPTIONS")
        return
    match = _absolute(target)
    if match is None:
        raise HttpError(400, "bad-target", "expected a path or an http URL as the target")
    if match.group(1).lower() != head.host.lower():
        raise HttpError(400, "target-and-host-differ", "the URL of the target names another host than Host")


def parse_response(head: bytes, request_method: bytes, limits: Limits) -> ResponseHead:
    """Parse a complete response head; how its body is framed depends on the request's method too."""
    if len(head) > limits.line_bytes:
        _check_sizes(head, limits, 502)
    match = _response(head)
    if match is None:
        raise _diagnose_response(head)
    response = ResponseHead()
    minor, code, reason = match.groups()
    after = match.end(2) if reason is None else match.end(3)
    response.line = head[:after]
    response.reason = reason or b""
    response.block = head[after + 2 : -2]
    if len(head) > 4 * limits.header_count and head.count(b"\n", after + 2) - 1 > limits.header_count:
        raise _too_many_headers(limits, 502)
    response.minor = 1 if minor == b"1" else 0
    response.status = status = int(code)
    mesh_error = length = coding = b""
    close = keep = hop = False
    nominated = _NOTHING
    special: list[tuple[bytes, bytes]] = []
    for name, value in _response_fields(head, after):
        name = name.lower()
        value = value.rstrip(_WS)
        special.append((name, value))
        if name == b"content-length":
            if length:
                raise HttpError(502, "repeated-content-length", "more than one Content-Length header")
            if _length_ok(value) is None:
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
                    options = _connection_options(lowered, 502)
                    keep = keep or b"keep-alive" in options
                    close = close or b"close" in options
                    nominated |= options - _HOP_NAMES - {b"close"}
            elif name == b"x-triomesh-error":
                mesh_error = mesh_error or value
    response.keep_alive = not close if response.minor else keep and not close
    response.mesh_error = mesh_error
    response.special = special
    response.hop = hop
    response.nominated = nominated
    response.length = 0
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


def _connection_options(lowered: bytes, status: int) -> frozenset[bytes]:
    options: set[bytes] = set()
    for part in lowered.split(b","):
        option = part.strip(_WS)
        if not option:
            continue
        if _name_ok(option) is None:
            raise HttpError(status, "bad-connection", "the Connection header is not a list of tokens")
        if option in _KEPT_WHATEVER_CONNECTION_SAYS or option.startswith(_KEPT_PREFIXES):
            raise HttpError(
                status,
                "bad-connection",
                f"Connection asks to remove {option.decode('ascii')}, which must stay",
            )
        options.add(option)
    options.discard(b"")
    return frozenset(options)


def _without(block: bytes, names: frozenset[bytes]) -> bytes:
    return b"".join(
        [line for line in block.splitlines(keepends=True) if line[: line.index(b":")].lower() not in names]
    )


# Refusals


def _head_too_large(limits: Limits) -> HttpError:
    return HttpError(431, "head-too-large", f"the head is longer than {limits.head_bytes} bytes")


def _first_line_too_long(limits: Limits) -> HttpError:
    return HttpError(414, "first-line-too-long", f"the first line is longer than {limits.line_bytes} bytes")


def _too_many_headers(limits: Limits, status: int) -> HttpError:
    return HttpError(status, "too-many-headers", f"more than {limits.header_count} header lines")


def _check_sizes(head: bytes, limits: Limits, status: int) -> None:
    if len(head) > limits.head_bytes:
        raise _as_status(_head_too_large(limits), status)
    lines = head.split(b"\r\n")
    if len(lines[0]) > limits.line_bytes:
        raise _as_status(_first_line_too_long(limits), status)
    if any(len(line) > limits.line_bytes for line in lines):
        raise HttpError(status, "header-too-long", f"a header line is longer than {limits.line_bytes} bytes")


def _as_status(error: HttpError, status: int) -> HttpError:
    if status == 502:
        error.status = status
    return error


def _line_ends(data: bytes | bytearray, start: int, status: int) -> HttpError | None:
    """What is wrong with the line ends and control characters from `start` on; None when nothing is (yet)."""
    match = _plausible(data, start)
    at = match.end() if match else start
    if at == len(data):
        return None
    byte = data[at]
    if byte == 13:
        return HttpError(status, "bare-cr", "a CR that is not followed by LF")
    if byte == 10:
        return HttpError(status, "bare-lf", "an LF that does not follow a CR")
    if byte == 0:
        return HttpError(status, "nul", "a NUL byte in the head")
    return HttpError(status, "control-char", f"control character 0x{byte:02x} in the head")


def _diagnose_bytes(head: bytes, status: int) -> HttpError | None:
    if not head.endswith(b"\r\n\r\n"):
        return HttpError(status, "incomplete-head", "the head does not end with an empty line")
    return _line_ends(head, 0, status)


def _diagnose_fields(lines: list[bytes], status: int) -> HttpError:
    for line in lines:
        if not line:
            return HttpError(status, "early-empty-line", "an empty line before the end of the head")
        if line[0] in _WS:
            return HttpError(status, "folded-header", "a header line that begins with white space")
        name, colon, value = line.partition(b":")
        if not colon:
            return HttpError(status, "header-without-colon", "a header line without a colon")
        if not name:
            return HttpError(status, "empty-header-name", "a header line without a name")
        if name[-1] in _WS:
            return HttpError(
                status, "space-before-colon", "white space between a header's name and its colon"
            )
        if _name_ok(name) is None:
            return HttpError(status, "bad-header-name", "a header name with a character that is not allowed")
        if _value_ok(value) is None:
            return HttpError(
                status, "bad-header-value", "a header value with a character that is not allowed"
            )
    return HttpError(status, "malformed-head", "the head is malformed")


def _diagnose_request(head: bytes) -> HttpError:
    error = _diagnose_bytes(head, 400)
    if error is not None:
        return error
    line, *fields = head[:-4].split(b"\r\n")
    if not line:
        return HttpError(400, "empty-request-line", "an empty line where a request line is due")
    parts = line.split(b" ")
    if len(parts) != 3:
        return HttpError(
            400, "bad-request-line", "the request line is not three words with one space between"
        )
    method, target, version = parts
    if _name_ok(method) is None:
        return HttpError(400, "bad-method", "the method is not a token")
    if _target_ok(target) is None:
        return HttpError(400, "bad-target", "the request target has a character that is not allowed")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _other_version(version) is not None:
            return HttpError(505, "bad-version", "the protocol version is neither HTTP/1.1 nor HTTP/1.0")
        return HttpError(400, "bad-request-line", "the request line does not end with a protocol version")
    return _diagnose_fields(fields, 400)


def _diagnose_response(head: bytes) -> HttpError:
    error = _diagnose_bytes(head, 502)
    if error is not None:
        return error
    line, *fields = head[:-4].split(b"\r\n")
    if _response(line + b"\r\n\r\n") is None:
        return HttpError(502, "bad-status-line", "the status line is malformed")
    return _diagnose_fields(fields, 502)


# Chunked framing

_DATA, _DATA_CR, _DATA_LF, _DONE, _SIZE, _TRAILER = range(6)  # from _SIZE on: inside a line
_MAX_CHUNK = 2**53

_chunk_line = re.compile(rb"([0-9A-Fa-f]{1,16}+)(?:;" + _TEXT + rb"*+)?+\r\n")
_size_line = _chunk_line.match
_next_chunk = re.compile(rb"\r\n" + _chunk_line.pattern).match
_partial_size = re.compile(rb"(?:[0-9A-Fa-f]{1,16}+(?:;" + _TEXT + rb"*+)?+\r?+)?+").fullmatch
_partial_line = re.compile(_TEXT + rb"*+\r?+").fullmatch
_trailer_line = re.compile(rb"(" + _TOKEN + rb"++):" + _TEXT + rb"*+\r\n").fullmatch

_NOT_IN_TRAILERS = _HOP_NAMES | {
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
        if name in _NOT_IN_TRAILERS or name.startswith(_KEPT_PREFIXES):
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
        error = _line_ends(line, 0, self._status)
        if error is not None:
            return error
        return self._error("bad-trailer", "a malformed trailer line")

    def _bad_size(self, line: bytes) -> HttpError:
        error = _line_ends(line, 0, self._status)
        if error is not None:
            return error
        return self._error("bad-chunk-size", "a chunk size that is not 1 to 16 hexadecimal digits")
