"""gRPC over HTTP/2: what its header fields and trailers say.

The protocol is grpc/grpc's doc/PROTOCOL-HTTP2.md; which HTTP status stands for which of gRPC's is its
doc/http-grpc-status-mapping.md. A status of 1000 + n stands for gRPC status n where requests are counted.
"""

from __future__ import annotations

import re
from typing import Final

OK: Final = 0
UNKNOWN: Final = 2
DEADLINE_EXCEEDED: Final = 4
PERMISSION_DENIED: Final = 7
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
UNAUTHENTICATED: Final = 16

COUNTED: Final = 1000
"""Added to a gRPC status where requests are counted by status."""
_AS_HTTP = {UNKNOWN: 500, DEADLINE_EXCEEDED: 504, INTERNAL: 500, UNAVAILABLE: 503, 15: 500}
"""The statuses that speak against an endpoint, and what its ejection takes them for; 15 is DATA_LOSS."""
_OF_HTTP = {
    400: INTERNAL,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: UNIMPLEMENTED,
    429: UNAVAILABLE,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}
_timeout = re.compile(rb"([0-9]{1,8})([HMSmun])").fullmatch
_UNIT_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_timeout_line = re.compile(rb"\r\n(?i:grpc-timeout):[^\r]*+").sub
_status = re.compile(rb"(?:\A|\n)(?i:grpc-status):[\t ]*+(?:([0-9]{1,2})[\t ]*+\r)?+").search
_unsafe = re.compile(rb"[^ -$&-~]").sub


def is_grpc(content_type: bytes) -> bool:
    """Whether a request of this content type is gRPC; grpc-web is not, it says its status in the body."""
    return content_type[:16] == b"application/grpc" and content_type[16:17] in (b"", b"+", b";")


def as_http(status: int) -> int:
    """The HTTP status that a gRPC status counts as; 200 for one that does not speak against the endpoint."""
    return _AS_HTTP.get(status, 200)


def of_http(status: int) -> int:
    """The gRPC status that an HTTP status without one stands for."""
    return _OF_HTTP.get(status, UNKNOWN)


def timeout_s(value: bytes) -> float | None:
    """What a `grpc-timeout` field says, in seconds; None for what is no time-out: the server judges that."""
    match = _timeout(value)
    return int(match[1]) * _UNIT_S[match[2]] if match else None


def with_timeout(block: bytes, seconds: float) -> bytes:
    """The block with this `grpc-timeout`, in milliseconds, at least one."""
    line = b"grpc-timeout: %dm\r\n" % min(max(int(seconds * 1000), 1), 99_999_999)
    return _timeout_line(b"", b"\r\n" + block)[2:] + line


def status_in(block: bytes) -> int:
    """The `grpc-status` in a block; -1 without one, UNKNOWN for what is no status."""
    found = _status(block)
    if found is None:
        return -1
    return int(found[1]) if found[1] is not None and int(found[1]) <= 16 else UNKNOWN


def status_fields(status: int, message: str) -> bytes:
    """A status with its message as header lines."""
    text = _unsafe(lambda match: b"%%%02X" % match[0][0], message.encode()[:1024])
    return b"grpc-status: %d\r\ngrpc-message: %s\r\n" % (status, text)
