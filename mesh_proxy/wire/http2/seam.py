"""What an HTTP/2 engine is: bytes in, events out; calls in, bytes out. No I/O, no clock.

Header fields cross the seam as HTTP/1.1 header lines (`name: value CRLF`, names in lower case), so that
matching, edits and conversion between versions work on one form. A request's authority is its `host` line,
which comes first. What is no such line (RFC 9113 8.2.1) is a stream error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

# Kinds of events; each event is a tuple (kind, stream id, value, end of stream).
REQUEST: Final = 1
"""Server: `RequestFields`."""
RESPONSE: Final = 2
"""Client: (status, block); status 100-199 is an interim response, which more will follow."""
DATA: Final = 3
"""bytes, not empty unless the stream ends with it; to be given back with `consumed` once it went on."""
TRAILERS: Final = 4
"""block, not empty; the stream ends with it."""
RESET: Final = 5
"""(error code, by the peer): the stream is over in both directions; nothing follows for it."""
GOAWAY: Final = 6
"""(last stream id, error code, debug data); stream id 0. Streams above the last were not processed."""
SETTINGS: Final = 7
"""None; stream id 0. The peer's settings have changed: see `peer_max_streams`, `peer_connect_protocol`."""
PING_ACK: Final = 8
"""The eight bytes of our PING; stream id 0."""

NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
INTERNAL_ERROR: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB
HTTP_1_1_REQUIRED: Final = 0xD

Event = tuple[int, int, object, bool]


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """Bounds on what one connection may make us hold or do."""

    streams: int = 100
    """Streams at once that the peer may open."""
    stream_window: int = 256 * 1024
    """Bytes of one stream that may be under way to us."""
    connection_window: int = 1024 * 1024
    """The same for all streams together."""
    head_bytes: int = 65536
    """One header list, decoded, each field with 32 bytes more (RFC 9113 6.5.2)."""
    header_count: int = 200
    continuations: int = 8
    """CONTINUATION frames that one header block may have."""
    resets_burst: int = 1000
    """Streams that the peer may reset, or make us reset, at once (rapid reset, CVE-2023-44487) ..."""
    resets_per_s: float = 500.0
    """... and each second after that."""
    control_burst: int = 1000
    """PING, SETTINGS, PRIORITY, WINDOW_UPDATE and empty DATA frames at once ..."""
    control_per_s: float = 500.0
    """... and each second after that; frames that bring data give one back."""
    queued_control: int = 1000
    """Answers (PING and SETTINGS acknowledgements, resets) that may wait because the peer does not read."""


class Http2Error(Exception):
    """The connection has to end (a connection error, RFC 9113 5.4.1); GOAWAY is in the next `drain`.

    Events that came before it in the same `feed` are in `events`.
    """

    def __init__(self, code: int, text: str, events: list[Event]) -> None:
        super().__init__(text)
        self.code = code
        self.events = events


class RequestFields:
    """A request's head. `block` begins with the `host` line, if there was an authority."""

    __slots__ = ("block", "method", "protocol", "scheme", "target")

    def __init__(self, method: bytes, scheme: bytes, target: bytes, protocol: bytes, block: bytes) -> None:
        self.method = method
        self.scheme = scheme
        self.target = target
        """`:path`; for a CONNECT without `:protocol` (RFC 9113 8.5) the authority."""
        self.protocol = protocol
        """Of an extended CONNECT (RFC 8441), else empty."""
        self.block = block


class Engine(Protocol):
    """One connection. Stream ids are those of the wire.

    A method that names a stream which is over (closed, reset) does nothing: the event that says so may still
    be on its way to the caller.
    """

    peer_max_streams: int
    """How many streams we may have open (client)."""
    peer_connect_protocol: bool
    """The peer takes extended CONNECT."""
    within_head: bool
    """A header block has begun to come and has not ended."""

    def feed(self, data: bytes, now: float) -> list[Event]:
        """Take bytes that have come; `now` is for rates, in seconds. Raises Http2Error."""
        ...

    def drain(self) -> bytes:
        """What is to be sent now, at most some 256 KiB; call again until it is b''.

        Of streams with data, each gets its turn.
        """
        ...

    def request(self, fields: RequestFields, end: bool) -> int:
        """Client: open a stream; its id, or 0 if the connection takes no new stream any more."""
        ...

    def respond(self, stream: int, status: int, block: bytes, end: bool) -> None:
        """Server: a response head; status 100-199 is interim (never with `end`)."""
        ...

    def data(self, stream: int, data: bytes, end: bool) -> None:
        """Queue a part of the body; with b'' and `end` only the end."""
        ...

    def trailers(self, stream: int, block: bytes) -> None:
        """Queue trailers, which end the stream, behind its data."""
        ...

    def queued(self, stream: int) -> int:
        """Bytes of this stream's data that flow control or `drain` have not let go yet; 0 if it is over.

        An end that has not gone counts as one more.
        """
        ...

    def consumed(self, stream: int, size: int) -> None:
        """Give credit for `size` bytes of DATA back: to that stream only, or with 0 to the connection.

        Each byte of a DATA event is given back to the connection once, whatever became of its stream; bytes
        that no event told of are given back by the engine itself.
        """
        ...

    def reset(self, stream: int, code: int) -> None:
        """End a stream in both directions; no event follows for it. Data not sent yet is dropped."""
        ...

    def ping(self, opaque: bytes) -> None:
        """Send a PING with these eight bytes."""
        ...

    def goaway(self, code: int, *, notice: bool = False) -> None:
        """Take no new stream from the peer. `notice`: announce it only (last id 2^31-1, RFC 9113 6.8)."""
        ...

    def close(self) -> None:
        """Free what it holds; nothing else is called afterwards."""
        ...
