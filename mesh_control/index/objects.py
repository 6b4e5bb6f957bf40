"""What the control plane keeps of each Kubernetes object: flat, immutable, and only what is used.

Two objects that differ in nothing that is used are equal, so most updates (heartbeats, conditions, managed
fields) end where they arrive. `wire` makes them from the API's JSON.
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from mesh_api.keys import Family
from mesh_api.policy_types import MeshPolicy, TrafficPolicy
from mesh_api.sidecar import Protocol

PolicyKind = Literal["TrafficPolicy", "MeshPolicy"]
Kind = (
    Literal["Namespace", "Service", "EndpointSlice", "Pod", "ServiceAccount", "Node", "ServiceCIDR"]
    | PolicyKind
)
CLUSTER_KINDS: tuple[Kind, ...] = (
    "Namespace",
    "Node",
    "ServiceCIDR",
    "ServiceAccount",
    "Pod",
    "EndpointSlice",
    "Service",
)
POLICY_KINDS: tuple[PolicyKind, ...] = ("TrafficPolicy", "MeshPolicy")
KINDS: tuple[Kind, ...] = (*CLUSTER_KINDS, *POLICY_KINDS)
"""What is watched."""

Key = tuple[str, str]
"""Namespace ('' for a cluster-scoped object) and name."""

PortRanges = tuple[tuple[int, int], ...]
"""Ports from and to, both included; sorted."""
ALL_PORTS: PortRanges = ((1, 65535),)


class Record(msgspec.Struct, frozen=True, gc=False):
    """Base of all: small, immutable, free of reference cycles."""


class Phase(enum.Enum):
    """A pod's phase (core/v1 PodPhase)."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


class Namespace(Record, frozen=True, gc=False):
    """A namespace and the defaults that its annotations give."""

    name: str
    labels: dict[str, str]
    opaque_ports: PortRanges | None
    """None: not annotated."""
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return "", self.name


class Node(Record, frozen=True, gc=False):
    """A node: where it is, its own addresses, and which its pods get."""

    name: str
    zone: str
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return "", self.name


class ServiceCIDR(Record, frozen=True, gc=False):
    """A range from which Services get their addresses (KEP-1880)."""

    name: str
    cidrs: tuple[str, ...]
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return "", self.name


class ServiceAccount(Record, frozen=True, gc=False):
    """A ServiceAccount: it exists."""

    namespace: str
    name: str
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return self.namespace, self.name


class Pod(Record, frozen=True, gc=False):
    """A pod; whether it is ready is said by the EndpointSlices."""

    namespace: str
    name: str
    ips: tuple[str, ...]
    node: str
    service_account: str
    phase: Phase
    host_network: bool
    deleting: bool
    injected: bool
    """Our sidecar is one of its containers, and the injector's annotation says so too."""
    workload_kind: str
    """Kind of the Deployment, StatefulSet, Job... that made it; '' without one."""
    workload: str
    """Its name; the pod's own without one."""
    labels: dict[str, str]
    captured: PortRanges
    """Inbound ports that its sidecar captures; none without one."""
    opaque_ports: PortRanges | None
    """None: the namespace decides."""
    created: str
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return self.namespace, self.name

    @property
    def finished(self) -> bool:
        """Its containers will not run again, and its addresses are free for others."""
        return self.phase in (Phase.SUCCEEDED, Phase.FAILED)


class ServicePort(Record, frozen=True, gc=False):
    """One TCP port of a Service."""

    name: str
    port: int
    protocol: Protocol
    """By appProtocol or the port's name."""


class Affinity(Record, frozen=True, gc=False):
    """sessionAffinity: ClientIP."""

    timeout_s: int


class Service(Record, frozen=True, gc=False):
    """A Service with its TCP ports; of type ExternalName it has neither ports nor addresses here."""

    namespace: str
    name: str
    ports: tuple[ServicePort, ...]
    families: tuple[Family, ...]
    cluster_ips: tuple[str, ...]
    """Empty for a headless Service."""
    load_balancer_ips: tuple[str, ...]
    external_ips: tuple[str, ...]
    selects: bool
    """Whether it has a selector; without one somebody else writes its EndpointSlices."""
    publish_not_ready: bool
    node_local: bool
    """internalTrafficPolicy: Local"""
    affinity: Affinity | None
    opaque_ports: PortRanges | None
    """None: the namespace decides."""
    created: str
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return self.namespace, self.name


class SliceEndpoint(Record, frozen=True, gc=False):
    """One endpoint of a slice, with its conditions as kube-proxy reads them (absent: ready, serving)."""

    address: str
    ready: bool
    serving: bool
    terminating: bool
    pod: Key | None
    """The pod that it refers to."""
    node: str
    zone_hints: tuple[str, ...]
    node_hints: tuple[str, ...]


class EndpointSlice(Record, frozen=True, gc=False):
    """One EndpointSlice of a Service; a Service has several."""

    namespace: str
    name: str
    service: str
    family: Family
    ports: tuple[tuple[str, int], ...]
    """Name and number of the TCP ports."""
    endpoints: tuple[SliceEndpoint, ...]
    hinted: bool
    """Some endpoint has hints."""
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        return self.namespace, self.name

    @property
    def owner(self) -> Key:
        """The Service's key."""
        return self.namespace, self.service


class Refused(Record, frozen=True, gc=False):
    """An object that cannot be used; what is known of it from before stays in force."""

    kind: Kind
    namespace: str
    name: str
    problems: tuple[str, ...]
    created: str = ""
    generation: int = 0

    @property
    def key(self) -> Key:
        return self.namespace, self.name


AnyPolicy = TrafficPolicy | MeshPolicy
Object = Namespace | Node | ServiceCIDR | ServiceAccount | Pod | Service | EndpointSlice | AnyPolicy


def kind_of(obj: Object) -> Kind:
    """The Kubernetes kind of an object."""
    return type(obj).__name__  # type: ignore[return-value]  # the classes are named after the kinds


def in_ranges(ranges: PortRanges, port: int) -> bool:
    """Whether a port is in one of the ranges."""
    return any(low <= port <= high for low, high in ranges)


def without(ranges: PortRanges, removed: PortRanges) -> PortRanges:
    """The ports of `ranges` that are not in `removed`."""
    left = list(ranges)
    for low, high in removed:
        left = [
            part
            for start, end in left
            for part in ((start, min(end, low - 1)), (max(start, high + 1), end))
            if part[0] <= part[1]
        ]
    return tuple(left)


def count(ranges: PortRanges) -> int:
    """How many ports there are."""
    return sum(high - low + 1 for low, high in ranges)


def each(ranges: PortRanges) -> tuple[int, ...]:
    """The ports one by one."""
    return tuple(port for low, high in ranges for port in range(low, high + 1))
