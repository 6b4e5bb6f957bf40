"""The index: objects in, what has changed out. Synchronous, without I/O, and independent of order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mesh_api.discovery import address_key, pod_key
from mesh_api.keys import DestinationName
from mesh_api.policy_types import MeshPolicy, TrafficPolicy
from mesh_control.index.addresses import Vip, vips_of
from mesh_control.index.changes import NONE, Changes, PolicyName, workload_key
from mesh_control.index.objects import (
    CLUSTER_KINDS,
    POLICY_KINDS,
    AnyPolicy,
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
from mesh_control.index.policies import beyond_own, target
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
        cluster_networks: ranges of pods and Services, besides those that are known (see `ranges`): an address
            there is not outside the mesh merely because nothing is known of it yet.
        system_namespace: the control plane's own; its MeshPolicy holds for the whole mesh.
    """

    def __init__(
        self,
        trust_domain: str,
        cluster_networks: Iterable[str] = (),
        system_namespace: str = "triomesh-system",
    ) -> None:
        self.tables = Tables(trust_domain, cluster_networks, system_namespace)
        self.generation = 0
        """Rises with every change of an object."""
        self._digests: dict[Key, dict[DestinationName, bytes]] = {}
        self._refused: dict[Kind, dict[Key, Refused]] = {}

    # -- objects in -----------------------------------------------------------------------------------------

    def apply(self, obj: Object | Refused) -> Changes:
        """An object is new, or has changed."""
        if isinstance(obj, Refused):
            self._refused.setdefault(obj.kind, {})[obj.key] = obj
            changes = self._change(obj.kind, {obj.key: None}) if self._remade(obj) else NONE
            return changes | _own(obj.kind, (obj.key,))
        kind = kind_of(obj)
        mended = self._refused.get(kind, {}).pop(obj.key, None)
        return self._change(kind, {obj.key: obj}) | (_own(kind, (obj.key,)) if mended else NONE)

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
                if not self._remade(obj):
                    steps.pop(obj.key, None)
            else:
                steps[obj.key] = obj
        mended = self._refused.get(kind, {}).keys() - refused.keys()
        self._refused[kind] = refused
        return self._change(kind, steps) | _own(kind, (*refused, *mended))

    # -- what is known --------------------------------------------------------------------------------------

    def problems(self) -> list[Problem]:
        """What of the objects has no effect, and why; in order."""
        found = [
            Problem(kind, *obj.key, reason)
            for kind in CLUSTER_KINDS
            for obj in self.tables.all(kind).values()
            if not isinstance(obj, AnyPolicy)
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
        for policy in self.policies():
            if winner := self.tables.policies.conflict(policy):
                reason = f"{winner[0]}/{winner[1]} is older and holds for the same target"
                found.append(Problem(kind_of(policy), *policy.key, reason))
        return sorted(found)

    def policies(self) -> Iterable[AnyPolicy]:
        """Every policy that is or was good."""
        return *self.tables.policies.traffic.values(), *self.tables.policies.mesh.values()

    def conflicted(self, kind: Kind) -> int:
        """How many policies of a kind do not hold because an older one does."""
        conflict = self.tables.policies.conflict
        return sum(kind_of(policy) == kind and conflict(policy) is not None for policy in self.policies())

    def refused(self, kind: Kind) -> Mapping[Key, Refused]:
        """The objects of a kind that cannot be used."""
        return self._refused.get(kind, {})

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

    def _remade(self, obj: Refused) -> bool:
        """Whether the last good object of a refused one's name was another: nothing of that stays."""
        known = self.tables.all(obj.kind).get(obj.key)
        return isinstance(known, AnyPolicy) and bool(obj.created) and known.created != obj.created

    # -- changes out ----------------------------------------------------------------------------------------

    def _change(self, kind: Kind, steps: Mapping[Key, Object | None]) -> Changes:
        known = self.tables.all(kind)
        real = {key: new for key, new in steps.items() if known.get(key) != new}
        if not real:
            return NONE
        reach = _Reach()
        if kind == "MeshPolicy":
            self._reach_scopes(real, reach)
        zones = False
        for key, new in real.items():
            old = known.get(key)
            for obj in (old, new):
                self._reach(obj, old, new, reach)
            zones = zones or _zone(old) != _zone(new)
        before = self._look(reach)
        by_node = self._by_node(reach)
        policies = self._concerned(kind, real, reach)
        for key, new in real.items():
            self.tables.put(kind, key, new)
        networks = self.tables.ranges.settle()
        if networks:
            unnamed = _Reach(services=self._unnamed())
            before |= self._look(unnamed)
            reach.services |= unnamed.services
        self.generation += 1
        for service in reach.services:
            self._digest(service)
        after = self._look(reach)
        found = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        if zones:
            found |= self._by_zone(reach)
        keys = frozenset(self._keys(found, by_node | self._by_node(reach)))
        return Changes(keys, networks, policies | self._concerned(kind, real, reach))

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
        return {service.key for service in services if service is not None and self.tables.by_node(service)}

    def _by_zone(self, reach: _Reach) -> set[DestinationName | str]:
        """Destinations that callers on one node may see differently when its zone is another."""
        near = {piece.owner for piece in self.tables.slices() if piece.hinted}
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
            if _hints(old) != _hints(new) and (service := self.tables.service(obj.owner)):
                self._reach_service(service, reach)  # whether nodes matter is in its keys
            for endpoint in _endpoints_changed(obj, old, new):
                self._reach_endpoint(endpoint, reach)
        elif isinstance(obj, TrafficPolicy):
            self._reach_target(target(obj), reach)
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

        for policy in self.tables.policies.leading_to(service.key):
            self._reach_target(target(policy), reach)

    def _reach_target(self, key: Key, reach: _Reach) -> None:
        """What the TrafficPolicy of a Service acts on: its destinations, or the pods of a headless one."""
        reach.services.add(key)
        service = self.tables.service(key)
        if service is None:
            return
        for ip, _ in vips_of(service):
            reach.vips.update((ip, port.port) for port in service.ports)
        if service.cluster_ips:
            return
        for piece in self.tables.slices_of(key):
            for endpoint in piece.endpoints:
                self._reach_endpoint(endpoint, reach)

    def _reach_scopes(self, real: Mapping[Key, Object | None], reach: _Reach) -> None:
        """What MeshPolicies act on: one that comes or goes may let others of its namespace hold."""
        policies = self.tables.policies
        namespaces = {namespace for namespace, _ in real}
        everywhere = policies.system in namespaces
        new = (policy for policy in real.values() if isinstance(policy, MeshPolicy))
        beyond = policies.beyond_own or any(map(beyond_own, new))
        for pod in self.tables.pods():
            if everywhere or pod.namespace in namespaces:
                reach.pods.add(pod.key)
                if beyond:
                    self._reach_pod(pod, reach)
        for service in self.tables.services() if beyond else ():
            if everywhere or service.namespace in namespaces:
                reach.services.add(service.key)

    def _concerned(
        self, kind: Kind, real: Mapping[Key, Object | None], reach: _Reach
    ) -> frozenset[PolicyName]:
        """The policies of which something else may be true after a change: all that share a target."""
        policies = self.tables.policies
        if kind == "MeshPolicy":
            namespaces = {namespace for namespace, _ in real}
            return frozenset(("MeshPolicy", key) for key in {*policies.mesh, *real} if key[0] in namespaces)
        found = set(real) if kind == "TrafficPolicy" else set()
        for service in reach.services if policies.traffic else ():
            found.update(one.key for one in policies.of_service(service))
            found.update(one.key for one in policies.leading_to(service))
        return frozenset(("TrafficPolicy", key) for key in found)

    def _reach_endpoint(self, endpoint: SliceEndpoint, reach: _Reach) -> None:
        """The pods behind an endpoint: what their ports are declared to speak."""
        for pod in self.tables.pods_of(endpoint):
            reach.pods.add(pod.key)
            reach.ips.update(pod.ips)

    def _unnamed(self) -> set[Key]:
        """Services with endpoints that name no pod: whether those may be pods depends on the ranges."""
        return {
            piece.owner for piece in self.tables.slices() if any(one.pod is None for one in piece.endpoints)
        }


def _own(kind: Kind, keys: Iterable[Key]) -> Changes:
    """Policies of which something else is true now, although nothing else has changed."""
    return Changes(policies=frozenset((of, key) for of in POLICY_KINDS if of == kind for key in keys))


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


def _zone(obj: Object | None) -> str:
    return obj.zone if isinstance(obj, Node) else ""


def _hints(obj: Object | None) -> Key | None:
    """The Service for which a slice has hints."""
    return obj.owner if isinstance(obj, EndpointSlice) and obj.hinted else None


def _opaque(obj: Object | None) -> object:
    return (obj.opaque_ports or ()) if isinstance(obj, Namespace) else ()
