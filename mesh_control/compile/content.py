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
    Endpoint,
    Inbound,
    Pod,
    TlsMode,
    Workload,
)
from mesh_api.traffic import Settings
from mesh_control.compile.native import Parts, parts
from mesh_control.index.objects import ALL_PORTS, Key, PortRanges, Service, count, each, without
from mesh_control.index.state import Index
from mesh_control.index.tables import Tables
from mesh_control.index.views import (
    EndpointView,
    Owner,
    PodView,
    choose,
    owner_of,
    pod_view,
    port_view,
    service_at,
    workload_view,
)
from mesh_control.index.wire import family_of

_NO_POLICY = Parts()


class Mesh(msgspec.Struct, frozen=True):
    """What holds for every sidecar."""

    trust_domain: str
    bundle_pem: str


def address(index: Index, ip: str, port: int, node: str = "") -> AddressAnswer | None:
    """Who owns an address, for a caller on a node. None: it is the cluster's, and its owner is not known."""
    tables = index.tables
    key = service_at(tables, ip, port)
    service = tables.service(key) if key else None
    if service is not None:
        seen_from = node if tables.by_node(service) else ""
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
    if service is None or wanted.family not in service.families:
        return None
    if wanted.node and not tables.by_node(service):
        return None
    for port in service.ports:
        if port.port == wanted.port:
            view = port_view(tables, service, port, wanted.family)
            chosen = choose(view.endpoints, service, wanted.node, tables.zone_of(wanted.node))
            said = _with_affinity(_policy_parts(tables, service, wanted), service)
            return Destination(
                name=service.name,
                namespace=service.namespace,
                port=port.port,
                addresses=view.addresses,
                family=wanted.family,
                protocol=view.protocol,
                local=service.node_local and bool(wanted.node),
                endpoints=tuple(_endpoint(one, said.plaintext) for one in chosen),
                subsets=said.subsets,
                routes=said.routes,
                settings=said.settings,
                retries=said.retries,
                budget=said.budget,
                policy=said.policy,
            )
    return None


def _policy_parts(tables: Tables, service: Service, wanted: DestinationName) -> Parts:
    """What policies say about a destination.

    A route to a Service that does not exist has the key that it would have: its share is answered with 503.
    """
    policies = tables.policies
    policy = policies.holder(service.key)
    if policy is None and not policies.beyond_own:
        return _NO_POLICY

    def backend(name: str, port: int | None) -> str:
        key = service.namespace, name or service.name
        other = tables.service(key)
        node, family = "", wanted.family
        if other is not None:
            node = wanted.node if tables.differs(other) else ""
            # Endpoints of the other family are better than none: the connection to them is the sidecar's own.
            family = family if family in other.families else next(iter(other.families), family)
        found = DestinationName(*key, port or wanted.port, family, node)
        return "" if key == service.key and found.port == wanted.port else str(found)

    return parts(policy, policies.levels, service.namespace, backend)


def _with_affinity(said: Parts, service: Service) -> Parts:
    """All settings of a destination with its Service's session affinity."""
    affinity = service.affinity
    if affinity is None:
        return said

    def sticky(settings: Settings) -> Settings:
        return msgspec.structs.replace(settings, affinity_s=float(affinity.timeout_s))

    subsets = {
        name: msgspec.structs.replace(one, settings=sticky(one.settings)) if one.settings else one
        for name, one in said.subsets.items()
    }
    return msgspec.structs.replace(said, settings=sticky(said.settings), subsets=subsets)


def _endpoint(view: EndpointView, plaintext: bool) -> Endpoint:
    identity = "" if plaintext else view.identity
    return Endpoint(
        address=view.address,
        port=view.port,
        tls=TlsMode.MESH if identity else TlsMode.NONE,
        identity=identity,
        workload=view.workload,
        labels=view.labels,
    )


def pod(index: Index, ip: str) -> Pod | None:
    """The pod of the mesh that has an address; None for every other address."""
    view = pod_view(index.tables, ip)
    if view is None:
        return None
    plaintext, captured = _ports(view.mtls_ports)
    return Pod(
        name=view.pod.name,
        namespace=view.pod.namespace,
        addresses=(ip,),
        identity=view.identity,
        workload=view.pod.workload,
        tls=TlsMode.MESH if view.mtls_ports else TlsMode.NONE,
        plaintext_ports=plaintext,
        captured_ports=captured,
        opaque_ports=view.opaque_ports,
        settings=_pod_settings(index.tables, view),
    )


def _pod_settings(tables: Tables, view: PodView) -> Settings:
    """Those of its headless Service; of the subset that the pod is in, if it is in exactly one."""
    policies = tables.policies
    if view.policy is None and not policies.beyond_own:
        return _NO_POLICY.settings
    said = parts(view.policy, policies.levels, view.pod.namespace, lambda _name, _port: "")
    labels = view.pod.labels.items()
    subsets = [subset for subset in said.subsets.values() if subset.labels.items() <= labels]
    own = subsets[0].settings if len(subsets) == 1 else None
    return own or said.settings


def _ports(captured: PortRanges) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shorter list: ports that are not captured, or those that are."""
    rest = without(ALL_PORTS, captured)
    return (each(rest), ()) if count(rest) <= MAX_LISTED_PORTS + 2 else ((), each(captured))


def workload(index: Index, namespace: str, pod_name: str, mesh: Mesh) -> WorkloadConfig | None:
    """The configuration of a pod's own sidecar; None if there is no such pod."""
    view = workload_view(index.tables, (namespace, pod_name))
    if view is None:
        return None
    own, settings = view.pod, view.settings
    return WorkloadConfig(
        workload=Workload(
            name=own.workload,
            namespace=own.namespace,
            service_account=own.service_account,
            addresses=own.ips,
            labels=own.labels,
        ),
        trust_domain=mesh.trust_domain,
        bundle_pem=mesh.bundle_pem,
        inbound=Inbound(
            mtls=settings.mtls,
            port_mtls=settings.port_mtls,
            protocols={str(port): protocol for port, protocol in view.protocols},
        ),
        egress=settings.egress,
        path_normalization=settings.path_normalization,
        access_log=settings.access_log,
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
