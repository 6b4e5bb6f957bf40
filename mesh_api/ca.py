"""What passes between a workload and the CA: length-prefixed JSON (u32, big endian; then the body).

In a cluster it goes over TLS 1.3 with ALPN `ALPN_CA`; the caller has no certificate yet and sends a token,
but only to a server that has proven the control plane's SPIFFE id.
"""

from __future__ import annotations

import msgspec

ALPN_CA = "triomesh-ca/1"
TOKEN_AUDIENCE = "triomesh-ca"
"""Of projected ServiceAccount tokens that the CA accepts."""
MAX_CA_MESSAGE_BYTES = 256 * 1024


class SignRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A request for a leaf. The identity is not here: the CA takes it from the authenticated caller."""

    csr_pem: str
    """PKCS #10 (RFC 2986); only its public key is used."""
    token: str = ""
    """Projected ServiceAccount token; empty where the channel itself names the caller."""


class SignResponse(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The signed leaf with its intermediates, leaf first, and the trust bundle; or `error` alone."""

    chain_pem: str = ""
    bundle_pem: str = ""
    error: str = ""
