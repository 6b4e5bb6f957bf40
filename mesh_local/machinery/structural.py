"""Structural schemas of custom resources: pruning and defaulting (KEP-1769, apiextensions' `schema` package).

A schema is the JSON of an `openAPIV3Schema`, used as it is. Checking one is `structural_check`; checking an
object against one is `structural_validate`.
"""

from collections.abc import Mapping
from typing import Any

from mesh_local.machinery.objects import copy

Schema = Mapping[str, Any]

RESOURCE_FIELDS = frozenset({"apiVersion", "kind", "metadata"})


def prune(obj: Any, schema: Schema) -> list[str]:
    """Remove every field that the schema does not specify; apiVersion, kind and metadata stay.

    Returns:
        The paths removed, sorted: `spec.hots`, `spec.list[0].x`.
    """
    removed: list[str] = []
    _prune(obj, schema, "", removed, is_resource=True)
    return sorted(removed)


def _prune(
    value: Any, schema: Schema | None, path: str, removed: list[str], is_resource: bool = False
) -> None:
    schema = schema or {}
    if isinstance(value, list):
        for index, item in enumerate(value):
            items = schema.get("items")
            _prune(item, items, f"{path}[{index}]", removed, _embedded(items))
        return
    if not isinstance(value, dict):
        return
    keep_unknown = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    properties = schema.get("properties") or {}
    additional = schema.get("additionalProperties")
    for key in list(value):
        where = f"{path}.{key}" if path else key
        if is_resource and key in RESOURCE_FIELDS:
            continue
        if key in properties:
            _prune(value[key], properties[key], where, removed, _embedded(properties[key]))
        elif isinstance(additional, Mapping):
            _prune(value[key], additional, where, removed, _embedded(additional))
        elif additional is True:
            _prune(value[key], None, where, removed)
        elif not keep_unknown:
            removed.append(where)
            del value[key]


def _embedded(schema: Schema | None) -> bool:
    return bool(schema and schema.get("x-kubernetes-embedded-resource"))


def default(obj: Any, schema: Schema) -> None:
    """Drop nulls where neither `nullable` nor a default allows them, then fill in defaults."""
    drop_nulls(obj, schema)
    fill_defaults(obj, schema)


def drop_nulls(value: Any, schema: Schema | None) -> None:
    """Remove null fields that are not nullable and have no default."""
    if not schema:
        return
    if isinstance(value, list):
        for item in value:
            drop_nulls(item, schema.get("items"))
    elif isinstance(value, dict):
        for key in list(value):
            child = _child(schema, key)
            if child is None:
                continue
            if _bad_null(value[key], child) and child.get("default") is None:
                del value[key]
            else:
                drop_nulls(value[key], child)


def fill_defaults(value: Any, schema: Schema | None) -> None:
    """Set defaults for absent fields and for nulls that are not nullable, outermost first."""
    if not schema:
        return
    if isinstance(value, list):
        items = schema.get("items")
        for index, item in enumerate(value):
            if items and _bad_null(item, items):
                value[index] = copy(items.get("default"))
            fill_defaults(value[index], items)
    elif isinstance(value, dict):
        for key, child in (schema.get("properties") or {}).items():
            if child.get("default") is not None and (key not in value or _bad_null(value[key], child)):
                value[key] = copy(child["default"])
        for key in value:
            child = _child(schema, key)
            if child is not None and _bad_null(value[key], child):
                value[key] = copy(child.get("default"))
            fill_defaults(value[key], child)


def _child(schema: Schema, key: str) -> Schema | None:
    """The schema of the field `key`: a property, or what additionalProperties says."""
    found: Schema | None = (schema.get("properties") or {}).get(key)
    if found is None and isinstance(schema.get("additionalProperties"), Mapping):
        found = schema["additionalProperties"]
    return found


def _bad_null(value: Any, schema: Schema) -> bool:
    return value is None and not schema.get("nullable")
