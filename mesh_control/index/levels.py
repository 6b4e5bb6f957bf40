"""Which policies hold, and in which order: the oldest of a target; MeshPolicies by how specific they are.

From weak to strong (the order of GEP-713): the defaults of the mesh, of the namespace, of the workload; then
a TrafficPolicy with its subsets and routes; then the overrides of the workload, the namespace, the mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import msgspec

from mesh_api.policy_types import AccessLog, MeshPolicy, MeshSettings, Part, Policy, Retries, Usage
from mesh_api.sidecar import EgressMode, MtlsMode
from mesh_api.traffic import PathNormalization

Key = tuple[str, str]
P = TypeVar("P", bound=Policy)
R = TypeVar("R", bound=Part)
T = TypeVar("T")


class Scope(NamedTuple):
    """What a MeshPolicy holds for: a namespace ('' for kind and name), or one of its workloads."""

    namespace: str
    kind: str = ""
    name: str = ""


class Layer(NamedTuple):
    """What one policy says about calls to a Service."""

    source: str
    usage: Usage
    retries: Retries


class WorkloadSettings(msgspec.Struct, frozen=True):
    """What MeshPolicies say about one sidecar, resolved."""

    mtls: MtlsMode = MtlsMode.PERMISSIVE
    port_mtls: dict[str, MtlsMode] = {}
    egress: EgressMode = EgressMode.PASSTHROUGH
    path_normalization: PathNormalization = PathNormalization.BASE
    access_log: bool = False


def age(policy: Policy) -> tuple[str, str, str]:
    """Sorts the oldest first; what the API server has not made yet is the youngest."""
    return policy.created or "~", policy.namespace, policy.name


def held(policies: Iterable[P], targets: Callable[[P], Iterable[T]]) -> tuple[dict[T, P], dict[Key, Key]]:
    """Which policy holds for each target, and which policies hold for none because an older one does.

    A policy holds whole or not at all. The oldest is the one that was created first, then by name.
    """
    holding: dict[T, P] = {}
    conflicts: dict[Key, Key] = {}
    for policy in sorted(policies, key=age):
        wanted = list(targets(policy))
        winner = next((holding[target] for target in wanted if target in holding), None)
        if winner is not None:
            conflicts[policy.key] = winner.key
        else:
            holding.update(dict.fromkeys(wanted, policy))
    return holding, conflicts


def scopes(policy: MeshPolicy) -> list[Scope]:
    """What a MeshPolicy is for."""
    refs = policy.spec.target_refs
    if refs is None:
        return [Scope(policy.namespace)]
    return [Scope(policy.namespace, ref.kind.value, ref.name) for ref in refs]


def over(below: R, above: Part) -> R:
    """`below` with all that `above` says; what it does not say is None, or a part without anything said."""
    changes: dict[str, object] = {}
    for name in above.__struct_fields__:
        new = getattr(above, name)
        if isinstance(new, Part):
            changes[name] = over(getattr(below, name), new)
        elif new is not None:
            changes[name] = new
    return msgspec.structs.replace(below, **changes)


class Levels:
    """The MeshPolicies that hold.

    Args:
        system: the control plane's namespace; what holds for it, holds for the mesh.
        holding: as `held` gives them, by Scope.
    """

    def __init__(self, system: str, holding: dict[Scope, MeshPolicy]) -> None:
        self._system = system
        self._holding = holding

    def of_services(self, namespace: str) -> tuple[list[Layer], list[Layer]]:
        """What holds for calls to a namespace's Services: weaker than their policies, and stronger."""
        found = list(self._policies(Scope(namespace)))
        below = [_layer(policy, policy.spec.defaults, "defaults") for policy in found]
        above = [_layer(policy, policy.spec.overrides, "overrides") for policy in reversed(found)]
        return below, above

    def of_workload(self, namespace: str, kind: str = "", name: str = "") -> WorkloadSettings:
        """What holds for the sidecars of a workload; without kind and name for those of its namespace.

        Args:
            kind: Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or CronJob.
        """
        settings = WorkloadSettings()
        for _, said in self.said(namespace, kind, name):
            settings = _with(settings, said)
        return settings

    def said(self, namespace: str, kind: str = "", name: str = "") -> list[tuple[str, MeshSettings]]:
        """What MeshPolicies say about a workload, from weak to strong, each with its source."""
        found = list(self._policies(Scope(namespace, kind, name)))
        below = [(source(policy, "defaults"), policy.spec.defaults) for policy in found]
        return below + [(source(policy, "overrides"), policy.spec.overrides) for policy in reversed(found)]

    def _policies(self, scope: Scope) -> Iterator[MeshPolicy]:
        """From the mesh's to the most specific."""
        for level in dict.fromkeys((Scope(self._system), Scope(scope.namespace), scope)):
            if level in self._holding:
                yield self._holding[level]


def source(policy: Policy, part: str = "") -> str:
    """How a policy is named as the place that something comes from."""
    return f"{type(policy).__name__} {policy.namespace}/{policy.name}{f' ({part})' if part else ''}"


def _layer(policy: MeshPolicy, settings: MeshSettings, part: str) -> Layer:
    return Layer(source(policy, part), Usage(timeouts=settings.timeouts), settings.retries)


def _with(below: WorkloadSettings, said: MeshSettings) -> WorkloadSettings:
    mode = said.mtls.mode
    # Whoever sets the mode sets it for all ports: a weaker policy's exception must not outlive it.
    ports = below.port_mtls if mode is None else {}
    return WorkloadSettings(
        mtls=mode or below.mtls,
        port_mtls={**ports, **said.mtls.ports},
        egress=said.egress.mode if said.egress else below.egress,
        path_normalization=said.path_normalization or below.path_normalization,
        access_log=below.access_log if said.access_log is None else said.access_log is AccessLog.ALL,
    )
