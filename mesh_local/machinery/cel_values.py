"""Kubernetes objects as rules of the Common Expression Language see them."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from mesh_local.machinery.objects import parse_time
from mesh_local.machinery.structural import RESOURCE_FIELDS, Schema

_KEYWORD_TEXT = (
    "true false null in as break const continue else for function if import let loop package namespace "
    "return var void while"
)
_KEYWORDS = frozenset(_KEYWORD_TEXT.split())
_ESCAPES = {"__": "__underscores__", ".": "__dot__", "-": "__dash__", "/": "__slash__"}


def escape(name: str) -> str | None:
    """How an expression names a field (`a-b` is `a__dash__b`); None: it cannot."""
    if name in _KEYWORDS:
        return f"__{name}__"
    escaped = re.sub(r"__|[.\-/]", lambda m: _ESCAPES[m.group()], name)
    return escaped if re.fullmatch(r"[A-Za-z_]\w*", escaped, re.ASCII) else None


def to_cel(value: Any, schema: Schema, is_resource: bool = False) -> Any:
    """A value as rules see it: numbers, times and bytes typed, undeclared fields absent, names escaped."""
    match value:
        case dict():
            return _object_to_cel(value, schema, is_resource)
        case list():
            items = schema.get("items") or {}
            return [to_cel(v, items, _is_embedded(items)) for v in value]
        case str():
            return _text_to_cel(value, schema.get("format") or "")
        case int() if schema.get("type") == "number" and not isinstance(value, bool):
            return float(value)
        case float() if schema.get("type") == "integer":
            return int(value)
    return value


def _is_embedded(schema: Schema) -> bool:
    return bool(schema.get("x-kubernetes-embedded-resource"))


def _object_to_cel(value: dict[str, Any], schema: Schema, is_resource: bool) -> dict[str, Any]:
    additional = schema.get("additionalProperties")
    properties = schema.get("properties") or {}
    if isinstance(additional, Mapping):
        return {k: to_cel(v, properties.get(k) or additional) for k, v in value.items()}
    found: dict[str, Any] = {}
    for key, item in value.items():
        child = properties.get(key)
        if child is not None:
            name = escape(key)
            if name:
                found[name] = to_cel(item, child, _is_embedded(child))
        elif is_resource and key == "metadata" and isinstance(item, dict):
            found[key] = {k: item[k] for k in ("name", "generateName") if k in item}
        elif is_resource and key in RESOURCE_FIELDS:
            found[key] = item
    return found


def _text_to_cel(value: str, name: str) -> Any:
    """Times and durations are values of their own; what does not parse was refused by its format already."""
    try:
        if name in ("date-time", "datetime"):
            return parse_time(value)
        if name == "date":
            return datetime.fromisoformat(value).replace(tzinfo=UTC)
        if name == "duration":
            return _duration(value)
    except ValueError:
        return value
    return value


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def _duration(text: str) -> timedelta:
    parts = re.findall(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", text)
    if not parts and text.strip("+-") != "0":
        raise ValueError(f"not a duration: {text!r}")
    total = timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    return -total if text.startswith("-") else total
