"""The index: objects in, what has changed out. Synchronous, without I/O, and independent of order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mesh_api.discovery import address_key, pod_key
from mesh_api.keys import DestinationName
from mesh_control.index.addresses import Vip, vips_of
from mesh_control.index.changes import NONE, Changes, workload_key
from mesh_control.index.objects import (
    KINDS,
    EndpointSlice,
    Key,
    Kind,
    Namespace,
    Node,
    Object,
    Pod,
    Refused,
    Service,
    SliceEndpoint,
    kind_of,
)
from mesh_control.index.tables import Tables
from mesh_control.index.views import (
    digests,
    pod_state,
    service_at,
    vip_state,
    workload_state,
)


class Problem(NamedTuple):
    """Something of an object that has no effect, and why."""

    kind: Kind
    namespace: str
    name: str
    reason: str


@dataclass(slots=True)
class _Reach:
    """What a change may touch; looked at before and after it."""

    services: set[Key] = field(default_factory=set)
    pods: set[Key] = field(default_factory=set)
    ips: set[str] = field(default_factory=set)
    vips: set[Vip] = field(default_factory=set)


class Index:
    """What the cluster looks like now.

    Args:
        trust_domain: of the identities that pods have.
        cluster_networks: ranges of pods and Services, besides those that Nodes name: an address there is not
            outside the mesh merely because nothing is known of it yet.
    """

    def __init__(self, trust_domain: str, cluster_networks: Iterable[str] = ()) -> None:
        self.tables = Tables(trust_domain, cluster_networks)
        self.generation = 0
        """Rises with every change of an object."""
        self._digests: dict[Key, dict[DestinationName, bytes]] = {}
        self._refused: dict[Kind, dict[Key, Refused]] = {}

    # -- objects in -----------------------------------------------------------------------------------------

    def apply(self, obj: Object | Refused) -> Changes:
        """An object is new, or has changed."""
        if isinstance(obj, Refused):
            self._refused.setdefault(obj.kind, {})[obj.key] = obj
            return NONE
        kind = kind_of(obj)
        self._refused.get(kind, {}).pop(obj.key, None)
        return self._change(kind, {obj.key: obj})

    def delete(self, kind: Kind, namespace: str, name: str) -> Changes:
        """An object is gone."""
        self._refused.get(kind, {}).pop((namespace, name), None)
        return self._change(kind, {(namespace, name): None})

    def replace(self, kind: Kind, objects: Iterable[Object | Refused]) -> Changes:
        """These are all objects of a kind: others are gone. Of refused ones the last good state stays."""
        refused: dict[Key, Refused] = {}
        steps: dict[Key, Object | None] = dict.fromkeys(self.tables.all(kind))
        for obj in objects:
            if isinstance(obj, Refused):
                refused[obj.key] = obj
                steps.pop(obj.key, None)
            else:
                steps[obj.key] = obj
        self._refused[kind] = refused
        return self._change(kind, steps)

    # -- what is known --------------------------------------------------------------------------------------

    def problems(self) -> list[Problem]:
        """What of the objects has no effect, and why; in order."""
        found = [
            Problem(kind, *obj.key, reason)
            for kind in KINDS
            for obj in self.tables.all(kind).values()
            for reason in obj.problems
        ]
        for kind, refused in self._refused.items():
            found += [Problem(kind, *obj.key, reason) for obj in refused.values() for reason in obj.problems]
        for service in self.tables.services():
            found += [Problem("Service", *service.key, reason) for reason in self._lost(service)]
        for pod in self.tables.pods():
            for ip, owner in self.tables.pod_addresses.contested(pod):
                reason = f"address {ip} belongs to the newer pod {owner.namespace}/{owner.name}"
                found.append(Problem("Pod", *pod.key, reason))
        return sorted(found)

    def count(self, kind: Kind) -> int:
        """How many objects of a kind are known."""
        return len(self.tables.all(kind))

    def _lost(self, service: Service) -> Iterable[str]:
        for ip, _ in vips_of(service):
            for port in service.ports:
                winner = service_at(self.tables, ip, port.port)
                if winner is None:
                    yield f"address {ip} is a pod's; it does not lead to this Service"
                elif winner != service.key:
                    yield f"address {ip} port {port.port} belongs to Service {winner[0]}/{winner[1]}"

    # -- changes out ----------------------------------------------------------------------------------------

    def _change(self, kind: Kind, steps: Mapping[Key, Object | None]) -> Changes:
        known = self.tables.all(kind)
        real = {key: new for key, new in steps.items() if known.get(key) != new}
        if not real:
            return NONE
        reach = _Reach()
        zones = networks = False
        for key, new in real.items():
            old = known.get(key)
            for obj in (old, new):
                self._reach(obj, old, new, reach)
            networks = networks or _networks(old) != _networks(new)
            zones = zones or _zone(old) != _zone(new)
        if networks:
            self._reach_unnamed(reach)
        before = self._look(reach)
        by_node = self._by_node(reach)
        for key, new in real.items():
            self.tables.put(kind, key, new)
        self.generation += 1
        for service in reach.services:
            self._digest(service)
        after = self._look(reach)
        found = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        if zones:
            found |= self._by_zone(reach)
        return Changes(frozenset(self._keys(found, by_node | self._by_node(reach))), networks)

    def _look(self, reach: _Reach) -> dict[DestinationName | str, object]:
        """The state of all that is in reach."""
        tables = self.tables
        found: dict[DestinationName | str, object] = {}
        for service in reach.services:
            found.update(self._digests.get(service, {}).items())
        for key in reach.pods:
            found[workload_key(key)] = workload_state(tables, key)
        for ip in reach.ips:
            found[pod_key(ip)] = pod_state(tables, ip)
        for ip, port in reach.vips:
            found[address_key(ip, port)] = vip_state(tables, ip, port)
        return found

    def _digest(self, key: Key) -> None:
        service = self.tables.service(key)
        if service is None:
            self._digests.pop(key, None)
        else:
            self._digests[key] = digests(self.tables, service)

    def _keys(self, found: Iterable[DestinationName | str], by_node: set[Key]) -> Iterator[str]:
        """The keys of what has changed; where nodes matter, a destination has one for each."""
        nodes = {pod.node for pod in self.tables.pods() if pod.node} if by_node else ()
        for one in found:
            if isinstance(one, str):
                yield one
                continue
            yield f"destination/{one}"
            if (one.namespace, one.name) in by_node:
                for node in nodes:
                    yield f"destination/{one._replace(node=node)}"

    def _by_node(self, reach: _Reach) -> set[Key]:
        """The Services in reach that callers on different nodes may see differently."""
        services = (self.tables.service(key) for key in reach.services)
        return {service.key for service in services if service is not None and service.by_node}

    def _by_zone(self, reach: _Reach) -> set[DestinationName | str]:
        """Destinations that callers on one node may see differently when its zone is another."""
        near = [service.key for service in self.tables.services() if service.distribution]
        reach.services.update(near)
        return {name for key in near for name in self._digests.get(key, ())}

    # -- what depends on what -------------------------------------------------------------------------------

    def _reach(self, obj: Object | None, old: Object | None, new: Object | None, reach: _Reach) -> None:
        if isinstance(obj, Pod):
            self._reach_pod(obj, reach)
        elif isinstance(obj, Service):
            self._reach_service(obj, reach)
        elif isinstance(obj, EndpointSlice):
            reach.services.add(obj.owner)
            for endpoint in _endpoints_changed(obj, old, new):
                self._reach_endpoint(endpoint, reach)
        elif isinstance(obj, Namespace) and _opaque(old) != _opaque(new):
            for pod in self.tables.pods():
                if pod.namespace == obj.name:
                    self._reach_pod(pod, reach)
            for service in self.tables.services():
                if service.namespace == obj.name:
                    self._reach_service(service, reach)

    def _reach_pod(self, pod: Pod, reach: _Reach) -> None:
        reach.pods.add(pod.key)
        reach.ips.update(pod.ips)
        for ip in pod.ips:
            reach.services.update(piece.owner for piece in self.tables.slices_at(ip))
            for key in self.tables.service_addresses.claimants(ip):
                service = self.tables.service(key)
                reach.services.add(key)
                reach.vips.update((ip, port.port) for port in (service.ports if service else ()))

    def _reach_service(self, service: Service, reach: _Reach) -> None:
        reach.services |= self.tables.service_addresses.rivals(service)
        for ip, _ in vips_of(service):
            reach.ips.add(ip)
            reach.vips.update((ip, port.port) for port in service.ports)
        for piece in self.tables.slices_of(service.key):
            for endpoint in piece.endpoints:
                self._reach_endpoint(endpoint, reach)

    def _reach_endpoint(self, endpoint: SliceEndpoint, reach: _Reach) -> None:
        """The pods behind an endpoint: what their ports are declared to speak."""
        for pod in self.tables.pods_of(endpoint):
            reach.pods.add(pod.key)
            reach.ips.update(pod.ips)

    def _reach_unnamed(self, reach: _Reach) -> None:
        """Services with endpoints that name no pod: whether those may be pods depends on the ranges."""
        for piece in self.tables.slices():
            if any(one.pod is None for one in piece.endpoints):
                reach.services.add(piece.owner)


def _endpoints_changed(obj: EndpointSlice, old: Object | None, new: Object | None) -> Iterable[SliceEndpoint]:
    """The endpoints whose pods' ports may be declared differently: all, unless the ports are the same."""
    if not isinstance(old, EndpointSlice) or not isinstance(new, EndpointSlice):
        return obj.endpoints
    if (old.ports, old.service, old.family) != (new.ports, new.service, new.family):
        return obj.endpoints
    same = {(one.address, one.pod) for one in old.endpoints} & {
        (one.address, one.pod) for one in new.endpoints
    }
    return [one for one in obj.endpoints if (one.address, one.pod) not in same]


def _networks(obj: Object | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (obj.pod_cidrs, obj.addresses) if isinstance(obj, Node) else ((), ())


def _zone(obj: Object | None) -> str:
    return obj.zone if isinstance(obj, Node) else ""


def _opaque(obj: Object | None) -> object:
    return (obj.opaque_ports or ()) if isinstance(obj, Namespace) else ()
