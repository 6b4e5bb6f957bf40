"""The certificates that a sidecar holds, described without a certificate library."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator, Sequence
from typing import Any

from certs.credentials import Credentials
from mesh_api.admin import Certificate
from mesh_ops.printable import timestamp

_END = "-----END CERTIFICATE-----"
_SHORT = {"commonName": "CN", "organizationName": "O", "organizationalUnitName": "OU", "countryName": "C"}


def describe(credentials: Credentials) -> tuple[Certificate, ...]:
    """Leaf, intermediates and roots, in this order."""
    leaf, _, rest = credentials.chain_pem.partition(_END)
    return (
        _leaf(credentials, leaf + _END),
        *_authorities("intermediate", rest if _END in rest else ""),
        *_authorities("root", credentials.bundle_pem),
    )


def _leaf(credentials: Credentials, pem: str) -> Certificate:
    der = ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN") :])
    return Certificate(
        role="leaf",
        subject=credentials.identity,
        serial=f"{_serial(der):x}",
        not_before=timestamp(credentials.not_before),
        not_after=timestamp(credentials.not_after),
        sha256=hashlib.sha256(der).hexdigest(),
    )


def _authorities(role: str, pem: str) -> Iterator[Certificate]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if pem:
        context.load_verify_locations(cadata=pem)
    known: list[dict[str, Any]] = context.get_ca_certs()
    for der, cert in zip(context.get_ca_certs(binary_form=True), known, strict=True):
        yield Certificate(
            role=role,
            subject=_name(cert["subject"]),
            serial=f"{_serial(der):x}",
            not_before=timestamp(ssl.cert_time_to_seconds(cert["notBefore"])),
            not_after=timestamp(ssl.cert_time_to_seconds(cert["notAfter"])),
            sha256=hashlib.sha256(der).hexdigest(),
        )


def _name(subject: Sequence[Sequence[tuple[str, str]]]) -> str:
    return ", ".join(f"{_SHORT.get(key, key)}={value}" for part in subject for key, value in part)


def _serial(der: bytes) -> int:
    """The serial number: Certificate, TBSCertificate, [0] version, INTEGER (RFC 5280 section 4.1)."""
    place, _ = _header(der, 0)
    place, _ = _header(der, place)
    if der[place] == 0xA0:
        start, size = _header(der, place)
        place = start + size
    start, size = _header(der, place)
    return int.from_bytes(der[start : start + size], "big")


def _header(der: bytes, place: int) -> tuple[int, int]:
    """Where the content of an element begins, and its size (X.690 section 8.1)."""
    size = der[place + 1]
    if size < 0x80:
        return place + 2, size
    digits = size & 0x7F
    start = place + 2 + digits
    return start, int.from_bytes(der[place + 2 : start], "big")
