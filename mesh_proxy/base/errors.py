"""What can go wrong on a connection, by fault.

Each error is raised at the module that imports the failing library, `from` the original, and turned into a
response or a reset in one place of each direction.
"""

from __future__ import annotations

from typing import Final

REFUSED_STREAM: Final = 0x7
"""RFC 9113, 8.7: the stream was closed before any processing."""


class TransportError(Exception):
    """A connection or stream cannot be used further; `detail` is a short phrase for logs and headers."""

    unprocessed = False
    """The peer has not processed the request: it said so, or nothing of it was sent."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class PeerReset(TransportError):
    """The peer reset the connection, or it broke below us (ECONNRESET, EPIPE, ETIMEDOUT ...)."""


class Truncated(TransportError):
    """TCP ended without a TLS close_notify (RFC 8446 6.1): bytes may be missing."""


class TlsFailed(TransportError):
    """A TLS alert, a record that does not decrypt, or a failed handshake."""


class DeadlineExceeded(TransportError):
    """A wait reached its deadline."""


class IdentityEnded(TransportError):
    """The peer's certificate ended a whole lifetime ago: the connection may not go on."""


class PartnerGone(TransportError):
    """The other end of the exchange went away while this one was awaited."""


class ConnectFailed(TransportError):
    """No usable connection to an endpoint: refused, timed out, TLS refused."""


class IdentityMismatch(ConnectFailed):
    """The endpoint proved another identity than the one that was expected of it."""


class Overloaded(TransportError):
    """A bound of this sidecar was reached."""


class StreamReset(TransportError):
    """One HTTP/2 stream was ended before its time; `code` is that of RFC 9113, 7."""

    def __init__(self, code: int, remote: bool, detail: str = "") -> None:
        """`remote`: the peer did it."""
        super().__init__(detail or f"the {'peer' if remote else 'sidecar'} reset the stream (code {code})")
        self.code = code
        self.remote = remote
        self.unprocessed = remote and code == REFUSED_STREAM


class ProtocolFailed(TransportError):
    """The peer broke the rules of its protocol, or our bounds on what it may do: the connection is ended."""
