"""The kind CustomResourceDefinition (apiextensions.k8s.io/v1), and the status that its controller writes."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from mesh_local.kinds.base import Kind
from mesh_local.kinds.columns import AGE, NAME
from mesh_local.kinds.crd_validation import (
    APPROVAL,
    is_protected,
    is_true,
    validate_crd,
    validate_crd_update,
    versions_of,
)
from mesh_local.kinds.hooks import keep_all_but_status, keep_status, status_subresource
from mesh_local.machinery import schema
from mesh_local.machinery.objects import Object, copy, dig, meta, name_of, rfc3339

GROUP = "apiextensions.k8s.io"
_SCHEMA = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
_NAME_KEYS = ("plural", "singular", "shortNames", "kind", "listKind", "categories")


def _default(crd: Object) -> None:
    spec = crd.setdefault("spec", {})
    known = spec.setdefault("names", {})
    if known.get("kind"):
        known["singular"] = known.get("singular") or known["kind"].lower()
        known["listKind"] = known.get("listKind") or f"{known['kind']}List"
    conversion = spec.setdefault("conversion", {})
    conversion["strategy"] = conversion.get("strategy") or "None"
    if spec.get("preserveUnknownFields") is False:
        del spec["preserveUnknownFields"]
    for version in versions_of(crd):
        if isinstance(root := dig(version, "schema", "openAPIV3Schema"), dict):
            _decode_inner(root)


def _decode_inner(found: Object) -> None:
    """Decode the schemas that the API definition calls free: those that may also be a boolean or a list.

    Raises:
        ApiError: 400, one is neither.
    """
    for key in ("items", "additionalProperties", "additionalItems"):
        value = found.get(key)
        if isinstance(value, dict):
            found[key] = _decode_schema(value)
        elif key == "items" and isinstance(value, list) and all(isinstance(v, dict) for v in value):
            found[key] = [_decode_schema(v) for v in value]
        elif value is not None and (key == "items" or not isinstance(value, bool)):
            wanted = "JSON schema or list of them" if key == "items" else "boolean or JSON schema"
            text = f"{wanted} expected in {key}"
            raise schema.cannot_handle("CustomResourceDefinition", "v1", text)
    for inner in _inner_schemas(found):
        _decode_inner(inner)


def _decode_schema(value: Object) -> Object:
    return schema.decode(_SCHEMA, value, kind="CustomResourceDefinition", version="v1").object


def _inner_schemas(found: Object) -> Iterator[Object]:
    for key in ("items", "additionalProperties", "additionalItems", "not"):
        value = found.get(key)
        yield from value if isinstance(value, list) else [value] if isinstance(value, dict) else []
    for key in ("properties", "patternProperties", "definitions"):
        yield from (found.get(key) or {}).values()
    for key in ("allOf", "anyOf", "oneOf"):
        yield from found.get(key) or ()


def _prepare_create(crd: Object) -> None:
    storage = [v["name"] for v in versions_of(crd) if v.get("storage")]
    crd["status"] = {
        "conditions": None,
        "acceptedNames": {"plural": "", "kind": ""},
        "storedVersions": storage,
    }


def _prepare_update(new: Object, old: Object) -> None:
    keep_status(new, old)
    stored: list[str] = new.setdefault("status", {}).setdefault("storedVersions", [])
    new["status"]["storedVersions"] = stored + [
        v["name"] for v in versions_of(new) if v.get("storage") and v["name"] not in stored
    ]


def is_established(crd: Mapping[str, Any]) -> bool:
    """Whether the server serves the definition's kinds."""
    return is_true(crd, "Established")


def crd_status(crd: Object, now: datetime, others: Iterable[Object] = ()) -> Object:
    """The status that the naming and establishing controllers give a definition.

    Args:
        others: the other definitions; a name that one of the same group has been granted is refused.
    """
    status: Object = copy(crd.get("status") or {})
    status["storedVersions"] = status.get("storedVersions") or [
        v["name"] for v in versions_of(crd) if v.get("storage")
    ]
    wanted, accepted = crd["spec"]["names"], status.get("acceptedNames") or {}
    granted, refusal = _grant(wanted, accepted, _taken(crd, others))
    status["acceptedNames"] = granted
    if refusal is None:
        _set(status, now, "NamesAccepted", "True", "NoConflicts", "no conflicts found")
        if not is_established({"status": status}):
            text = "the initial names have been accepted"
            _set(status, now, "Established", "True", "InitialNamesAccepted", text)
    else:
        _set(status, now, "NamesAccepted", "False", *refusal)
        if not is_established({"status": status}):
            _set(status, now, "Established", "False", "NotAccepted", "not all names are accepted")
    if is_protected(crd["spec"]["group"]):
        note: str = (meta(crd).get("annotations") or {}).get(APPROVAL, "")
        good = not note.startswith("unapproved")
        _set(
            status,
            now,
            "KubernetesAPIApprovalPolicyConformant",
            "True" if good else "False",
            "ApprovedAnnotation" if good else "UnapprovedAnnotation",
            f"approved in {note}" if good else f'not approved: "{note}"',
        )
    return status


def terminating_status(crd: Object, now: datetime, *, started: bool) -> Object:
    """The status of a definition that is being deleted, before and while its objects are removed."""
    status: Object = copy(crd.get("status") or {})
    if started:
        reason, text = "InstanceDeletionInProgress", "CustomResource deletion is in progress"
    else:
        reason = "InstanceDeletionPending"
        text = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"
    _set(status, now, "Terminating", "True", reason, text)
    return status


def _taken(crd: Object, others: Iterable[Object]) -> dict[str, set[str]]:
    """Names granted to other definitions of the group: resources share one space, kinds another."""
    taken: dict[str, set[str]] = {"resource": set(), "kind": set()}
    for other in others:
        if name_of(other) == name_of(crd) or dig(other, "spec", "group") != crd["spec"]["group"]:
            continue
        granted = dig(other, "status", "acceptedNames", default={})
        taken["resource"] |= {
            granted.get("plural"),
            granted.get("singular"),
            *(granted.get("shortNames") or ()),
        }
        taken["kind"] |= {granted.get("kind"), granted.get("listKind")}
    for space in taken.values():
        space -= {None, ""}
    return taken


def _grant(
    wanted: Mapping[str, Any], accepted: Mapping[str, Any], taken: Mapping[str, set[str]]
) -> tuple[Object, tuple[str, str] | None]:
    """The names that may be used, and reason and message of the last refusal."""
    granted: Object = {}
    refusal: tuple[str, str] | None = None
    for key, space, reason in (
        ("plural", "resource", "PluralConflict"),
        ("singular", "resource", "SingularConflict"),
        ("shortNames", "resource", "ShortNamesConflict"),
        ("kind", "kind", "KindConflict"),
        ("listKind", "kind", "ListKindConflict"),
    ):
        value = wanted.get(key)
        conflicts = sorted(set(value if isinstance(value, list) else [value]) & taken[space]) if value else []
        if conflicts:
            refusal = (reason, f'"{conflicts[0]}" is already in use')
        chosen = accepted.get(key) if conflicts else value
        if chosen or key in ("plural", "kind"):
            granted[key] = copy(chosen) or ""
    if wanted.get("categories"):
        granted["categories"] = list(wanted["categories"])
    return {k: granted[k] for k in _NAME_KEYS if k in granted}, refusal


def _set(status: Object, now: datetime, kind: str, value: str, reason: str, message: str) -> None:
    """Set a condition; its time moves only with its status."""
    conditions: list[Object] = status.get("conditions") or []
    fresh = {
        "type": kind,
        "status": value,
        "lastTransitionTime": rfc3339(now),
        "reason": reason,
        "message": message,
    }
    for index, old in enumerate(conditions):
        if old.get("type") == kind:
            if old.get("status") == value:
                fresh["lastTransitionTime"] = old.get("lastTransitionTime") or fresh["lastTransitionTime"]
            conditions[index] = fresh
            break
    else:
        conditions.append(fresh)
    status["conditions"] = conditions


def _row(crd: Object, _now: datetime) -> list[Any]:
    return [name_of(crd), meta(crd).get("creationTimestamp")]


CUSTOM_RESOURCE_DEFINITION = Kind(
    kind="CustomResourceDefinition",
    plural="customresourcedefinitions",
    singular="customresourcedefinition",
    group=GROUP,
    namespaced=False,
    short_names=("crd", "crds"),
    categories=("api-extensions",),
    subresources=(status_subresource("CustomResourceDefinition"),),
    definition="io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
    default=_default,
    prepare_create=_prepare_create,
    prepare_update=_prepare_update,
    prepare_status=keep_all_but_status,
    validate=validate_crd,
    validate_update=validate_crd_update,
    columns=(NAME, replace(AGE, name="Created At", type="date")),
    row=_row,
    unconditional_update=False,
)
KINDS: tuple[Kind, ...] = (CUSTOM_RESOURCE_DEFINITION,)
