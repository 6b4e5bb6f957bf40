"""What RFC 9113, RFC 7541 and RFC 8441 ask of an HTTP/2 server that gets each of these frames.

A case is data: what a client sends after its preface and SETTINGS, and which ends are right. `complaint`
judges what came back. Engines are asked in memory, the sidecar over sockets. Where the RFC (or RFC 7540
before it) leaves a choice, the case allows each. Cases about what is in messages are in `http2_messages.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tests.support import http2_frames as h2
from tests.support.http2_frames import Frame

PROTOCOL, FLOW, CLOSED, SIZE, REFUSED, COMPRESSION, CALM = 1, 3, 5, 6, 7, 9, 11

FINAL_PING = b"is alive"
"""Sent behind each case: what is acknowledged was reached by an unbroken connection."""


@dataclass(frozen=True)
class Case:
    """One requirement. At least one of `ok`, `goaway` and `reset` says how it may end."""

    name: str
    """Section and words; unique."""
    sends: bytes
    then: bytes = b""
    """Sent when stream 1 was answered completely."""
    ok: bool = False
    """The connection and every stream stay as they are."""
    goaway: frozenset[int] = frozenset()
    """Codes of a connection error."""
    reset: frozenset[int] = frozenset()
    """Codes of an error of `stream`, after which the connection goes on."""
    stream: int = 1
    raw: bool = False
    """`sends` is everything: no preface and no SETTINGS before it, nor PING behind it."""
    held: bool = False
    """No stream may be answered before it is over."""
    in_memory: bool = False
    """Over a socket it would not be taken for HTTP/2."""


def complaint(case: Case, came: Iterable[Frame]) -> str:
    """What is wrong with the frames that came back; empty if nothing is."""
    resets: dict[int, int] = {}
    alive = case.raw
    for frame in came:
        if frame.kind == h2.GOAWAY and frame.code:
            right = frame.code in case.goaway
            return "" if right else f"GOAWAY {frame.code}, allowed: {sorted(case.goaway)}"
        if frame.kind == h2.RST_STREAM and frame.code:
            resets.setdefault(frame.stream, frame.code)
        elif frame.kind == h2.PING and frame.flags & h2.ACK and frame.payload == FINAL_PING:
            alive = True
    if not alive:
        return "neither GOAWAY nor an answer to the last PING"
    if not resets:
        return "" if case.ok else "nothing was refused"
    if set(resets) != {case.stream} or resets[case.stream] not in case.reset:
        return f"RST_STREAM {resets}, allowed: {sorted(case.reset)} on stream {case.stream}"
    return ""


def ok(name: str, *sends: bytes, then: bytes = b"", held: bool = False) -> Case:
    """Nothing is wrong with this."""
    return Case(name, b"".join(sends), then, ok=True, held=held)


def dead(name: str, code: int | Iterable[int], *sends: bytes, then: bytes = b"", held: bool = False) -> Case:
    """A connection error."""
    return Case(name, b"".join(sends), then, goaway=_codes(code), held=held)


def broken(name: str, code: int | Iterable[int], *sends: bytes, stream: int = 1, strict: bool = True) -> Case:
    """A stream error; if not `strict`, RFC 9113 5.4.1 being allowed here, a connection error as well."""
    codes = _codes(code)
    return Case(
        name, b"".join(sends), goaway=frozenset() if strict else codes, reset=codes, stream=stream, held=True
    )


def either(name: str, code: int | Iterable[int], *sends: bytes, then: bytes = b"") -> Case:
    """Ignored, a stream error or a connection error."""
    codes = _codes(code)
    return Case(name, b"".join(sends), then, ok=True, goaway=codes, reset=codes, held=not then)


def _codes(code: int | Iterable[int]) -> frozenset[int]:
    return frozenset((code,)) if isinstance(code, int) else frozenset(code)


def _raw(name: str, *sends: bytes, in_memory: bool = False) -> Case:
    return Case(name, b"".join(sends), goaway=_codes(PROTOCOL), raw=True, in_memory=in_memory)


_BLOCK = h2.plain(h2.GET)
_LONG = b"x" * 16385
_OPEN = h2.headers(1, h2.GET, done=False)
_PING = h2.ping(b"12345678")

PREFACES = [
    _raw("3.4 preface of another version", b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n", in_memory=True),
    _raw("3.4 preface is HTTP/1.1", b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", in_memory=True),
    _raw("3.4 first frame is PING", h2.PREFACE, _PING),
    _raw("3.4 first frame is HEADERS", h2.PREFACE, h2.get(1)),
    _raw("3.4 first frame acknowledges SETTINGS", h2.PREFACE, h2.settings_ack()),
    ok("3.4 requests follow at once", h2.get(1), h2.get(3)),
]

FRAMES = [
    ok("4.1 unknown type is ignored", h2.frame(0x16, 0xFF, 0, b"what"), h2.get(1)),
    ok("4.1 unknown flags are ignored", h2.frame(h2.PING, 0x16, 0, b"12345678")),
    ok("4.1 reserved bit is ignored", h2.frame(h2.PING, 0, 1 << 31, b"12345678")),
    ok("4.2 frame of 2^14 bytes", h2.post(1), h2.data(1, b"x" * 16384, end=True)),
    dead("4.2 DATA longer than 2^14", SIZE, h2.post(1), h2.data(1, _LONG, end=True), held=True),
    dead("4.2 HEADERS longer than 2^14", SIZE, h2.headers(1, [*h2.GET, (b"x", _LONG)], end=True)),
    dead("4.2 unknown type longer than 2^14", SIZE, h2.frame(0x16, 0, 0, _LONG)),
    dead("4.2 length of 2^24-1", SIZE, h2.frame(h2.SETTINGS, length=2**24 - 1)),
    dead("4.3 PRIORITY within a block", PROTOCOL, _OPEN, h2.priority(1, 0), h2.continuation(1)),
    dead("4.3 PING within a block", PROTOCOL, _OPEN, _PING, h2.continuation(1)),
    dead("4.3 HEADERS within a block", PROTOCOL, _OPEN, h2.get(3), h2.continuation(1)),
    dead("4.3 CONTINUATION of another stream", PROTOCOL, _OPEN, h2.continuation(3)),
    dead("4.3 block that cannot be decoded", COMPRESSION, h2.frame(h2.HEADERS, 5, 1, b"\xff\xff\xff")),
]

STATES = [
    dead("5.1 idle: DATA", PROTOCOL, h2.data(1, b"x", end=True)),
    dead("5.1 idle: RST_STREAM", PROTOCOL, h2.rst_stream(1)),
    dead("5.1 idle: WINDOW_UPDATE", PROTOCOL, h2.window_update(1, 1)),
    dead("5.1 idle: CONTINUATION", PROTOCOL, h2.continuation(1, _BLOCK)),
    ok("5.1 idle: PRIORITY", h2.priority(7, 0), h2.get(1)),
    broken("5.1 half-closed: DATA", CLOSED, h2.get(1), h2.data(1, b"x", end=True), strict=False),
    broken("5.1 half-closed: HEADERS", CLOSED, h2.get(1), h2.get(1), strict=False),
    dead("5.1 half-closed: CONTINUATION", (PROTOCOL, CLOSED), h2.get(1), h2.continuation(1), held=True),
    ok("5.1 half-closed: WINDOW_UPDATE", h2.get(1), h2.window_update(1, 5), held=True),
    ok("5.1 half-closed: PRIORITY", h2.get(1), h2.priority(1, 0), held=True),
    ok("5.1 half-closed: RST_STREAM", h2.get(1), h2.rst_stream(1), held=True),
    either("5.1 reset by the peer: DATA", CLOSED, h2.post(1), h2.rst_stream(1), h2.data(1, b"x", end=True)),
    either("5.1 reset by the peer: HEADERS", (CLOSED, PROTOCOL), h2.post(1), h2.rst_stream(1), h2.get(1)),
    dead(
        "5.1 reset by the peer: CONTINUATION",
        (PROTOCOL, CLOSED),
        h2.post(1),
        h2.rst_stream(1),
        h2.continuation(1),
    ),
    either("5.1 closed: DATA", CLOSED, h2.get(1), then=h2.data(1, b"x", end=True)),
    either("5.1 closed: HEADERS", (CLOSED, PROTOCOL), h2.get(1), then=h2.get(1)),
    dead("5.1 closed: CONTINUATION", (PROTOCOL, CLOSED), h2.get(1), then=h2.continuation(1)),
    ok("5.1 closed: WINDOW_UPDATE", h2.get(1), then=h2.window_update(1, 5)),
    ok("5.1 closed: RST_STREAM", h2.get(1), then=h2.rst_stream(1)),
    ok("5.1 closed: PRIORITY", h2.get(1), then=h2.priority(1, 0)),
    dead("5.1.1 even stream id", PROTOCOL, h2.get(2)),
    dead("5.1.1 stream id goes back", (PROTOCOL, CLOSED), h2.get(5), h2.get(3)),
    dead("5.1.1 stream id 0", PROTOCOL, h2.get(0)),
    broken(
        "5.1.2 more streams than announced",
        (REFUSED, PROTOCOL),
        *(h2.get(stream) for stream in range(1, 203, 2)),
        stream=201,
    ),
    ok("5.3.2 PRIORITY on itself is ignored", h2.get(1), h2.priority(1, 1)),
    either(  # RFC 7540 5.3.1 had it for an error
        "5.3.2 HEADERS on itself", PROTOCOL, h2.frame(h2.HEADERS, 0x25, 1, b"\0\0\0\x01\xff" + _BLOCK)
    ),
    ok("5.5 unknown type on a stream", h2.post(1), h2.frame(0x20, 0, 1, b"?"), h2.data(1, b"x", end=True)),
    dead("5.5 unknown type within a block", PROTOCOL, _OPEN, h2.frame(0x20), h2.continuation(1)),
]

KINDS = [
    dead("6.1 DATA on stream 0", PROTOCOL, h2.data(0, b"x")),
    ok("6.1 DATA with padding", h2.post(1), h2.padded(h2.DATA, 1, b"body", 6, flags=1, padding=bytes(6))),
    dead("6.1 padding as long as DATA", PROTOCOL, h2.post(1), h2.padded(h2.DATA, 1, b"body", 5), held=True),
    dead(
        "6.1 PADDED without length", (PROTOCOL, SIZE), h2.post(1), h2.frame(h2.DATA, h2.PADDED, 1), held=True
    ),
    ok("6.2 HEADERS with padding", h2.padded(h2.HEADERS, 1, _BLOCK, 3, flags=5, padding=bytes(3))),
    ok("6.2 HEADERS with priority", h2.frame(h2.HEADERS, 0x25, 1, b"\x80\0\0\x07\xff" + _BLOCK)),
    dead("6.2 padding as long as HEADERS", PROTOCOL, h2.padded(h2.HEADERS, 1, b"\x82", 2, flags=5)),
    dead("6.2 HEADERS too short for its priority", (SIZE, PROTOCOL), h2.frame(h2.HEADERS, 0x25, 1, b"\0")),
    dead("6.3 PRIORITY on stream 0", PROTOCOL, h2.priority(0, 1)),
    Case(
        "6.3 PRIORITY of four bytes",
        h2.get(1) + h2.frame(h2.PRIORITY, 0, 1, bytes(4)),
        goaway=_codes(SIZE),
        reset=_codes(SIZE),
        held=True,
    ),
    dead("6.4 RST_STREAM on stream 0", PROTOCOL, h2.rst_stream(0)),
    dead(
        "6.4 RST_STREAM of three bytes", SIZE, h2.get(1), h2.frame(h2.RST_STREAM, 0, 1, bytes(3)), held=True
    ),
    dead("6.5 acknowledgement with a payload", SIZE, h2.frame(h2.SETTINGS, h2.ACK, 0, bytes(6))),
    dead("6.5 SETTINGS on a stream", PROTOCOL, h2.frame(h2.SETTINGS, 0, 1)),
    dead("6.5 SETTINGS of five bytes", SIZE, h2.frame(h2.SETTINGS, 0, 0, bytes(5))),
    dead("6.5.2 ENABLE_PUSH of 2", PROTOCOL, h2.settings((h2.ENABLE_PUSH, 2))),
    dead("6.5.2 window of 2^31", FLOW, h2.settings((h2.INITIAL_WINDOW, 2**31))),
    dead("6.5.2 frames of less than 2^14", PROTOCOL, h2.settings((h2.MAX_FRAME, 16383))),
    dead("6.5.2 frames of 2^24", PROTOCOL, h2.settings((h2.MAX_FRAME, 2**24))),
    ok("6.5.2 unknown setting", h2.settings((0x99, 7), (0xFFFF, 2**32 - 1)), h2.get(1)),
    ok(
        "6.5.2 every setting at its bound",
        h2.settings((1, 2**32 - 1), (2, 0), (3, 0), (4, 0), (5, 2**24 - 1)),
    ),
    ok("6.5.3 the last of equal settings counts", h2.settings((4, 9), (4, 2**31 - 1)), h2.get(1)),
    dead(
        "6.6 PUSH_PROMISE",
        PROTOCOL,
        h2.get(1),
        h2.frame(h2.PUSH_PROMISE, 4, 1, b"\0\0\0\2" + _BLOCK),
        held=True,
    ),
    ok("6.7 PING acknowledgement that was not asked for", h2.ping(b"12345678", ack=True)),
    dead("6.7 PING on a stream", PROTOCOL, h2.frame(h2.PING, 0, 1, bytes(8))),
    dead("6.7 PING of seven bytes", SIZE, h2.frame(h2.PING, 0, 0, bytes(7))),
    dead("6.8 GOAWAY on a stream", PROTOCOL, h2.frame(h2.GOAWAY, 0, 1, bytes(8))),
    dead("6.8 GOAWAY of seven bytes", SIZE, h2.frame(h2.GOAWAY, 0, 0, bytes(7))),
    dead("6.9 increment 0 of the connection", PROTOCOL, h2.window_update(0, 0)),
    broken("6.9 increment 0 of a stream", PROTOCOL, h2.get(1), h2.window_update(1, 0), strict=False),
    dead("6.9 WINDOW_UPDATE of three bytes", SIZE, h2.frame(h2.WINDOW_UPDATE, 0, 0, bytes(3))),
    dead("6.9.1 window of the connection above 2^31-1", FLOW, h2.window_update(0, 2**31 - 1)),
    broken("6.9.1 window of a stream above 2^31-1", FLOW, h2.get(1), h2.window_update(1, 2**31 - 1)),
    dead(
        "6.9.2 SETTINGS push a window above 2^31-1",
        FLOW,
        h2.get(1),
        h2.window_update(1, 65536),
        h2.settings((h2.INITIAL_WINDOW, 2**31 - 1)),
        held=True,
    ),
    ok(
        "6.10 block in several CONTINUATION frames",
        _OPEN,
        *(h2.continuation(1, h2.plain([(b"n", b"v")]), done=n == 2) for n in range(3)),
        h2.data(1, end=True),
    ),
    ok(
        "6.10 fields cut by CONTINUATION",
        h2.frame(h2.HEADERS, 1, 1, _BLOCK[:7]),
        h2.continuation(1, _BLOCK[7:]),
    ),
    dead("6.10 CONTINUATION after a complete block", PROTOCOL, h2.post(1), h2.continuation(1), held=True),
    dead("6.10 CONTINUATION after DATA", PROTOCOL, h2.post(1), h2.data(1), h2.continuation(1), held=True),
    dead("6.10 CONTINUATION on stream 0", PROTOCOL, _OPEN, h2.continuation(0)),
]
