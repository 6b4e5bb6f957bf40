"""What the status of a policy says: conditions in the form of KEP-1623. Pure.

Types: `Accepted` (it can be used), `Conflicted` (an older policy holds for the same target), `ResolvedRefs`
(what it refers to exists), `Programmed` (it is in force at the sidecars that this concerns).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from mesh_api.policy_types import MeshPolicy, TrafficPolicy
from mesh_control.index.changes import PolicyName
from mesh_control.index.objects import AnyPolicy, Refused, Service
from mesh_control.index.policies import target
from mesh_control.index.state import Index
from mesh_control.index.views import port_view

MAX_MESSAGE_CHARS = 4096
MAX_NAMED = 8
"""Things of one sort in a message."""
OWN = ("Accepted", "Conflicted", "ResolvedRefs", "Programmed")


class Condition(msgspec.Struct, frozen=True, rename="camel"):
    """One condition (meta/v1 Condition)."""

    type: str
    status: str
    reason: str
    message: str
    observed_generation: int = 0
    last_transition_time: str = ""


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """The status of a policy, as far as it is ours."""

    observed_generation: int = 0
    conditions: tuple[Condition, ...] = ()


def status(index: Index, name: PolicyName) -> Status | None:
    """What is to be said about a policy, without times; None for one that does not exist."""
    kind, key = name
    refused = index.refused(kind).get(key)
    known = index.tables.all(kind).get(key)
    policy = known if isinstance(known, AnyPolicy) else None
    if refused is None and policy is None:
        return None
    generation = refused.generation if refused else policy.generation if policy else 0
    found = _conditions(index, policy, refused)
    return Status(
        generation,
        tuple(
            msgspec.structs.replace(
                one, message=one.message[:MAX_MESSAGE_CHARS], observed_generation=generation
            )
            for one in found
        ),
    )


def merged(wanted: Status, present: Status, now: str) -> Status | None:
    """What is to be written over `present`; None where it says the same already.

    A condition keeps its time while its status stays. Conditions of other writers stay.
    """
    before = {one.type: one for one in present.conditions}
    timed = tuple(
        msgspec.structs.replace(one, last_transition_time=_since(one, before.get(one.type)) or now)
        for one in wanted.conditions
    )
    others = tuple(one for one in present.conditions if one.type not in OWN)
    new = Status(wanted.observed_generation, timed + others)
    return None if new == present else new


def _since(new: Condition, old: Condition | None) -> str:
    return old.last_transition_time if old is not None and old.status == new.status else ""


def _conditions(index: Index, policy: AnyPolicy | None, refused: Refused | None) -> Sequence[Condition]:
    accepted = _accepted(policy, refused)
    if policy is None:
        return accepted, _is("Programmed", False, "Invalid", "Nothing of it is in force")
    winner = index.tables.policies.conflict(policy)
    if winner is not None:
        older = f"{type(policy).__name__} {winner[0]}/{winner[1]} is older and holds for the same target"
        conflicted = _is("Conflicted", True, "OlderPolicy", older)
        return accepted, conflicted, _is("Programmed", False, "Conflicted", older)
    conflicted = _is("Conflicted", False, "NoConflict", "")
    if isinstance(policy, MeshPolicy):
        return accepted, conflicted, _programmed(_unmatched(index, policy))
    service = index.tables.service(target(policy))
    if service is None or not service.ports:
        missing = _no_target(policy, service)
        return accepted, conflicted, _is("Programmed", False, "TargetNotFound", missing)
    return (
        accepted,
        conflicted,
        _resolved(index, policy, service),
        _programmed(_empty(index, policy, service)),
    )


def _is(type: str, true: bool, reason: str, message: str) -> Condition:
    return Condition(type, "True" if true else "False", reason, message)


def _accepted(policy: AnyPolicy | None, refused: Refused | None) -> Condition:
    if refused is None:
        return _is("Accepted", True, "Accepted", "")
    why = "; ".join(refused.problems)
    if policy is None:
        instead = "no earlier version of it is known, so it is as if it were not there"
    else:
        instead = f"what it said before (generation {policy.generation}) stays in force"
    # The reasons may be long; what follows from them must be there in any case.
    return _is(
        "Accepted", False, "Invalid", f"{why[: MAX_MESSAGE_CHARS - 200]}. Until it is mended, {instead}"
    )


def _programmed(remarks: Iterable[str]) -> Condition:
    return _is("Programmed", True, "Programmed", "; ".join(remarks))


def _named(things: Iterable[str]) -> str:
    found = list(dict.fromkeys(things))
    more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return ", ".join(found[:MAX_NAMED]) + more


# -- TrafficPolicy ------------------------------------------------------------------------------------------


def _no_target(policy: TrafficPolicy, service: Service | None) -> str:
    namespace, name = target(policy)
    if service is None:
        return f"There is no Service {namespace}/{name}"
    return f"Service {namespace}/{name} has no TCP port that the mesh could act on"


def _resolved(index: Index, policy: TrafficPolicy, service: Service) -> Condition:
    missing = _named(_missing(index, policy, service))
    if missing:
        message = f"There is no {missing}: requests that are led there are answered with 503"
        return _is("ResolvedRefs", False, "BackendNotFound", message)
    return _is("ResolvedRefs", True, "ResolvedRefs", "")


def _missing(index: Index, policy: TrafficPolicy, own: Service) -> Iterator[str]:
    """Backends that do not exist. Without a port the one that is asked for must exist: any of the own."""
    for route in policy.spec.routes:
        for arm in route.to or ():
            if arm.service is None and arm.port is None:
                continue
            name = (arm.service or own.name).partition(".")[0]
            backend = index.tables.service((own.namespace, name))
            if backend is None:
                yield f"Service {own.namespace}/{name}"
                continue
            there = {port.port for port in backend.ports}
            for port in [arm.port] if arm.port is not None else [one.port for one in own.ports]:
                if port not in there:
                    yield f"port {port} of Service {own.namespace}/{name}"


def _empty(index: Index, policy: TrafficPolicy, service: Service) -> Iterator[str]:
    """Subsets that select nothing."""
    if not policy.spec.subsets:
        return
    pods = [
        view.labels.items()
        for port in service.ports
        for family in service.families
        for view in port_view(index.tables, service, port, family).endpoints
    ]
    empty = [
        name
        for name, subset in policy.spec.subsets.items()
        if not any(subset.labels.items() <= labels for labels in pods)
    ]
    if empty:
        subsets = _named(f"subset {name}" for name in empty)
        yield f"No endpoint has the labels of {subsets}: requests that are led there are answered with 503"


# -- MeshPolicy ---------------------------------------------------------------------------------------------


def _unmatched(index: Index, policy: MeshPolicy) -> Iterator[str]:
    wanted = {(ref.kind.value, ref.name) for ref in policy.spec.target_refs or ()}
    if not wanted:
        return
    found = {
        (pod.workload_kind, pod.workload) for pod in index.tables.pods() if pod.namespace == policy.namespace
    }
    missing = sorted(wanted - found)
    if missing:
        yield f"No pod belongs to {_named(f'{kind} {name}' for kind, name in missing)}"
