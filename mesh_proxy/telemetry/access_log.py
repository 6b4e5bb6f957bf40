"""One JSON line for each request or connection that is logged.

Texts are made printable, and every one has its own limit, which also bounds the line.
"""

from __future__ import annotations

import msgspec

from mesh_ops.printable import Text, clean, timestamp

MAX_METHOD = 32
MAX_PATH = 1_024
MAX_NAME = 320
MAX_DETAIL = 512
MAX_SHORT = 64


class Record(msgspec.Struct, gc=False, kw_only=True):
    """What is known at the end of a request or connection. Texts from the wire may be bytes."""

    time: float
    """Unix time of the start, in seconds."""
    direction: str
    """inbound or outbound."""
    protocol: str
    duration_ms: float
    bytes_in: int = 0
    """Bytes from the client on its connection: heads, bodies, and TLS where it speaks TLS."""
    bytes_out: int = 0
    """Bytes to the client, counted likewise."""
    method: Text = b""
    path: Text = b""
    host: Text = b""
    sni: Text = ""
    """The server name in the ClientHello of a program's own TLS."""
    status: int = 0
    """0 for opaque connections, and when no response was written."""
    flag: str = ""
    detail: Text = ""
    side: str = ""
    """Which side the failure is on, as this sidecar sees it."""
    source: str = ""
    source_identity: Text = ""
    destination: str = ""
    rule: str = ""
    """What decided: policy and route, or the destination."""
    subset: str = ""
    upstream: str = ""
    """Address and port of the endpoint."""
    attempts: int = 0
    retry_reason: str = ""
    """Why a failed attempt was not tried again."""
    mtls: bool = False
    request_id: Text = b""


class _Line(msgspec.Struct, gc=False, omit_defaults=True):
    # Order of the fields is order in the line. Texts that are empty are left out, numbers never.
    time: str
    direction: str
    protocol: str
    status: int
    duration_ms: float
    bytes_in: int
    bytes_out: int
    attempts: int
    mtls: bool
    method: str = ""
    path: str = ""
    host: str = ""
    sni: str = ""
    flag: str = ""
    detail: str = ""
    side: str = ""
    source: str = ""
    source_identity: str = ""
    destination: str = ""
    rule: str = ""
    subset: str = ""
    upstream: str = ""
    retry_reason: str = ""
    request_id: str = ""


_encode = msgspec.json.Encoder().encode


def format_record(record: Record) -> bytes:
    """The record as one line of JSON, newline included."""
    line = _Line(
        timestamp(record.time),
        clean(record.direction, MAX_SHORT),
        clean(record.protocol, MAX_SHORT),
        record.status,
        round(record.duration_ms, 3),
        record.bytes_in,
        record.bytes_out,
        record.attempts,
        record.mtls,
        clean(record.method, MAX_METHOD),
        clean(record.path, MAX_PATH),
        clean(record.host, MAX_NAME),
        clean(record.sni, MAX_NAME),
        clean(record.flag, MAX_SHORT),
        clean(record.detail, MAX_DETAIL),
        clean(record.side, MAX_SHORT),
        clean(record.source, MAX_NAME),
        clean(record.source_identity, MAX_NAME),
        clean(record.destination, MAX_NAME),
        clean(record.rule, MAX_NAME),
        clean(record.subset, MAX_SHORT),
        clean(record.upstream, MAX_SHORT),
        clean(record.retry_reason, MAX_NAME),
        clean(record.request_id, MAX_SHORT * 2),
    )
    return _encode(line) + b"\n"
