"""Requests between the versions of HTTP."""

from __future__ import annotations

import re

from mesh_proxy.http.exchange import Exchange
from mesh_proxy.http.message import Request, trailers_passed_on
from mesh_proxy.policy.edits import dropper, field
from mesh_proxy.wire.dechunk import Dechunker
from mesh_proxy.wire.http1 import CHUNKED
from mesh_proxy.wire.http2.seam import RequestFields

_without_host = dropper(("host",))
_origin = re.compile(rb"(?i:https?)://[^/?]*+").match


def from_http1(x: Exchange) -> Request:
    """An HTTP/1 request, as it goes on, for an HTTP/2 stream."""
    head, _, first = x.message.partition(b"\r\n\r\n")
    line, _, block = head.partition(b"\r\n")
    method, target, _ = line.split(b" ")
    block += b"\r\n" if block else b""
    if not field(block, b"host"):  # HTTP/1.0, or an empty one (RFC 9112, 3.2), which HTTP/2 does not have
        block = b"host: %s\r\n%s" % (x.view.destination.encode(), _without_host(block))
    dechunk: Dechunker | None = None
    trailers = b""
    if x.head.framing == CHUNKED:
        dechunk = Dechunker()
        first = dechunk.feed(first)
        trailers = trailers_passed_on(dechunk.trailers)
    fields = RequestFields(method, b"http", _path(target), b"", block)
    return Request(fields, first, trailers, dechunk)


def _path(target: bytes) -> bytes:
    """A target without the scheme and authority of the absolute form (RFC 9112, 3.2.2)."""
    match = _origin(target)
    if match is None:
        return target
    rest = target[match.end() :]
    return rest if rest[:1] == b"/" else b"/" + rest
