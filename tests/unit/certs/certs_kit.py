"""What the tests of this folder share: a fixed time, certificates, credentials, runners for async tests."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from certs.authority import Authority
from certs.credentials import Credentials, build
from certs.identity import SpiffeId
from certs.keygen import make

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
DOMAIN = "cluster.local"
WEB = SpiffeId(DOMAIN, "shop", "web")


def trio_test(test: Callable) -> Callable:
    """Run an async test on the real clock with a deadline."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        async def main():
            with trio.fail_after(10):
                await test(*args, **kwargs)

        trio.run(main)

    return run


def mock_clock_test(test: Callable) -> Callable:
    """Run an async test on a clock that jumps whenever everybody waits."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        trio.run(functools.partial(test, *args, **kwargs), clock=trio.testing.MockClock(autojump_threshold=0))

    return run


def key_pem(key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate(
    common_name: str,
    key,
    issuer: tuple[x509.Certificate, object] | None = None,
    *,
    ca: bool = True,
    cert_sign: bool = True,
    path_length: int | None = None,
    start: datetime = NOW - timedelta(days=1),
    end: datetime = NOW + timedelta(days=365),
) -> x509.Certificate:
    """A certificate by hand, self-signed unless `issuer` (certificate, key) is given."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    usage = [False] * 9
    usage[0], usage[5] = True, cert_sign
    return (
        x509.CertificateBuilder(subject_name=name, issuer_name=issuer[0].subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
        .add_extension(x509.KeyUsage(*usage), critical=True)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )


def pem(*certs: x509.Certificate) -> bytes:
    return b"".join(cert.public_bytes(Encoding.PEM) for cert in certs)


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def credentials(
    authority: Authority,
    now: datetime | None = None,
    lifetime_s: float = 3600,
    identity: SpiffeId = WEB,
    trust_domain: str = DOMAIN,
    bundle_pem: str | None = None,
) -> Credentials:
    """Credentials made in this process; `now` is real by default because OpenSSL reads the real clock."""
    now = now or datetime.now(UTC)
    key, csr = make()
    chain = authority.sign(csr, identity, now, timedelta(seconds=lifetime_s)).decode()
    fd = os.memfd_create("test-key")
    try:
        os.write(fd, key + chain.encode())
        roots = authority.bundle.to_pem().decode() if bundle_pem is None else bundle_pem
        return build(f"/proc/self/fd/{fd}", chain, roots, trust_domain, now.timestamp())
    finally:
        os.close(fd)
