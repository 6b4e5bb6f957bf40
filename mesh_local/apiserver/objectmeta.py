"""What the server itself does to metadata on the way to the store (apiserver's `registry/rest`)."""

import random
from datetime import datetime

from mesh_local.apiserver.core import Target
from mesh_local.kinds.base import Kind
from mesh_local.machinery import errors
from mesh_local.machinery.objects import Object, meta, new_uid, random_suffix, rfc3339

GENERATED_NAME_MAX = 63
SUFFIX_LENGTH = 5
_ORDER = (
    "name",
    "generateName",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
)
_SERVER_SET = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")
# There is no server-side apply, so nobody tracks which manager set which field.
_NEVER_KEPT = ("managedFields", "selfLink")


def check_identity(obj: Object, target: Target) -> None:
    """Fill in the namespace of the path and refuse a name or namespace that contradicts it."""
    metadata = obj.setdefault("metadata", {})
    if target.kind.namespaced:
        if metadata.setdefault("namespace", target.namespace) != target.namespace:
            raise errors.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
    elif metadata.get("namespace"):
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    if target.name and metadata.setdefault("name", target.name) != target.name:
        raise errors.bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({target.name})"
        )


def begin_create(obj: Object) -> None:
    """Drop what only the server sets; before mutating admission.

    Raises:
        ApiError: resourceVersion is set.
    """
    metadata = obj["metadata"]
    if metadata.get("resourceVersion"):
        raise errors.failure(500, "", "resourceVersion should not be set on objects to be created")
    for key in (*_SERVER_SET, *_NEVER_KEPT, "resourceVersion"):
        metadata.pop(key, None)


def generated_name(prefix: str, rng: random.Random) -> str:
    """A name for generateName; a long prefix is cut so that the name has at most 63 characters."""
    return prefix[: GENERATED_NAME_MAX - SUFFIX_LENGTH] + random_suffix(rng, SUFFIX_LENGTH)


def finish_create(kind: Kind, obj: Object, now: datetime, rng: random.Random) -> None:
    """Give the object its uid, time and generation; after mutating admission."""
    metadata = obj["metadata"]
    metadata["uid"] = new_uid(rng)
    metadata["creationTimestamp"] = rfc3339(now)
    if kind.spec_fields:
        metadata["generation"] = 1
    _tidy(obj)


def begin_update(new: Object, old: Object) -> None:
    """Carry over what a client may leave out; before mutating admission."""
    metadata, before = new["metadata"], old["metadata"]
    for key in _NEVER_KEPT:
        metadata.pop(key, None)
    for key in ("uid", *(k for k in ("deletionTimestamp", "deletionGracePeriodSeconds") if before.get(k))):
        if not metadata.get(key) and key in before:
            metadata[key] = before[key]


def carry_over(new: Object, old: Object) -> None:
    """Keep what an update never changes; after mutating admission, before validation."""
    metadata, before = new["metadata"], old["metadata"]
    for key in ("creationTimestamp", "generation", "deletionTimestamp"):
        if key in before:
            metadata[key] = before[key]
    if "generation" not in before:
        metadata.pop("generation", None)
    if "deletionGracePeriodSeconds" in before:
        metadata.setdefault("deletionGracePeriodSeconds", before["deletionGracePeriodSeconds"])


def finish_update(kind: Kind, new: Object, old: Object) -> None:
    """Raise the generation where the desired state changed; after `prepare_update`."""
    if any(new.get(key) != old.get(key) for key in kind.spec_fields):
        new["metadata"]["generation"] = (old["metadata"].get("generation") or 0) + 1
    _tidy(new)


def same(new: Object, old: Object) -> bool:
    """Whether a write would change nothing but the version."""
    return {k: v for k, v in new.items() if k != "metadata"} == {
        k: v for k, v in old.items() if k != "metadata"
    } and {k: v for k, v in meta(new).items() if k != "resourceVersion"} == {
        k: v for k, v in meta(old).items() if k != "resourceVersion"
    }


def _tidy(obj: Object) -> None:
    """Empty maps and lists of metadata go; the rest comes in the order of ObjectMeta."""
    metadata = obj["metadata"]
    kept = {k: metadata[k] for k in _ORDER if metadata.get(k) not in (None, "", [], {})}
    obj["metadata"] = kept
    head: Object = {k: obj[k] for k in ("kind", "apiVersion", "metadata") if k in obj}
    rest = {k: v for k, v in obj.items() if k not in head}
    obj.clear()
    obj.update(head)
    obj.update(rest)
