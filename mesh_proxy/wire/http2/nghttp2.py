"""The engine on libnghttp2: a thin layer over the C files in `native/`, which gather the events."""

from __future__ import annotations

from struct import Struct
from typing import Any

from mesh_proxy.wire.http2 import seam
from mesh_proxy.wire.http2.native import _nghttp2
from mesh_proxy.wire.http2.seam import Event, Http2Error, Http2Limits, RequestFields

# Bound here, because attributes of a cffi library are slow to look up and its functions are called often.
_ffi: Any = _nghttp2.ffi
_lib: Any = _nghttp2.lib
_unpack = _ffi.unpack
_feed = _lib.tm_feed
_drain = _lib.tm_drain
_request = _lib.tm_request
_respond = _lib.tm_respond
_data = _lib.tm_data
_trailers = _lib.tm_trailers
_queued = _lib.tm_queued
_consumed = _lib.tm_consumed
_NOTHING = _ffi.NULL

_RECORD = Struct("=BBHi6I")
_SIZE = _RECORD.size
_records = _RECORD.iter_unpack
_TEXT = (1 << 32) - 1

_DATA = seam.DATA
_REQUEST = seam.REQUEST
_RESPONSE = seam.RESPONSE
_RESET = seam.RESET
_GOAWAY = seam.GOAWAY
_SETTINGS = seam.SETTINGS


def version() -> str:
    """Tell libnghttp2's version."""
    return str(_ffi.string(_lib.tm_version()).decode())


def unsafe() -> str:
    """Attack the library the way its known weaknesses are used; what it lets pass, or nothing."""
    reason = _lib.tm_unsafe()
    return "" if reason == _NOTHING else str(_ffi.string(reason).decode())


def live() -> int:
    """Count connections, streams and queued pieces that C holds in this process."""
    return int(_lib.tm_live())


def _check(result: int) -> None:
    if result < 0:
        raise MemoryError("libnghttp2 found no memory")


class Nghttp2Engine:
    """One connection, see `seam.Engine`. Raises MemoryError when C finds none."""

    __slots__ = ("_conn", "_view", "peer_connect_protocol", "peer_max_streams")

    def __init__(self, server: bool, limits: Http2Limits) -> None:
        bounds = {name: getattr(limits, name) for name in Http2Limits.__slots__}
        conn = _lib.tm_new(server, _ffi.new("tm_limits *", bounds))
        if conn == _NOTHING:
            raise MemoryError("libnghttp2 found no memory")
        self._conn = _ffi.gc(conn, _lib.tm_free)
        self._view = _lib.tm_look(conn)
        self.peer_max_streams: int = self._view.max_streams
        self.peer_connect_protocol = False

    @property
    def within_head(self) -> bool:
        """A header block has begun to come and has not ended."""
        return self._conn is not _NOTHING and self._view.within_head != 0

    def feed(self, data: bytes, now: float) -> list[Event]:
        """Take bytes that have come."""
        result = _feed(self._conn, data, len(data), now)
        if result > 0:
            return self._events(result, data)
        if result == 0:
            return []
        events = self._events(-1 - result, data)
        view = self._view
        raise Http2Error(view.code, _ffi.string(view.why).decode("latin-1"), events)

    def _events(self, result: int, data: bytes) -> list[Event]:
        text = result & _TEXT
        raw = _unpack(self._view.events, text + (result >> 32) * _SIZE) if result else b""
        events: list[Event] = []
        add = events.append
        for kind, end, status, stream, offset, size, a, b, c, d in _records(raw[text:]):
            if kind == _DATA:
                add((_DATA, stream, data[offset : offset + size], end != 0))
            elif kind == _REQUEST:
                scheme = offset + a
                target = scheme + b
                protocol = target + c
                block = protocol + d
                fields = RequestFields(
                    raw[offset:scheme],
                    raw[scheme:target],
                    raw[target:protocol],
                    raw[protocol:block],
                    raw[block : offset + size],
                )
                add((_REQUEST, stream, fields, end != 0))
            elif kind == _RESPONSE:
                add((_RESPONSE, stream, (status, raw[offset : offset + size]), end != 0))
            elif kind == _RESET:
                add((_RESET, stream, (a, b != 0), True))
            elif kind == _GOAWAY:
                add((_GOAWAY, 0, (a, b, raw[offset : offset + size]), False))
            elif kind == _SETTINGS:
                self.peer_max_streams = self._view.max_streams
                self.peer_connect_protocol = self._view.connect_protocol != 0
                add((_SETTINGS, 0, None, False))
            else:  # TRAILERS, PING_ACK
                add((kind, stream, raw[offset : offset + size], end != 0))
        return events

    def drain(self) -> bytes:
        """Take what is to be sent."""
        size = _drain(self._conn)
        if size > 0:
            return bytes(_unpack(self._view.out, size))
        _check(size)
        return b""

    def request(self, fields: RequestFields, end: bool) -> int:
        """Open a stream."""
        method, scheme, target = fields.method, fields.scheme, fields.target
        protocol, block = fields.protocol, fields.block
        stream: int = _request(
            *(self._conn, method, len(method), scheme, len(scheme), target, len(target)),
            *(protocol, len(protocol), block, len(block), end),
        )
        _check(stream)
        return stream

    def respond(self, stream: int, status: int, block: bytes, end: bool) -> None:
        """Queue a response's head."""
        _check(_respond(self._conn, stream, status, block, len(block), end))

    def data(self, stream: int, data: bytes, end: bool) -> None:
        """Queue a part of a body."""
        _check(_data(self._conn, stream, data, len(data), end))

    def trailers(self, stream: int, block: bytes) -> None:
        """Queue trailers."""
        _check(_trailers(self._conn, stream, block, len(block)))

    def queued(self, stream: int) -> int:
        """Tell how many bytes of a body wait."""
        size: int = _queued(self._conn, stream)
        return size

    def consumed(self, stream: int, size: int) -> None:
        """Give flow-control credit back."""
        _check(_consumed(self._conn, stream, size))

    def reset(self, stream: int, code: int) -> None:
        """End a stream."""
        _check(_lib.tm_reset(self._conn, stream, code))

    def ping(self, opaque: bytes) -> None:
        """Send a PING."""
        if len(opaque) != 8:
            raise ValueError(f"a PING carries 8 bytes, got {len(opaque)}")
        _check(_lib.tm_ping(self._conn, opaque))

    def goaway(self, code: int, *, notice: bool = False) -> None:
        """Take no new stream."""
        _check(_lib.tm_goaway(self._conn, code, notice))

    def close(self) -> None:
        """Free what C holds; later calls do nothing."""
        conn, self._conn = self._conn, _NOTHING
        if conn is not _NOTHING:
            _ffi.release(conn)
