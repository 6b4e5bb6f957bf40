"""What the engine on hyper-h2 keeps beside hyper-h2: of the connection, and of each stream."""

from __future__ import annotations

from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame, RstStreamFrame, SettingsFrame

from mesh_proxy.wire.http2 import hyper_frames as frames
from mesh_proxy.wire.http2.hyper_frames import Fatal, Rate
from mesh_proxy.wire.http2.seam import ENHANCE_YOUR_CALM, RESET, Event, Http2Limits

_WINDOW: Final = 65535
"""Every window's size before anything is said about it (RFC 9113 6.9.2)."""
LARGEST: Final = 2**31 - 1
_REMEMBERED: Final = 1000
"""Streams of which we know that we have reset them, so that frames under way to them are no offence."""


class _Connection(H2Connection):
    MAX_CLOSED_STREAMS = _REMEMBERED


class Stream:
    """What hyper-h2 does not keep of a stream."""

    __slots__ = (
        "answered",
        "credit",
        "declared",
        "ended",
        "ending",
        "final",
        "finished",
        "method",
        "queue",
        "received",
        "trailers",
    )

    def __init__(self, method: bytes) -> None:
        self.method = method
        self.answered = False  # we have sent the response head, which is not interim
        self.queue = bytearray()
        self.ending = False  # the end is queued behind the data
        self.trailers = b""
        self.finished = False  # we have sent the end
        self.ended = False  # the peer has sent the end
        self.final = False  # the response head, which is not interim, has come
        self.declared = -1  # content-length of what comes; -1: not known
        self.received = 0
        self.credit = 0  # bytes consumed for which no WINDOW_UPDATE was sent yet


class State:
    """What `HyperEngine` knows of its connection, and how streams end."""

    def __init__(self, server: bool, limits: Http2Limits) -> None:
        self.peer_max_streams = 100
        self.peer_connect_protocol = False
        self.within_head = False
        self._server = server
        self._limits = limits
        self._resets = Rate(limits.resets_burst, limits.resets_per_s)
        self._control = Rate(limits.control_burst, limits.control_per_s)
        self._input = bytearray()
        self._out = bytearray()
        self._events: list[Event] = []
        self._streams: dict[int, Stream] = {}
        self._sending: dict[int, Stream] = {}  # those with something queued, in the order of their turns
        self._dropped: dict[int, None] = {}  # streams that we have reset, the newest last
        self._preface = server
        self._greeted = False  # the peer's first SETTINGS has come
        self._block = 0  # stream whose header block is unfinished
        self._block_bytes = 0
        self._continuations = 0
        self._answers = 0  # what the peer made us queue since the output was last empty
        self._unsent_ends = 0  # streams that ended since then
        self._credit = 0  # of the connection, as Stream.credit
        self._absorbed = 0  # DATA that hyper-h2 has not seen, to be credited
        self._connection_window = max(limits.connection_window, _WINDOW)
        self._no_more_requests = False  # the peer has sent GOAWAY
        self._last_taken = LARGEST  # streams above this came after our GOAWAY
        self._dead = False
        self._conn = self._connect()

    def _connect(self) -> H2Connection:
        """Start hyper-h2 and write our preface, whose settings hyper-h2 takes in its own way."""
        limits = self._limits
        config = H2Configuration(
            client_side=not self._server,
            validate_inbound_headers=False,  # connection errors where stream errors are due
            normalize_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        conn = _Connection(config)
        # More streams than allowed are refused here, one by one; hyper-h2 would end the connection.
        kept = {SettingCodes.MAX_CONCURRENT_STREAMS: LARGEST, SettingCodes.ENABLE_PUSH: 0}
        conn.local_settings = Settings(client=not self._server, initial_values=kept)
        # In force when acknowledged (RFC 9113 6.5.3): until then the peer may fill the default window.
        conn.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = limits.stream_window
        conn.decoder.max_header_list_size = 4 * limits.head_bytes  # beyond this it is a bomb
        told: dict[int, int] = {
            SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window,
            SettingCodes.MAX_HEADER_LIST_SIZE: limits.head_bytes,
        }
        if self._server:
            told[SettingCodes.MAX_CONCURRENT_STREAMS] = limits.streams
            told[SettingCodes.ENABLE_CONNECT_PROTOCOL] = 1
        else:
            told[SettingCodes.ENABLE_PUSH] = 0
            self._out += frames.PREFACE
        self._out += SettingsFrame(0, settings=told).serialize()
        if self._connection_window > _WINDOW:
            conn.increment_flow_control_window(self._connection_window - _WINDOW)
            self._out += conn.data_to_send()
        return conn

    def consumed(self, stream: int, size: int) -> None:
        """Give flow-control credit back; see the seam."""
        if self._dead:
            return
        if not stream:
            self._credit += size
            if self._credit >= self._connection_window // 4:  # hyper-h2 itself may keep back a half
                self._conn.increment_flow_control_window(self._credit)
                self._credit = 0
        else:
            record = self._streams.get(stream)
            if record is None or record.ended:
                return
            record.credit += size
            if record.credit >= self._limits.stream_window // 2:
                self._conn.increment_flow_control_window(record.credit, stream)
                record.credit = 0
        self._out += self._conn.data_to_send()

    def _ended(self, stream: int, record: Stream) -> None:
        record.ended = True
        if record.finished:
            self._forget(stream)

    def _finished(self, stream: int, record: Stream) -> None:
        record.finished = True
        self._sending.pop(stream, None)
        if record.ended:
            self._unsent_ends += 1
            self._forget(stream)

    def _forget(self, stream: int) -> None:
        self._streams.pop(stream, None)
        self._sending.pop(stream, None)

    def _drop(self, stream: int, code: int) -> None:
        """Reset a stream and forget it."""
        self._forget(stream)
        self._dropped[stream] = None
        if len(self._dropped) > _REMEMBERED:
            del self._dropped[next(iter(self._dropped))]
        try:
            self._conn.reset_stream(stream, code)
        except ProtocolError:  # to hyper-h2 it was over, with what turned out to be malformed
            self._out += RstStreamFrame(stream, error_code=code).serialize()
        self._out += self._conn.data_to_send()

    def _refuse(self, stream: int, code: int) -> None:
        """Reset a stream for what the peer did on it."""
        self._count_error()
        self._drop(stream, code)
        self._answers += 1

    def _count_error(self) -> None:
        if self._server and not self._resets.take():
            raise Fatal(ENHANCE_YOUR_CALM, "too many stream errors")

    def _break(self, stream: int, code: int) -> None:
        """A stream error on a stream that the caller may know."""
        if stream in self._streams:
            self._refuse(stream, code)
            self._events.append((RESET, stream, (code, False), True))

    def _say_goaway(self, code: int, last: int) -> None:
        # Not with hyper-h2's close_connection, after which nothing else can be sent (RFC 9113 6.8).
        self._out += GoAwayFrame(0, last_stream_id=last, error_code=code).serialize()

    def _end(self) -> None:
        self._dead = True
        self._input.clear()
        self._streams.clear()
        self._sending.clear()
        self.within_head = False
