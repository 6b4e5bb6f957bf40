"""Typed decoding of JSON data by the OpenAPI definitions of Kubernetes 1.36, as strict as Go's decoder.

The definitions are data of the package kubernetes-validate, read once at first use.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import msgspec

from mesh_local.machinery import jsontext
from mesh_local.machinery.errors import ApiError, bad_request
from mesh_local.machinery.objects import Object, copy
from mesh_local.machinery.scalars import INT_LIMITS, SCALARS, ScalarError, data_bytes, json_type

MAX_STRICT_ERRORS = 100
_VERSION = "v1.36.0-local"
_REF = "#/$defs/"
_EXTENSIONS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
FREE_FORM = frozenset(
    {
        "io.k8s.apimachinery.pkg.runtime.RawExtension",
        "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1",
        *(f"{_EXTENSIONS}JSON{n}" for n in ("", "SchemaPropsOrArray", "SchemaPropsOrBool")),
        f"{_EXTENSIONS}JSONSchemaPropsOrStringArray",
    }
)
# Lists that Go writes out although they are empty and optional.
_KEPT_EMPTY = frozenset(
    {
        ("io.k8s.api.rbac.v1.Role", "rules"),
        ("io.k8s.api.rbac.v1.ClusterRole", "rules"),
        ("io.k8s.api.discovery.v1.EndpointSlice", "endpoints"),
        ("io.k8s.api.discovery.v1.EndpointSlice", "ports"),
    }
)


@cache
def definitions() -> Mapping[str, Any]:
    """Every definition by name."""
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema" / _VERSION
    raw = (folder / "_definitions.json").read_bytes()
    found: Mapping[str, Any] = msgspec.json.decode(raw)["$defs"]
    return found


def definition(name: str) -> Mapping[str, Any]:
    """The definition of this name (`io.k8s.api.core.v1.Pod`). Raises KeyError."""
    found: Mapping[str, Any] = definitions()[name]
    return found


@cache
def _by_kind() -> Mapping[tuple[str, str, str], str]:
    return {
        (gvk["group"], gvk["version"], gvk["kind"]): name
        for name, found in definitions().items()
        for gvk in found.get("x-kubernetes-group-version-kind", ())
    }


def definition_of(group: str, version: str, kind: str) -> str:
    """The name of the definition of a kind, or ''."""
    return _by_kind().get((group, version, kind), "")


def ref_name(schema: Mapping[str, Any]) -> str:
    """The name of the definition that a schema refers to, or ''."""
    ref: str = schema.get("$ref", "")
    return ref.removeprefix(_REF)


def type_of(schema: Mapping[str, Any]) -> str:
    """The JSON type of a schema without the `null` that the package adds; '' for any or a reference."""
    found = schema.get("type", "")
    if isinstance(found, list):
        return next((str(t) for t in found if t != "null"), "")
    return str(found)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An object without its unknown fields, and what strict decoding has to say about it."""

    object: Object
    unknown: list[str] = field(default_factory=list)


def parse_json(body: bytes, kind: str = "") -> tuple[Any, list[str]]:
    """The data of a JSON body, and a message for each duplicate field.

    Args:
        kind: what the body should be, for the message.

    Raises:
        ApiError: 400.
    """
    try:
        return jsontext.parse_json(body)
    except jsontext.TextError as error:
        raise unrecognised(kind, f"json parse error: {error}", body) from None


def parse_yaml(body: bytes, kind: str = "") -> Any:
    """The data of a YAML body (one document). Raises ApiError 400."""
    try:
        return jsontext.parse_yaml(body)
    except jsontext.TextError as error:
        raise unrecognised(kind, str(error), body) from None


def unrecognised(kind: str, detail: str, body: bytes) -> ApiError:
    """400 for a body of which not even kind and version can be read."""
    expected = f" (must be of type {kind})" if kind else ""
    return bad_request(
        f"the object provided is unrecognized{expected}: couldn't get version/kind; {detail}"
        f" ({_summary(body)})"
    )


def _summary(body: bytes, limit: int = 30) -> str:
    more = " ..." if len(body) > limit else ""
    if not body:
        return "<empty>"
    shown = body[:limit].decode(errors="replace") if body.startswith(b"{") else body[:limit].hex()
    return shown + more


def decode(name: str, data: Any, *, kind: str, version: str) -> Decoded:
    """Data as an object of a definition: unknown fields and nulls dropped, scalars in canonical form.

    Args:
        name: of the definition.
        kind, version: for the message.

    Raises:
        ApiError: 400, a value of the wrong type.
    """
    walk = _Walk()
    try:
        if not isinstance(data, dict):
            short = name.rsplit(".", 1)[-1]
            raise ScalarError(
                f"json: cannot unmarshal {json_type(data)} into Go value of type {version}.{short}"
            )
        return Decoded(walk.struct(_struct(name), data, "", ""), walk.unknown)
    except ScalarError as error:
        raise cannot_handle(kind, version, str(error)) from None


def cannot_handle(kind: str, version: str, detail: str) -> ApiError:
    """400 for a body that is not what its kind says."""
    return bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: {detail}')


def strict_error(kind: str, version: str, problems: list[str]) -> ApiError:
    """400 for unknown and duplicate fields under `fieldValidation=Strict`."""
    return cannot_handle(kind, version, "strict decoding error: " + ", ".join(problems))


@dataclass(frozen=True, slots=True)
class _Type:
    """A schema, made ready: `form` is struct, list, map, free, scalar, or a JSON type."""

    form: str
    go: str
    name: str = ""
    item: "_Type | None" = None
    format: str = ""
    convert: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class _Struct:
    name: str
    short: str
    fields: Mapping[str, _Type]
    # fields that Go leaves out when they are empty
    omitted: frozenset[str]


@cache
def _struct(name: str) -> _Struct:
    schema = definition(name)
    properties = schema.get("properties") or {}
    required = schema.get("required") or ()
    fields = {key: _type(value) for key, value in properties.items()}
    omitted = frozenset(
        key
        for key, type_ in fields.items()
        if type_.form in ("list", "map") and key not in required and (name, key) not in _KEPT_EMPTY
    )
    return _Struct(name, name.rsplit(".", 1)[-1], fields, omitted)


def _type(schema: Mapping[str, Any]) -> _Type:
    if name := ref_name(schema):
        version, short = name.split(".")[-2:]
        go = f"{version}.{short}"
        if name in SCALARS:
            return _Type("scalar", go, name, convert=SCALARS[name])
        if name in FREE_FORM:
            return _Type("free", go, name)
        target = definition(name)
        if "properties" in target or type_of(target) == "object":
            return _Type("struct", go, name)
        return _type(target)
    form = type_of(schema)
    if form == "array":
        item = _type(schema.get("items") or {})
        return _Type("list", f"[]{item.go}", item=item)
    if form == "object":
        if "additionalProperties" not in schema:
            return _Type("free", "map[string]interface {}")
        item = _type(schema["additionalProperties"])
        return _Type("map", f"map[string]{item.go}", item=item)
    format_ = schema.get("format", "")
    if form == "string" and format_ == "byte":
        return _Type("bytes", "[]uint8")
    if form == "integer":
        return _Type("integer", format_ or "int64", format=format_ or "int64")
    return {
        "string": _Type("string", "string"),
        "boolean": _Type("boolean", "bool"),
        "number": _Type("number", "float64"),
    }.get(form) or _Type("free", "interface {}")


_ZERO: Mapping[str, Any] = {"string": "", "bytes": "", "boolean": False, "integer": 0, "number": 0}


class _Walk:
    """One decoding: collects unknown fields on the way."""

    def __init__(self) -> None:
        self.unknown: list[str] = []

    def struct(self, struct: _Struct, data: Any, path: str, fields: str) -> Object:
        """Decode `data`, an object.

        Args:
            path: as strict errors show it (`spec.containers[0]`).
            fields: as type errors show it (`spec.containers`).
        """
        made: Object = {}
        for key, value in data.items():
            type_ = struct.fields.get(key)
            here = f"{path}.{key}" if path else key
            if type_ is None:
                if len(self.unknown) < MAX_STRICT_ERRORS:
                    self.unknown.append(f'unknown field "{here}"')
                continue
            if value is None:
                continue
            name = f"{fields}.{key}" if fields else key
            decoded = self.value(type_, value, here, name, struct.short)
            if decoded or key not in struct.omitted:
                made[key] = decoded
        return made

    def value(self, type_: _Type, value: Any, path: str, fields: str, owner: str) -> Any:
        form = type_.form
        if form == "struct":
            if isinstance(value, dict):
                return self.struct(_struct(type_.name), value, path, fields)
        elif form == "list":
            if isinstance(value, list):
                return self._list(type_, value, path, fields, owner)
        elif form == "map":
            if isinstance(value, dict):
                return self._map(type_, value, path, fields, owner)
        elif form == "free":
            return copy(value)
        elif form == "scalar":
            convert = type_.convert
            if convert is not None:
                return convert(value)
        else:
            return _plain(type_, value, fields, owner)
        raise _wrong(value, type_, fields, owner)

    def _list(self, type_: _Type, value: list[Any], path: str, fields: str, owner: str) -> list[Any]:
        item = type_.item
        if item is None:
            return value
        return [
            _zero(item) if v is None else self.value(item, v, f"{path}[{i}]", fields, owner)
            for i, v in enumerate(value)
        ]

    def _map(self, type_: _Type, value: Object, path: str, fields: str, owner: str) -> Object:
        item = type_.item
        if item is None:
            return value
        return {
            k: _zero(item) if v is None else self.value(item, v, f"{path}.{k}", fields, owner)
            for k, v in value.items()
        }


def _plain(type_: _Type, value: Any, fields: str, owner: str) -> Any:
    """A string, boolean, number or base64 text."""
    form = type_.form
    if form == "string":
        if isinstance(value, str):
            return value
    elif form == "boolean":
        if isinstance(value, bool):
            return value
    elif form == "bytes":
        if isinstance(value, str):
            return data_bytes(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if form == "number":
            return value
        limit = INT_LIMITS[type_.format]
        if isinstance(value, int) and -limit <= value < limit:
            return value
        raise _wrong(value, type_, fields, owner, f"number {value}")
    raise _wrong(value, type_, fields, owner)


def _wrong(value: Any, type_: _Type, fields: str, owner: str, shown: str = "") -> ScalarError:
    return ScalarError(
        f"json: cannot unmarshal {shown or json_type(value)} into Go struct field {owner}.{fields}"
        f" of type {type_.go}"
    )


def _zero(type_: _Type) -> Any:
    """What Go has in a list or a map where the JSON has null."""
    if type_.form in ("struct", "map"):
        return {}
    if type_.form == "list":
        return []
    if type_.go.endswith(".Quantity"):
        return "0"
    return _ZERO.get(type_.form)
