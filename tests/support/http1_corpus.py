"""Raw HTTP/1 messages that parsers disagree about, and a reader that does what a sidecar does with them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from mesh_api.traffic import PathNormalization
from mesh_proxy.wire.http1 import (
    CHUNKED,
    DEFAULT_LIMITS,
    LENGTH,
    ChunkScanner,
    RequestHead,
    head_end,
    parse_request,
    parse_response,
    skip_leading_crlf,
)
from mesh_proxy.wire.path import normalise
from mesh_proxy.wire.targets import check_target
from mesh_proxy.wire.upgrade import asked

CORPUS = Path(__file__).parents[1] / "corpus" / "http1"
NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n"


def corpus(name: str) -> list[tuple[str, bytes]]:
    """What is expected of each message in a file, and its bytes."""
    lines = (CORPUS / name).read_text(encoding="ascii").splitlines()
    pairs = (line.split("\t", 1) for line in lines if not line.startswith("#"))
    return [(expected, raw_bytes(escaped)) for expected, escaped in pairs]


def raw_bytes(escaped: str) -> bytes:
    """Bytes from their spelling with Python escapes."""
    quoted = escaped.replace('"', '\\"')
    return ast.literal_eval(f'b"{quoted}"')


def whole(data: bytes) -> list[bytes]:
    return [data]


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def with_trailing_data(data: bytes) -> list[bytes]:
    return [data + NEXT]


WAYS = (whole, byte_by_byte, with_trailing_data)


class Read:
    """One message: its head, its framed body, the bytes behind it."""

    def __init__(self, head: RequestHead, target: bytes, body: bytes, rest: bytes) -> None:
        self.head = head
        self.target = target
        self.body = body
        self.rest = rest

    def forwarded(self) -> bytes:
        """The message as it goes on where something has to change."""
        line = b"%s %s HTTP/1.1\r\n" % (self.head.method, self.target)
        return line + self.head.forward_block() + b"\r\n" + self.body


def read_request(pieces: Iterable[bytes]) -> Read:
    """Read one request as the request loop does. Raises HttpError; EOFError if it is not whole."""
    feed = iter(pieces)
    buf, end = _head(feed)
    head = parse_request(buf[:end], DEFAULT_LIMITS)
    check_target(head.method, head.target, head.host)
    target = normalise(head.target, PathNormalization.BASE)
    asked(head, frozenset((b"websocket",)))
    size = _body(buf[end:], feed, head.framing, head.length, 400)
    rest = b"".join(size[1:])
    return Read(head, target, size[0], rest)


def read_response(pieces: Iterable[bytes]) -> None:
    """The same for the response to a GET."""
    feed = iter(pieces)
    buf, end = _head(feed)
    head = parse_response(buf[:end], b"GET", DEFAULT_LIMITS)
    _body(buf[end:], feed, head.framing, head.length, 502)


def _head(feed: Iterator[bytes]) -> tuple[bytes, int]:
    buf = b""
    forgiven = False
    for piece in feed:
        start = max(0, len(buf) - 3)
        buf += piece
        if not forgiven and len(buf) > 1:
            forgiven = True
            dropped = skip_leading_crlf(buf)
            buf, start = buf[dropped:], 0
        if buf == b"\r" and not forgiven:
            continue
        end = head_end(buf, start, DEFAULT_LIMITS)
        if end >= 0:
            return buf, end
    raise EOFError


def _body(
    data: bytes, feed: Iterator[bytes], framing: int, length: int, status: int
) -> tuple[bytes, bytes, bytes]:
    if framing == LENGTH:
        while len(data) < length:
            data += _more(feed)
        return data[:length], data[length:], b"".join(feed)
    if framing != CHUNKED:
        return b"", data, b"".join(feed)
    scanner = ChunkScanner(DEFAULT_LIMITS, status)
    body = b""
    while True:
        used = scanner.feed(data)
        body += data[:used]
        if scanner.done:
            return body, data[used:], b"".join(feed)
        data = _more(feed)


def _more(feed: Iterator[bytes]) -> bytes:
    piece = next(feed, b"")
    if not piece:
        raise EOFError
    return piece
