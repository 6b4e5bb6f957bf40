"""What sidecars are told. What cannot be used was left out by the index, with a reason (`Index.problems`)."""

from __future__ import annotations

import msgspec

from mesh_api.discovery import (
    WORKLOAD_KEY,
    AddressAnswer,
    Content,
    WorkloadConfig,
    encode_content,
    split_address,
    version_of,
)
from mesh_api.keys import DestinationName, parse_destination
from mesh_api.names import MAX_LISTED_PORTS
from mesh_api.sidecar import (
    Destination,
    EgressMode,
    Endpoint,
    Inbound,
    MtlsMode,
    Pod,
    TlsMode,
    Workload,
)
from mesh_control.index.objects import ALL_PORTS, Key, PortRanges, count, each, without
from mesh_control.index.state import Index
from mesh_control.index.views import (
    EndpointView,
    Owner,
    choose,
    owner_of,
    pod_view,
    port_view,
    service_at,
    workload_view,
)
from mesh_control.index.wire import family_of


class Mesh(msgspec.Struct, frozen=True):
    """What holds for every sidecar until policies say otherwise."""

    trust_domain: str
    bundle_pem: str
    mtls: MtlsMode = MtlsMode.PERMISSIVE
    egress: EgressMode = EgressMode.PASSTHROUGH
    access_log: bool = False


def address(index: Index, ip: str, port: int, node: str = "") -> AddressAnswer | None:
    """Who owns an address, for a caller on a node. None: it is the cluster's, and its owner is not known."""
    tables = index.tables
    key = service_at(tables, ip, port)
    service = tables.service(key) if key else None
    if service is not None:
        seen_from = node if service.by_node else ""
        name = DestinationName(service.namespace, service.name, port, family_of(ip), seen_from)
        return AddressAnswer(destination=str(name))
    owner = owner_of(tables, ip)
    if owner is Owner.UNKNOWN:
        return None
    return AddressAnswer(pod=ip) if owner is Owner.MESH_POD else AddressAnswer()


def destination(index: Index, name: str) -> Destination | None:
    """A destination by its name (see mesh_api.keys); None if there is no such Service, port or family.

    Raises ValueError for what is no name.
    """
    wanted = parse_destination(name)
    tables = index.tables
    service = tables.service((wanted.namespace, wanted.name))
    if service is None or wanted.family not in service.families or (wanted.node and not service.by_node):
        return None
    for port in service.ports:
        if port.port == wanted.port:
            view = port_view(tables, service, port, wanted.family)
            chosen = choose(view.endpoints, service, wanted.node, tables.zone_of(wanted.node))
            return Destination(
                name=service.name,
                namespace=service.namespace,
                port=port.port,
                addresses=view.addresses,
                family=wanted.family,
                protocol=view.protocol,
                endpoints=tuple(_endpoint(one) for one in chosen),
            )
    return None


def _endpoint(view: EndpointView) -> Endpoint:
    return Endpoint(
        address=view.address,
        port=view.port,
        tls=TlsMode.MESH if view.identity else TlsMode.NONE,
        identity=view.identity,
        workload=view.workload,
        labels=view.labels,
    )


def pod(index: Index, ip: str) -> Pod | None:
    """The pod of the mesh that has an address; None for every other address."""
    view = pod_view(index.tables, ip)
    if view is None:
        return None
    plaintext, captured = _ports(view.pod.captured)
    return Pod(
        name=view.pod.name,
        namespace=view.pod.namespace,
        addresses=(ip,),
        identity=view.identity,
        workload=view.pod.workload,
        plaintext_ports=plaintext,
        captured_ports=captured,
        opaque_ports=view.opaque_ports,
    )


def _ports(captured: PortRanges) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shorter list: ports that are not captured, or those that are."""
    rest = without(ALL_PORTS, captured)
    return (each(rest), ()) if count(rest) <= MAX_LISTED_PORTS + 2 else ((), each(captured))


def workload(index: Index, namespace: str, pod_name: str, mesh: Mesh) -> WorkloadConfig | None:
    """The configuration of a pod's own sidecar; None if there is no such pod."""
    view = workload_view(index.tables, (namespace, pod_name))
    if view is None:
        return None
    own = view.pod
    return WorkloadConfig(
        workload=Workload(
            name=own.workload,
            namespace=own.namespace,
            service_account=own.service_account,
            addresses=own.ips,
        ),
        trust_domain=mesh.trust_domain,
        bundle_pem=mesh.bundle_pem,
        inbound=Inbound(mtls=mesh.mtls, protocols={str(port): protocol for port, protocol in view.protocols}),
        egress=mesh.egress,
        access_log=mesh.access_log,
        draining=view.draining,
    )


def content(index: Index, key: str, caller: Key, mesh: Mesh) -> Content | None:
    """The content of a key for the sidecar of a pod (namespace, name); None if there is none.

    Raises ValueError for what is no key.
    """
    kind, _, rest = key.partition("/")
    if kind == "address":
        ip, port = split_address(key)
        own = index.tables.pod(caller)
        return address(index, ip, port, own.node if own else "")
    if kind == "destination":
        return destination(index, rest)
    if kind == "pod":
        return pod(index, rest)
    if key == WORKLOAD_KEY:
        return workload(index, *caller, mesh)
    raise ValueError(f"expected a key of the discovery stream, got {key[:100]!r}")


def version(found: Content) -> str:
    """The version of a content: the hash of its bytes."""
    return version_of(encode_content(found))
