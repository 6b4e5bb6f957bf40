"""What can go wrong on a connection, by fault.

Each error is raised at the module that imports the failing library, `from` the original, and turned into a
response or a reset in one place of each direction.
"""

from __future__ import annotations


class TransportError(Exception):
    """A connection cannot be used further. `detail` is a short phrase for logs and error headers."""

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
