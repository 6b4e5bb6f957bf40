"""ReplicaSets as revisions of a Deployment: which one is current, how a new one looks, its annotations."""

from typing import Any

import msgspec

from mesh_local.controllers.decisions.sizes import max_surge, replicas_of
from mesh_local.machinery.objects import (
    SUFFIX_ALPHABET,
    Object,
    annotations_of,
    copy,
    dig,
    is_deleting,
    labels_of,
    meta,
    name_of,
    namespace_of,
    owner_reference,
)

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
# Annotations of a Deployment that its ReplicaSets do not inherit.
NOT_COPIED = frozenset(
    {
        "kubectl.kubernetes.io/last-applied-configuration",
        "deprecated.deployment.rollback.to",
        REVISION,
        HISTORY,
        DESIRED,
        MAXIMUM,
    }
)
HISTORY_LENGTH = 2000


def age(replica_set: Object) -> tuple[str, str]:
    """Sorts ReplicaSets oldest first."""
    return str(meta(replica_set).get("creationTimestamp") or ""), name_of(replica_set)


def revision_of(obj: Object) -> int:
    """The number in the revision annotation; 0 for none."""
    text = annotations_of(obj).get(REVISION, "")
    return int(text) if text.isdecimal() else 0


def template_hash(template: Object, collisions: int) -> str:
    """The pod-template-hash: FNV-1a (32 bits) over canonical JSON, in the alphabet of generated names."""
    data = msgspec.json.encode(_plain(template), order="sorted")
    if collisions:
        data += str(collisions).encode()
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return "".join(SUFFIX_ALPHABET[ord(digit) % len(SUFFIX_ALPHABET)] for digit in str(value))


def same_template(a: Object, b: Object) -> bool:
    """Whether two pod templates differ in nothing but the hash label."""
    return bool(_plain(a) == _plain(b))


def _plain(template: Object) -> Any:
    """The template without the hash label and without what is null or empty."""
    plain = copy(template)
    labels = meta(plain).get("labels")
    if labels:
        labels.pop(HASH_LABEL, None)
    return _pruned(plain)


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        pruned = {k: _pruned(v) for k, v in value.items()}
        return {k: v for k, v in pruned.items() if v is not None and v != {} and v != []}
    if isinstance(value, list):
        return [_pruned(v) for v in value]
    return value


def current_set(deployment: Object, sets: list[Object]) -> Object | None:
    """The oldest ReplicaSet with the Deployment's template."""
    template = dig(deployment, "spec", "template", default={})
    for candidate in sorted(sets, key=age):
        if same_template(dig(candidate, "spec", "template", default={}), template):
            return candidate
    return None


def new_set(deployment: Object, old: list[Object], replicas: int) -> Object:
    """The ReplicaSet to create for the Deployment's template."""
    template = copy(deployment["spec"]["template"])
    hash_ = template_hash(template, int(dig(deployment, "status", "collisionCount", default=0)))
    template.setdefault("metadata", {}).setdefault("labels", {})[HASH_LABEL] = hash_
    selector = copy(deployment["spec"]["selector"])
    selector.setdefault("matchLabels", {})[HASH_LABEL] = hash_
    new: Object = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{name_of(deployment)}-{hash_}",
            "namespace": namespace_of(deployment),
            "labels": dict(labels_of(template)),
            "annotations": {},
            "ownerReferences": [owner_reference(deployment)],
        },
        "spec": {"replicas": replicas, "selector": selector, "template": template},
    }
    if min_ready := dig(deployment, "spec", "minReadySeconds"):
        new["spec"]["minReadySeconds"] = min_ready
    new["metadata"]["annotations"] = {
        **current_annotations(deployment, new, old),
        **size_annotations(deployment),
    }
    return new


def current_annotations(deployment: Object, current: Object, old: list[Object]) -> dict[str, str]:
    """The annotations that the current ReplicaSet should have.

    A set that becomes current again gets the next revision and keeps the one it had in its history.
    """
    present = dict(annotations_of(current))
    present |= {k: v for k, v in annotations_of(deployment).items() if k not in NOT_COPIED}
    revision = max((revision_of(s) for s in old), default=0) + 1
    had = revision_of(current)
    if had >= revision:
        return present
    present[REVISION] = str(revision)
    if had:
        entries = [*filter(None, present.get(HISTORY, "").split(",")), str(had)]
        while len(",".join(entries)) > HISTORY_LENGTH:
            entries.pop(0)
        present[HISTORY] = ",".join(entries)
    return present


def size_annotations(deployment: Object) -> dict[str, str]:
    """What proportional scaling later needs to know about the size that a ReplicaSet was scaled for."""
    desired = replicas_of(deployment)
    return {DESIRED: str(desired), MAXIMUM: str(desired + max_surge(deployment))}


def to_clean_up(deployment: Object, old: list[Object]) -> list[Object]:
    """The oldest revisions beyond revisionHistoryLimit that have no pods any more."""
    limit = dig(deployment, "spec", "revisionHistoryLimit")
    if limit is None:
        return []
    alive = sorted((s for s in old if not is_deleting(s)), key=lambda s: (revision_of(s), age(s)))
    return [
        candidate
        for candidate in alive[: max(0, len(alive) - limit)]
        if not replicas_of(candidate)
        and not dig(candidate, "status", "replicas", default=0)
        and meta(candidate).get("generation", 0) <= dig(candidate, "status", "observedGeneration", default=0)
    ]
