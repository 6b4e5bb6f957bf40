"""Which of some policies hold, as the control plane would decide. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from mesh_api.policy import read_policy
from mesh_api.policy_types import MeshPolicy, TrafficPolicy
from mesh_control.compile.native import target
from mesh_control.index.levels import Levels, held, scopes

Object = dict[str, Any]


class Held(NamedTuple):
    """The policies that hold; `notes` names those that do not, and why."""

    policies: dict[tuple[str, str], TrafficPolicy]
    """By namespace and Service."""
    levels: Levels
    notes: tuple[str, ...]


def holding(objects: Iterable[Object], system: str) -> Held:
    """Decide among policies as plain objects.

    Args:
        system: the control plane's namespace.
    """
    traffic: list[TrafficPolicy] = []
    mesh: list[MeshPolicy] = []
    notes: list[str] = []
    for obj in objects:
        found = read_policy(str(obj.get("kind")), obj)
        if isinstance(found, TrafficPolicy):
            traffic.append(found)
        elif isinstance(found, MeshPolicy):
            mesh.append(found)
        else:
            meta = obj["metadata"]
            notes += [f"{obj['kind']} {meta.get('namespace')}/{meta['name']}: {each}" for each in found]
    policies, conflicts = held(traffic, target)
    by_scope, mesh_conflicts = held(mesh, scopes)
    for kind, lost in (("TrafficPolicy", conflicts), ("MeshPolicy", mesh_conflicts)):
        for (namespace, name), winner in lost.items():
            notes.append(f"{kind} {namespace}/{name}: not in force, {'/'.join(winner)} is older")
    return Held(policies, Levels(system, by_scope), tuple(notes))
