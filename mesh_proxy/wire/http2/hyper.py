"""The engine on hyper-h2: for an installation without a C compiler, and the other opinion in tests."""

from __future__ import annotations

from typing import Final

from h2.exceptions import NoAvailableStreamIDError

from mesh_proxy.wire.http2 import hyper_frames as frames
from mesh_proxy.wire.http2.hyper_fields import write_request, write_response, write_trailers
from mesh_proxy.wire.http2.hyper_receive import Receiver
from mesh_proxy.wire.http2.hyper_state import LARGEST, Stream
from mesh_proxy.wire.http2.seam import RequestFields

_PIECE: Final = 256 * 1024
"""Bytes that one drain returns at most."""


class HyperEngine(Receiver):
    """One connection, see `seam.Engine`: what the caller asks for. What the peer does is in `Receiver`."""

    def drain(self) -> bytes:
        """What is to be sent now; see the seam."""
        out = self._out
        while len(out) < _PIECE and self._send_round():
            pass
        piece = bytes(out[:_PIECE])
        del out[:_PIECE]
        if not out:
            self._answers = self._unsent_ends = 0
        return piece

    def _send_round(self) -> bool:
        """Let each stream that waits send one frame; whether any could."""
        sent = False
        for stream, record in list(self._sending.items()):
            if len(self._out) >= _PIECE:
                break
            if self._send_frame(stream, record):
                sent = True
                self._out += self._conn.data_to_send()
        return sent

    def _send_frame(self, stream: int, record: Stream) -> bool:
        conn, queue = self._conn, record.queue
        last = False
        if queue:
            window = conn.local_flow_control_window(stream)
            size = min(len(queue), window, conn.max_outbound_frame_size, frames.FRAME_BYTES)
            if size <= 0:
                return False
            data = bytes(queue[:size])
            del queue[:size]
            last = record.ending and not queue and not record.trailers
            conn.send_data(stream, data, end_stream=last)
            self._control.give(1 + size / 1024)  # WINDOW_UPDATE frames will answer it
        elif record.ending:
            if trailers := write_trailers(record.trailers):
                conn.send_headers(stream, trailers, end_stream=True)
            else:
                conn.end_stream(stream)
            last = True
        del self._sending[stream]
        if last:
            self._finished(stream, record)
        elif queue or record.ending:
            self._sending[stream] = record  # behind the others
        return True

    def request(self, fields: RequestFields, end: bool) -> int:
        """Open a stream; see the seam."""
        if self._dead or self._no_more_requests or len(self._streams) >= self.peer_max_streams:
            return 0
        try:
            stream = self._conn.get_next_available_stream_id()
        except NoAvailableStreamIDError:
            return 0
        self._conn.send_headers(stream, write_request(fields), end_stream=end)
        self._out += self._conn.data_to_send()
        record = self._streams[stream] = Stream(fields.method)
        record.finished = end
        return stream

    def respond(self, stream: int, status: int, block: bytes, end: bool) -> None:
        """Send a response head; see the seam."""
        record = self._streams.get(stream)
        if record is not None and not record.answered:
            record.answered = status >= 200
            self._conn.send_headers(stream, write_response(status, block), end_stream=end)
            self._out += self._conn.data_to_send()
            if end:
                self._finished(stream, record)

    def data(self, stream: int, data: bytes, end: bool) -> None:
        """Queue a part of the body; see the seam."""
        record = self._streams.get(stream)
        if record is not None and not record.ending and not record.finished:
            record.queue += data
            record.ending = end
            self._sending.setdefault(stream, record)

    def trailers(self, stream: int, block: bytes) -> None:
        """Queue trailers; see the seam."""
        record = self._streams.get(stream)
        if record is not None and not record.ending and not record.finished:
            record.trailers = block
            self.data(stream, b"", True)

    def queued(self, stream: int) -> int:
        """Bytes that wait; see the seam."""
        record = self._streams.get(stream)
        return 0 if record is None else len(record.queue) + (record.ending and not record.finished)

    def reset(self, stream: int, code: int) -> None:
        """End a stream in both directions; see the seam."""
        if stream in self._streams:
            self._drop(stream, code)

    def ping(self, opaque: bytes) -> None:
        """Send a PING."""
        if not self._dead:
            self._conn.ping(opaque)
            self._out += self._conn.data_to_send()

    def goaway(self, code: int, *, notice: bool = False) -> None:
        """Take no new stream; see the seam."""
        if not self._dead:
            last = LARGEST if notice else self._conn.highest_inbound_stream_id
            self._last_taken = last
            self._say_goaway(code, last)

    def close(self) -> None:
        """Free what it holds."""
        self._end()
        self._out.clear()
