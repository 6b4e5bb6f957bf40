"""The rules for ObjectMeta (apimachinery's `validation.ValidateObjectMeta`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from mesh_local.machinery import names
from mesh_local.machinery.errors import (
    FieldError,
    forbidden_field,
    go_quote,
    invalid_value,
    required,
    too_long_value,
)
from mesh_local.machinery.objects import parse_time

ANNOTATIONS_MAX = 256 * 1024
IMMUTABLE = "field is immutable"
_CARRIED = ("name", "namespace", "uid")
_TIMES = ("creationTimestamp", "deletionTimestamp")


def validate_metadata(
    meta: Mapping[str, Any],
    *,
    namespaced: bool,
    name_rule: names.NameRule | None,
    field: str = "metadata",
) -> list[FieldError]:
    """Everything wrong with the metadata of a new object whose name has been generated."""
    rule = name_rule or names.dns_subdomain
    name, prefix, namespace = (meta.get(k) or "" for k in ("name", "generateName", "namespace"))
    errors = []
    if prefix:
        errors += [invalid_value(f"{field}.generateName", prefix, m) for m in rule(prefix, True)]
    if name:
        errors += [invalid_value(f"{field}.name", name, m) for m in rule(name, False)]
    else:
        errors.append(required(f"{field}.name", "name or generateName is required"))
    if namespaced and not namespace:
        errors.append(required(f"{field}.namespace"))
    elif namespaced:
        errors += [invalid_value(f"{field}.namespace", namespace, m) for m in names.dns_label(namespace)]
    elif namespace:
        errors.append(forbidden_field(f"{field}.namespace", "not allowed on this type"))
    if (meta.get("generation") or 0) < 0:
        errors.append(
            invalid_value(f"{field}.generation", meta["generation"], "must be greater than or equal to 0")
        )
    return errors + _common(meta, field)


def validate_metadata_update(
    new: Mapping[str, Any], old: Mapping[str, Any], field: str = "metadata"
) -> list[FieldError]:
    """Everything wrong with a change of metadata from `old` to `new`."""
    errors = []
    if old.get("deletionTimestamp"):
        errors += _new_finalizers(new.get("finalizers") or (), old.get("finalizers") or (), field)
    if not new.get("resourceVersion"):
        errors.append(
            invalid_value(
                f"{field}.resourceVersion",
                new.get("resourceVersion") or "",
                "must be specified for an update",
            )
        )
    if (new.get("generation") or 0) < (old.get("generation") or 0):
        errors.append(
            invalid_value(f"{field}.generation", new.get("generation") or 0, "must not be decremented")
        )
    for key in _CARRIED:
        if (new.get(key) or "") != (old.get(key) or ""):
            errors.append(invalid_value(f"{field}.{key}", new.get(key) or "", IMMUTABLE))
    for key in _TIMES:
        if _moment(new.get(key)) != _moment(old.get(key)):
            errors.append(invalid_value(f"{field}.{key}", new.get(key), IMMUTABLE))
    key = "deletionGracePeriodSeconds"
    if new.get(key) != old.get(key):
        errors.append(invalid_value(f"{field}.{key}", new.get(key), IMMUTABLE))
    return errors + _common(new, field)


def validate_labels(labels: Mapping[str, str], field: str) -> list[FieldError]:
    """Keys and values of a labels map."""
    errors = []
    for key, value in sorted(labels.items()):
        errors += [invalid_value(field, key, m) for m in names.qualified_name(key)]
        errors += [invalid_value(field, value, m) for m in names.label_value(value)]
    return errors


def validate_annotations(annotations: Mapping[str, str], field: str) -> list[FieldError]:
    """Keys of an annotations map, and its size."""
    errors = [
        invalid_value(field, key, m) for key in sorted(annotations) for m in names.qualified_name(key.lower())
    ]
    if sum(len(k.encode()) + len(v.encode()) for k, v in annotations.items()) > ANNOTATIONS_MAX:
        errors.append(too_long_value(field, ANNOTATIONS_MAX))
    return errors


def _common(meta: Mapping[str, Any], field: str) -> list[FieldError]:
    return [
        *validate_labels(meta.get("labels") or {}, f"{field}.labels"),
        *validate_annotations(meta.get("annotations") or {}, f"{field}.annotations"),
        *_owners(meta.get("ownerReferences") or (), f"{field}.ownerReferences"),
        *_finalizers(meta.get("finalizers") or (), f"{field}.finalizers"),
    ]


def _owners(owners: Sequence[Mapping[str, Any]], field: str) -> list[FieldError]:
    errors = []
    controller = ""
    for owner in owners:
        api_version = owner.get("apiVersion") or ""
        if not api_version.rpartition("/")[2]:
            errors.append(invalid_value(f"{field}.apiVersion", api_version, "version must not be empty"))
        empty = [key for key in ("kind", "name", "uid") if not owner.get(key)]
        errors += [invalid_value(f"{field}.{key}", "", "must not be empty") for key in empty]
        if api_version == "v1" and owner.get("kind") == "Event":
            errors.append(
                invalid_value(field, dict(owner), "/v1, Kind=Event is disallowed from being an owner")
            )
        if owner.get("controller"):
            current = f"{owner.get('kind', '')}/{owner.get('name', '')}"
            if controller:
                errors.append(
                    invalid_value(
                        field,
                        [dict(o) for o in owners],
                        "Only one reference can have Controller set to true. "
                        f'Found "true" in references for {controller} and {current}',
                    )
                )
            else:
                controller = current
    return errors


def _finalizers(finalizers: Sequence[str], field: str) -> list[FieldError]:
    errors = [invalid_value(field, f, m) for f in finalizers for m in names.qualified_name(f)]
    if {"orphan", "foregroundDeletion"} <= set(finalizers):
        errors.append(
            invalid_value(
                field, list(finalizers), "finalizer orphan and foregroundDeletion cannot be both set"
            )
        )
    return errors


def _new_finalizers(new: Sequence[str], old: Sequence[str], field: str) -> list[FieldError]:
    added = sorted(set(new) - set(old))
    if not added:
        return []
    shown = ", ".join(go_quote(f) for f in added)
    return [
        forbidden_field(
            f"{field}.finalizers",
            "no new finalizers can be added if the object is being deleted, "
            f"found new finalizers []string{{{shown}}}",
        )
    ]


def _moment(text: Any) -> Any:
    """Times compare as moments: `+00:00` and `Z` are the same."""
    return parse_time(text) if text else None
