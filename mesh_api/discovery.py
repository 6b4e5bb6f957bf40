"""What passes between a sidecar and the control plane on the discovery stream.

Transport: mTLS (TLS 1.3, ALPN `triomesh-discovery/1`), frames of a u32 length (big endian) and one msgpack
message. A sidecar asks for what it uses; the answer to each key is live: it is sent again whenever its
content changes. `version` is a hash of the content, so versions compare across replicas: after a
reconnection the sidecar says what it holds and receives the differences only.

Keys: `workload` (this sidecar's own configuration), `address/IP:PORT` (who owns an address; IPv6 in
brackets), `destination/NAMESPACE/NAME:PORT`, `pod/IP`. An address that belongs to a destination or a pod
brings that with it, in the same update and live as well, without being asked for.
"""

from __future__ import annotations

import msgspec

from mesh_api.sidecar import (
    Destination,
    EgressMode,
    Inbound,
    Message,
    Name,
    Pod,
    Workload,
)

ALPN_DISCOVERY = "triomesh-discovery/1"
MAX_FRAME_BYTES = 4 * 1024 * 1024
MAX_KEYS = 8192
"""Subscriptions of one sidecar."""
WORKLOAD_KEY = "workload"


class Hello(Message, frozen=True, tag="hello"):
    """First message of a sidecar. The identity is the certificate's; the pod must belong to it."""

    pod: Name
    namespace: Name
    version: str
    """Of the sidecar's program."""


class Held(Message, frozen=True):
    """A key that the sidecar wants, and what it has of it ('' for nothing)."""

    key: str
    version: str = ""


class Subscribe(Message, frozen=True, tag="subscribe"):
    """Add keys; those already subscribed are compared again."""

    keys: tuple[Held, ...]


class Unsubscribe(Message, frozen=True, tag="unsubscribe"):
    """Drop keys; what only they brought is dropped with them."""

    keys: tuple[str, ...]


class Applied(Message, frozen=True, tag="applied"):
    """An update is in force, or (with `error`) refused: then the last good content stays."""

    nonce: int
    error: str = ""
    """Path and what was expected there."""


class Welcome(Message, frozen=True, tag="welcome"):
    """First message of the control plane; sent once its caches have synced."""

    replica: str
    version: str


class AddressAnswer(Message, frozen=True):
    """Who owns an address; neither field set: nobody in the mesh."""

    destination: str = ""
    """NAMESPACE/NAME:PORT"""
    pod: str = ""
    """IP"""


class WorkloadConfig(Message, frozen=True):
    """A sidecar's own configuration."""

    workload: Workload
    trust_domain: Name
    bundle_pem: str
    """Trust bundle; a change is taken over at once."""
    inbound: Inbound = Inbound()
    egress: EgressMode = EgressMode.PASSTHROUGH
    access_log: bool = False
    draining: bool = False


Content = Destination | Pod | AddressAnswer | WorkloadConfig


class Resource(Message, frozen=True):
    """The content of one key, as msgpack of the type that the key says."""

    key: str
    version: str
    body: bytes


class Update(Message, frozen=True, tag="update"):
    """Changes that belong together: applied whole or not at all."""

    nonce: int
    resources: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()
    """Keys whose content is gone (a destination that was deleted)."""


FromSidecar = Hello | Subscribe | Unsubscribe | Applied
FromControl = Welcome | Update

_TYPES: dict[str, type[Content]] = {
    "address": AddressAnswer,
    "destination": Destination,
    "pod": Pod,
    "workload": WorkloadConfig,
}


def content_type(key: str) -> type[Content]:
    """The type of a key's content. Raises ValueError for what is no key."""
    try:
        return _TYPES[key.partition("/")[0]]
    except KeyError:
        raise ValueError(f"expected address/, destination/, pod/ or workload, got {key[:100]!r}") from None


def encode_content(content: Content) -> bytes:
    """The body of a resource; equal contents give equal bytes."""
    return msgspec.msgpack.encode(content, order="deterministic")
