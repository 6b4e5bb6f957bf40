"""A CA as the data of a Secret: its keys, and the steps of a rotation. Pure; `store` has it as files.

signer.pem    the signing certificate, then the intermediates above it
signer.key    its private key
bundle.pem    the trust bundle
trust-domain  its name
active-since  when the signer began to sign
next.pem, next.key, staged-at   a signer that waits to be activated; its root is in bundle.pem already
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import MAX_INTERMEDIATES, Authority, AuthorityError
from certs.bundle import BundleError, TrustBundle, fingerprint, parse_certificates

SIGNER, KEY, BUNDLE, TRUST_DOMAIN, ACTIVE_SINCE = (
    "signer.pem",
    "signer.key",
    "bundle.pem",
    "trust-domain",
    "active-since",
)
NEXT_SIGNER, NEXT_KEY, STAGED_AT = "next.pem", "next.key", "staged-at"

_TIME = "%Y-%m-%dT%H:%M:%SZ"


class SecretStoreError(ValueError):
    """Data that is no usable CA, or a step that does not fit its state; the message says why."""


@dataclass(frozen=True)
class Waiting:
    """A signer that is trusted and signs nothing yet."""

    signer: Authority
    since: datetime


@dataclass(frozen=True)
class CaState:
    """What the Secret says. The bundle of `signer` is the one to hand out."""

    signer: Authority
    since: datetime
    waiting: Waiting | None = None


def create(trust_domain: str, now: datetime) -> CaState:
    """A new CA with a root of its own. Raises AuthorityError."""
    return CaState(Authority.create(trust_domain, now), now)


def encode(state: CaState) -> dict[str, bytes]:
    """The Secret's data."""
    pem = state.signer.to_pem()
    data = {
        SIGNER: pem.cert + pem.chain,
        KEY: pem.key,
        BUNDLE: pem.roots,
        TRUST_DOMAIN: state.signer.trust_domain.encode(),
        ACTIVE_SINCE: state.since.strftime(_TIME).encode(),
    }
    if state.waiting:
        following = state.waiting.signer.to_pem()
        data |= {
            NEXT_SIGNER: following.cert + following.chain,
            NEXT_KEY: following.key,
            STAGED_AT: state.waiting.since.strftime(_TIME).encode(),
        }
    return data


def _part(data: Mapping[str, bytes], key: str) -> bytes:
    try:
        return data[key]
    except KeyError:
        raise SecretStoreError(f"expected the key {key} in it") from None


def _time(data: Mapping[str, bytes], key: str) -> datetime:
    text = _part(data, key).decode("ascii", "replace").strip()
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        raise SecretStoreError(
            f"{key}: expected a time such as 2030-01-31T12:00:00Z, got {text[:40]!r}"
        ) from None


def _authority(data: Mapping[str, bytes], signer: str, key: str) -> Authority:
    try:
        path = parse_certificates(_part(data, signer), signer, MAX_INTERMEDIATES + 1)
        pem = [one.public_bytes(Encoding.PEM) for one in path]
        domain = _part(data, TRUST_DOMAIN).decode("ascii", "replace").strip()
        return Authority.load(pem[0], _part(data, key), b"".join(pem[1:]), _part(data, BUNDLE), domain)
    except (AuthorityError, BundleError) as exc:
        raise SecretStoreError(f"{signer}: {exc}") from None


def decode(data: Mapping[str, bytes]) -> CaState:
    """The CA in a Secret's data, checked as a whole. Raises SecretStoreError."""
    waiting = None
    if NEXT_SIGNER in data or NEXT_KEY in data:
        waiting = Waiting(_authority(data, NEXT_SIGNER, NEXT_KEY), _time(data, STAGED_AT))
    return CaState(_authority(data, SIGNER, KEY), _time(data, ACTIVE_SINCE), waiting)


def _with_bundle(state: CaState, bundle: TrustBundle) -> CaState:
    waiting = state.waiting
    if waiting:
        waiting = replace(waiting, signer=waiting.signer.with_bundle(bundle))
    return replace(state, signer=state.signer.with_bundle(bundle), waiting=waiting)


def _wait(since: datetime, now: datetime, overlap: timedelta, why: str) -> None:
    left = (overlap - (now - since)).total_seconds()
    if overlap > timedelta() and left > 0:
        raise SecretStoreError(f"expected to wait another {left:.0f} s, {why}; --force does it now")


def stage(state: CaState, signer: Authority, now: datetime) -> CaState:
    """Step one of a rotation: trust the root of `signer`, which signs nothing yet.

    Raises SecretStoreError.
    """
    if signer.trust_domain != state.signer.trust_domain:
        raise SecretStoreError(
            f"expected trust domain {state.signer.trust_domain}, got {signer.trust_domain}"
        )
    if state.waiting:
        raise SecretStoreError("a signer waits already; activate it first")
    try:
        bundle = state.signer.bundle.add(signer.bundle)
    except BundleError as exc:
        raise SecretStoreError(str(exc)) from None
    return _with_bundle(replace(state, waiting=Waiting(signer, now)), bundle)


def activate(state: CaState, now: datetime, overlap: timedelta) -> CaState:
    """Step two: the waiting signer signs from here on; the old root stays trusted.

    By then every workload must hold the new root, so it has to have waited for `overlap`, a leaf's lifetime;
    0 skips that. Raises SecretStoreError.
    """
    if state.waiting is None:
        raise SecretStoreError("no signer waits; stage one first")
    _wait(state.waiting.since, now, overlap, "until every workload has the new root")
    return CaState(state.waiting.signer, now)


def retire(state: CaState, now: datetime, overlap: timedelta) -> tuple[CaState, tuple[str, ...]]:
    """Step three: trust no root but the signer's; also the fingerprints that went.

    Leaves of the old root must have expired, so the signer has to have been active for `overlap`, a leaf's
    lifetime; 0 skips that. Raises SecretStoreError.
    """
    if state.waiting:
        raise SecretStoreError("a signer waits; activate it first")
    _wait(state.since, now, overlap, "until leaves of the old root have expired")
    keep = state.signer.root
    gone = tuple(fingerprint(root) for root in state.signer.bundle.roots if root != keep)
    return _with_bundle(state, TrustBundle.of([keep])), gone
