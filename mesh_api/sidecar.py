"""The message that configures a sidecar: one immutable `Snapshot`.

The control plane will stream it in parts (one part per destination); a file holds it whole. Addresses are
IPv4 or IPv6 in their canonical text form without brackets, ports are 1-65535, times are seconds (`_s`).
Unknown fields and wrong types are refused with the path of the field; what crosses fields is checked by
`validate`.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterator
from typing import Annotated

import msgspec

from mesh_api.keys import Family, parse_destination
from mesh_api.traffic import (
    MAX_ROUTES,
    Budget,
    Labels,
    Message,
    PathNormalization,
    Retries,
    Route,
    Settings,
    Subset,
)

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
Address = Annotated[str, msgspec.Meta(min_length=2, max_length=45)]


class ConfigError(ValueError):
    """A message that cannot be used: `path` says where (JSON path), `expected` what was wanted."""

    def __init__(self, path: str, expected: str) -> None:
        super().__init__(f"{path}: {expected}")
        self.path = path
        self.expected = expected


class Protocol(enum.Enum):
    """What a port speaks. `auto`: not declared, so the sidecar looks at the first bytes."""

    AUTO = "auto"
    HTTP = "http"
    """Either version, as the client speaks."""
    HTTP2 = "http2"
    """Endpoints speak HTTP/2; requests of HTTP/1.1 clients are converted."""
    TCP = "tcp"


class TlsMode(enum.Enum):
    """How to reach an endpoint's port: mTLS to its sidecar, or plaintext."""

    MESH = "mesh"
    NONE = "none"


class MtlsMode(enum.Enum):
    """What a sidecar's inbound side accepts (the modes of Istio's PeerAuthentication)."""

    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"
    DISABLE = "DISABLE"


class EgressMode(enum.Enum):
    """What happens to a connection whose address serves no mesh endpoint."""

    PASSTHROUGH = "passthrough"
    REFUSE = "refuse"


class Workload(Message, frozen=True):
    """Who this sidecar is."""

    name: Name
    namespace: Name
    service_account: Name = "default"
    addresses: tuple[Address, ...] = ()
    """The pod's own addresses; the sidecar adds those that its settings name."""
    labels: Labels = {}
    """The pod's own, for routes that match their callers."""


class Endpoint(Message, frozen=True):
    """One port of one pod behind a destination."""

    address: Address
    port: Port
    tls: TlsMode = TlsMode.NONE
    identity: str = ""
    """SPIFFE id that the peer must prove; required with `tls: mesh`."""
    workload: str = ""
    """Deployment or similar, for statistics."""
    labels: Labels = {}
    weight: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1


class Destination(Message, frozen=True):
    """One port of one Service: its addresses, its endpoints and how to reach them."""

    name: Name
    """Service name."""
    namespace: Name
    port: Port
    addresses: tuple[Address, ...]
    """Cluster IPs, external and load-balancer IPs; empty for a headless Service."""
    family: Family | None = None
    """Of all its addresses and endpoints: a Service of two families is two destinations. None (configuration
    from a file): not told apart."""
    protocol: Protocol = Protocol.AUTO
    local: bool = False
    """The endpoints are those of this sidecar's node alone (internalTrafficPolicy Local)."""
    endpoints: tuple[Endpoint, ...] = ()
    subsets: dict[str, Subset] = {}
    routes: Annotated[tuple[Route, ...], msgspec.Meta(max_length=MAX_ROUTES)] = ()
    """The first match holds, and none is 404; empty: every request goes to every endpoint."""
    settings: Settings = Settings()
    retries: Retries = Retries()
    """Of routes that say nothing else."""
    budget: Budget = Budget()
    policy: str = ""
    """NAMESPACE/NAME of the policy that this comes from, for errors and statistics."""


class Pod(Message, frozen=True):
    """A pod of the mesh, reached by its own address."""

    name: Name
    namespace: Name
    addresses: tuple[Address, ...]
    identity: str
    workload: str = ""
    tls: TlsMode = TlsMode.MESH
    plaintext_ports: tuple[Port, ...] = ()
    """Ports that its sidecar does not capture."""
    captured_ports: tuple[Port, ...] = ()
    """If there are any: the only ports that it captures."""
    opaque_ports: tuple[Port, ...] = ()
    settings: Settings = Settings()
    """Of the policy for its headless Service, if there is exactly one."""


class Inbound(Message, frozen=True):
    """What this sidecar accepts for its own pod."""

    mtls: MtlsMode = MtlsMode.PERMISSIVE
    port_mtls: dict[str, MtlsMode] = {}
    """Overrides by workload port."""
    protocols: dict[str, Protocol] = {}
    """Declared protocol by workload port."""


class Snapshot(Message, frozen=True):
    """Everything one sidecar knows. `synced` false means that a missing address has no answer yet."""

    workload: Workload
    trust_domain: Name = "cluster.local"
    synced: bool = True
    draining: bool = False
    egress: EgressMode = EgressMode.PASSTHROUGH
    inbound: Inbound = Inbound()
    destinations: tuple[Destination, ...] = ()
    pods: tuple[Pod, ...] = ()
    access_log: bool = False
    """Errors are always logged; true logs every request and connection."""
    path_normalization: PathNormalization = PathNormalization.BASE
    """Of requests that leave this pod, and of those that come to it."""


MAX_SNAPSHOT_BYTES = 16 * 1024 * 1024

_decoder = msgspec.json.Decoder(Snapshot)


def decode_snapshot(data: bytes) -> Snapshot:
    """Decode and validate a JSON snapshot.

    Raises ConfigError with the path of the field and what was expected there.
    """
    if len(data) > MAX_SNAPSHOT_BYTES:
        raise ConfigError("$", f"expected at most {MAX_SNAPSHOT_BYTES} bytes, got {len(data)}")
    try:
        snapshot = _decoder.decode(data)
    except msgspec.ValidationError as exc:
        text, _, path = str(exc).partition(" - at `")
        raise ConfigError(path.rstrip("`") or "$", text) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError("$", f"expected JSON: {exc}") from None
    for error in validate(snapshot):
        raise error
    return snapshot


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """The JSON form of a snapshot, readable by `decode_snapshot`."""
    return msgspec.json.format(msgspec.json.encode(snapshot), indent=2)


def is_spiffe_id(text: str) -> bool:
    """Whether `text` is `spiffe://<trust domain>/ns/<ns>/sa/<sa>` (SPIFFE-ID section 2, our path form)."""
    if not text.startswith("spiffe://") or len(text) > 2048:
        return False
    parts = text[9:].split("/")
    return len(parts) == 5 and parts[1] == "ns" and parts[3] == "sa" and all(parts)


def _address_error(path: str, text: str) -> ConfigError | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ConfigError(path, f"expected an IP address, got {text!r}")
    canonical = str(address)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return ConfigError(path, f"expected {str(address.ipv4_mapped)!r} instead of its v4-mapped form")
        if address.scope_id is not None:
            return ConfigError(path, f"expected an address without a scope, got {text!r}")
    if canonical != text:
        return ConfigError(path, f"expected the canonical form {canonical!r}, got {text!r}")
    return None


def _addresses(path: str, addresses: tuple[str, ...]) -> Iterator[ConfigError]:
    for i, address in enumerate(addresses):
        error = _address_error(f"{path}[{i}]", address)
        if error:
            yield error


def _ports(path: str, keys: Iterator[str]) -> Iterator[ConfigError]:
    for key in keys:
        digits = len(key) <= 5 and key.isascii() and key.isdigit() and key[0] != "0"
        if not digits or int(key) > 65535:
            yield ConfigError(f"{path}.{key[:40]}", "expected a port, 1 to 65535, as the key")


def check_destination(path: str, dest: Destination, trust_domain: str) -> Iterator[ConfigError]:
    """What crosses fields within one destination."""
    yield from _addresses(f"{path}.addresses", dest.addresses)
    if dest.family is not None:
        ips = [*dest.addresses, *(endpoint.address for endpoint in dest.endpoints)]
        for ip in ips:
            if (":" in ip) is not (dest.family is Family.IPV6):
                yield ConfigError(path, f"expected addresses of family {dest.family.value} only, got {ip!r}")
    for i, endpoint in enumerate(dest.endpoints):
        at = f"{path}.endpoints[{i}]"
        error = _address_error(f"{at}.address", endpoint.address)
        if error:
            yield error
        if endpoint.tls is TlsMode.MESH:
            yield from _identity(f"{at}.identity", endpoint.identity, trust_domain)
    for i, route in enumerate(dest.routes):
        yield from _check_route(f"{path}.routes[{i}]", route, dest)


def _check_route(path: str, route: Route, dest: Destination) -> Iterator[ConfigError]:
    if sum((bool(route.to), route.redirect is not None, route.respond is not None)) != 1:
        yield ConfigError(path, "expected exactly one of to, redirect and respond")
    for i, arm in enumerate(route.to):
        if arm.subset and arm.subset not in dest.subsets:
            known = ", ".join(sorted(dest.subsets)) or "none"
            yield ConfigError(
                f"{path}.to[{i}].subset",
                f"expected a subset of this destination ({known}), got {arm.subset!r}",
            )
        if arm.destination:
            try:
                parse_destination(arm.destination)
            except ValueError as exc:
                yield ConfigError(f"{path}.to[{i}].destination", str(exc))
    if route.to and not sum(arm.weight for arm in route.to):
        yield ConfigError(f"{path}.to", "expected weights with a sum above 0")


def _identity(path: str, identity: str, trust_domain: str) -> Iterator[ConfigError]:
    if not is_spiffe_id(identity) or not identity.startswith(f"spiffe://{trust_domain}/"):
        yield ConfigError(path, f"expected spiffe://{trust_domain}/ns/<ns>/sa/<sa>, got {identity!r}")


def check_pod(path: str, pod: Pod, trust_domain: str) -> Iterator[ConfigError]:
    """What crosses fields within one pod."""
    yield from _addresses(f"{path}.addresses", pod.addresses)
    if pod.tls is TlsMode.MESH:
        yield from _identity(f"{path}.identity", pod.identity, trust_domain)


def check_own(path: str, workload: Workload, inbound: Inbound) -> Iterator[ConfigError]:
    """What crosses fields within a sidecar's own part."""
    yield from _addresses(f"{path}.workload.addresses", workload.addresses)
    yield from _ports(f"{path}.inbound.portMtls", iter(inbound.port_mtls))
    yield from _ports(f"{path}.inbound.protocols", iter(inbound.protocols))


def validate(snapshot: Snapshot) -> Iterator[ConfigError]:
    """What crosses fields: addresses, identities, references, and two claims on one address."""
    yield from check_own("$", snapshot.workload, snapshot.inbound)
    claimed: dict[tuple[str, int], str] = {}
    keys: dict[tuple[str, str, int, Family | None], str] = {}
    for i, dest in enumerate(snapshot.destinations):
        path = f"$.destinations[{i}]"
        yield from check_destination(path, dest, snapshot.trust_domain)
        first = keys.setdefault((dest.namespace, dest.name, dest.port, dest.family), path)
        if first != path:
            yield ConfigError(path, f"expected one entry for a Service's port; {first} is the same one")
        for address in dest.addresses:
            holder = claimed.setdefault((address, dest.port), path)
            if holder != path:
                yield ConfigError(
                    f"{path}.addresses",
                    f"expected an address of its own; {address} port {dest.port} belongs to {holder}",
                )
    owners: dict[str, str] = {}
    for i, pod in enumerate(snapshot.pods):
        path = f"$.pods[{i}]"
        yield from check_pod(path, pod, snapshot.trust_domain)
        for address in pod.addresses:
            holder = owners.setdefault(address, path)
            if holder != path:
                yield ConfigError(
                    f"{path}.addresses", f"expected an address of its own; {address} belongs to {holder}"
                )
