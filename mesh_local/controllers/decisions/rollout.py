"""Deployments (apps/v1): how to change the sizes of their ReplicaSets.

Follows kube-controller-manager's deployment controller. Sizes are planned on the ReplicaSets as they are
stored; one plan is one step, and the next follows when their status has changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mesh_local.controllers.decisions.revisions import DESIRED, MAXIMUM, age
from mesh_local.controllers.decisions.sizes import (
    counted,
    is_rolling,
    max_surge,
    max_unavailable,
    replicas_of,
    total,
)
from mesh_local.machinery.objects import Object, annotations_of, dig, name_of


@dataclass(frozen=True, slots=True)
class Scale:
    """Give a ReplicaSet this many replicas (it may have them already: its annotations may be old)."""

    set: Object
    replicas: int


def is_scaling(deployment: Object, sets: Sequence[Object]) -> bool:
    """Whether spec.replicas was changed since the ReplicaSets got their size."""
    wanted = str(replicas_of(deployment))
    return any(replicas_of(s) and annotations_of(s).get(DESIRED, wanted) != wanted for s in sets)


def initial_size(deployment: Object, sets: Sequence[Object]) -> int:
    """The size of a ReplicaSet at its creation, beside the present ones."""
    return _grown(deployment, sets, 0)


def plan_rollout(deployment: Object, sets: Sequence[Object], new: Object) -> list[Scale]:
    """The next step of a rolling update: grow the new ReplicaSet as far as maxSurge lets it, otherwise
    shrink old ones as far as maxUnavailable lets them."""
    wanted = replicas_of(deployment)
    if replicas_of(new) > wanted:
        return [Scale(new, wanted)]
    grown = _grown(deployment, sets, replicas_of(new))
    if grown != replicas_of(new):
        return [Scale(new, grown)]
    old = sorted((s for s in sets if s is not new and replicas_of(s)), key=age)
    return _shrink_old(deployment, sets, old, new)


def plan_recreate(deployment: Object, sets: Sequence[Object], new: Object | None) -> list[Scale]:
    """The next step of strategy Recreate, up to where the old pods must have ended: scale old ones to 0."""
    return [Scale(s, 0) for s in sets if s is not new and replicas_of(s)]


def plan_scale(deployment: Object, sets: Sequence[Object], new: Object | None) -> list[Scale]:
    """What a change of spec.replicas asks for while nothing is rolled out.

    During a rollout the change is spread over the ReplicaSets in proportion to their sizes.
    """
    wanted = replicas_of(deployment)
    active = [s for s in sets if replicas_of(s)]
    only = _only_or_latest(sets, active, new)
    if only is not None:
        return [] if replicas_of(only) == wanted else [Scale(only, wanted)]
    if new is not None and _is_saturated(deployment, new):
        return [Scale(s, 0) for s in sorted(active, key=age) if s is not new]
    return _proportional(deployment, active) if is_rolling(deployment) else []


def _grown(deployment: Object, sets: Sequence[Object], size: int) -> int:
    """What a new ReplicaSet of `size` may grow to; `sets` are all there are, itself included."""
    wanted = replicas_of(deployment)
    if not is_rolling(deployment):
        return wanted
    room = wanted + max_surge(deployment) - total(sets)
    return size if room <= 0 else size + max(0, min(room, wanted - size))


def _shrink_old(
    deployment: Object, sets: Sequence[Object], old: Sequence[Object], new: Object
) -> list[Scale]:
    """Shrink old ReplicaSets: first by pods that are not available, then by available ones."""
    floor = replicas_of(deployment) - max_unavailable(deployment)
    new_unavailable = replicas_of(new) - counted([new], "availableReplicas")
    most = total(sets) - floor - new_unavailable
    if most <= 0 or not old:
        return []
    sizes = {name_of(s): replicas_of(s) for s in old}
    removed = 0
    for candidate in old:
        broken = replicas_of(candidate) - counted([candidate], "availableReplicas")
        step = max(0, min(most - removed, broken))
        sizes[name_of(candidate)] -= step
        removed += step
    spare = counted(sets, "availableReplicas") - floor
    for candidate in old:
        step = max(0, min(sizes[name_of(candidate)], spare))
        sizes[name_of(candidate)] -= step
        spare -= step
    return [Scale(s, sizes[name_of(s)]) for s in old if sizes[name_of(s)] != replicas_of(s)]


def _only_or_latest(sets: Sequence[Object], active: Sequence[Object], new: Object | None) -> Object | None:
    """The one ReplicaSet with pods, or without any the newest; None where several have pods."""
    if len(active) > 1:
        return None
    if active:
        return active[0]
    return new or max(sets, key=age, default=None)


def _is_saturated(deployment: Object, new: Object) -> bool:
    wanted = replicas_of(deployment)
    return (
        replicas_of(new) == wanted
        and annotations_of(new).get(DESIRED) == str(wanted)
        and counted([new], "availableReplicas") == wanted
    )


def _proportional(deployment: Object, active: Sequence[Object]) -> list[Scale]:
    wanted = replicas_of(deployment)
    allowed = wanted + max_surge(deployment) if wanted else 0
    to_add = allowed - total(active)
    # The largest takes the rest; of equals the newest when growing, the oldest when shrinking.
    ordered = sorted(active, key=age, reverse=to_add > 0)
    ordered.sort(key=replicas_of, reverse=True)
    sizes, added = [], 0
    for candidate in ordered:
        share = _share(deployment, candidate, to_add, added)
        added += share
        sizes.append(replicas_of(candidate) + share)
    if sizes:
        sizes[0] = max(0, sizes[0] + to_add - added)
    return [Scale(s, size) for s, size in zip(ordered, sizes, strict=True)]


def _share(deployment: Object, candidate: Object, to_add: int, added: int) -> int:
    size, wanted, left = replicas_of(candidate), replicas_of(deployment), to_add - added
    if not size or not left:
        return 0
    if not wanted:
        fraction = -size
    else:
        before = annotations_of(candidate).get(MAXIMUM, "")
        base = int(before) if before.isdecimal() else int(dig(deployment, "status", "replicas", default=0))
        scaled = size * (wanted + max_surge(deployment)) / base if base else float(size)
        fraction = int(scaled + 0.5) - size
    return min(fraction, left) if to_add > 0 else max(fraction, left)
