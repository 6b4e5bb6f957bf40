"""Prepare hooks that several kinds share: who may write `status`, and who may not."""

from collections.abc import Callable
from typing import Any

from mesh_local.kinds.base import Subresource
from mesh_local.machinery.objects import Object, copy, dig, meta

_HEADER = ("apiVersion", "kind", "metadata", "status")


def status_subresource(kind: str) -> Subresource:
    return Subresource("status", kind, ("get", "patch", "update"))


def reset_status(empty: Object) -> Callable[[Object], None]:
    """A `prepare_create` that puts a copy of `empty` where the client may have sent a status."""

    def prepare(obj: Object) -> None:
        obj["status"] = copy(empty)

    return prepare


def keep_status(new: Object, old: Object) -> None:
    """`prepare_update`: a write to the main resource leaves status as it is."""
    _carry(new, old, "status")


def keep_all_but_status(new: Object, old: Object) -> None:
    """`prepare_status`: a write to `status` changes status, annotations and finalizers only."""
    for key in {*new, *old} - set(_HEADER):
        _carry(new, old, key)
    _carry(meta(new), meta(old), "labels")
    _carry(meta(new), meta(old), "ownerReferences")


def field(*path: str, default: str = "") -> Callable[[Object], str]:
    """A field selector's value: the string at a path, as Kubernetes prints it."""

    def read(obj: Object) -> str:
        return selector_text(dig(obj, *path, default=default))

    return read


def selector_text(value: Any) -> str:
    """Booleans are compared as `true` and `false`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _carry(new: Object, old: Object, key: str) -> None:
    if old.get(key) is None:
        new.pop(key, None)
    else:
        new[key] = copy(old[key])
