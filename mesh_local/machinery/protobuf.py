"""Decodes the protobuf bodies that kubectl and typed Go clients send (`application/vnd.kubernetes.protobuf`).

A body is `k8s\\0` and a runtime.Unknown message: apiVersion, kind and the object. Strict: what is not in the
tables, or is malformed, is refused; nothing is skipped. Answers are always JSON, which these clients take.
"""

import base64
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import msgspec

from mesh_local.machinery import protobuf_wire as pb
from mesh_local.machinery import schema
from mesh_local.machinery.errors import bad_request
from mesh_local.machinery.objects import Object, rfc3339, rfc3339_micro
from mesh_local.machinery.protobuf_fields import ROWS

MAGIC = b"k8s\x00"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_META = "io.k8s.apimachinery.pkg.apis.meta.v1"
# Any apiVersion may carry these.
_EVERYWHERE = {"DeleteOptions": "meta.v1.DeleteOptions"}
_PACKAGES = {
    "v1": "core.v1",
    "admissionregistration.k8s.io/v1": "admissionregistration.v1",
    "apps/v1": "apps.v1",
    "authentication.k8s.io/v1": "authentication.v1",
    "authorization.k8s.io/v1": "authorization.v1",
    "autoscaling/v1": "autoscaling.v1",
    "batch/v1": "batch.v1",
    "coordination.k8s.io/v1": "coordination.v1",
    "discovery.k8s.io/v1": "discovery.v1",
    "events.k8s.io/v1": "events.v1",
    "networking.k8s.io/v1": "networking.v1",
    "policy/v1": "policy.v1",
    "rbac.authorization.k8s.io/v1": "rbac.v1",
}


def decode(body: bytes) -> Object:
    """The object in a body, with its kind and apiVersion.

    Raises:
        ApiError: 400, naming what is malformed or unknown, and where.
    """
    if not body.startswith(MAGIC):
        raise bad_request(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
        )
    api_version, kind, raw = _envelope(body[len(MAGIC) :])
    row = _EVERYWHERE.get(kind) or f"{_PACKAGES.get(api_version)}.{kind}"
    if row not in ROWS or not _is_root(row):
        raise bad_request(f'no kind "{kind}" is registered for version "{api_version}" in protobuf')
    obj = _decode(raw, _message(row, _definition(row)), kind)
    return {"kind": kind, "apiVersion": api_version, **obj}


def _is_root(row: str) -> bool:
    """Objects and options carry kind and apiVersion; the messages inside them do not."""
    return "apiVersion" in schema.definition(_definition(row)).get("properties", {}) and not any(
        entry.startswith("apiVersion=") for entry in ROWS[row].split()
    )


def _definition(row: str) -> str:
    return f"io.k8s.apimachinery.pkg.apis.{row}" if row.startswith("meta.") else f"io.k8s.api.{row}"


def _envelope(data: bytes) -> tuple[str, str, bytes]:
    """runtime.Unknown: the type, and the encoded object."""
    known = {1: b"", 2: b"", 3: b"", 4: b""}
    for number, value in pb.lengths(data, "Unknown"):
        if number not in known:
            raise pb.error("Unknown", f"unknown field number {number}")
        known[number] = value
    if known[3] or known[4]:
        shown = pb.text(known[3] or known[4], "Unknown")
        raise pb.error("Unknown", f"content encoding or type {shown!r} is not supported")
    names = {1: "", 2: ""}
    for number, value in pb.lengths(known[1], "Unknown.typeMeta"):
        if number not in names:
            raise pb.error("Unknown.typeMeta", f"unknown field number {number}")
        names[number] = pb.text(value, "Unknown.typeMeta")
    if not all(names.values()):
        raise bad_request("unable to decode protobuf: kind and apiVersion must be set")
    return names[1], names[2], known[2]


@dataclass(frozen=True, slots=True)
class _Shape:
    """How one value is encoded: its wire type, and how it is read."""

    wire: int
    read: Callable[[Any, str], Any]


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a message.

    Attributes:
        form: `one`, `list`, `map` or `inline`.
        keep_zero: a zero, or an empty message, is a value rather than absence.
    """

    name: str
    form: str
    keep_zero: bool
    shape: _Shape


@lru_cache(maxsize=1024)
def _message(row: str, definition: str) -> Mapping[int, _Field]:
    """The fields of a row by number, with types from an OpenAPI definition."""
    found = schema.definition(definition)
    properties, needed = found.get("properties", {}), found.get("required") or ()
    fields = {}
    for entry in ROWS[row].split():
        label, number = entry.split("=")
        if label.startswith("*"):
            fields[int(number)] = _Field("", "inline", False, _shape_of_row(label[1:], definition))
            continue
        name = label.removesuffix("?")
        form, shape = _form(properties[name])
        fields[int(number)] = _Field(name, form, label.endswith("?") or name in needed, shape)
    return MappingProxyType(fields)


def _form(typed: Mapping[str, Any]) -> tuple[str, _Shape]:
    if schema.ref_name(typed):
        return "one", _shape(typed)
    kind = schema.type_of(typed)
    if kind == "array":
        return "list", _shape(typed["items"])
    if kind == "object" and "additionalProperties" in typed:
        values = typed["additionalProperties"]
        # A map of lists (ExtraValue) has a message around each list.
        return "map", _LISTED if schema.type_of(values) == "array" else _shape(values)
    return "one", _shape(typed)


def _shape(typed: Mapping[str, Any]) -> _Shape:
    name = schema.ref_name(typed)
    if name in _SPECIAL:
        return _SPECIAL[name]
    if name:
        row = name.removeprefix("io.k8s.apimachinery.pkg.apis.").removeprefix("io.k8s.api.")
        return _shape_of_row(row, name)
    kind, spelled = schema.type_of(typed), typed.get("format") or ""
    match kind:
        case "string" if spelled == "byte":
            return _BYTES
        case "string":
            return _STRING
        case "boolean":
            return _BOOL
        case "integer":
            return _INT32 if spelled == "int32" else _INT64
        case "number":
            return _DOUBLE
    raise KeyError(f"no protobuf shape for {typed!r}")


def _shape_of_row(row: str, definition: str) -> _Shape:
    return _Shape(pb.LEN, lambda value, where: _decode(value, _message(row, definition), where))


def _decode(data: bytes, fields: Mapping[int, _Field], where: str) -> Object:
    """A message as JSON data."""
    found: Object = {}
    seen: set[int] = set()
    for number, wire, value in pb.fields(data, where):
        field = fields.get(number)
        if field is None:
            raise pb.error(where, f"unknown field number {number}")
        here = f"{where}.{field.name}" if field.name else where
        if field.form in ("one", "inline"):
            if number in seen:
                raise pb.error(here, f"field number {number} occurs twice")
            seen.add(number)
        match field.form:
            case "list":
                found.setdefault(field.name, []).extend(_items(field.shape, wire, value, here))
            case "map":
                key, item = _entry(field.shape, value if wire == pb.LEN else None, here)
                found.setdefault(field.name, {})[key] = item
            case "inline":
                found.update(_read(field.shape, wire, value, here))
            case _:
                item = _read(field.shape, wire, value, here)
                if item is not None and (item not in ("", 0, {}) or field.keep_zero):
                    found[field.name] = item
    return found


def _read(shape: _Shape, wire: int, value: Any, where: str) -> Any:
    if wire != shape.wire:
        raise pb.error(where, f"wire type {wire}, expected {shape.wire}")
    try:
        return shape.read(value, where)
    except pb.Malformed as error:
        raise pb.error(where, str(error)) from None


def _items(shape: _Shape, wire: int, value: Any, where: str) -> Iterator[Any]:
    """One item of a list, or all where numbers are packed into one field."""
    if wire != pb.LEN or shape.wire != pb.VARINT:
        yield _read(shape, wire, value, where)
        return
    at = 0
    while at < len(value):
        try:
            number, at = pb.varint(value, at)
        except pb.Malformed as error:
            raise pb.error(where, str(error)) from None
        yield _read(shape, pb.VARINT, number, where)


def _entry(shape: _Shape, data: bytes | None, where: str) -> tuple[str, Any]:
    """A map entry: a message of key (1) and value (2); what is left out is empty."""
    if data is None:
        raise pb.error(where, f"expected wire type {pb.LEN}")
    key, item = "", shape.read(b"" if shape.wire == pb.LEN else 0, where)
    for number, wire, value in pb.fields(data, where):
        if number == 1:
            key = _read(_STRING, wire, value, where)
        elif number == 2:
            item = _read(shape, wire, value, where)
        else:
            raise pb.error(where, f"unknown field number {number} in a map entry")
    return key, item


def _signed(value: int, _where: str) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _signed32(value: int, where: str) -> int:
    number = _signed(value, where)
    if not -(1 << 31) <= number < 1 << 31:
        raise pb.Malformed(f"{number} is out of range for int32")
    return number


def _json(value: bytes, where: str) -> Any:
    """The bytes of a small message that holds JSON in field 1; nothing is null."""
    raw = b""
    for number, part in pb.lengths(value, where):
        if number != 1:
            raise pb.error(where, f"unknown field number {number}")
        raw = part
    try:
        return msgspec.json.decode(raw) if raw else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise pb.Malformed(f"raw value is not JSON: {error}") from None


def _moment(value: bytes, where: str) -> datetime | None:
    """Timestamp {seconds=1, nanos=2}; an empty one is the zero time, which JSON leaves out."""
    if not value:
        return None
    parts = {1: 0, 2: 0}
    for number, wire, part in pb.fields(value, where):
        if number not in parts or wire != pb.VARINT:
            raise pb.error(where, f"unknown field number {number} or wire type {wire} in a time")
        parts[number] = _signed(part, where)
    if not 0 <= parts[2] < 1_000_000_000:
        raise pb.Malformed(f"{parts[2]} nanoseconds are out of range")
    try:
        return _EPOCH + timedelta(seconds=parts[1], microseconds=parts[2] // 1000)
    except OverflowError:
        raise pb.Malformed(f"{parts[1]} seconds are out of range for a time") from None


def _time(value: bytes, where: str) -> str | None:
    moment = _moment(value, where)
    return rfc3339(moment) if moment else None


def _micro_time(value: bytes, where: str) -> str | None:
    moment = _moment(value, where)
    return rfc3339_micro(moment) if moment else None


def _quantity(value: bytes, where: str) -> str:
    found = "0"
    for number, part in pb.lengths(value, where):
        if number != 1:
            raise pb.error(where, f"unknown field number {number} in a quantity")
        found = pb.text(part, where)
    return found or "0"


def _int_or_string(value: bytes, where: str) -> int | str:
    """IntOrString {type=1, intVal=2, strVal=3}: type 0 is a number, 1 a string."""
    kind, number_value, text = 0, 0, ""
    for number, wire, part in pb.fields(value, where):
        match number, wire:
            case 1, 0:
                kind = part
            case 2, 0:
                number_value = _signed32(part, where)
            case 3, 2:
                text = pb.text(part, where)
            case _:
                raise pb.error(where, f"unknown field number {number} or wire type {wire} in an IntOrString")
    if kind not in (0, 1):
        raise pb.Malformed(f"{kind} is not a type of IntOrString")
    return text if kind else number_value


def _listed(value: bytes, where: str) -> list[str]:
    """A message that holds only a list of strings."""
    found = []
    for number, part in pb.lengths(value, where):
        if number != 1:
            raise pb.error(where, f"unknown field number {number}")
        found.append(pb.text(part, where))
    return found


_STRING = _Shape(pb.LEN, pb.text)
_BYTES = _Shape(pb.LEN, lambda value, _where: base64.b64encode(value).decode())
_BOOL = _Shape(pb.VARINT, lambda value, _where: bool(value))
_INT32 = _Shape(pb.VARINT, _signed32)
_INT64 = _Shape(pb.VARINT, _signed)
_DOUBLE = _Shape(pb.I64, lambda value, _where: struct.unpack("<d", value)[0])
_LISTED = _Shape(pb.LEN, _listed)
_SPECIAL = {
    f"{_META}.Time": _Shape(pb.LEN, _time),
    f"{_META}.MicroTime": _Shape(pb.LEN, _micro_time),
    f"{_META}.FieldsV1": _Shape(pb.LEN, _json),
    "io.k8s.apimachinery.pkg.runtime.RawExtension": _Shape(pb.LEN, _json),
    "io.k8s.apimachinery.pkg.api.resource.Quantity": _Shape(pb.LEN, _quantity),
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": _Shape(pb.LEN, _int_or_string),
}
