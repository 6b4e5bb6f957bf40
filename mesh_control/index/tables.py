"""The objects of the cluster, and the ways to find them: by address, by Service, by pod."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mesh_control.index.addresses import PodAddresses, ServiceAddresses
from mesh_control.index.objects import (
    AnyPolicy,
    EndpointSlice,
    Key,
    Kind,
    Namespace,
    Node,
    Object,
    Pod,
    PortRanges,
    Service,
    ServiceAccount,
    ServiceCIDR,
    SliceEndpoint,
)
from mesh_control.index.policies import Policies
from mesh_control.index.ranges import Ranges


class Tables:
    """Everything that is known; changed by `put` alone."""

    def __init__(self, trust_domain: str, cluster_networks: Iterable[str], system_namespace: str) -> None:
        self.trust_domain = trust_domain
        self._pods: dict[Key, Pod] = {}
        self._services: dict[Key, Service] = {}
        self._slices: dict[Key, EndpointSlice] = {}
        self._namespaces: dict[Key, Namespace] = {}
        self._nodes: dict[Key, Node] = {}
        self._service_cidrs: dict[Key, ServiceCIDR] = {}
        self._accounts: dict[Key, ServiceAccount] = {}
        self.policies = Policies(system_namespace)
        self._kinds: dict[Kind, dict[Key, Any]] = {
            "Pod": self._pods,
            "Service": self._services,
            "EndpointSlice": self._slices,
            "Namespace": self._namespaces,
            "Node": self._nodes,
            "ServiceCIDR": self._service_cidrs,
            "ServiceAccount": self._accounts,
            "TrafficPolicy": self.policies.traffic,
            "MeshPolicy": self.policies.mesh,
        }
        self.pod_addresses = PodAddresses()
        self.service_addresses = ServiceAddresses()
        self.ranges = Ranges(cluster_networks)
        self._slices_of: dict[Key, dict[Key, EndpointSlice]] = {}
        self._slices_at: dict[str, tuple[Key, ...]] = {}

    # -- look-ups -------------------------------------------------------------------------------------------

    def all(self, kind: Kind) -> Mapping[Key, Object]:
        """The objects of a kind."""
        return self._kinds[kind]

    def pods(self) -> Collection[Pod]:
        """Every pod."""
        return self._pods.values()

    def services(self) -> Collection[Service]:
        """Every Service."""
        return self._services.values()

    def slices(self) -> Collection[EndpointSlice]:
        """Every EndpointSlice."""
        return self._slices.values()

    def pod(self, key: Key) -> Pod | None:
        """A pod by namespace and name."""
        return self._pods.get(key)

    def service(self, key: Key) -> Service | None:
        """A Service by namespace and name."""
        return self._services.get(key)

    def differs(self, service: Service) -> bool:
        """Whether callers on different nodes may be given different endpoints of a Service.

        kube-proxy goes by the hints, whoever wrote them and whatever the Service says; so do we.
        """
        return service.node_local or any(piece.hinted for piece in self.slices_of(service.key))

    def by_node(self, service: Service) -> bool:
        """The same, also where its routes lead."""
        if self.differs(service):
            return True
        others = (self.service(key) for key in self.policies.led_from(service.key))
        return any(other is not None and self.differs(other) for other in others)

    def zone_of(self, node: str) -> str:
        """The zone of a node; '' if it is not known."""
        found = self._nodes.get(("", node))
        return found.zone if found else ""

    def opaque_ports(self, obj: Pod | Service) -> PortRanges:
        """The ports that a pod or Service declares opaque, else its namespace."""
        if obj.opaque_ports is not None:
            return obj.opaque_ports
        namespace = self._namespaces.get(("", obj.namespace))
        return (namespace.opaque_ports or ()) if namespace else ()

    def slices_of(self, service: Key) -> Iterable[EndpointSlice]:
        """The EndpointSlices of a Service."""
        return self._slices_of.get(service, {}).values()

    def slices_at(self, ip: str) -> Iterable[EndpointSlice]:
        """The EndpointSlices that have an address."""
        return (self._slices[key] for key in self._slices_at.get(ip, ()))

    def pods_of(self, endpoint: SliceEndpoint) -> Iterable[Pod]:
        """The pods that an endpoint may mean: the one it refers to, or those that claim its address."""
        if endpoint.pod is None:
            return self.pod_addresses.claimants(endpoint.address)
        pod = self.pod(endpoint.pod)
        return (pod,) if pod else ()

    # -- changes --------------------------------------------------------------------------------------------

    def put(self, kind: Kind, key: Key, new: Object | None) -> None:
        """Replace the object of a key; None removes it."""
        old = self._kinds[kind].pop(key, None)
        if old is not None:
            self._unlink(old)
        if new is not None:
            self._kinds[kind][key] = new
            self._link(new)

    def _link(self, new: Object) -> None:
        if isinstance(new, Pod):
            self.pod_addresses.add(new)
            self.ranges.pod(new, 1)
        elif isinstance(new, Service):
            self.service_addresses.add(new)
            self.ranges.service(new, 1)
        elif isinstance(new, Node):
            self.ranges.node(new, 1)
        elif isinstance(new, ServiceCIDR):
            self.ranges.service_cidr(new, 1)
        elif isinstance(new, AnyPolicy):
            self.policies.add(new)
        elif isinstance(new, EndpointSlice):
            self._slices_of.setdefault(new.owner, {})[new.key] = new
            for ip in {endpoint.address for endpoint in new.endpoints}:
                self._slices_at[ip] = (*self._slices_at.get(ip, ()), new.key)

    def _unlink(self, old: Object) -> None:
        if isinstance(old, Pod):
            self.pod_addresses.remove(old)
            self.ranges.pod(old, -1)
        elif isinstance(old, Service):
            self.service_addresses.remove(old)
            self.ranges.service(old, -1)
        elif isinstance(old, Node):
            self.ranges.node(old, -1)
        elif isinstance(old, ServiceCIDR):
            self.ranges.service_cidr(old, -1)
        elif isinstance(old, AnyPolicy):
            self.policies.remove(old)
        elif isinstance(old, EndpointSlice):
            slices = self._slices_of[old.owner]
            del slices[old.key]
            if not slices:
                del self._slices_of[old.owner]
            for ip in {endpoint.address for endpoint in old.endpoints}:
                left = tuple(key for key in self._slices_at[ip] if key != old.key)
                if left:
                    self._slices_at[ip] = left
                else:
                    del self._slices_at[ip]
