"""The cluster's certificate authority, the keys made from it, and kubeconfig files."""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=365)
# A leaf is made anew when less than this is left of it.
LEAF_RENEW = timedelta(days=30)
# Clocks of clients may be behind by this much.
BACKDATE = timedelta(minutes=5)


class PkiError(Exception):
    """A file of the PKI directory cannot be used."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with its private key, both PEM."""

    certificate: bytes
    key: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate (DER), in hex."""
        return fingerprint(x509.load_pem_x509_certificate(self.certificate).public_bytes(_DER))


_DER = serialization.Encoding.DER
_PEM = serialization.Encoding.PEM


def fingerprint(der: bytes) -> str:
    """SHA-256 of a DER certificate, in hex."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    return digest.finalize().hex()


class Pki:
    """The keys of one cluster, kept in a directory; the same directory gives the same cluster again.

    Args:
        directory: made (0700) where absent. Holds ca.crt, ca.key, sa.key, apiserver.* and one pair per
            client; private keys are 0600.
        now: the moment certificates are issued at.

    Raises:
        PkiError: a file there is not what it should be; it is never overwritten.
    """

    def __init__(self, directory: Path, now: datetime) -> None:
        self.directory = directory
        self._now = now.astimezone(UTC)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.ca = self._load("ca") or self._make_ca()
        self._ca_certificate = x509.load_pem_x509_certificate(self.ca.certificate)
        self._ca_key = _private_key(self.ca.key, directory / "ca.key")
        if self._ca_certificate.public_key() != self._ca_key.public_key():
            raise PkiError(f"{directory / 'ca.key'}: is not the key of {directory / 'ca.crt'}")

    @property
    def ca_path(self) -> Path:
        return self.directory / "ca.crt"

    def token_key(self) -> ec.EllipticCurvePrivateKey:
        """The key that signs ServiceAccount tokens (ES256)."""
        path = self.directory / "sa.key"
        if not path.exists():
            _write(path, _private_pem(ec.generate_private_key(ec.SECP256R1())), 0o600)
        return _private_key(path.read_bytes(), path)

    def server(self, sans: Sequence[str]) -> KeyPair:
        """The API server's pair, valid for exactly these DNS names and IP addresses."""
        names = [_san(s) for s in sans]
        found = self._load("apiserver")
        if found and self._usable(found, x509.SubjectAlternativeName(names)):
            return found
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
        pair = self._issue(subject, ExtendedKeyUsageOID.SERVER_AUTH, names)
        return self._save("apiserver", pair)

    def client(self, file: str, user: str, groups: Sequence[str] = ()) -> KeyPair:
        """A client pair for `user`, kept as `<file>.crt` and `<file>.key`."""
        attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, g) for g in groups]
        subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, user)])
        found = self._load(file)
        if found and self._usable(found, None, subject):
            return found
        return self._save(file, self._issue(subject, ExtendedKeyUsageOID.CLIENT_AUTH, []))

    def _usable(
        self, pair: KeyPair, sans: x509.SubjectAlternativeName | None, subject: x509.Name | None = None
    ) -> bool:
        """Whether a stored leaf is from this CA, says what is asked for and lasts long enough."""
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        if certificate.issuer != self._ca_certificate.subject:
            return False
        if certificate.not_valid_after_utc - self._now < LEAF_RENEW:
            return False
        if subject is not None and certificate.subject != subject:
            return False
        if sans is not None and set(_sans_of(certificate)) != set(sans):
            return False
        key = _private_key(pair.key, self.directory)
        if certificate.public_key() != key.public_key():  # stopped between the two files
            return False
        try:
            certificate.verify_directly_issued_by(self._ca_certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def _make_ca(self) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - BACKDATE)
            .not_valid_after(self._now + CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return self._save("ca", KeyPair(certificate.public_bytes(_PEM), _private_pem(key)))

    def _issue(
        self, subject: x509.Name, use: x509.ObjectIdentifier, sans: Sequence[x509.GeneralName]
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        authority = self._ca_key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._ca_certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - BACKDATE)
            .not_valid_after(min(self._now + LEAF_LIFE, self._ca_certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
        )
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        certificate = builder.sign(self._ca_key, hashes.SHA256())
        return KeyPair(certificate.public_bytes(_PEM), _private_pem(key))

    def _load(self, name: str) -> KeyPair | None:
        certificate, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        if not certificate.exists():  # the key is written first: alone it was never used
            return None
        try:
            pair = KeyPair(certificate.read_bytes(), key.read_bytes())
            x509.load_pem_x509_certificate(pair.certificate)
        except (OSError, ValueError) as e:
            raise PkiError(f"{certificate}: no usable certificate with its key beside it: {e}") from None
        return pair

    def _save(self, name: str, pair: KeyPair) -> KeyPair:
        _write(self.directory / f"{name}.key", pair.key, 0o600)
        _write(self.directory / f"{name}.crt", pair.certificate, 0o644)
        return pair


def write_kubeconfig(path: Path, server: str, ca: bytes, client: KeyPair, *, cluster: str, user: str) -> None:
    """Write a kubeconfig (0600) with everything embedded; its context is named like the cluster."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": cluster, "cluster": {"server": server, "certificate-authority-data": _b64(ca)}},
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": _b64(client.certificate),
                    "client-key-data": _b64(client.key),
                },
            }
        ],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    }
    _write(path, yaml.safe_dump(config, sort_keys=False).encode(), 0o600)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _san(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _sans_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_key(pem: bytes, path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as e:
        raise PkiError(f"{path}: no usable private key: {e}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError(f"{path}: expected an elliptic curve key")
    return key


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file in one step, with its mode set before anything is in it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    os.replace(temporary, path)
