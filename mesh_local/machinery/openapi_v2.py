"""The OpenAPI v2 document (Swagger 2.0) of every kind, in JSON and in the protobuf that kubectl asks for.

kubectl validates by it what it does not leave to the server: the items of a `kind: List`. It is made from
the v3 schemas; what v2 or kubectl's reader of it cannot express is left out as Kubernetes does for custom
resources. The protobuf messages are those of gnostic's OpenAPIv2.proto.
"""

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from mesh_local.machinery import openapi
from mesh_local.machinery.objects import Object
from mesh_local.machinery.protobuf_wire import I64, LEN, VARINT

if TYPE_CHECKING:
    from mesh_local.kinds.base import Kind

JSON = "application/json"
PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_MEDIA_TYPES = {
    JSON: JSON,
    "application/*": JSON,
    "*/*": JSON,
    PROTOBUF: PROTOBUF,
    # what clients send: `@` is not valid in the name of a media type, so that the answer has the one above
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf": PROTOBUF,
}
_DEFINITIONS = "#/definitions/"
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_GVK = "x-kubernetes-group-version-kind"
# v2 has no unions; in kubectl's validation a string takes a number too.
_UNIONS = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": "string"},
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": "string", "format": "int-or-string"},
}
# Characters that YAML does not take as they are, within the JSON text of a value.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def media_type(accepted: Iterable[str]) -> str:
    """The media type of the answer to a client that accepts these, best first; '' for none."""
    return next((_MEDIA_TYPES[a] for a in accepted if a in _MEDIA_TYPES), "")


def document_bytes(kinds: Iterable["Kind"], media: str) -> bytes:
    """The document in one of the media types of `media_type`."""
    made = document(kinds)
    return encode(made) if media == PROTOBUF else msgspec.json.encode(made) + b"\n"


def document(kinds: Iterable["Kind"]) -> Object:
    """The OpenAPI v2 document of kinds."""
    paths, schemas = openapi.parts(sorted(kinds, key=lambda k: (k.group, k.version, k.plural)))
    return {
        "swagger": "2.0",
        "info": openapi.INFO,
        "paths": {path: _path_item(item) for path, item in sorted(paths.items())},
        "definitions": {name: _definition(name, schema) for name, schema in sorted(schemas.items())},
    }


def _path_item(item: Mapping[str, Any]) -> Object:
    return {
        key: [_parameter(p) for p in value] if key == "parameters" else _operation(value)
        for key, value in item.items()
    }


def _parameter(parameter: Mapping[str, Any]) -> Object:
    return {**{k: v for k, v in parameter.items() if k != "schema"}, **parameter["schema"]}


def _operation(operation: Mapping[str, Any]) -> Object:
    """An operation of v3: its bodies become a parameter, and lists of media types."""
    made = {k: v for k, v in operation.items() if k != "requestBody"}
    made["parameters"] = [_parameter(p) for p in operation["parameters"]]
    if body := operation.get("requestBody"):
        made["consumes"] = list(body["content"])
        made["parameters"].insert(0, {"name": "body", "in": "body", "required": True, **_content(body)})
    made["produces"] = list(operation["responses"]["200"]["content"])
    made["responses"] = {
        code: {"description": response["description"], **_content(response)}
        for code, response in operation["responses"].items()
    }
    return made


def _content(message: Mapping[str, Any]) -> Object:
    """The schema of a body, which is the same for each media type."""
    for content in (message.get("content") or {}).values():
        return {"schema": _schema(content["schema"])}
    return {}


def _definition(name: str, schema: Mapping[str, Any]) -> Object:
    if name in _UNIONS:
        return dict(_UNIONS[name])
    if schema.get(_PRESERVE):
        # with any properties, kubectl would refuse all others
        return {"type": "object", _GVK: schema[_GVK]}
    return _schema(schema)


def _schema(schema: Mapping[str, Any]) -> Object:
    """A schema of v3 in v2, which has no `nullable` and no junctors.

    kubectl refuses a whole document in which an array has no items or a value of no type has properties.
    """
    made = {k: v for k, v in schema.items() if k in _SCHEMA or k.startswith("x-")}
    if not made.get("type"):
        made.pop("type", None)
    if reference := _reference(schema):
        return made | {"$ref": _DEFINITIONS + reference}
    nullable, preserve = schema.get("nullable"), schema.get(_PRESERVE)
    if nullable or preserve:
        for key in ("items", "properties", *(["type"] if nullable else [])):
            made.pop(key, None)
    if (made.get("type") == "array" and not made.get("items")) or (preserve and made.get("type") == "object"):
        del made["type"]
    if properties := made.pop("properties", None):
        made["properties"] = {k: _schema(v) for k, v in properties.items()}
        optional = {k for k, v in properties.items() if v.get("nullable")}
        if "required" in made:
            made["required"] = [k for k in made["required"] if k not in optional]
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), Mapping):
            made[key] = _schema(made[key])
    return made


def _reference(schema: Mapping[str, Any]) -> str:
    """The name of the definition that a schema is, with or without more beside it; '' for none."""
    match schema:
        case {"$ref": str(target)} | {"allOf": [{"$ref": str(target)}]}:
            return target.removeprefix(openapi.COMPONENTS)
    return ""


def encode(document: Mapping[str, Any]) -> bytes:
    """A document as gnostic's `openapi.v2.Document`."""
    return _fields(_DOCUMENT, document)


# A writer gives the bytes of one field, or of every occurrence of a repeated one.
_Writer = Callable[[int, Any], bytes]
# The fields of a message: number and writer, by the key in JSON; `x-` stands for all extensions.
_Table = Mapping[str, tuple[int, _Writer]]


def _fields(table: _Table, value: Mapping[str, Any]) -> bytes:
    found = []
    for key, inner in value.items():
        if key in table:
            number, write = table[key]
            found.append(write(number, inner))
        elif key.startswith("x-") and "x-" in table:
            number, write = table["x-"]
            found.append(write(number, {key: inner}))
    return b"".join(found)


def _varint(value: int) -> bytes:
    made = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _block(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | LEN) + _varint(len(payload)) + payload


def _text(number: int, value: str) -> bytes:
    return _block(number, value.encode())


def _flag(number: int, value: bool) -> bytes:
    return _varint(number << 3 | VARINT) + _varint(bool(value))


def _count(number: int, value: float) -> bytes:
    return _varint(number << 3 | VARINT) + _varint(int(value))


def _real(number: int, value: float) -> bytes:
    return _varint(number << 3 | I64) + struct.pack("<d", value)


def _any(number: int, value: Any) -> bytes:
    """A value of any type, as YAML text; JSON is YAML."""
    text = json.dumps(value, ensure_ascii=False)
    return _block(number, _text(2, _ESCAPED.sub(lambda m: f"\\u{ord(m[0]):04x}", text)))


def _each(write: _Writer) -> _Writer:
    """A repeated field."""
    return lambda number, values: b"".join(write(number, value) for value in values)


def _named(write: _Writer) -> _Writer:
    """A map: a repeated message of name and value."""

    def entries(number: int, values: Mapping[str, Any]) -> bytes:
        return b"".join(_block(number, _text(1, k) + write(2, v)) for k, v in values.items())

    return entries


def _message(table: _Table) -> _Writer:
    return lambda number, value: _block(number, _fields(table, value))


def _within(inner: int, write: _Writer) -> _Writer:
    """A message of one field."""
    return lambda number, value: _block(number, write(inner, value))


def _types(number: int, value: str) -> bytes:
    return _block(number, _text(1, value))


def _more(number: int, value: Any) -> bytes:
    """AdditionalPropertiesItem: a schema or a boolean."""
    return _block(number, _flag(2, value) if isinstance(value, bool) else _schema_field(1, value))


def _schema_field(number: int, value: Mapping[str, Any]) -> bytes:
    return _block(number, _fields(_SCHEMA, value))


def _parameter_field(number: int, value: Mapping[str, Any]) -> bytes:
    """ParametersItem, of a Parameter, of a BodyParameter or of a NonBodyParameter."""
    match value["in"]:
        case "body":
            parameter = _block(1, _fields(_BODY, value))
        case "query":
            parameter = _block(2, _block(3, _fields(_QUERY, value)))
        case _:
            parameter = _block(2, _block(4, _fields(_PATH, value)))
    return _block(number, _block(1, parameter))


_EXTENSIONS = _named(_any)
_SCHEMA: _Table = {
    "$ref": (1, _text),
    "format": (2, _text),
    "title": (3, _text),
    "description": (4, _text),
    "default": (5, _any),
    "multipleOf": (6, _real),
    "maximum": (7, _real),
    "exclusiveMaximum": (8, _flag),
    "minimum": (9, _real),
    "exclusiveMinimum": (10, _flag),
    "maxLength": (11, _count),
    "minLength": (12, _count),
    "pattern": (13, _text),
    "maxItems": (14, _count),
    "minItems": (15, _count),
    "uniqueItems": (16, _flag),
    "maxProperties": (17, _count),
    "minProperties": (18, _count),
    "required": (19, _each(_text)),
    "enum": (20, _each(_any)),
    "additionalProperties": (21, _more),
    "type": (22, _types),
    "items": (23, _within(1, _schema_field)),
    "properties": (25, _within(1, _named(_schema_field))),
    "example": (30, _any),
    "x-": (31, _EXTENSIONS),
}
_BODY: _Table = {
    "description": (1, _text),
    "name": (2, _text),
    "in": (3, _text),
    "required": (4, _flag),
    "schema": (5, _schema_field),
}
_PATH: _Table = {
    "required": (1, _flag),
    "in": (2, _text),
    "description": (3, _text),
    "name": (4, _text),
    "type": (5, _text),
    "uniqueItems": (19, _flag),
}
_QUERY: _Table = {**_PATH, "type": (6, _text), "uniqueItems": (20, _flag)}
_RESPONSE: _Table = {"description": (1, _text), "schema": (2, _within(1, _schema_field))}
_OPERATION: _Table = {
    "tags": (1, _each(_text)),
    "description": (3, _text),
    "operationId": (5, _text),
    "produces": (6, _each(_text)),
    "consumes": (7, _each(_text)),
    "parameters": (8, _each(_parameter_field)),
    "responses": (9, _within(1, _named(_within(1, _message(_RESPONSE))))),
    "x-": (13, _EXTENSIONS),
}
_PATH_ITEM: _Table = {
    "get": (2, _message(_OPERATION)),
    "put": (3, _message(_OPERATION)),
    "post": (4, _message(_OPERATION)),
    "delete": (5, _message(_OPERATION)),
    "patch": (8, _message(_OPERATION)),
    "parameters": (9, _each(_parameter_field)),
}
_DOCUMENT: _Table = {
    "swagger": (1, _text),
    "info": (2, _message({"title": (1, _text), "version": (2, _text)})),
    "paths": (8, _within(2, _named(_message(_PATH_ITEM)))),
    "definitions": (9, _within(1, _named(_schema_field))),
}
