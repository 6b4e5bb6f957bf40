"""Who the TLS peer is: reads what the `ssl` module already verified, without a certificate library.

It runs once per handshake in the sidecar, which must not load `cryptography`.
"""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from certs.identity import IdentityError, SpiffeId

_MONTHS = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1
    )
}


class PeerRejected(Exception):
    """A verified chain whose leaf is no workload of ours. `reason` is one of few, fit for a metric label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Peer:
    """What a peer has proven, and for which time (unix seconds)."""

    identity: str
    not_before: float
    not_after: float


def _unix_seconds(text: object) -> float:
    # "Jan  5 09:34:43 2018 GMT"; ssl.cert_time_to_seconds goes through strptime, which costs ten times more
    try:
        month, day, clock, year, zone = str(text).split()
        hour, minute, second = clock.split(":")
        if zone != "GMT":
            raise ValueError(zone)
        return float(
            calendar.timegm((int(year), _MONTHS[month], int(day), int(hour), int(minute), int(second)))
        )
    except (ValueError, KeyError):
        raise PeerRejected("validity", f"expected a certificate time in GMT, got {text!r}") from None


def peer_identity(cert: Mapping[str, Any] | None, trust_domain: str) -> Peer:
    """The workload that `cert` (from `ssl.SSLObject.getpeercert()`) names.

    The leaf must have exactly one URI among its subject alternative names (X509-SVID section 2), and that
    must be a workload of `trust_domain`. Names of other kinds are ignored. The chain, its signatures and
    dates were the handshake's business.

    Raises PeerRejected with reason `no-certificate`, `no-uri`, `several-uris`, `not-spiffe`,
    `foreign-trust-domain` or `validity`.
    """
    if not cert:
        raise PeerRejected("no-certificate", "expected a verified peer certificate")
    uris = [value for kind, value in cert.get("subjectAltName", ()) if kind == "URI"]
    if len(uris) != 1:
        if not uris:
            raise PeerRejected("no-uri", "expected one URI among the subject alternative names")
        raise PeerRejected("several-uris", f"expected one URI name, got {len(uris)}")
    try:
        identity = SpiffeId.parse(uris[0])
    except IdentityError as exc:
        raise PeerRejected("not-spiffe", str(exc)) from None
    if identity.trust_domain != trust_domain:
        raise PeerRejected(
            "foreign-trust-domain", f"expected {trust_domain}, got {identity.trust_domain}"
        ) from None
    return Peer(uris[0], _unix_seconds(cert.get("notBefore")), _unix_seconds(cert.get("notAfter")))
