"""The policies, by what they are for: which one holds for a Service, and what holds for a workload."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TypeVar

import msgspec

from mesh_api.policy_types import MeshPolicy, MeshSettings, TrafficPolicy
from mesh_api.policy_values import Duration
from mesh_api.sidecar import MtlsMode
from mesh_control.index.levels import Levels, Scope, WorkloadSettings, age, held, scopes
from mesh_control.index.objects import ALL_PORTS, Key, Pod, PortRanges, without

MAX_CACHED = 16_384
_DEFAULT = WorkloadSettings()
_QUIET = MeshSettings()
_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(slots=True)
class _Resolved:
    """What follows from all MeshPolicies together."""

    levels: Levels
    conflicts: Mapping[Key, Key]
    beyond_own: bool
    """Some may change more than the configuration of the workloads that they are for."""
    workloads: dict[Scope, WorkloadSettings] = field(default_factory=dict)
    services: dict[str, bytes] = field(default_factory=dict)


def target(policy: TrafficPolicy) -> Key:
    """The Service that a TrafficPolicy is for."""
    return policy.namespace, policy.spec.target.service


def leads_to(policy: TrafficPolicy) -> set[Key]:
    """The other Services that its routes lead to."""
    named = (arm.service for route in policy.spec.routes for arm in route.to or () if arm.service)
    return {(policy.namespace, name.partition(".")[0]) for name in named} - {target(policy)}


class Policies:
    """All policies that were ever good, as they were then.

    Args:
        system: the control plane's namespace; its MeshPolicy holds for the mesh.
    """

    def __init__(self, system: str) -> None:
        self.system = system
        self.traffic: dict[Key, TrafficPolicy] = {}
        self.mesh: dict[Key, MeshPolicy] = {}
        self._of: dict[Key, tuple[TrafficPolicy, ...]] = {}
        self._leading: dict[Key, tuple[TrafficPolicy, ...]] = {}
        self._digests: dict[Key, bytes] = {}
        self._leads: dict[Key, set[Key]] = {}
        self._resolved: _Resolved | None = None

    # -- changes --------------------------------------------------------------------------------------------

    def add(self, policy: TrafficPolicy | MeshPolicy) -> None:
        """A policy is in its table now."""
        if isinstance(policy, MeshPolicy):
            self._resolved = None
            return
        self._digests[policy.key] = _digest(policy.spec)
        self._leads[policy.key] = leads_to(policy)
        for table, service in self._places(policy):
            table[service] = tuple(sorted((*table.get(service, ()), policy), key=age))

    def remove(self, policy: TrafficPolicy | MeshPolicy) -> None:
        """A policy, exactly as it was added, is gone."""
        if isinstance(policy, MeshPolicy):
            self._resolved = None
            return
        places = list(self._places(policy))
        del self._digests[policy.key], self._leads[policy.key]
        for table, service in places:
            left = tuple(one for one in table[service] if one.key != policy.key)
            if left:
                table[service] = left
            else:
                del table[service]

    def _places(self, policy: TrafficPolicy) -> Iterable[tuple[dict[Key, tuple[TrafficPolicy, ...]], Key]]:
        yield self._of, target(policy)
        for service in self._leads[policy.key]:
            yield self._leading, service

    # -- Services -------------------------------------------------------------------------------------------

    def of_service(self, service: Key) -> tuple[TrafficPolicy, ...]:
        """Every TrafficPolicy for a Service, the oldest first: that one holds."""
        return self._of.get(service, ())

    def holder(self, service: Key) -> TrafficPolicy | None:
        """The TrafficPolicy that holds for a Service."""
        found = self._of.get(service)
        return found[0] if found else None

    def led_from(self, service: Key) -> Iterable[Key]:
        """The other Services that a Service's routes lead to."""
        holder = self.holder(service)
        return self._leads[holder.key] if holder else ()

    def leading_to(self, service: Key) -> tuple[TrafficPolicy, ...]:
        """The TrafficPolicies with a route that leads to a Service which is not their own."""
        return self._leading.get(service, ())

    def service_state(self, service: Key) -> object:
        """All that calls to a Service depend on, other than the Services that its routes lead to."""
        holder = self.holder(service)
        levels = self.levels_state(service[0])
        return (holder.key, self.digest(holder), levels) if holder else levels

    def digest(self, policy: TrafficPolicy) -> bytes:
        """A hash of what a policy says."""
        return self._digests[policy.key]

    def levels_state(self, namespace: str) -> bytes:
        """All that MeshPolicies say about calls to a namespace, as a hash."""
        if not self.beyond_own:
            return b""
        resolved = self._resolve()
        return _cached(resolved.services, namespace, lambda: _digest(resolved.levels.of_services(namespace)))

    # -- workloads ------------------------------------------------------------------------------------------

    @property
    def levels(self) -> Levels:
        """The MeshPolicies that hold."""
        return self._resolve().levels

    @property
    def beyond_own(self) -> bool:
        """Whether some MeshPolicy may change more than the configuration of its own workloads."""
        return bool(self.mesh) and self._resolve().beyond_own

    def conflict(self, policy: TrafficPolicy | MeshPolicy) -> Key | None:
        """The older policy because of which this one does not hold."""
        if isinstance(policy, MeshPolicy):
            return self._resolve().conflicts.get(policy.key)
        holder = self.holder(target(policy))
        return None if holder is None or holder.key == policy.key else holder.key

    def settings_of(self, pod: Pod) -> WorkloadSettings:
        """What MeshPolicies say about a pod's sidecar."""
        if not self.mesh:
            return _DEFAULT
        resolved = self._resolve()
        scope = Scope(pod.namespace, pod.workload_kind, pod.workload)
        return _cached(resolved.workloads, scope, lambda: resolved.levels.of_workload(*scope))

    def mtls_ports(self, pod: Pod) -> PortRanges:
        """The ports at which a pod's sidecar looks for mTLS."""
        if not self.mesh:
            return pod.captured
        settings = self.settings_of(pod)
        off = settings.mtls is MtlsMode.DISABLE
        others = sorted(int(p) for p, mode in settings.port_mtls.items() if (mode is MtlsMode.DISABLE) != off)
        ranges = tuple((port, port) for port in others)
        return without(pod.captured, without(ALL_PORTS, ranges) if off else ranges)

    def _resolve(self) -> _Resolved:
        if self._resolved is None:
            holding, conflicts = held(self.mesh.values(), scopes)
            beyond = any(beyond_own(policy) for policy in self.mesh.values())
            self._resolved = _Resolved(Levels(self.system, holding), conflicts, beyond)
        return self._resolved


def beyond_own(policy: MeshPolicy) -> bool:
    """Whether callers are concerned: by timeouts and retries, or because a port speaks no mTLS."""
    for said in (policy.spec.defaults, policy.spec.overrides):
        if said.timeouts != _QUIET.timeouts or said.retries != _QUIET.retries:
            return True
        if MtlsMode.DISABLE in (said.mtls.mode, *said.mtls.ports.values()):
            return True
    return False


def _cached(cache: dict[_K, _V], key: _K, make: Callable[[], _V]) -> _V:
    found = cache.get(key)
    if found is None:
        if len(cache) >= MAX_CACHED:
            cache.clear()
        found = cache[key] = make()
    return found


def _digest(said: object) -> bytes:
    return blake2b(_encoder.encode(said), digest_size=16).digest()


def _plain(value: object) -> float:
    if isinstance(value, Duration):
        return float(value)
    raise NotImplementedError(f"expected a duration, got {type(value).__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain, order="deterministic")
