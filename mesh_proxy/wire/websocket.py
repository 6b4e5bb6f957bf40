"""WebSocket's handshake in HTTP/1.1 (RFC 6455, 4), for one that came by extended CONNECT (RFC 8441)."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final, NamedTuple, Protocol

from mesh_proxy.wire.http1 import HttpError, ResponseHead
from mesh_proxy.wire.http2.seam import RequestFields

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


_not_passed_on = re.compile(
    rb"\r\n(?i:content-length|expect|te|upgrade|sec-websocket-(?:accept|key)):[^\r]*+"
).sub


class Random(Protocol):
    """Where keys come from; they keep no secret."""

    def getrandbits(self, k: int, /) -> int:
        """So many random bits."""
        ...


class Opening(NamedTuple):
    """A request that asks for WebSocket, and what the answer must be."""

    head: bytes
    accept: bytes


def check_tunnel(fields: RequestFields) -> None:
    """Refuse a CONNECT that an HTTP/1.1 endpoint cannot be asked for: any but WebSocket's.

    Raises HttpError.
    """
    if fields.protocol.lower() != b"websocket":
        what = fields.protocol.decode("ascii", "replace")[:60] or "without a protocol"
        raise HttpError(501, "connect-not-converted", f"CONNECT {what} to an endpoint of HTTP/1.1")


def websocket_request(fields: RequestFields, rng: Random) -> Opening:
    """The same request for HTTP/1.1."""
    key = base64.b64encode(rng.getrandbits(128).to_bytes(16, "big"))
    head = (
        b"GET %s HTTP/1.1\r\n%sconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: %s\r\n\r\n"
        % (fields.target, _others(fields.block), key)
    )
    # SHA-1 is what the RFC says; it protects nothing here.
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    return Opening(head, base64.b64encode(digest))


def _others(block: bytes) -> bytes:
    """Fields of a CONNECT, whose content is the tunnel's, without those that mean something else in a GET."""
    return _not_passed_on(b"", b"\r\n" + block)[2:]


def check_opened(response: ResponseHead, accept: bytes, said: bytes | None) -> None:
    """Check a 101 that answers `websocket_request`; `said` is its Sec-WebSocket-Accept. Raises HttpError."""
    named = [value.lower() for name, value in response.special if name == b"upgrade"]
    if named != [b"websocket"] or said != accept:
        raise HttpError(502, "bad-upgrade", "the endpoint's 101 does not answer the WebSocket request")
