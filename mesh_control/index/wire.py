"""From the API's JSON to the records of `objects`: strict about what is used, blind for the rest.

The API server has validated an object, so what is wrong here is rare; then the part that cannot be used is
left out with a reason (`problems`), and an object that cannot be used at all becomes `Refused`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from sys import intern
from typing import Any, TypeVar

import msgspec

from mesh_api import names
from mesh_api.keys import Family
from mesh_api.policy import read_policy
from mesh_control.index.api_types import (
    ApiEndpointSlice,
    ApiNode,
    ApiPod,
    ApiService,
    ApiServiceCidr,
    ApiSliceEndpoint,
    Bare,
    Conditions,
    Hints,
    Named,
    PodStatus,
)
from mesh_control.index.declared import port_ranges, protocol_of, workload_of
from mesh_control.index.objects import (
    ALL_PORTS,
    POLICY_KINDS,
    Affinity,
    AnyPolicy,
    EndpointSlice,
    Kind,
    Namespace,
    Node,
    Object,
    Phase,
    Pod,
    PortRanges,
    Refused,
    Service,
    ServiceAccount,
    ServiceCIDR,
    ServicePort,
    SliceEndpoint,
    without,
)

ZONE = "topology.kubernetes.io/zone"
SERVICE_NAME = "kubernetes.io/service-name"
TEMPLATE_HASH = "pod-template-hash"

NODE_IPS = ("InternalIP", "ExternalIP")

Buffer = bytes | bytearray | memoryview | msgspec.Raw
_T = TypeVar("_T")


class _Problems(list[str]):
    """Collects reasons while an object is read."""

    def ips(self, found: list[str], what: str) -> tuple[str, ...]:
        """The canonical forms of `found`, each once, without what is no usable address."""
        usable = (self.ip(text, what) for text in found)
        return tuple(dict.fromkeys(ip for ip in usable if ip))

    def ip(self, text: str, what: str) -> str:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            self.append(f"{what}: expected an IP address, got {text[:60]!r}")
            return ""
        if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address.scope_id):
            self.append(f"{what}: expected an address that is not v4-mapped and has no scope, got {text!r}")
            return ""
        return str(address)

    def networks(self, found: list[str] | None, what: str) -> tuple[str, ...]:
        """The canonical forms of `found`, without what is no network."""
        usable = []
        for cidr in found or ():
            try:
                usable.append(str(ipaddress.ip_network(cidr, strict=False)))
            except ValueError:
                self.append(f"{what}: expected a network, got {cidr[:60]!r}")
        return tuple(usable)

    def ports(self, said: Mapping[str, str], name: str) -> PortRanges | None:
        """The port list that is said under a name; None if it is not there, or not readable."""
        text = said.get(name)
        if text is None:
            return None
        try:
            return port_ranges(text)
        except ValueError as exc:
            self.append(f"{name} is ignored: {exc}")
            return None


def _interned(labels: dict[str, str] | None) -> dict[str, str]:
    return {intern(key): intern(value) for key, value in labels.items()} if labels else {}


def _namespace(raw: Named) -> Namespace:
    meta, problems = raw.metadata, _Problems()
    opaque = problems.ports(meta.annotations or {}, names.OPAQUE_PORTS)
    return Namespace(intern(meta.name), _interned(meta.labels), opaque, tuple(problems))


def _service_account(raw: Named) -> ServiceAccount:
    return ServiceAccount(intern(raw.metadata.namespace), intern(raw.metadata.name))


def _node(raw: ApiNode) -> Node:
    problems = _Problems()
    cidrs = problems.networks(raw.spec.pod_cidrs if raw.spec else None, "spec.podCIDRs")
    zone = (raw.metadata.labels or {}).get(ZONE, "")
    listed = (raw.status and raw.status.addresses) or ()
    ips = problems.ips([one.address for one in listed if one.type in NODE_IPS], "status.addresses")
    return Node(intern(raw.metadata.name), intern(zone), ips, cidrs, tuple(problems))


def _service_cidr(raw: ApiServiceCidr) -> ServiceCIDR:
    problems = _Problems()
    cidrs = problems.networks(raw.spec.cidrs if raw.spec else None, "spec.cidrs")
    return ServiceCIDR(raw.metadata.name, cidrs, tuple(problems))


def _pod(raw: ApiPod) -> Pod:
    meta, spec, problems = raw.metadata, raw.spec, _Problems()
    annotations = meta.annotations or {}
    status = raw.status or PodStatus()
    ips = [one.ip for one in status.pod_ips or () if one.ip] or [status.pod_ip or ""]
    owner = next((ref for ref in meta.owner_references or () if ref.controller), None)
    labels = _interned(meta.labels)
    workload_kind, workload = workload_of(
        meta.name,
        owner.kind if owner else "",
        owner.name if owner else "",
        labels.get(TEMPLATE_HASH, ""),
    )
    # As a native sidecar (an init container that goes on) or, before those, a container.
    sidecar = any(one.name == names.PROXY_CONTAINER for one in spec.containers) or any(
        one.name == names.PROXY_CONTAINER and one.restart_policy == "Always"
        for one in spec.init_containers or ()
    )
    injected = sidecar and names.INJECTED in annotations and not spec.host_network
    return Pod(
        namespace=intern(meta.namespace),
        name=meta.name,
        ips=problems.ips([ip for ip in ips if ip], "status.podIPs"),
        node=intern(spec.node_name or ""),
        service_account=intern(spec.service_account_name or "default"),
        phase=status.phase or Phase.PENDING,
        host_network=bool(spec.host_network),
        deleting=meta.deletion_timestamp is not None,
        injected=injected,
        workload_kind=intern(workload_kind),
        workload=intern(workload),
        labels=labels,
        captured=_captured(raw, problems) if injected else (),
        opaque_ports=problems.ports(annotations, names.OPAQUE_PORTS),
        created=meta.creation_timestamp or "",
        problems=tuple(problems),
    )


def _captured(raw: ApiPod, problems: _Problems) -> PortRanges:
    """The inbound ports that the rules lead to the sidecar.

    The rules are made once, from the variables of the network init, and those cannot change; annotations can.
    They count where the rules are made outside of the pod.
    """
    init = next((one for one in raw.spec.init_containers or () if one.name == names.INIT_CONTAINER), None)
    if init is None:
        said = raw.metadata.annotations or {}
        include, exclude = names.INCLUDE_INBOUND_PORTS, names.EXCLUDE_INBOUND_PORTS
    else:
        said = {one.name: one.value for one in init.env or () if one.value is not None}
        include, exclude = names.INCLUDE_INBOUND_VARIABLE, names.EXCLUDE_INBOUND_VARIABLE
    captured = ALL_PORTS
    if said.get(include, "*").strip() != "*":
        included = problems.ports(said, include)
        captured = ALL_PORTS if included is None else included
    never = tuple((port, port) for port in names.NEVER_CAPTURED)
    return without(captured, (*(problems.ports(said, exclude) or ()), *never))


def _service(raw: ApiService) -> Service:
    meta, spec, problems = raw.metadata, raw.spec, _Problems()
    external_name = spec.type == "ExternalName"
    if external_name:
        problems.append("type ExternalName: its name is resolved by the caller; it is not a destination")
    ports = tuple(
        ServicePort(intern(one.name or ""), one.port, protocol_of(one.app_protocol, one.name or ""))
        for one in spec.ports or ()
        if (one.protocol or "TCP") == "TCP" and not external_name
    )
    cluster_ips = spec.cluster_ips or [spec.cluster_ip or ""]
    affinity = None
    if spec.session_affinity == "ClientIP":
        config = spec.session_affinity_config
        timeout = config.client_ip.timeout_seconds if config and config.client_ip else None
        affinity = Affinity(timeout or 10_800)
    balancers = (raw.status and raw.status.load_balancer and raw.status.load_balancer.ingress) or ()
    annotations = meta.annotations or {}
    own = problems.ips([ip for ip in cluster_ips if ip not in ("", "None")], "spec.clusterIPs")
    return Service(
        namespace=intern(meta.namespace),
        name=intern(meta.name),
        ports=ports,
        families=_families(spec.ip_families, own),
        cluster_ips=() if external_name else own,
        # ipMode Proxy: kube-proxy sends such traffic out to the load balancer, and so do we.
        load_balancer_ips=problems.ips(
            [one.ip for one in balancers if one.ip and one.ip_mode != "Proxy"], "status.loadBalancer.ingress"
        ),
        external_ips=problems.ips(spec.external_ips or [], "spec.externalIPs"),
        selects=bool(spec.selector),
        publish_not_ready=bool(spec.publish_not_ready_addresses),
        node_local=spec.internal_traffic_policy == "Local",
        affinity=affinity,
        opaque_ports=problems.ports(annotations, names.OPAQUE_PORTS),
        created=meta.creation_timestamp or "",
        problems=tuple(problems),
    )


def _families(named: list[str] | None, ips: tuple[str, ...]) -> tuple[Family, ...]:
    found = [Family(name.lower()) for name in named or () if name in ("IPv4", "IPv6")]
    return tuple(dict.fromkeys(found or [family_of(ip) for ip in ips] or [Family.IPV4]))


def family_of(ip: str) -> Family:
    """The family of an address in its text form."""
    return Family.IPV6 if ":" in ip else Family.IPV4


def _slice(raw: ApiEndpointSlice) -> EndpointSlice:
    meta, problems = raw.metadata, _Problems()
    namespace = intern(meta.namespace)
    usable = raw.address_type in ("IPv4", "IPv6")
    if not usable:
        problems.append(f"addressType: expected IPv4 or IPv6, got {raw.address_type[:20]!r}")
    family = Family.IPV6 if raw.address_type == "IPv6" else Family.IPV4
    endpoints = []
    for i, one in enumerate((raw.endpoints or ()) if usable else ()):
        # All addresses of an endpoint are alike; kube-proxy uses the first as well.
        ip = problems.ip(one.addresses[0] if one.addresses else "", f"endpoints[{i}].addresses")
        if ip and family_of(ip) is not family:
            problems.append(f"endpoints[{i}].addresses: expected {family.value}, got {ip}")
        elif ip:
            endpoints.append(_slice_endpoint(one, ip, namespace))
    return EndpointSlice(
        namespace=namespace,
        name=meta.name,
        service=intern((meta.labels or {}).get(SERVICE_NAME, "")),
        family=family,
        ports=tuple(
            (intern(one.name or ""), one.port)
            for one in raw.ports or ()
            if one.port is not None and (one.protocol or "TCP") == "TCP"
        ),
        endpoints=tuple(endpoints),
        hinted=any(one.zone_hints or one.node_hints for one in endpoints),
        problems=tuple(problems),
    )


def _slice_endpoint(raw: ApiSliceEndpoint, ip: str, namespace: str) -> SliceEndpoint:
    conditions = raw.conditions or Conditions()
    ready = conditions.ready is not False
    target, hints = raw.target_ref, raw.hints or Hints()
    pod = None
    if target is not None and target.kind == "Pod" and target.name:
        pod = intern(target.namespace or namespace), target.name
    return SliceEndpoint(
        address=ip,
        ready=ready,
        serving=ready if conditions.serving is None else conditions.serving,
        terminating=bool(conditions.terminating),
        pod=pod,
        node=intern(raw.node_name or ""),
        zone_hints=tuple(intern(hint.name) for hint in hints.for_zones or ()),
        node_hints=tuple(intern(hint.name) for hint in hints.for_nodes or ()),
    )


def _reader(wire: type[_T], convert: Callable[[_T], Object]) -> Callable[[Any], Object]:
    decoder = msgspec.json.Decoder(wire)
    return lambda data: convert(decoder.decode(data))


_READERS: dict[Kind, Callable[[Any], Object]] = {
    "Namespace": _reader(Named, _namespace),
    "Node": _reader(ApiNode, _node),
    "ServiceCIDR": _reader(ApiServiceCidr, _service_cidr),
    "ServiceAccount": _reader(Named, _service_account),
    "Pod": _reader(ApiPod, _pod),
    "Service": _reader(ApiService, _service),
    "EndpointSlice": _reader(ApiEndpointSlice, _slice),
}
_bare = msgspec.json.Decoder(Bare)
_tree = msgspec.json.Decoder(dict[str, Any])


def _policy(kind: Kind, data: Buffer) -> AnyPolicy | tuple[str, ...]:
    found = read_policy(kind, _tree.decode(data))
    return tuple(map(str, found)) if isinstance(found, list) else found


def decode(kind: Kind, data: Buffer) -> Object | Refused:
    """Read one object of the API; one that cannot be used is `Refused`, and then its last good state holds.

    Raises msgspec.MsgspecError for what has not even a name.
    """
    try:
        try:
            found = _policy(kind, data) if kind in POLICY_KINDS else _READERS[kind](data)
            if not isinstance(found, tuple):
                return found
        except msgspec.ValidationError as exc:
            found = (f"cannot be read: {exc}",)
        meta = _bare.decode(data).metadata
        return Refused(kind, meta.namespace, meta.name, found, meta.creation_timestamp or "", meta.generation)
    except (UnicodeDecodeError, RecursionError) as exc:
        raise msgspec.DecodeError(f"expected an object: {exc}") from None
