"""Kubernetes objects as plain data, and the few helpers that every part needs.

An object is the dict that its JSON decodes to. What the store and the watch hand out is shared and must
not be changed: `copy` before a change.
"""

import random
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]

# apimachinery's rand: no vowels and no 0, 1, 3, so that no words appear.
SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def copy(value: Any) -> Any:
    """A deep copy of JSON data (dict, list and immutable scalars only)."""
    if isinstance(value, dict):
        return {k: copy(v) for k, v in value.items()}
    if isinstance(value, list):
        return [copy(v) for v in value]
    return value


def meta(obj: Mapping[str, Any]) -> Object:
    """`metadata`, or an empty dict that is not part of the object."""
    found = obj.get("metadata")
    return found if isinstance(found, dict) else {}


def name_of(obj: Mapping[str, Any]) -> str:
    return str(meta(obj).get("name") or "")


def namespace_of(obj: Mapping[str, Any]) -> str:
    """The namespace, or '' for a cluster-scoped object."""
    return str(meta(obj).get("namespace") or "")


def uid_of(obj: Mapping[str, Any]) -> str:
    return str(meta(obj).get("uid") or "")


def labels_of(obj: Mapping[str, Any]) -> dict[str, str]:
    return meta(obj).get("labels") or {}


def annotations_of(obj: Mapping[str, Any]) -> dict[str, str]:
    return meta(obj).get("annotations") or {}


def dig(obj: Any, *path: str | int, default: Any = None) -> Any:
    """The value at a path of keys and indexes, or `default` where any step is missing or null."""
    for step in path:
        if isinstance(obj, dict):
            obj = obj.get(step)
        elif isinstance(obj, list) and isinstance(step, int) and -len(obj) <= step < len(obj):
            obj = obj[step]
        else:
            return default
        if obj is None:
            return default
    return obj


def is_deleting(obj: Mapping[str, Any]) -> bool:
    return bool(meta(obj).get("deletionTimestamp"))


def controller_of(obj: Mapping[str, Any]) -> Object | None:
    """The owner reference with `controller: true`, if there is one."""
    owners: Iterable[Object] = meta(obj).get("ownerReferences") or ()
    return next((o for o in owners if o.get("controller")), None)


def owner_reference(owner: Mapping[str, Any], *, controller: bool = True, block: bool = True) -> Object:
    """An owner reference to `owner`, which must carry apiVersion and kind."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": name_of(owner),
        "uid": uid_of(owner),
        "controller": controller,
        "blockOwnerDeletion": block,
    }


def condition(obj: Mapping[str, Any], type_: str) -> Object | None:
    """The entry of `status.conditions` with this type."""
    return next((c for c in dig(obj, "status", "conditions", default=[]) if c.get("type") == type_), None)


def rfc3339(moment: datetime) -> str:
    """metav1.Time: UTC, whole seconds."""
    return _utc(moment).isoformat(timespec="seconds") + "Z"


def rfc3339_micro(moment: datetime) -> str:
    """metav1.MicroTime: UTC, exactly six fraction digits."""
    return _utc(moment).isoformat(timespec="microseconds") + "Z"


def _utc(moment: datetime) -> datetime:
    """The moment in UTC without the mark of it; strftime would not pad the year."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def parse_time(text: str) -> datetime:
    """The moment that an RFC 3339 string names. Raises ValueError."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)


def new_uid(rng: random.Random) -> str:
    """A random (version 4) UUID, RFC 9562."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def random_suffix(rng: random.Random, length: int = 5) -> str:
    """What the API server appends to generateName."""
    return "".join(rng.choices(SUFFIX_ALPHABET, k=length))
