"""Custom resources: a CustomResourceDefinition compiled to kinds, one for each served version."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from mesh_local.kinds.age import age
from mesh_local.kinds.base import Column, Kind, ScalePaths, Subresource
from mesh_local.kinds.columns import AGE, NAME
from mesh_local.kinds.crd_validation import versions_of
from mesh_local.kinds.hooks import keep_status, selector_text, status_subresource
from mesh_local.machinery import jsonpath, structural
from mesh_local.machinery.cel_rules import Rules, compile_rules, run_rules
from mesh_local.machinery.errors import FieldError, go_value, invalid_value
from mesh_local.machinery.names import dns_subdomain
from mesh_local.machinery.objects import Object, copy, dig, meta, name_of, parse_time
from mesh_local.machinery.structural_validate import (
    ABSENT,
    NO_FIELD,
    go_number,
    validate,
    validate_embedded,
    validate_lists,
)

NOT_CHECKED = (
    "some validation rules were not checked because the object was invalid; correct the existing errors to "
    "complete validation"
)
_BLOCKING = frozenset(
    (
        "FieldValueNotSupported",
        "FieldValueRequired",
        "FieldValueTooLong",
        "FieldValueTooMany",
        "FieldValueTypeInvalid",
    )
)
# In the order in which discovery lists them for custom resources.
VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")
_VERSION = re.compile(r"v(\d+)(?:(alpha|beta)(\d+))?")
_OBJECT_META = "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_INT32_MAX = (1 << 31) - 1


def compile_crd(crd: Object) -> list[Kind]:
    """The kinds that a valid definition declares, preferred version first."""
    versions = [v for v in versions_of(crd) if v.get("served")]
    return [_compile(crd, v) for v in sorted(versions, key=lambda v: _priority(v["name"]))]


def _priority(name: str) -> tuple[Any, ...]:
    """Sorts v10, v2, v2beta1, v2alpha1, other (the order of Kubernetes' version priority)."""
    match = _VERSION.fullmatch(name)
    if match is None:
        return (1, name)
    stage = {None: 0, "beta": 1, "alpha": 2}[match[2]]
    return (0, stage, -int(match[1]), -int(match[3] or 0))


@dataclass(frozen=True, slots=True)
class _Definition:
    """What the hooks of one version need."""

    schema: structural.Schema
    rules: Rules | None
    status: bool
    scale: ScalePaths | None

    def default(self, obj: Object) -> None:
        structural.default(obj, self.schema)

    def prune(self, obj: Object) -> list[str]:
        return structural.prune(obj, self.schema)

    def drop_status(self, obj: Object) -> None:
        if self.status:
            obj.pop("status", None)

    def keep_status(self, new: Object, old: Object) -> None:
        if self.status:
            keep_status(new, old)

    def validate(self, obj: Object) -> list[FieldError]:
        return self._check(obj, None)

    def validate_update(self, new: Object, old: Object) -> list[FieldError]:
        return self._check(new, old)

    def _check(self, obj: Object, old: Object | None) -> list[FieldError]:
        # metadata is the server's to check; the schema can only narrow its name.
        errors = validate(obj, self.schema, ABSENT if old is None else old)
        if self.scale is not None:
            errors += _scale_errors(obj, self.scale)
        errors += validate_embedded(obj, self.schema)
        if old is None or not validate_lists(old, self.schema):
            errors += validate_lists(obj, self.schema)
        if self.rules is None:
            return errors
        if any(e.type in _BLOCKING for e in errors):
            return [*errors, invalid_value(NO_FIELD, None, NOT_CHECKED)]
        return errors + run_rules(self.rules, obj, old)


def _compile(crd: Object, version: Object) -> Kind:
    spec, name = crd["spec"], version["name"]
    names = dig(crd, "status", "acceptedNames", default={})
    names = names if names.get("plural") else spec["names"]
    schema = dig(version, "schema", "openAPIV3Schema", default={})
    status = dig(version, "subresources", "status") is not None
    scale = _scale_paths(dig(version, "subresources", "scale"))
    api_version = f"{spec['group']}/{name}"
    definition = _Definition(schema, compile_rules(schema), status, scale)
    columns, row = _printer(version.get("additionalPrinterColumns") or ())
    storage = f"{spec['group']}/{next(v['name'] for v in versions_of(crd) if v.get('storage'))}"
    return Kind(
        kind=names["kind"],
        plural=names["plural"],
        singular=names.get("singular") or "",
        group=spec["group"],
        version=name,
        namespaced=spec["scope"] == "Namespaced",
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        verbs=VERBS,
        subresources=_subresources(names["kind"], status, scale),
        default=definition.default,
        prepare_create=definition.drop_status,
        prepare_update=definition.keep_status,
        prepare_status=_only_status,
        validate=definition.validate,
        validate_update=definition.validate_update,
        name_rule=dns_subdomain,
        spec_fields=_spec_fields(schema, status),
        columns=columns,
        row=row,
        fields=_selectable(version.get("selectableFields") or ()),
        deprecation=_deprecation(version, api_version, names["kind"]),
        unconditional_update=False,
        scale=scale,
        to_stored=_as_version(storage),
        from_stored=_as_version(api_version),
        prune=definition.prune,
        openapi=_openapi(schema, spec["group"], name, names["kind"]),
    )


def _subresources(kind: str, status: bool, scale: ScalePaths | None) -> tuple[Subresource, ...]:
    found = [status_subresource(kind)] if status else []
    if scale is not None:
        found.append(Subresource("scale", "Scale", ("get", "patch", "update"), "autoscaling", "v1"))
    return tuple(found)


def _spec_fields(schema: structural.Schema, status: bool) -> tuple[str, ...]:
    """Every field but metadata, and status where it is a subresource."""
    left_out = {"apiVersion", "kind", "metadata"} | ({"status"} if status else set())
    return tuple(k for k in schema.get("properties") or {} if k not in left_out) or ("spec",)


def _only_status(new: Object, old: Object) -> None:
    """A write to `status` changes nothing else; the resourceVersion stays for the server to compare."""
    kept: Object = {key: new[key] for key in ("status", "apiVersion", "kind") if key in new}
    version = meta(new).get("resourceVersion")
    new.clear()
    new.update(copy({k: v for k, v in old.items() if k != "status"}))
    new.update(kept)
    if version is not None:
        new["metadata"]["resourceVersion"] = version


def _as_version(api_version: str) -> Callable[[Object], Object]:
    """Conversion with strategy None: only apiVersion differs between versions."""

    def convert(obj: Object) -> Object:
        return obj if obj.get("apiVersion") == api_version else {**obj, "apiVersion": api_version}

    return convert


def _deprecation(version: Object, api_version: str, kind: str) -> str:
    if not version.get("deprecated"):
        return ""
    return version.get("deprecationWarning") or f"{api_version} {kind} is deprecated"


def _selectable(entries: Sequence[Object]) -> Mapping[str, Callable[[Object], str]]:
    """Field selectors (KEP-4358)."""

    def reader(path: jsonpath.Path) -> Callable[[Object], str]:
        return lambda obj: selector_text(next(path.find(obj), ""))

    return {e["jsonPath"].removeprefix("."): reader(jsonpath.parse(e["jsonPath"])) for e in entries}


def _scale_paths(scale: Object | None) -> ScalePaths | None:
    if scale is None:
        return None
    return ScalePaths(
        scale["specReplicasPath"].removeprefix("."),
        scale["statusReplicasPath"].removeprefix("."),
        (scale.get("labelSelectorPath") or "").removeprefix("."),
    )


def _scale_errors(obj: Object, scale: ScalePaths) -> list[FieldError]:
    """What the scale subresource would stumble over."""
    errors = []
    for path in (scale.spec, scale.status):
        value, problem = _nested(obj, path, int, "int64")
        if problem:
            errors.append(invalid_value(f".{path}", 0, problem))
        elif value is not None and value < 0:
            errors.append(invalid_value(f".{path}", value, "should be a non-negative integer"))
        elif value is not None and value > _INT32_MAX:
            text = f"should be less than or equal to {_INT32_MAX}"
            errors.append(invalid_value(f".{path}", value, text))
    if scale.selector:
        _value, problem = _nested(obj, scale.selector, str, "string")
        if problem:
            errors.append(invalid_value(f".{scale.selector}", "", problem))
    return errors


def _nested(obj: Object, path: str, wanted: type, go_type: str) -> tuple[Any, str]:
    """The value at a path, or why it cannot be read (apimachinery's `unstructured` accessors)."""
    value: Any = obj
    walked = ""
    for key in path.split("."):
        if value is None:
            return None, ""
        if not isinstance(value, dict):
            text = f"{_go_text(value)} is of the type {_go_type(value)}, expected map[string]interface {{}}"
            return None, f"{walked} accessor error: {text}"
        if key not in value:
            return None, ""
        value, walked = value[key], f"{walked}.{key}"
    if not isinstance(value, wanted) or isinstance(value, bool):
        text = f"{_go_text(value)} is of the type {_go_type(value)}, expected {go_type}"
        return None, f".{path} accessor error: {text}"
    return value, ""


def _go_type(value: Any) -> str:
    names = {str: "string", bool: "bool", int: "int64", float: "float64", type(None): "<nil>"}
    if isinstance(value, dict):
        return "map[string]interface {}"
    return names.get(type(value), "[]interface {}")


def _go_text(value: Any) -> str:
    """Go's %v of a JSON value."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return go_number(value)
        case None:
            return "<nil>"
        case list():
            return "[" + " ".join(map(_go_text, value)) + "]"
        case dict():
            return "map[" + " ".join(f"{k}:{_go_text(v)}" for k, v in sorted(value.items())) + "]"
    return str(value)


def _printer(
    entries: Sequence[Object],
) -> tuple[tuple[Column, ...], Callable[[Object, datetime], list[Any]]]:
    """The Table columns of additionalPrinterColumns; without any: the age."""
    if not entries:
        entries = [{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]
        columns: tuple[Column, ...] = (NAME, replace(AGE, type="date"))
    else:
        columns = (NAME, *(_column(e) for e in entries))
    paths = [(e["type"], jsonpath.parse(e["jsonPath"])) for e in entries]

    def row(obj: Object, now: datetime) -> list[Any]:
        return [name_of(obj), *(_cell(kind, next(path.find(obj), None), now) for kind, path in paths)]

    return columns, row


def _column(entry: Object) -> Column:
    described = f"Custom resource definition column (in JSONPath format): {entry['jsonPath']}"
    return Column(
        entry["name"],
        entry["type"],
        entry.get("format") or "",
        entry.get("description") or described,
        entry.get("priority") or 0,
    )


def _cell(kind: str, value: Any, now: datetime) -> Any:
    """A value as its column shows it; null where it is of another type."""
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "string":
            return value if isinstance(value, str) else _text_cell(value)
        case "integer":
            return int(value) if number else None
        case "number":
            return float(value) if number else None
        case "boolean":
            return value if isinstance(value, bool) else None
    if not isinstance(value, str):
        return None
    try:
        return age(now - parse_time(value))
    except ValueError:
        return "<invalid>"


def _text_cell(value: Any) -> str:
    return go_value(value) if isinstance(value, dict | list) else _go_text(value)


def _openapi(schema: structural.Schema, group: str, version: str, kind: str) -> Object:
    """The schema to publish: with the fields that every resource has."""
    published: Object = copy(dict(schema))
    properties = published.setdefault("properties", {})
    published["properties"] = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"allOf": [{"$ref": _OBJECT_META}]},
        **{k: v for k, v in properties.items() if k not in structural.RESOURCE_FIELDS},
    }
    published["x-kubernetes-group-version-kind"] = [{"group": group, "version": version, "kind": kind}]
    return published
