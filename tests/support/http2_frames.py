"""HTTP/2 frames as bytes, written and read without any engine, so that tests can say exactly what is sent."""

from __future__ import annotations

from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST = range(1, 7)
ENABLE_CONNECT = 8

Fields = list[tuple[bytes, bytes]]
GET: Fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a.test")]
POST: Fields = [(b":method", b"POST"), *GET[1:]]
OK: Fields = [(b":status", b"200")]


@dataclass(frozen=True)
class Frame:
    """A frame that was read."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """Error code of RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[4:8] if self.kind == GOAWAY else self.payload[:4])


def frame(
    kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", length: int | None = None
) -> bytes:
    """Any frame, right or wrong."""
    size = len(payload) if length is None else length
    return size.to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def read_frames(data: bytes) -> list[Frame]:
    """The whole frames in `data`, a client's preface left out."""
    at = len(PREFACE) if data.startswith(PREFACE) else 0
    found = []
    while len(data) - at >= 9:
        end = at + 9 + int.from_bytes(data[at : at + 3])
        if end > len(data):
            break
        stream = int.from_bytes(data[at + 5 : at + 9]) & 0x7FFFFFFF
        found.append(Frame(data[at + 3], data[at + 4], stream, data[at + 9 : end]))
        at = end
    return found


def integer(value: int, bits: int, first: int = 0) -> bytes:
    """An HPACK integer (RFC 7541 5.1) behind the bits of `first`."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((first | value,))
    out = bytearray((first | most,))
    value -= most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def plain(fields: Fields) -> bytes:
    """A header block of literals that are not indexed: it needs no state and leaves none."""
    return b"".join(
        b"\0" + integer(len(name), 7) + name + integer(len(value), 7) + value for name, value in fields
    )


def headers(stream: int, fields: Fields, *, end: bool = False, done: bool = True) -> bytes:
    """HEADERS; without `done`, CONTINUATION has to follow."""
    flags = (END_STREAM if end else 0) | (END_HEADERS if done else 0)
    return frame(HEADERS, flags, stream, plain(fields))


def continuation(stream: int, payload: bytes = b"", *, done: bool = True) -> bytes:
    """CONTINUATION with a piece of a block."""
    return frame(CONTINUATION, END_HEADERS if done else 0, stream, payload)


def get(stream: int, *more: tuple[bytes, bytes]) -> bytes:
    """A whole GET."""
    return headers(stream, [*GET, *more], end=True)


def post(stream: int, *more: tuple[bytes, bytes]) -> bytes:
    """The head of a POST whose body follows."""
    return headers(stream, [*POST, *more])


def data(stream: int, content: bytes = b"", *, end: bool = False) -> bytes:
    """DATA."""
    return frame(DATA, END_STREAM if end else 0, stream, content)


def padded(
    kind: int, stream: int, payload: bytes, pad: int, *, flags: int = 0, padding: bytes = b""
) -> bytes:
    """A frame whose first byte claims `pad` bytes of padding, followed by `padding`."""
    return frame(kind, flags | PADDED, stream, bytes((pad,)) + payload + padding)


def settings(*pairs: tuple[int, int]) -> bytes:
    """SETTINGS."""
    return frame(SETTINGS, 0, 0, b"".join(key.to_bytes(2) + value.to_bytes(4) for key, value in pairs))


def settings_ack() -> bytes:
    """The acknowledgement of SETTINGS."""
    return frame(SETTINGS, ACK)


def ping(opaque: bytes, *, ack: bool = False) -> bytes:
    """PING."""
    return frame(PING, ACK if ack else 0, 0, opaque)


def window_update(stream: int, increment: int) -> bytes:
    """WINDOW_UPDATE."""
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4))


def rst_stream(stream: int, code: int = 8) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4))


def goaway(last: int, code: int = 0, debug: bytes = b"") -> bytes:
    """GOAWAY."""
    return frame(GOAWAY, 0, 0, last.to_bytes(4) + code.to_bytes(4) + debug)


def priority(stream: int, on: int, weight: int = 15) -> bytes:
    """PRIORITY."""
    return frame(PRIORITY, 0, stream, on.to_bytes(4) + bytes((weight,)))
