"""Checks an object against a schema, with the messages and the order of kube-openapi's validators.

An update is checked with ratcheting (KEP-4008): what is wrong, but was so before, is accepted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mesh_local.machinery import structural_formats as formats
from mesh_local.machinery.cel_expression import pattern_matches
from mesh_local.machinery.errors import (
    FieldError,
    duplicate,
    go_value,
    invalid_value,
    not_supported,
    required,
)
from mesh_local.machinery.names import dns_subdomain
from mesh_local.machinery.structural import Schema

ABSENT: Any = object()
NO_FIELD = "<nil>"
_EXACT_MAX = (1 << 53) - 1
_EPSILON = 1e-9
_INT_RANGES = {"int32": 1 << 31, "": 1 << 63, "int64": 1 << 63}


@dataclass(slots=True)
class _Result:
    """Errors, and how many checks were made: of failed alternatives the one with most is reported."""

    errors: list[FieldError] = field(default_factory=list)
    checks: int = 0

    def merge(self, other: "_Result") -> None:
        self.errors += other.errors
        self.checks += other.checks


def validate(obj: Any, schema: Schema, old: Any = ABSENT, field: str = "") -> list[FieldError]:
    """Everything in `obj` that the schema does not allow.

    Args:
        old: the object before the update; its unchanged parts are not checked again.
        field: where errors are reported, in place of the path inside the object.
    """
    errors = _validate(obj, schema, "", old).errors
    if not field:
        return errors
    return [FieldError(e.type, _join(field, e.field), e.detail, e.value) for e in errors]


def _join(field: str, inner: str) -> str:
    return field if inner == NO_FIELD else f"{field}.{inner}"


def _where(path: str) -> str:
    return path.removeprefix(".") or NO_FIELD


def types_of(schema: Schema) -> tuple[str, ...]:
    """The JSON types that the schema admits; empty: any."""
    if schema.get("type"):
        return (schema["type"],)
    return ("integer", "string") if schema.get("x-kubernetes-int-or-string") else ()


def json_type(value: Any) -> tuple[str, str]:
    """The JSON type of a value and its format, as Go's decoder has them."""
    match value:
        case bool():
            return "boolean", ""
        case int():
            return "integer", "int64"
        case float():
            return "number", "float64"
        case str():
            return "string", ""
        case None:
            return "null", ""
        case list():
            return "array", ""
    return "object", ""


def same_json(a: Any, b: Any) -> bool:
    """Equality of JSON values: unlike Python's, true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(v, b[k]) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_json, a, b))
    return bool(a == b)


def _validate(value: Any, schema: Schema, path: str, old: Any) -> _Result:
    result = _Result()
    if old is not ABSENT and same_json(old, value):
        result.checks = 1
        return result
    result.errors += _type_errors(value, schema, path)
    result.checks += not result.errors
    if value is None:
        result.errors += _enum_errors(value, schema, path)
        return result
    result.merge(_combinations(value, schema, path))
    match value:
        case str():
            result.errors += _string_errors(value, schema, path)
        case bool():
            pass
        case int() | float():
            result.errors += _number_errors(value, schema, path)
        case list():
            result.merge(_validate_list(value, schema, path, old))
    result.errors += _enum_errors(value, schema, path)
    if isinstance(value, dict):
        result.merge(_validate_object(value, schema, path, old))
    result.checks += 4
    return result


def _type_errors(value: Any, schema: Schema, path: str) -> list[FieldError]:
    types = types_of(schema)
    name, value_format = json_type(value)
    if not types or (name == "null" and schema.get("nullable")):
        return []
    wanted = schema.get("format") or ""
    integral = isinstance(value, float) and _is_integral(value) and "integer" in types
    if name in types or integral or (name == "integer" and "number" in types):
        return []
    if formats.known(wanted) and name not in ("string", "array", "null"):
        return [_type_invalid(path, wanted, value_format)]
    return [_type_invalid(path, ",".join(types), name)]


def _type_invalid(path: str, wanted: str, got: str) -> FieldError:
    detail = f"{path} in body must be of type {wanted}: {go_value(got)}"
    return FieldError("FieldValueTypeInvalid", _where(path), detail, got)


def _enum_errors(value: Any, schema: Schema, path: str) -> list[FieldError]:
    allowed = schema.get("enum")
    if not allowed or any(same_json(value, v) for v in allowed):
        return []
    return [not_supported(_where(path), value, [v if isinstance(v, str) else go_value(v) for v in allowed])]


def _invalid(path: str, value: Any, text: str) -> FieldError:
    return invalid_value(_where(path), value, f"{path} in body {text}")


def _string_errors(value: str, schema: Schema, path: str) -> list[FieldError]:
    """The first of length and pattern, then the format."""
    errors = []
    longest, shortest, pattern = (schema.get(k) for k in ("maxLength", "minLength", "pattern"))
    if longest is not None and len(value) > longest:
        errors.append(FieldError("FieldValueTooLong", _where(path), f"may not be more than {longest} bytes"))
    elif shortest is not None and len(value) < shortest:
        errors.append(_invalid(path, value, f"should be at least {shortest} chars long"))
    elif pattern and not pattern_matches(pattern, value):
        errors.append(_invalid(path, value, f"should match '{pattern}'"))
    name = schema.get("format") or ""
    if "string" in types_of(schema) and not formats.valid(name, value):
        errors.append(_type_invalid(path, name, value))
    return errors


def go_number(value: float) -> str:
    """Go's %v of a float64."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return repr(value)


def _is_integral(value: float) -> bool:
    """Whether a number is whole, near enough, and exact in JSON (go-openapi's `swag`)."""
    if not abs(value) <= _EXACT_MAX:
        return False
    off = abs(value - int(value))
    return off <= _EPSILON or off / (abs(value) + abs(int(value))) < _EPSILON


def _number_errors(value: float, schema: Schema, path: str) -> list[FieldError]:
    errors = []
    if range_error := _range_error(value, schema, path):
        errors.append(invalid_value(NO_FIELD, "", range_error))
    multiple, low, high = (schema.get(k) for k in ("multipleOf", "minimum", "maximum"))
    if multiple is not None and multiple <= 0:
        text = f"factor MultipleOf declared for {path} must be positive: {go_number(multiple)}"
        errors.append(invalid_value(_where(path), multiple, text))
    elif multiple is not None and not _is_integral(
        value / multiple if multiple >= 1 else 1 / multiple * value
    ):
        errors.append(_invalid(path, value, f"should be a multiple of {go_number(multiple)}"))
    if low is not None and schema.get("exclusiveMinimum") and value <= low:
        errors.append(_invalid(path, value, f"should be greater than {go_number(low)}"))
    elif low is not None and value < low:
        errors.append(_invalid(path, value, f"should be greater than or equal to {go_number(low)}"))
    if high is not None and schema.get("exclusiveMaximum") and value >= high:
        errors.append(_invalid(path, value, f"should be less than {go_number(high)}"))
    elif high is not None and value > high:
        errors.append(_invalid(path, value, f"should be less than or equal to {go_number(high)}"))
    return errors


def _range_error(value: float, schema: Schema, path: str) -> str:
    name = schema.get("format") or ""
    if schema.get("type") != "integer":
        return ""
    bound = _INT_RANGES.get(name, 1 << 63)
    if float(value).is_integer() and -bound <= value < bound:
        return ""
    shown = f"with format {name}" if name else "(default format)"
    return f"Checked value must be of type integer {shown} in {path}"


def _validate_list(value: list[Any], schema: Schema, path: str, old: Any) -> _Result:
    result = _Result()
    items = schema.get("items")
    if isinstance(items, Mapping):
        before = _old_items(schema, old)
        for index, item in enumerate(value):
            was = before.get(_map_key(schema, item), ABSENT) if before else ABSENT
            result.merge(_validate(item, items, f"{path}[{index}]", was))
    low, high = schema.get("minItems"), schema.get("maxItems")
    if low is not None and len(value) < low:
        result.errors.append(_invalid(path, len(value), f"should have at least {low} items"))
    if high is not None and len(value) > high:
        result.errors.append(_too_many(path, len(value), high))
    return result


def _too_many(path: str, count: int, most: int) -> FieldError:
    return FieldError("FieldValueTooMany", _where(path), f"must have at most {most} items", count)


def _map_key(schema: Schema, item: Any) -> tuple[Any, ...]:
    keys: Sequence[str] = schema.get("x-kubernetes-list-map-keys") or ()
    properties = (schema.get("items") or {}).get("properties") or {}
    if not isinstance(item, dict):
        return ()
    return tuple((k, repr(item.get(k, (properties.get(k) or {}).get("default")))) for k in keys)


def _old_items(schema: Schema, old: Any) -> dict[tuple[Any, ...], Any]:
    """Items of the old list by key; only lists of type map can be correlated."""
    if schema.get("x-kubernetes-list-type") != "map" or not isinstance(old, list):
        return {}
    return {_map_key(schema, item): item for item in old}


def _validate_object(value: dict[str, Any], schema: Schema, path: str, old: Any) -> _Result:
    result = _Result()
    low, high = schema.get("minProperties"), schema.get("maxProperties")
    if low is not None and len(value) < low:
        result.errors.append(_invalid(path, len(value), f"should have at least {low} properties"))
        return result
    if high is not None and len(value) > high:
        result.errors.append(_too_many(path, len(value), high))
        return result
    before = old if isinstance(old, dict) else {}
    properties = schema.get("properties") or {}
    additional = schema.get("additionalProperties")
    if additional is False:
        result.errors += [
            invalid_value(_where(path), key, f"{path}.{key} in body is a forbidden property")
            for key in value
            if key not in properties
        ]
    elif isinstance(additional, Mapping):
        for key in value:
            if key not in properties:
                result.merge(_validate(value[key], additional, f"{path}.{key}", before.get(key, ABSENT)))
    for key, child in properties.items():
        if key in value:
            where = f"{path}.{key}" if path else key
            result.merge(_validate(value[key], child, where, before.get(key, ABSENT)))
    for key in schema.get("required") or ():
        if key not in value:
            result.errors.append(required(_where(f"{path}.{key}")))
    return result


def _combinations(value: Any, schema: Schema, path: str) -> _Result:
    """anyOf, oneOf, allOf, not."""
    result = _Result(checks=1)
    quoted = f'"{path}"'

    def fail(text: str) -> None:
        result.errors.append(invalid_value(NO_FIELD, "", f"{quoted} {text}"))

    def attempt(key: str) -> list[_Result]:
        return [_validate(value, s, path, ABSENT) for s in schema.get(key) or ()]

    if any_of := attempt("anyOf"):
        good = next((r for r in any_of if not r.errors), None)
        if good is None:
            fail("must validate at least one schema (anyOf)")
        result.merge(good or max(any_of, key=lambda r: r.checks))
    if one_of := attempt("oneOf"):
        valid = [r for r in one_of if not r.errors]
        if len(valid) == 1:
            result.merge(valid[0])
        else:
            found = f"Found {len(valid)} valid alternatives" if valid else "Found none valid"
            fail(f"must validate one and only one schema (oneOf). {found}")
            if not valid:
                result.merge(max(one_of, key=lambda r: r.checks))
    if all_of := attempt("allOf"):
        for outcome in all_of:
            result.merge(outcome)
        if any(r.errors for r in all_of):
            none = "" if any(not r.errors for r in all_of) else ". None validated"
            fail(f"must validate all the schemas (allOf){none}")
    if isinstance(schema.get("not"), Mapping) and not _validate(value, schema["not"], path, ABSENT).errors:
        fail("must not validate the schema (not)")
    return result


def validate_lists(value: Any, schema: Schema, path: str = "") -> list[FieldError]:
    """Duplicates in lists of type set and map."""
    errors: list[FieldError] = []
    if isinstance(value, list):
        items = schema.get("items") or {}
        kind = schema.get("x-kubernetes-list-type")
        if kind == "set":
            errors += _duplicates(value, value, path)
        elif kind == "map":
            keys = schema.get("x-kubernetes-list-map-keys") or ()
            properties = items.get("properties") or {}
            entries = [
                {k: item.get(k, (properties.get(k) or {}).get("default")) for k in keys}
                if isinstance(item, dict)
                else item
                for item in value
            ]
            shown = [
                {k: v for k, v in e.items() if v is not None} if isinstance(e, dict) else e for e in entries
            ]
            errors += _duplicates(entries, shown, path)
        for index, item in enumerate(value):
            errors += validate_lists(item, items, f"{path}[{index}]")
    elif isinstance(value, dict):
        properties = schema.get("properties") or {}
        additional = schema.get("additionalProperties")
        for key, item in value.items():
            where = f"{path}.{key}" if path else key
            if key in properties:
                errors += validate_lists(item, properties[key], where)
            elif isinstance(additional, Mapping):
                errors += validate_lists(item, additional, f"{path}[{key}]")
    return errors


def _duplicates(entries: Sequence[Any], shown: Sequence[Any], path: str) -> list[FieldError]:
    """One error for each entry that repeats an earlier one, reported once per value."""
    seen: dict[str, int] = {}
    errors = []
    for index, entry in enumerate(entries):
        key = _canonical(entry)
        count = seen.get(key, 0)
        if count == 1:
            errors.append(duplicate(f"{path}[{index}]", shown[index]))
        seen[key] = count + 1
    return errors


def _canonical(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def validate_embedded(value: Any, schema: Schema, path: str = "") -> list[FieldError]:
    """apiVersion, kind and metadata.name of the resources that `x-kubernetes-embedded-resource` marks."""
    errors: list[FieldError] = []
    if isinstance(value, list):
        for index, item in enumerate(value):
            errors += validate_embedded(item, schema.get("items") or {}, f"{path}[{index}]")
    elif isinstance(value, dict):
        if schema.get("x-kubernetes-embedded-resource"):
            errors += _embedded_errors(value, path)
        properties = schema.get("properties") or {}
        additional = schema.get("additionalProperties")
        for key, item in value.items():
            where = f"{path}.{key}" if path else key
            child = properties.get(key) or (additional if isinstance(additional, Mapping) else None)
            if child:
                errors += validate_embedded(item, child, where)
    return errors


def _embedded_errors(value: dict[str, Any], path: str) -> list[FieldError]:
    errors = [
        required(f"{path}.{k}", "must not be empty") for k in ("apiVersion", "kind") if not value.get(k)
    ]
    metadata = value.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if isinstance(name, str) and name:
        errors += [invalid_value(f"{path}.metadata.name", name, m) for m in dns_subdomain(name)]
    return errors
