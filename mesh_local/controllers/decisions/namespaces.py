"""Namespaces that are being deleted: the conditions, in Kubernetes' words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from mesh_local.controllers.decisions import conditions
from mesh_local.machinery.objects import Object, dig, rfc3339


@dataclass(slots=True)
class Remaining:
    """What a pass over the content has left.

    Args:
        instances: by `plural.group`, how many objects.
        finalizers: by finalizer, how many objects wait for it.
        failures: why a kind could not be deleted.
    """

    instances: dict[str, int] = field(default_factory=dict)
    finalizers: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.instances or self.failures)


def deletion_conditions(namespace: Object, remaining: Remaining, now: datetime) -> list[Object]:
    """`status.conditions` after a pass; times change with the status of a condition only."""
    said = [
        (
            "NamespaceDeletionDiscoveryFailure",
            False,
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            False,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        _content_failure(remaining.failures),
        _content_remaining(remaining.instances),
        _finalizers_remaining(remaining.finalizers),
    ]
    present: list[Object] = dig(namespace, "status", "conditions", default=[])
    ours = {type_ for type_, *_ in said}
    found = [c for c in present if c.get("type") not in ours]
    for type_, status, reason, message in said:
        old = conditions.find(present, type_)
        new = {
            "type": type_,
            "status": str(status),
            "lastTransitionTime": rfc3339(now),
            "reason": reason,
            "message": message,
        }
        if old is not None and old.get("status") == new["status"]:
            new["lastTransitionTime"] = old.get("lastTransitionTime", new["lastTransitionTime"])
        found.append(new)
    return found


def _content_failure(failures: Sequence[str]) -> tuple[str, bool, str, str]:
    type_ = "NamespaceDeletionContentFailure"
    if not failures:
        done = "All content successfully deleted, may be waiting on finalization"
        return type_, False, "ContentDeleted", done
    joined = failures[0] if len(failures) == 1 else f"[{', '.join(failures)}]"
    message = f"Failed to delete all resource types, {len(failures)} remaining: {joined}"
    return type_, True, "ContentDeletionFailed", message


def _content_remaining(instances: Mapping[str, int]) -> tuple[str, bool, str, str]:
    type_ = "NamespaceContentRemaining"
    if not instances:
        return type_, False, "ContentRemoved", "All content successfully removed"
    listed = ", ".join(f"{r} has {n} resource instances" for r, n in sorted(instances.items()))
    return type_, True, "SomeResourcesRemain", f"Some resources are remaining: {listed}"


def _finalizers_remaining(finalizers: Mapping[str, int]) -> tuple[str, bool, str, str]:
    type_ = "NamespaceFinalizersRemaining"
    if not finalizers:
        return type_, False, "ContentHasNoFinalizers", "All content-preserving finalizers finished"
    listed = ", ".join(f"{f} in {n} resource instances" for f, n in sorted(finalizers.items()))
    message = f"Some content in the namespace has finalizers remaining: {listed}"
    return type_, True, "SomeFinalizersRemain", message
