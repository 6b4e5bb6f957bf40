"""The CA as pure code: it holds a signing key and turns requests into leaves, with the time passed in.

Whoever calls `sign` has authenticated somebody and says who it is; a request contributes nothing but its
public key.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.bundle import MAX_ROOTS, UNREADABLE, BundleError, TrustBundle, parse_certificates
from certs.identity import IdentityError, SpiffeId, check_trust_domain

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

BACKDATE = timedelta(minutes=2)
"""How far notBefore lies in the past, for peers whose clocks are behind."""

DEFAULT_LEAF_LIFETIME = timedelta(hours=24)
DEFAULT_ROOT_LIFETIME = timedelta(days=3650)
MAX_INTERMEDIATES = 8
MAX_CSR_BYTES = 16 * 1024
MAX_KEY_BYTES = 64 * 1024


class AuthorityError(ValueError):
    """A CA that cannot be used, or a request that it refuses; the message says what was expected."""


@dataclass(frozen=True)
class AuthorityPem:
    """What `Authority.load` needs to make the same authority again. The key is PKCS #8, unencrypted."""

    cert: bytes
    key: bytes = field(repr=False)
    chain: bytes
    roots: bytes


def _aware(now: datetime) -> datetime:
    if now.tzinfo is None:
        raise AuthorityError("expected a time with a time zone")
    return now.astimezone(UTC).replace(microsecond=0)


def _key_usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        encipher_only=False,
        decipher_only=False,
    )


def _name(cert: x509.Certificate) -> str:
    return cert.subject.rfc4514_string()[:200] or f"serial {cert.serial_number:x}"


def _load_key(pem: bytes) -> SigningKey:
    if len(pem) > MAX_KEY_BYTES:
        raise AuthorityError(f"key: expected at most {MAX_KEY_BYTES} bytes, got {len(pem)}")
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise AuthorityError("key: expected a private key without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise AuthorityError("key: expected one private key in PEM (PKCS #8 or traditional)") from None
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return key
    raise AuthorityError("key: expected ECDSA P-256 or P-384, or RSA of 2048 bits or more")


def _check_ca(cert: x509.Certificate, below: int) -> None:
    """Whether `cert` may issue with `below` intermediates under it (RFC 5280 sections 4.2.1.3, 4.2.1.9)."""
    try:
        basic = cert.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not basic.ca:
            raise AuthorityError(f"{_name(cert)}: expected a CA certificate, this one says CA:FALSE")
        if basic.path_length is not None and basic.path_length < below:
            raise AuthorityError(
                f"{_name(cert)}: expected a path length of {below} or more, got {basic.path_length}"
            )
    except x509.ExtensionNotFound:
        raise AuthorityError(f"{_name(cert)}: expected basicConstraints with CA:TRUE") from None
    except AuthorityError:
        raise
    except UNREADABLE as exc:
        raise AuthorityError(f"{_name(cert)}: expected readable extensions: {exc}") from None
    try:
        usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        raise AuthorityError(f"{_name(cert)}: expected keyUsage with keyCertSign") from None
    if not usage.key_cert_sign:
        raise AuthorityError(f"{_name(cert)}: expected keyCertSign in keyUsage")


def _issued(child: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _anchor(path: tuple[x509.Certificate, ...], roots: TrustBundle) -> x509.Certificate:
    """The root under which `path` (signer first) hangs, after checking every link."""
    for below, cert in enumerate(path):
        _check_ca(cert, below)
    for child, parent in itertools.pairwise(path):
        if not _issued(child, parent):
            raise AuthorityError(
                f"chain: expected the issuer of {_name(child)} after it, got {_name(parent)}"
            )
    if path[-1] in roots.roots:
        if len(path) > 1:
            raise AuthorityError(f"chain: expected no root in it, got {_name(path[-1])}")
        return path[-1]
    for root in roots.roots:
        if _issued(path[-1], root):
            _check_ca(root, len(path))
            return root
    raise AuthorityError(f"chain: expected {_name(path[-1])} to be issued by one of the roots")


def _check_dates(path: tuple[x509.Certificate, ...], now: datetime) -> None:
    for cert in path:
        if now >= cert.not_valid_after_utc:
            raise AuthorityError(f"{_name(cert)}: expired at {cert.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
        if now < cert.not_valid_before_utc:
            raise AuthorityError(
                f"{_name(cert)}: not valid before {cert.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
            )


def _own_trust_domain(cert: x509.Certificate) -> str:
    """The trust domain that a signing certificate names (X509-SVID section 3.2), or an empty string."""
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return ""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    own = [uri.removeprefix("spiffe://").partition("/")[0] for uri in uris if uri.startswith("spiffe://")]
    return own[0] if len(own) == 1 else ""


def _csr_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    if len(csr_pem) > MAX_CSR_BYTES:
        raise AuthorityError(f"CSR: expected at most {MAX_CSR_BYTES} bytes, got {len(csr_pem)}")
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        key = csr.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise AuthorityError("CSR: expected PKCS #10 in PEM with an ECDSA P-256 key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AuthorityError("CSR: expected an ECDSA P-256 key")
    try:
        good = csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        good = False
    if not good:
        raise AuthorityError("CSR: expected a signature by its own key")
    return key


@dataclass(frozen=True)
class Authority:
    """A signing certificate with its key, what links it to a root, and the roots to hand out.

    Use `create`, `load` or `import_intermediate`; they check what the fields claim.
    """

    trust_domain: str
    cert: x509.Certificate
    key: SigningKey = field(repr=False)
    chain: tuple[x509.Certificate, ...]
    """Intermediates above `cert`, nearest first, without the root."""
    bundle: TrustBundle
    root: x509.Certificate
    """The member of `bundle` that ends the path."""

    @classmethod
    def create(
        cls, trust_domain: str, now: datetime, lifetime: timedelta = DEFAULT_ROOT_LIFETIME
    ) -> Authority:
        """A new self-signed ECDSA P-256 root. Raises AuthorityError for a bad trust domain or lifetime."""
        try:
            check_trust_domain(trust_domain)
        except IdentityError as exc:
            raise AuthorityError(str(exc)) from None
        now = _aware(now)
        if lifetime < timedelta(seconds=1):
            raise AuthorityError(f"lifetime: expected a second or more, got {lifetime}")
        try:
            end = now + lifetime
        except OverflowError:
            raise AuthorityError(f"lifetime: expected an end before the year 10000, got {lifetime}") from None
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        # A name of its own for every root: during an overlap verifiers look issuers up by name.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Triomesh root {serial:040x}"[:30])])
        cert = (
            x509.CertificateBuilder(subject_name=name, issuer_name=name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - BACKDATE)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(leaf=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        return cls(trust_domain, cert, key, (), TrustBundle.of([cert]), cert)

    @classmethod
    def load(
        cls,
        cert_pem: bytes,
        key_pem: bytes,
        chain_pem: bytes = b"",
        roots_pem: bytes = b"",
        trust_domain: str = "",
    ) -> Authority:
        """An authority from its parts; dates are not looked at (`sign` does).

        `chain_pem` holds the intermediates above `cert_pem`, nearest first. `roots_pem` may be left out for a
        self-signed `cert_pem`, `trust_domain` where the certificate names one. Raises AuthorityError when a
        part is unreadable, is no CA, does not match the key or does not lead to one of the roots.
        """
        try:
            (cert,) = parse_certificates(cert_pem, "certificate", 1)
            chain = parse_certificates(chain_pem, "chain", MAX_INTERMEDIATES) if chain_pem.strip() else ()
            bundle = TrustBundle.parse(roots_pem if roots_pem.strip() else cert_pem)
        except BundleError as exc:
            raise AuthorityError(str(exc)) from None
        own = _own_trust_domain(cert)
        try:
            check_trust_domain(trust_domain or own)
        except IdentityError as exc:
            raise AuthorityError(str(exc)) from None
        if trust_domain and own and own != trust_domain:
            raise AuthorityError(f"{_name(cert)}: expected trust domain {trust_domain}, got {own}")
        key = _load_key(key_pem)
        try:
            public = cert.public_key()
        except (ValueError, UnsupportedAlgorithm):
            raise AuthorityError(f"{_name(cert)}: expected a supported public key") from None
        if public != key.public_key():
            raise AuthorityError(f"key: expected the private key of {_name(cert)}")
        root = _anchor((cert, *chain), bundle)
        return cls(trust_domain or own, cert, key, chain, bundle, root)

    @classmethod
    def import_intermediate(
        cls,
        cert_pem: bytes,
        key_pem: bytes,
        chain_pem: bytes,
        root_pem: bytes,
        trust_domain: str,
        now: datetime,
    ) -> Authority:
        """A user's own CA as the signer: what `load` checks, and that its whole path is in force at `now`.

        A chain file that ends with the root, as many do, is taken without it. Raises AuthorityError.
        """
        if chain_pem.strip():
            try:
                roots = TrustBundle.parse(root_pem).roots
                chain = parse_certificates(chain_pem, "chain", MAX_INTERMEDIATES + MAX_ROOTS)
            except BundleError as exc:
                raise AuthorityError(str(exc)) from None
            chain_pem = b"".join(cert.public_bytes(Encoding.PEM) for cert in chain if cert not in roots)
        authority = cls.load(cert_pem, key_pem, chain_pem, root_pem, trust_domain)
        _check_dates(authority.path, _aware(now))
        return authority

    @property
    def path(self) -> tuple[x509.Certificate, ...]:
        """From the signing certificate up to and including the root."""
        above = (self.cert, *self.chain)
        return above if self.root in above else (*above, self.root)

    @property
    def not_after(self) -> datetime:
        """When the first certificate on the path ends; no leaf outlives it."""
        return min(cert.not_valid_after_utc for cert in self.path)

    def with_bundle(self, bundle: TrustBundle) -> Authority:
        """The same signer that hands out other roots. Raises AuthorityError if its own is not among them."""
        if self.root not in bundle.roots:
            raise AuthorityError(f"trust bundle: expected {_name(self.root)} in it, the signer's root")
        return Authority(self.trust_domain, self.cert, self.key, self.chain, bundle, self.root)

    def to_pem(self) -> AuthorityPem:
        """Everything, the private key included, in PEM."""
        return AuthorityPem(
            cert=self.cert.public_bytes(Encoding.PEM),
            key=self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            chain=b"".join(cert.public_bytes(Encoding.PEM) for cert in self.chain),
            roots=self.bundle.to_pem(),
        )

    def bundle_pem(self, now: datetime) -> bytes:
        """The roots in force at `now`, in PEM. Raises AuthorityError if all have expired."""
        try:
            return self.bundle.drop_expired(_aware(now)).to_pem()
        except BundleError as exc:
            raise AuthorityError(str(exc)) from None

    def sign(
        self,
        csr_pem: bytes,
        identity: SpiffeId,
        now: datetime,
        lifetime: timedelta = DEFAULT_LEAF_LIFETIME,
    ) -> bytes:
        """A leaf for `identity` over the CSR's public key: PEM, leaf first, then intermediates, no root.

        Names and extensions that the CSR (PKCS #10, RFC 2986) asks for are ignored. The leaf (RFC 5280,
        X509-SVID section 2) is valid from two minutes before `now` for `lifetime` after it, in whole seconds.
        Raises AuthorityError for a CSR that is unreadable, badly signed or not ECDSA P-256, for an identity
        of another trust domain, and for a lifetime that is under a second or ends after the issuer.
        """
        if identity.trust_domain != self.trust_domain:
            raise AuthorityError(
                f"identity: expected trust domain {self.trust_domain}, got {identity.trust_domain}"
            )
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self.issue(_csr_key(csr_pem), names, usages, now, lifetime)

    def issue(
        self,
        public: ec.EllipticCurvePublicKey,
        names: x509.SubjectAlternativeName,
        usages: Sequence[x509.ObjectIdentifier],
        now: datetime,
        lifetime: timedelta,
    ) -> bytes:
        """A leaf for `public` with these names and extended key usages; otherwise as `sign`, which see."""
        now = _aware(now)
        if lifetime < timedelta(seconds=1):
            raise AuthorityError(f"lifetime: expected a second or more, got {lifetime}")
        _check_dates(self.path, now)
        if lifetime > self.not_after - now:
            raise AuthorityError(
                f"lifetime: expected an end before the issuer's, {self.not_after:%Y-%m-%dT%H:%M:%SZ}"
            )
        leaf = (
            x509.CertificateBuilder(subject_name=x509.Name([]), issuer_name=self.cert.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after((now + lifetime).replace(microsecond=0))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(leaf=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            # Critical because the subject is empty (RFC 5280 section 4.2.1.6).
            .add_extension(names, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(self._key_id(), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        path = (leaf, *(cert for cert in (self.cert, *self.chain) if cert != self.root))
        return b"".join(cert.public_bytes(Encoding.PEM) for cert in path)

    def _key_id(self) -> x509.AuthorityKeyIdentifier:
        # The issuer's own subject key id where it has one: it need not be the hash that we would compute.
        try:
            own = self.cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
