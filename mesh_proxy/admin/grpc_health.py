"""One call of grpc.health.v1.Health/Check over HTTP/2 without TLS, as the kubelet's gRPC probe makes it.

Only what that takes: our headers are literals (RFC 7541, 6.2.2), and those of the answer are not read at all.
A call that succeeds answers with one message, a call that fails with none, so the first DATA frame decides.
"""

from __future__ import annotations

import struct

import trio

from mesh_proxy.admin.fetch import FetchError

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 1, 1, 4, 8
_STREAM = 1
_MAX_FRAME = 16 * 1024
_MAX_FRAMES = 64
_STATES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _integer(value: int, prefix_bits: int) -> bytes:
    """RFC 7541, 5.1, with the bits before the prefix zero."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes((value,))
    out = bytearray((most,))
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _header(name: str, value: str) -> bytes:
    parts = [text.encode("ascii", "replace") for text in (name, value)]
    return b"\0" + b"".join(_integer(len(part), 7) + part for part in parts)


def request(authority: str, service: str) -> bytes:
    """Everything that is sent: preface, settings, headers and the message."""
    headers = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "kube-probe/triomesh"),
    )
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    return b"".join(
        (
            _PREFACE,
            _frame(_SETTINGS, 0, 0, b""),
            _frame(_HEADERS, _END_HEADERS, _STREAM, b"".join(_header(*header) for header in headers)),
            _frame(_DATA, _END_STREAM, _STREAM, b"\0" + struct.pack(">I", len(message)) + message),
        )
    )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


async def check(stream: trio.abc.Stream, authority: str, service: str) -> None:
    """Ask for the health of `service`. The caller sets the deadline.

    Raises:
        FetchError: it is not SERVING, or nobody says so.
    """
    await stream.send_all(request(authority, service))
    buf = bytearray()
    message = bytearray()
    for _ in range(_MAX_FRAMES):
        kind, flags, payload = await _next_frame(stream, buf)
        if kind == _SETTINGS and not flags & _ACK:
            await stream.send_all(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            await stream.send_all(_frame(_PING, _ACK, 0, payload))
        elif kind in (_RST_STREAM, _GOAWAY):
            raise FetchError("the gRPC server refused the call")
        elif kind == _DATA:
            if flags & _PADDED:
                if not payload or payload[0] >= len(payload):
                    raise FetchError("a malformed frame in the gRPC answer")
                payload = payload[1 : len(payload) - payload[0]]
            message += payload
            if len(message) >= 5 and len(message) >= 5 + int.from_bytes(message[1:5], "big"):
                _judge(bytes(message))
                return
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            raise FetchError(f"the gRPC call for service {service!r} failed")
    raise FetchError(f"no gRPC answer within {_MAX_FRAMES} frames")


async def _next_frame(stream: trio.abc.Stream, buf: bytearray) -> tuple[int, int, bytes]:
    async def need(size: int) -> None:
        while len(buf) < size:
            data = await stream.receive_some(_MAX_FRAME)
            if not data:
                raise FetchError("the connection was closed before a whole gRPC answer")
            buf.extend(data)

    await need(9)
    length = int.from_bytes(buf[:3], "big")
    if length > _MAX_FRAME:
        raise FetchError("the answer is not HTTP/2")
    await need(9 + length)
    kind, flags, payload = buf[3], buf[4], bytes(buf[9 : 9 + length])
    del buf[: 9 + length]
    return kind, flags, payload


def _judge(message: bytes) -> None:
    """HealthCheckResponse has one field, the enum 1; absent means 0. Raises FetchError."""
    body = message[5 : 5 + int.from_bytes(message[1:5], "big")]
    if message[0] or (body and (len(body) != 2 or body[0] != 0x08)):
        raise FetchError("the gRPC answer is not a HealthCheckResponse")
    state = body[1] if body else 0
    if state != 1:
        name = _STATES[state] if state < len(_STATES) else str(state)
        raise FetchError(f"the gRPC service says {name}")
