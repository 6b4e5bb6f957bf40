"""Workload names: the SPIFFE id form that the whole mesh agrees on, parsed in exactly one place."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_ID_BYTES = 2048
"""Longest SPIFFE id (SPIFFE-ID section 2.3)."""

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_trust_domain = re.compile(r"[a-z0-9._-]{1,255}").fullmatch
_namespace = re.compile(_LABEL).fullmatch
_service_account = re.compile(rf"(?=.{{1,253}}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.{_LABEL})*").fullmatch

_FORM = "spiffe://<trust domain>/ns/<namespace>/sa/<service account>"


class IdentityError(ValueError):
    """Text that is no workload name; the message says what was expected."""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "...")


def check_trust_domain(text: str) -> str:
    """Return `text` if it is a trust domain name (SPIFFE-ID section 2.1: a-z, 0-9, dot, dash, underscore).

    Raises IdentityError otherwise.
    """
    if not _trust_domain(text):
        raise IdentityError(
            f"expected a trust domain of 1 to 255 characters out of a-z 0-9 . - _, got {_shown(text)}"
        )
    return text


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A Kubernetes ServiceAccount in a trust domain. An instance is always well-formed.

    The constructor raises IdentityError: namespaces are DNS labels (RFC 1123 section 2.1), service account
    names DNS subdomains of at most 253 characters.
    """

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        if not _namespace(self.namespace):
            raise IdentityError(
                "expected a namespace of 1 to 63 characters (a-z, 0-9, inner dashes), "
                f"got {_shown(self.namespace)}"
            )
        if not _service_account(self.service_account):
            raise IdentityError(
                "expected a service account of 1 to 253 characters (a-z, 0-9, inner dashes and dots), "
                f"got {_shown(self.service_account)}"
            )

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """The id written as `spiffe://<trust domain>/ns/<ns>/sa/<sa>`, with nothing added or normalised.

        Raises IdentityError.
        """
        if len(text) > MAX_ID_BYTES:
            raise IdentityError(f"expected at most {MAX_ID_BYTES} characters, got {len(text)}")
        parts = text.split("/")
        if len(parts) != 7 or parts[:2] != ["spiffe:", ""] or parts[3] != "ns" or parts[5] != "sa":
            raise IdentityError(f"expected {_FORM}, got {_shown(text)}")
        return cls(parts[2], parts[4], parts[6])

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"
