"""What the engine on hyper-h2 looks at in a frame before hyper-h2 sees it (RFC 9113 4 and 6), and rates."""

from __future__ import annotations

from typing import Final

from mesh_proxy.wire.http2.seam import FRAME_SIZE_ERROR, PROTOCOL_ERROR

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9
FRAME_BYTES: Final = 16384
"""The largest frame that we take, and that we send (SETTINGS_MAX_FRAME_SIZE is left at its default)."""

_FIXED_SIZES: Final = {PRIORITY: 5, RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_OF_STREAMS: Final = frozenset((DATA, HEADERS, PRIORITY, RST_STREAM, CONTINUATION))
_OF_CONNECTION: Final = frozenset((SETTINGS, PING, GOAWAY))


class Fatal(Exception):
    """A connection error."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def check_header(kind: int, flags: int, stream: int, length: int, block: int) -> None:
    """Refuse a frame by its header; `block` is the stream whose header block is unfinished. Raises Fatal."""
    if length > FRAME_BYTES:
        raise Fatal(FRAME_SIZE_ERROR, f"a frame of {length} bytes (RFC 9113 4.2)")
    if (kind == CONTINUATION or block) and (kind != CONTINUATION or stream != block or not block):
        raise Fatal(PROTOCOL_ERROR, "a header block is not contiguous (RFC 9113 4.3)")
    if kind == PUSH_PROMISE:
        raise Fatal(PROTOCOL_ERROR, "PUSH_PROMISE, which nobody was allowed to send (RFC 9113 6.6)")
    if (kind in _OF_STREAMS and not stream) or (kind in _OF_CONNECTION and stream):
        raise Fatal(PROTOCOL_ERROR, f"frame type {kind} on stream {stream}")
    wrong = length != _FIXED_SIZES.get(kind, length)
    if kind == SETTINGS:
        wrong = bool(length if flags & ACK else length % 6)
    elif kind == GOAWAY:
        wrong = length < 8
    if wrong:
        raise Fatal(FRAME_SIZE_ERROR, f"frame type {kind} of {length} bytes")


def content_size(flags: int, frame: bytes) -> int:
    """Bytes of a DATA frame's content, without padding. Raises Fatal."""
    length = len(frame) - HEADER_BYTES
    if not flags & PADDED:
        return length
    if not length or frame[HEADER_BYTES] >= length:
        raise Fatal(PROTOCOL_ERROR, "padding is longer than its frame (RFC 9113 6.1)")
    return length - 1 - frame[HEADER_BYTES]


def without_priority(flags: int, frame: bytes) -> bytes:
    """A HEADERS frame without its priority fields, which are deprecated (RFC 9113 5.3.2)."""
    at = HEADER_BYTES + (1 if flags & PADDED else 0)
    if not flags & WITH_PRIORITY or len(frame) < at + 5:
        return frame  # what is too short, hyper-h2 refuses
    length = len(frame) - HEADER_BYTES - 5
    header = length.to_bytes(3) + bytes((HEADERS, flags & ~WITH_PRIORITY)) + frame[5:HEADER_BYTES]
    return header + frame[HEADER_BYTES:at] + frame[at + 5 :]


class Rate:
    """So many at once, and so many each second after that."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = float(burst)
        self._per_s = per_s
        self._left = self._burst
        self._at: float | None = None

    def advance(self, now: float) -> None:
        """Add what the time since the last call brings."""
        if self._at is not None and now > self._at:
            self.give((now - self._at) * self._per_s)
        self._at = now

    def take(self) -> bool:
        """Use one; False when there is none."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def give(self, amount: float) -> None:
        """Give some back."""
        self._left = min(self._burst, self._left + amount)
