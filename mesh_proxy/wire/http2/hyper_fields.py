"""Header lists of hyper-h2 (pairs of bytes) to and from the lines of the seam, and what they must obey.

Everything that RFC 9113 8.1.1 calls malformed is refused here, so that it ends one stream and not the
connection, as hyper-h2's own checks would.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from hpack import HeaderTuple, NeverIndexedHeaderTuple

from mesh_proxy.wire.http2.seam import ENHANCE_YOUR_CALM, PROTOCOL_ERROR, Http2Limits, RequestFields
from mesh_proxy.wire.message import TOKEN
from mesh_proxy.wire.targets import HOST_NAME

Pairs = Iterable[tuple[bytes, bytes]]

_token = re.compile(TOKEN + rb"++").fullmatch
_name = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]++").fullmatch
_value = re.compile(rb"(?![\t ])[\t\x20-\x7e\x80-\xff]*+(?<![\t ])").fullmatch
_path = re.compile(rb"/[\x21\x22\x24-\x7e]*+").fullmatch
_scheme = re.compile(rb"[A-Za-z][A-Za-z0-9+.\-]*+").fullmatch
_authority = re.compile(HOST_NAME + rb"(?::[0-9]{0,5}+)?+").fullmatch
_status = re.compile(rb"[1-9][0-9][0-9]").fullmatch
_length = re.compile(rb"[0-9]{1,18}+").fullmatch

_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_NOT_SENT: Final = _CONNECTION_SPECIFIC | {b"http2-settings"}
_REQUEST_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_RESPONSE_PSEUDO: Final = frozenset((b":status",))
_NONE: Final[frozenset[bytes]] = frozenset()
_SECRET: Final = frozenset((b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"))


class Malformed(Exception):
    """A header list that ends its stream; `code` is for the RST_STREAM."""

    def __init__(self, text: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(text)
        self.code = code


def read_request(headers: Pairs, limits: Http2Limits) -> tuple[RequestFields, int]:
    """A received request head and its content-length (-1: none). Raises Malformed."""
    pseudo, lines, length, host = _split(headers, _REQUEST_PSEUDO, limits)
    method, scheme = pseudo.get(b":method", b""), pseudo.get(b":scheme", b"")
    path, protocol = pseudo.get(b":path", b""), pseudo.get(b":protocol", b"")
    authority = pseudo.get(b":authority")
    if authority is None:
        authority = host
    elif host is not None and host.lower() != authority.lower():
        raise Malformed("host differs from :authority (RFC 9113 8.3.1)")
    if authority is None or _authority(authority) is None:
        raise Malformed("no valid authority (RFC 9113 8.3.1)")
    if _token(method) is None:
        raise Malformed("no valid :method")
    if b":protocol" in pseudo and (method != b"CONNECT" or _token(protocol) is None):
        raise Malformed(":protocol belongs to CONNECT (RFC 8441 4)")
    if method == b"CONNECT" and not protocol:
        if b":path" in pseudo or b":scheme" in pseudo or b":authority" not in pseudo:
            raise Malformed("CONNECT has an :authority and neither :scheme nor :path (RFC 9113 8.5)")
        path = authority
    elif _scheme(scheme) is None:
        raise Malformed("no valid :scheme")
    elif _path(path) is None and not (path == b"*" and method == b"OPTIONS"):
        raise Malformed("no valid :path")
    lines.insert(0, b"host: " + authority + b"\r\n")
    return RequestFields(method, scheme, path, protocol, b"".join(lines)), length


def read_response(headers: Pairs, limits: Http2Limits) -> tuple[int, bytes, int]:
    """Status, block and content-length (-1: none) of a received response head. Raises Malformed."""
    pseudo, lines, length, host = _split(headers, _RESPONSE_PSEUDO, limits)
    text = pseudo.get(b":status", b"")
    if _status(text) is None:
        raise Malformed("no valid :status")
    if host is not None:
        lines.append(b"host: " + host + b"\r\n")
    status = int(text)
    if status == 204 and length == 0:  # wrong, but harmless (RFC 9110 8.6)
        lines = [line for line in lines if not line.startswith(b"content-length:")]
        length = -1
    if status == 101 or (length >= 0 and (status < 200 or status == 204)):
        raise Malformed("101, or a content-length in a response that has no content")
    return status, b"".join(lines), length


def read_trailers(headers: Pairs, limits: Http2Limits) -> bytes:
    """The block of received trailers. Raises Malformed."""
    _, lines, length, host = _split(headers, _NONE, limits)
    if host is not None or length >= 0 or any(line.startswith(b"te:") for line in lines):
        raise Malformed("trailers that say where a message ends or goes (RFC 9110 6.5.1)")
    return b"".join(lines)


def _split(
    headers: Pairs, allowed: frozenset[bytes], limits: Http2Limits
) -> tuple[dict[bytes, bytes], list[bytes], int, bytes | None]:
    """Pseudo-header fields, the lines of the others without `host` (cookies joined, last), length, host."""
    pseudo: dict[bytes, bytes] = {}
    lines: list[bytes] = []
    cookies: list[bytes] = []
    length, size, host, regular = -1, 0, None, False
    for count, (name, value) in enumerate(headers):
        size += len(name) + len(value) + 32
        if size > limits.head_bytes or count >= limits.header_count:
            raise Malformed("the header list is larger than allowed", ENHANCE_YOUR_CALM)
        if _value(value) is None:
            raise Malformed("a field value with characters that are not allowed (RFC 9113 8.2.1)")
        if name[:1] == b":":
            if name not in allowed or name in pseudo or regular:
                raise Malformed("a pseudo-header field that is unknown, repeated or late (RFC 9113 8.3)")
            pseudo[name] = value
            continue
        regular = True
        if _name(name) is None:
            raise Malformed("a field name with characters that are not allowed (RFC 9113 8.2.1)")
        elif name in _CONNECTION_SPECIFIC or (name == b"te" and value.lower() != b"trailers"):
            raise Malformed("a connection-specific field (RFC 9113 8.2.2)")
        elif name == b"http2-settings":
            pass  # of a hop that spoke HTTP/1.1
        elif name == b"cookie" and allowed is _REQUEST_PSEUDO:
            cookies.append(value)
        elif name == b"host":
            if host is not None:
                raise Malformed("more than one host")
            host = value
        else:
            if name == b"content-length":
                if length >= 0 or _length(value) is None:
                    raise Malformed("content-length is not one decimal number (RFC 9113 8.1.1)")
                length = int(value)
            lines.append(name + b": " + value + b"\r\n")
    if cookies:
        lines.append(b"cookie: " + b"; ".join(cookies) + b"\r\n")
    return pseudo, lines, length, host


def write_request(fields: RequestFields) -> list[HeaderTuple]:
    """The header list of a request to send."""
    rest, authority = _pairs(fields.block, request=True)
    headers = [HeaderTuple(b":method", fields.method)]
    if fields.method == b"CONNECT" and not fields.protocol:
        headers.append(HeaderTuple(b":authority", fields.target))
        return headers + rest
    headers += (HeaderTuple(b":scheme", fields.scheme), HeaderTuple(b":path", fields.target))
    if authority is not None:
        headers.append(HeaderTuple(b":authority", authority))
    if fields.protocol:
        headers.append(HeaderTuple(b":protocol", fields.protocol))
    return headers + rest


def write_response(status: int, block: bytes) -> list[HeaderTuple]:
    """The header list of a response to send."""
    return [HeaderTuple(b":status", b"%d" % status), *_pairs(block, request=False)[0]]


def write_trailers(block: bytes) -> list[HeaderTuple]:
    """The header list of trailers to send."""
    return _pairs(block, request=False)[0]


def _pairs(block: bytes, *, request: bool) -> tuple[list[HeaderTuple], bytes | None]:
    """Fields of a block without those of one connection (RFC 9113 8.2.2), and a request's host apart."""
    pairs: list[HeaderTuple] = []
    host: bytes | None = None
    for line in block.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name in _NOT_SENT or (name == b"te" and value.lower() != b"trailers"):
            continue
        if request and name == b"host":
            host = value
        elif name in _SECRET:
            pairs.append(NeverIndexedHeaderTuple(name, value))  # RFC 7541 7.1.3
        else:
            pairs.append(HeaderTuple(name, value))
    return pairs, host
