"""What is derived from the tables: a Service's endpoints, a pod's ports, who answers at an address.

Functions of the tables' present content alone, so the order in which objects came does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from hashlib import blake2b

import msgspec

from mesh_api.keys import DestinationName, Family
from mesh_api.policy_types import TrafficPolicy
from mesh_api.sidecar import Protocol
from mesh_control.index.addresses import Claim, vips_of
from mesh_control.index.levels import WorkloadSettings
from mesh_control.index.objects import (
    Key,
    Pod,
    PortRanges,
    Record,
    Service,
    ServicePort,
    SliceEndpoint,
    each,
    in_ranges,
)
from mesh_control.index.tables import Tables
from mesh_control.index.wire import family_of


class EndpointView(Record, frozen=True, gc=False):
    """One address and port behind a Service's port that may be given connections."""

    address: str
    port: int
    ready: bool
    """False: only serving while it terminates, for when no endpoint is ready."""
    identity: str
    """SPIFFE id of the pod whose sidecar looks for mTLS at this port; '' for plaintext."""
    workload: str
    labels: dict[str, str]
    opaque: bool
    """The pod declares the port opaque."""
    node: str
    zone_hints: tuple[str, ...]
    node_hints: tuple[str, ...]


class PortView(Record, frozen=True, gc=False):
    """One family of a Service's port."""

    protocol: Protocol
    addresses: tuple[str, ...]
    endpoints: tuple[EndpointView, ...]


class PodView(Record, frozen=True, gc=False):
    """A pod of the mesh at one of its addresses."""

    pod: Pod
    identity: str
    opaque_ports: tuple[int, ...]
    mtls_ports: PortRanges
    """Those at which its sidecar looks for mTLS."""
    policy: TrafficPolicy | None
    """The only one that holds for a headless Service of the pod."""


class WorkloadView(Record, frozen=True, gc=False):
    """What a pod's own sidecar is told."""

    pod: Pod
    protocols: tuple[tuple[int, Protocol], ...]
    draining: bool
    settings: WorkloadSettings


class Owner(Enum):
    """Who has an address that is no Service's."""

    MESH_POD = "a pod of the mesh"
    OUTSIDE = "known to be outside the mesh"
    UNKNOWN = "of the cluster, but nobody's as far as is known"


def identity_of(tables: Tables, pod: Pod) -> str:
    """The SPIFFE id of a pod's workload."""
    return f"spiffe://{tables.trust_domain}/ns/{pod.namespace}/sa/{pod.service_account}"


# -- Services -----------------------------------------------------------------------------------------------


def port_view(tables: Tables, service: Service, port: ServicePort, family: Family) -> PortView:
    """What is known of one family of a Service's port."""
    found: dict[tuple[str, int], EndpointView] = {}
    for piece in tables.slices_of(service.key):
        if piece.family is not family:
            continue
        numbers = [number for name, number in piece.ports if name == port.name]
        for endpoint in piece.endpoints if numbers else ():
            for number in numbers:
                view = _endpoint_view(tables, service, endpoint, number)
                if view is not None:
                    known = found.get((view.address, number))
                    found[view.address, number] = view if known is None else max(known, view, key=_preferred)
    endpoints = tuple(found[at] for at in sorted(found))
    protocol = port.protocol
    if in_ranges(tables.opaque_ports(service), port.port) or any(view.opaque for view in endpoints):
        protocol = Protocol.TCP
    return PortView(protocol, _vips(tables, service, port, family), endpoints)


def _preferred(view: EndpointView) -> tuple[object, ...]:
    """Of one address in two slices the ready one counts; the rest makes the choice independent of order."""
    labels = tuple(sorted(view.labels.items()))
    return view.ready, view.workload, view.node, view.zone_hints, view.node_hints, labels


def _vips(tables: Tables, service: Service, port: ServicePort, family: Family) -> tuple[str, ...]:
    return tuple(
        ip
        for ip, _ in vips_of(service)
        if family_of(ip) is family and service_at(tables, ip, port.port) == service.key
    )


def _endpoint_view(
    tables: Tables, service: Service, endpoint: SliceEndpoint, port: int
) -> EndpointView | None:
    """None for an endpoint that gets no connections, or whose pod is not known: it may be in the mesh."""
    pod: Pod | None = None
    if endpoint.pod is None:
        pod = tables.pod_addresses.owner(endpoint.address)
        if pod is None and endpoint.address in tables.ranges:
            return None
    else:
        pod = tables.pod(endpoint.pod)
        if pod is None or pod.finished or endpoint.address not in pod.ips:
            return None
        if not pod.host_network and tables.pod_addresses.owner(endpoint.address) is not pod:
            return None
    # The slice learns of a deletion later than we do.
    leaving = pod is not None and pod.deleting and not service.publish_not_ready
    ready = endpoint.ready and not leaving
    if not ready and not (endpoint.serving and (endpoint.terminating or leaving)):
        return None
    if pod is None:
        return EndpointView(
            endpoint.address, port, ready, "", "", {}, False, endpoint.node, *_hints(endpoint)
        )
    meshed = pod.injected and in_ranges(tables.policies.mtls_ports(pod), port)
    return EndpointView(
        address=endpoint.address,
        port=port,
        ready=ready,
        identity=identity_of(tables, pod) if meshed else "",
        workload=pod.workload,
        labels=pod.labels,
        opaque=in_ranges(tables.opaque_ports(pod), port),
        node=endpoint.node or pod.node,
        zone_hints=endpoint.zone_hints,
        node_hints=endpoint.node_hints,
    )


def _hints(endpoint: SliceEndpoint) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return endpoint.zone_hints, endpoint.node_hints


def choose(
    views: Sequence[EndpointView], service: Service, node: str = "", zone: str = ""
) -> Sequence[EndpointView]:
    """The endpoints that a caller on a node is given, as kube-proxy chooses them.

    internalTrafficPolicy Local (KEP-2086) leaves only the node's own. Endpoints that terminate count when
    none is ready (KEP-1669). Hints (KEP-2433; trafficDistribution makes them, KEP-4444 and KEP-3015) count
    when every ready endpoint has them and one fits: those for the node, else those for its zone. For no node
    ('') all nodes' endpoints are given.
    """
    if service.node_local and node:
        views = [view for view in views if view.node == node]
    ready = [view for view in views if view.ready]
    if not ready:
        return views
    if service.node_local or not node:
        return ready
    if all(view.node_hints for view in ready):
        near = [view for view in ready if node in view.node_hints]
        if near:
            return near
    if zone and all(view.zone_hints for view in ready):
        near = [view for view in ready if zone in view.zone_hints]
        if near:
            return near
    return ready


def digests(tables: Tables, service: Service) -> dict[DestinationName, bytes]:
    """A hash of what sidecars can be given of each port and family."""
    found: dict[DestinationName, bytes] = {}
    policies = tables.policies.service_state(service.key)
    led = [
        (key, (tables.differs(other), other.families) if other is not None else None)
        for key, other in sorted((key, tables.service(key)) for key in tables.policies.led_from(service.key))
    ]
    for port in service.ports:
        for family in service.families:
            view = port_view(tables, service, port, family)
            if not tables.differs(service):
                # Where a node is does not matter, so its change is none.
                seen: list[object] = [
                    (one.address, one.port, one.identity, one.workload, one.labels)
                    for one in choose(view.endpoints, service)
                ]
            else:
                seen = [view.endpoints, service.node_local]
            material = (view.protocol, view.addresses, seen, service.affinity, policies, led)
            name = DestinationName(service.namespace, service.name, port.port, family)
            data = msgspec.msgpack.encode(material, order="deterministic")
            found[name] = blake2b(data, digest_size=16).digest()
    return found


# -- addresses ----------------------------------------------------------------------------------------------


def service_at(tables: Tables, ip: str, port: int) -> Key | None:
    """The Service that is reached at an address.

    A cluster IP is the Service's whatever else claims it; another address that a pod has is the pod's: a
    Service cannot take over a pod by naming it as its external IP.
    """
    owner = tables.service_addresses.owner(ip, port)
    if owner is None or (owner.claim is not Claim.CLUSTER and tables.pod_addresses.owner(ip) is not None):
        return None
    return owner.service


def owner_of(tables: Tables, ip: str) -> Owner:
    """Who has an address, at the ports where no Service is."""
    pod = tables.pod_addresses.owner(ip)
    if pod is not None:
        return Owner.MESH_POD if pod.injected and pod.captured else Owner.OUTSIDE
    if tables.service_addresses.is_cluster_ip(ip) or ip in tables.ranges:
        return Owner.UNKNOWN
    return Owner.OUTSIDE


def vip_state(tables: Tables, ip: str, port: int) -> object:
    """All that the answer about a Service's address and port depends on."""
    key = service_at(tables, ip, port)
    service = tables.service(key) if key else None
    return key, service is not None and tables.by_node(service)


# -- pods ---------------------------------------------------------------------------------------------------


def declared_protocols(tables: Tables, pod: Pod) -> dict[int, Protocol]:
    """What a pod's ports are declared to speak: by itself, or by the Services that have it as an endpoint.

    Where Services contradict each other nothing is declared.
    """
    said: dict[int, set[Protocol]] = {}
    for ip in pod.ips:
        for piece in tables.slices_at(ip):
            service = tables.service(piece.owner)
            if service is None or not any(
                one.address == ip and pod in tables.pods_of(one) for one in piece.endpoints
            ):
                continue
            opaque = tables.opaque_ports(service)
            for port in service.ports:
                protocol = Protocol.TCP if in_ranges(opaque, port.port) else port.protocol
                for name, number in piece.ports:
                    if name == port.name and protocol is not Protocol.AUTO:
                        said.setdefault(number, set()).add(protocol)
    found = {port: next(iter(protocols)) for port, protocols in said.items() if len(protocols) == 1}
    found.update(dict.fromkeys(each(tables.opaque_ports(pod)), Protocol.TCP))
    return found


def pod_view(tables: Tables, ip: str) -> PodView | None:
    """The pod of the mesh that has an address."""
    pod = tables.pod_addresses.owner(ip)
    if pod is None or not pod.injected or not pod.captured:
        return None
    protocols = declared_protocols(tables, pod)
    opaque = sorted(port for port, protocol in protocols.items() if protocol is Protocol.TCP)
    return PodView(
        pod,
        identity_of(tables, pod),
        tuple(opaque),
        tables.policies.mtls_ports(pod),
        _headless_policy(tables, pod),
    )


def _headless_policy(tables: Tables, pod: Pod) -> TrafficPolicy | None:
    """The TrafficPolicy that holds for a headless Service of the pod, if there is exactly one such."""
    found: dict[Key, TrafficPolicy] = {}
    for ip in pod.ips if tables.policies.traffic else ():
        for piece in tables.slices_at(ip):
            service = tables.service(piece.owner)
            holder = tables.policies.holder(piece.owner)
            if holder is None or service is None or service.cluster_ips:
                continue
            if any(one.address == ip and pod in tables.pods_of(one) for one in piece.endpoints):
                found[holder.key] = holder
    return next(iter(found.values())) if len(found) == 1 else None


def pod_state(tables: Tables, ip: str) -> object:
    """All that the content of `pod/IP` and the answers about the address depend on."""
    view = pod_view(tables, ip)
    if view is None:
        return owner_of(tables, ip)
    pod = view.pod
    policy = view.policy
    shaped = (policy.key, tables.policies.digest(policy), pod.labels) if policy else None
    levels = tables.policies.levels_state(pod.namespace)
    return pod.key, pod.workload, view.mtls_ports, view.identity, view.opaque_ports, shaped, levels


def workload_view(tables: Tables, key: Key) -> WorkloadView | None:
    """What a pod's own sidecar is told; a pod that is ending or has ended drains."""
    pod = tables.pod(key)
    if pod is None:
        return None
    protocols = tuple(sorted(declared_protocols(tables, pod).items(), key=lambda item: item[0]))
    return WorkloadView(pod, protocols, pod.deleting or pod.finished, tables.policies.settings_of(pod))


def workload_state(tables: Tables, key: Key) -> object:
    """All that a pod's own configuration depends on."""
    view = workload_view(tables, key)
    if view is None:
        return None
    own = view.pod
    return (
        own.workload,
        own.service_account,
        own.ips,
        own.labels,
        view.protocols,
        view.draining,
        view.settings,
    )
