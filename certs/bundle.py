"""The set of roots that the mesh trusts: several at once, because a root is replaced by overlap.

The new root joins the bundle before it signs; the old one leaves it when its last leaf has expired.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

MAX_ROOTS = 32
MAX_BUNDLE_BYTES = 128 * 1024
"""As PEM; leaves room for a chain within one message of the CA."""

UNREADABLE = (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
"""What reading extensions raises when they are malformed."""


class BundleError(ValueError):
    """Input that is no usable trust bundle; the message says what was expected."""


def fingerprint(cert: x509.Certificate) -> str:
    """SHA-256 of the DER form, in lower-case hex."""
    return cert.fingerprint(hashes.SHA256()).hex()


def parse_certificates(pem: bytes, what: str, most: int = MAX_ROOTS) -> tuple[x509.Certificate, ...]:
    """The certificates in `pem`, in order; 1 to `most` of them, and nothing secret beside them.

    `what` names the input in errors. Raises BundleError.
    """
    if len(pem) > MAX_BUNDLE_BYTES:
        raise BundleError(f"{what}: expected at most {MAX_BUNDLE_BYTES} bytes, got {len(pem)}")
    if b"PRIVATE KEY-----" in pem:
        raise BundleError(f"{what}: expected certificates only, found a private key")
    count = pem.count(b"-----BEGIN CERTIFICATE-----")
    if not 1 <= count <= most:
        raise BundleError(f"{what}: expected 1 to {most} PEM certificates, got {count}")
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as exc:
        raise BundleError(f"{what}: expected PEM certificates (RFC 7468): {exc}") from None


def is_ca(cert: x509.Certificate) -> bool:
    """Whether basicConstraints says CA:TRUE (RFC 5280 section 4.2.1.9). Raises `UNREADABLE` if malformed."""
    try:
        return cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _check_root(cert: x509.Certificate) -> None:
    try:
        good = is_ca(cert)
    except UNREADABLE as exc:
        raise BundleError(f"root {fingerprint(cert)[:16]}: expected readable extensions: {exc}") from None
    if not good:
        raise BundleError(f"root {fingerprint(cert)[:16]}: expected a CA certificate (CA:TRUE)")
    try:
        cert.verify_directly_issued_by(cert)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise BundleError(f"root {fingerprint(cert)[:16]}: expected a self-signed certificate") from None


@dataclass(frozen=True)
class TrustBundle:
    """An ordered set of 1 to `MAX_ROOTS` self-signed CA certificates; never modified in place."""

    roots: tuple[x509.Certificate, ...]

    @classmethod
    def of(cls, roots: Iterable[x509.Certificate]) -> TrustBundle:
        """A bundle of `roots` without repetitions. Raises BundleError."""
        unique = tuple({fingerprint(root): root for root in roots}.values())
        if not 1 <= len(unique) <= MAX_ROOTS:
            raise BundleError(f"trust bundle: expected 1 to {MAX_ROOTS} roots, got {len(unique)}")
        for root in unique:
            _check_root(root)
        return cls(unique)

    @classmethod
    def parse(cls, pem: bytes) -> TrustBundle:
        """The bundle in `pem` (RFC 7468; text between the blocks is ignored). Raises BundleError."""
        return cls.of(parse_certificates(pem, "trust bundle"))

    def to_pem(self) -> bytes:
        """One PEM block for each root, in order."""
        return b"".join(root.public_bytes(Encoding.PEM) for root in self.roots)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """SHA-256 of each root, in order."""
        return tuple(fingerprint(root) for root in self.roots)

    def add(self, other: TrustBundle) -> TrustBundle:
        """This bundle followed by what is new in `other`. Raises BundleError when that is too many."""
        return TrustBundle.of((*self.roots, *other.roots))

    def remove(self, sha256: str) -> TrustBundle:
        """Without the root of that fingerprint. Raises BundleError if it is not here or is the last one."""
        rest = tuple(root for root in self.roots if fingerprint(root) != sha256)
        if len(rest) == len(self.roots):
            raise BundleError(f"trust bundle: expected a fingerprint of one of its roots, got {sha256!r}")
        return TrustBundle.of(rest)

    def drop_expired(self, now: datetime) -> TrustBundle:
        """Without the roots whose notAfter has passed. Raises BundleError if none would be left."""
        return TrustBundle.of(root for root in self.roots if root.not_valid_after_utc >= now.astimezone(UTC))
