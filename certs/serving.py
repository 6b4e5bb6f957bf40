"""Certificates for servers that are known by a DNS name, such as an admission webhook."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.authority import Authority


def issue(
    authority: Authority, names: Sequence[str], now: datetime, lifetime: timedelta
) -> tuple[bytes, bytes]:
    """A new ECDSA P-256 key and a leaf for DNS `names`: (PKCS #8 PEM, chain PEM).

    It has no URI name and no clientAuth, so that it is never a workload. Raises AuthorityError.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    dns = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    chain = authority.issue(key.public_key(), dns, [ExtendedKeyUsageOID.SERVER_AUTH], now, lifetime)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), chain


def server_context(key_pem: bytes, chain_pem: bytes, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """A context for clients without certificates, TLS 1.2 or later: API servers decide on theirs.

    The key passes through a memory file. Raises ssl.SSLError or OSError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
    fd = os.memfd_create("triomesh-serving-key", os.MFD_CLOEXEC)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(key_pem + chain_pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context
