"""The receiving half of the engine on hyper-h2.

hyper-h2 decides about streams, windows and HPACK. Around it, this module cuts the bytes into frames, of which
hyper-h2 sees one at a time: that bounds what a peer may send, keeps the events that came before an error, and
handles what hyper-h2 would not get right (a GOAWAY ends nothing yet, RFC 9113 6.8; PRIORITY is ignored,
5.3.2; several stream errors that it takes for connection errors).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from h2 import events as h2_events
from h2.exceptions import ProtocolError
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hyperframe.frame import WindowUpdateFrame

from mesh_proxy.wire.http2 import hyper_frames as frames
from mesh_proxy.wire.http2.hyper_fields import (
    Malformed,
    read_request,
    read_response,
    read_trailers,
)
from mesh_proxy.wire.http2.hyper_frames import Fatal
from mesh_proxy.wire.http2.hyper_state import LARGEST, State, Stream
from mesh_proxy.wire.http2.seam import (
    CANCEL,
    COMPRESSION_ERROR,
    DATA,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    PING_ACK,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    REQUEST,
    RESET,
    RESPONSE,
    SETTINGS,
    TRAILERS,
    Event,
    Http2Error,
)

_DEBUG_BYTES: Final = 256
"""Of a GOAWAY's debug data, bytes that are told."""
_TABLE: Final = 4096
"""Bytes of the HPACK table that we use for sending, whatever the peer offers."""


class Receiver(State):
    """The receiving half of `HyperEngine`."""

    def feed(self, data: bytes, now: float) -> list[Event]:
        """Take bytes that have come; see the seam."""
        if self._dead:
            return []
        self._resets.advance(now)
        self._control.advance(now)
        self._input += data
        events = self._events = []
        try:
            self._take_input()
        except Fatal as error:
            self._conn.clear_outbound_data_buffer()
            self._say_goaway(error.code, self._conn.highest_inbound_stream_id)
            self._end()
            raise Http2Error(error.code, str(error), events) from None
        return events

    def _take_input(self) -> None:
        buffer = self._input
        if self._preface and not self._take_preface():
            return
        at = 0
        unfinished_head = False
        while len(buffer) - at >= frames.HEADER_BYTES:
            length = int.from_bytes(buffer[at : at + 3])
            kind, flags = buffer[at + 3], buffer[at + 4]
            stream = int.from_bytes(buffer[at + 5 : at + 9]) & LARGEST
            frames.check_header(kind, flags, stream, length, self._block)
            if not self._greeted and (kind != frames.SETTINGS or flags & frames.ACK):
                raise Fatal(PROTOCOL_ERROR, "the first frame is not SETTINGS (RFC 9113 3.4)")
            end = at + frames.HEADER_BYTES + length
            if end > len(buffer):
                unfinished_head = kind == frames.HEADERS
                break
            self._take_frame(kind, flags, stream, bytes(buffer[at:end]))
            at = end
        del buffer[:at]
        self.within_head = unfinished_head or self._block != 0

    def _take_preface(self) -> bool:
        size = min(len(self._input), len(frames.PREFACE))
        if self._input[:size] != frames.PREFACE[:size]:
            raise Fatal(PROTOCOL_ERROR, "not an HTTP/2 connection preface (RFC 9113 3.4)")
        if size < len(frames.PREFACE):
            return False
        del self._input[:size]
        self._conn.receive_data(frames.PREFACE)
        self._preface = False
        return True

    def _take_frame(self, kind: int, flags: int, stream: int, frame: bytes) -> None:
        """One whole frame, whose header was checked."""
        if kind == frames.DATA:
            self._take_data(flags, stream, frame)
            return
        if kind == frames.HEADERS or kind == frames.CONTINUATION:
            self._take_head(kind, flags, stream, frame)
            return
        resets = kind == frames.RST_STREAM and self._server  # a client's streams are its own to lose
        if not (self._resets if resets else self._control).take():
            raise Fatal(ENHANCE_YOUR_CALM, f"too many frames of type {kind}")
        if kind == frames.GOAWAY:
            self._take_goaway(frame[frames.HEADER_BYTES :])
        elif kind == frames.RST_STREAM and self._idle(stream):
            raise Fatal(PROTOCOL_ERROR, "RST_STREAM on an idle stream (RFC 9113 6.4)")
        elif kind == frames.WINDOW_UPDATE and stream and not any(frame[frames.HEADER_BYTES :]):
            if self._idle(stream):
                raise Fatal(PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream (RFC 9113 5.1)")
            self._break(stream, PROTOCOL_ERROR)  # an increment of zero, 6.9
        elif kind != frames.PRIORITY and kind <= frames.CONTINUATION:
            self._greeted = True
            self._pass(frame)

    def _take_head(self, kind: int, flags: int, stream: int, frame: bytes) -> None:
        if kind == frames.HEADERS:
            if not self._server and self._idle(stream):
                raise Fatal(PROTOCOL_ERROR, "a response on an idle stream (RFC 9113 5.1)")
            frame = frames.without_priority(flags, frame)
            self._block, self._block_bytes, self._continuations = stream, 0, 0
            self._control.give(2)
        else:
            self._continuations += 1
        self._block_bytes += len(frame) - frames.HEADER_BYTES
        limits = self._limits
        if self._continuations > limits.continuations or self._block_bytes > 2 * limits.head_bytes:
            raise Fatal(ENHANCE_YOUR_CALM, "a header block that does not end")
        if flags & frames.END_HEADERS:
            self._block = 0
        self._pass(frame)

    def _take_data(self, flags: int, stream: int, frame: bytes) -> None:
        size = frames.content_size(flags, frame)
        end = bool(flags & frames.END_STREAM)
        if size:
            self._control.give(1)
        elif not end and not self._control.take():
            raise Fatal(ENHANCE_YOUR_CALM, "too many empty DATA frames")
        record = self._streams.get(stream)
        if record is not None and not record.ended:
            record.received += size
            declared = record.declared
            fits = declared < 0 or record.received == declared or (record.received < declared and not end)
            if fits and (self._server or record.final):
                self._pass(frame)
                return
            self._break(stream, PROTOCOL_ERROR)  # not the declared length, or DATA before the head: 8.1.1
        elif stream not in self._dropped:
            self._pass(frame)  # hyper-h2 knows which error it is
            return
        self._absorbed += len(frame) - frames.HEADER_BYTES
        if self._absorbed >= self._connection_window // 8:
            self._out += WindowUpdateFrame(0, window_increment=self._absorbed).serialize()
            self._absorbed = 0

    def _take_goaway(self, payload: bytes) -> None:
        last, code = int.from_bytes(payload[:4]) & LARGEST, int.from_bytes(payload[4:8])
        self._no_more_requests = True
        self._events.append((GOAWAY, 0, (last, code, payload[8 : 8 + _DEBUG_BYTES]), False))
        if not self._server:
            for stream in [stream for stream in self._streams if stream > last]:
                self._drop(stream, CANCEL)
                self._events.append((RESET, stream, (REFUSED_STREAM, True), True))

    def _idle(self, stream: int) -> bool:
        """Whether nobody has opened this stream, nor a later one of the same end."""
        conn = self._conn
        ours = (stream & 1) != self._server
        return stream > (conn.highest_outbound_stream_id if ours else conn.highest_inbound_stream_id)

    def _pass(self, frame: bytes) -> None:
        """Give a frame to hyper-h2 and take what it says."""
        conn = self._conn
        try:
            events = conn.receive_data(frame)
        except ProtocolError as error:
            code = int(error.error_code)
            if isinstance(error.__cause__, HPACKError):
                bomb = isinstance(error.__cause__, OversizedHeaderListError)
                code = ENHANCE_YOUR_CALM if bomb else COMPRESSION_ERROR
            raise Fatal(code, str(error)) from None
        self._answered(conn.data_to_send())
        for event in events:
            handle = _HANDLERS.get(type(event))
            if handle is not None:
                handle(self, event)

    def _answered(self, output: bytes) -> None:
        if output:
            self._out += output
            self._answers += 1
            if self._answers > self._limits.queued_control:
                raise Fatal(ENHANCE_YOUR_CALM, "the peer does not read our answers")

    # What hyper-h2 says

    def _on_request(self, event: h2_events.RequestReceived) -> None:
        stream = event.stream_id
        if stream > self._last_taken:
            self._drop(stream, REFUSED_STREAM)
            return
        try:
            if len(self._streams) + self._unsent_ends >= self._limits.streams:
                raise Malformed("too many streams", REFUSED_STREAM)
            fields, length = read_request(event.headers, self._limits)
            if event.stream_ended is not None and length > 0:
                raise Malformed("content-length of a request without content (RFC 9113 8.1.1)")
        except Malformed as error:
            self._refuse(stream, error.code)
            return
        record = self._streams[stream] = Stream(fields.method)
        record.declared = length
        record.ended = event.stream_ended is not None
        self._events.append((REQUEST, stream, fields, record.ended))

    def _on_response(
        self, event: h2_events.ResponseReceived | h2_events.InformationalResponseReceived
    ) -> None:
        stream = event.stream_id
        record = self._streams.get(stream)
        if record is None:
            return
        end = isinstance(event, h2_events.ResponseReceived) and event.stream_ended is not None
        try:
            status, block, length = read_response(event.headers, self._limits)
            bodiless = record.method == b"HEAD" or status in (204, 304)
            if end and length > 0 and not bodiless:
                raise Malformed("content-length of a response without content (RFC 9113 8.1.1)")
        except Malformed as error:
            self._break(stream, error.code)
            return
        record.final = status >= 200
        if record.final:
            tunnel = record.method == b"CONNECT" and status < 300
            record.declared = 0 if bodiless else -1 if tunnel else length
        self._events.append((RESPONSE, stream, (status, block), end))
        if end:
            self._ended(stream, record)

    def _on_data(self, event: h2_events.DataReceived) -> None:
        stream, data = event.stream_id, event.data
        padding = event.flow_controlled_length - len(data)
        if padding:
            self.consumed(stream, padding)
            self.consumed(0, padding)
        record = self._streams[stream]
        end = event.stream_ended is not None
        if data or end:
            self._events.append((DATA, stream, data, end))
        if end:
            self._ended(stream, record)

    def _on_trailers(self, event: h2_events.TrailersReceived) -> None:
        stream = event.stream_id
        record = self._streams.get(stream)
        if record is None:
            return
        try:
            block = read_trailers(event.headers, self._limits)
            if record.declared >= 0 and record.received != record.declared:
                raise Malformed("less content than declared (RFC 9113 8.1.1)")
        except Malformed as error:
            self._break(stream, error.code)
            return
        self._events.append((TRAILERS, stream, block, True) if block else (DATA, stream, b"", True))
        self._ended(stream, record)

    def _on_reset(self, event: h2_events.StreamReset) -> None:
        if not event.remote_reset:
            self._count_error()
        if event.stream_id in self._streams:
            self._forget(event.stream_id)
            code = int(event.error_code or 0)
            self._events.append((RESET, event.stream_id, (code, event.remote_reset), True))

    def _on_settings(self, event: h2_events.RemoteSettingsChanged) -> None:
        settings = self._conn.remote_settings
        connect = bool(settings.enable_connect_protocol)
        if self.peer_connect_protocol and not connect:
            raise Fatal(PROTOCOL_ERROR, "ENABLE_CONNECT_PROTOCOL was withdrawn (RFC 8441 3)")
        self.peer_connect_protocol = connect
        self.peer_max_streams = min(settings.max_concurrent_streams, LARGEST)
        if self._conn.encoder.header_table_size > _TABLE:
            self._conn.encoder.header_table_size = _TABLE
        self._events.append((SETTINGS, 0, None, False))

    def _on_ping_ack(self, event: h2_events.PingAckReceived) -> None:
        self._events.append((PING_ACK, 0, bytes(event.ping_data), False))


_HANDLERS: dict[type[h2_events.Event], Callable[[Receiver, Any], None]] = {
    h2_events.RequestReceived: Receiver._on_request,
    h2_events.ResponseReceived: Receiver._on_response,
    h2_events.InformationalResponseReceived: Receiver._on_response,
    h2_events.DataReceived: Receiver._on_data,
    h2_events.TrailersReceived: Receiver._on_trailers,
    h2_events.StreamReset: Receiver._on_reset,
    h2_events.RemoteSettingsChanged: Receiver._on_settings,
    h2_events.PingAckReceived: Receiver._on_ping_ack,
}
