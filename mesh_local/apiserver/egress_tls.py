"""TLS of the requests that the API server sends, and its failures in the words of Go's crypto/tls."""

import re
import ssl
from datetime import datetime
from functools import lru_cache
from typing import TypeGuard

from cryptography import x509

from mesh_local.machinery.objects import rfc3339

UNKNOWN_AUTHORITY = "x509: certificate signed by unknown authority"
# X509_V_ERR_*: what OpenSSL says when a chain does not end in a known root.
_UNKNOWN_AUTHORITY = frozenset({2, 7, 18, 19, 20, 21, 24})
_OUT_OF_TIME = frozenset({9, 10})
_WRONG_NAME = frozenset({62, 64})
_VERIFY = "tls: failed to verify certificate: "


class BadCaBundle(Exception):
    """A caBundle that holds no certificates."""


@lru_cache(maxsize=64)
def verified(ca: str) -> ssl.SSLContext:
    """A client context that trusts the PEM bundle `ca` only; '': the system's roots.

    Raises:
        BadCaBundle: no certificate could be read from it.
    """
    if not ca:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(cadata=ca)
        except (ssl.SSLError, ValueError):
            raise BadCaBundle(
                "unable to load root certificates: unable to parse bytes as PEM block"
            ) from None
    # Go reads names from the subjectAltName only.
    context.hostname_checks_common_name = False
    return context


@lru_cache(maxsize=1)
def unverified() -> ssl.SSLContext:
    """A client context that trusts everybody: `https:` of the proxies, explaining errors."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def shows_certificate(error: ssl.SSLError) -> TypeGuard[ssl.SSLCertVerificationError]:
    """Whether the text for a failed handshake needs the certificate that the server showed."""
    return isinstance(error, ssl.SSLCertVerificationError) and (
        error.verify_code in _WRONG_NAME or error.verify_code in _OUT_OF_TIME
    )


def handshake_error(error: ssl.SSLError) -> str:
    """The text for a failed handshake."""
    if isinstance(error, ssl.SSLCertVerificationError):
        known = error.verify_code in _UNKNOWN_AUTHORITY
        return _VERIFY + (UNKNOWN_AUTHORITY if known else f"x509: {error.verify_message}")
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "EOF"
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE"):
        return "tls: first record does not look like a TLS handshake"
    reason = (error.reason or str(error)).lower().replace("_", " ")
    return f"remote error: tls: {reason.removeprefix('tlsv1 alert ').removeprefix('sslv3 alert ')}"


def certificate_error(
    error: ssl.SSLCertVerificationError, certificate: x509.Certificate, wanted: str, now: datetime
) -> str:
    """The text for a certificate with a wrong name, or out of its time."""
    wrong_name = error.verify_code in _WRONG_NAME
    return _VERIFY + (_wrong_name(certificate, wanted) if wrong_name else _out_of_time(certificate, now))


def _wrong_name(certificate: x509.Certificate, wanted: str) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    addresses = [str(a) for a in names.get_values_for_type(x509.IPAddress)]
    hosts = names.get_values_for_type(x509.DNSName)
    if _is_ip(wanted):
        if not addresses:
            why = "because it doesn't contain any IP SANs"
            return f"x509: cannot validate certificate for {wanted} {why}"
        return f"x509: certificate is valid for {', '.join(addresses)}, not {wanted}"
    if not hosts:
        return f"x509: certificate is not valid for any names, but wanted to match {wanted}"
    return f"x509: certificate is valid for {', '.join(hosts)}, not {wanted}"


def _out_of_time(certificate: x509.Certificate, now: datetime) -> str:
    if now < certificate.not_valid_before_utc:
        relation, limit = "before", certificate.not_valid_before_utc
    else:
        relation, limit = "after", certificate.not_valid_after_utc
    text = "x509: certificate has expired or is not yet valid"
    return f"{text}: current time {rfc3339(now)} is {relation} {rfc3339(limit)}"


def _is_ip(host: str) -> bool:
    return ":" in host or re.fullmatch(r"[0-9.]+", host) is not None
