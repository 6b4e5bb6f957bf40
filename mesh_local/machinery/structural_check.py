"""Whether a schema may stand in a CustomResourceDefinition: structural, with good defaults and rules.

Messages and order follow apiextensions' `validation` and `schema` packages.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mesh_local.machinery.cel_expression import CelError, pattern_error
from mesh_local.machinery.cel_rules import compile_rule
from mesh_local.machinery.errors import FieldError, forbidden_field, invalid_value, not_supported, required
from mesh_local.machinery.objects import copy
from mesh_local.machinery.structural import Schema, default, prune
from mesh_local.machinery.structural_validate import validate

TYPES = ("array", "boolean", "integer", "number", "object", "string")
REASONS = ("FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired")
_LEVELS = {
    "root": "at the root",
    "item": "for specified array items",
    "field": "for specified object fields",
}
_INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]
_JUNCTORS = ("anyOf", "allOf", "oneOf")
_EMPTY_IN_JUNCTOR = {
    "type": "must be empty to be structural",
    "additionalProperties": "must be undefined to be structural",
    "default": "must be undefined to be structural",
    "title": "must be empty to be structural",
    "description": "must be empty to be structural",
    "nullable": "must be false to be structural",
    "externalDocs": "must be undefined to be structural",
    "x-kubernetes-preserve-unknown-fields": "must be false to be structural",
    "x-kubernetes-embedded-resource": "must be false to be structural",
    "x-kubernetes-int-or-string": "must be false to be structural",
    "x-kubernetes-list-map-keys": "must be empty to be structural",
    "x-kubernetes-list-type": "must be undefined to be structural",
    "x-kubernetes-map-type": "must be undefined to be structural",
    "x-kubernetes-validations": "must be empty to be structural",
}
# With the status subresource the root schema may hold only these; the message names Go fields.
_ROOT_GO_FIELDS = (
    "Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength "
    "Pattern MaxItems MinItems UniqueItems MultipleOf Required Enum Items Properties ExternalDocs Example "
    "XPreserveUnknownFields XValidations"
)
_WITH_STATUS = "at the root of the schema if the status subresource is enabled"
_AT_ROOT = frozenset(
    {name[0].lower() + name[1:] for name in _ROOT_GO_FIELDS.split()}
    | {"x-kubernetes-preserve-unknown-fields", "x-kubernetes-validations"}
)
_UNSUPPORTED = {
    "additionalItems": "additionalItems is not supported",
    "patternProperties": "patternProperties is not supported",
    "definitions": "definitions is not supported",
    "dependencies": "dependencies is not supported",
    "id": "id is not supported",
    "$schema": "$schema is not supported",
    "$ref": "$ref is not supported",
}


def check_schema(schema: Schema, field: str, *, status: bool) -> list[FieldError]:
    """Everything wrong with a schema.

    Args:
        field: where the schema is: `spec.validation.openAPIV3Schema`.
        status: the status subresource is on.
    """
    errors = _root_errors(schema, field) if status else []
    if schema.get("nullable"):
        errors.append(forbidden_field(f"{field}.nullable", "nullable cannot be true at the root"))
    structural = sorted(_structural(schema, field, "root"), key=str)
    if not structural:
        structural = list(_defaults(schema, field))
    errors += structural
    schema_errors: list[FieldError] = []
    rule_errors: list[FieldError] = []
    _walk(schema, field, schema_errors, rule_errors, _Place(root=True))
    # Rules are compiled against a sound schema only; anything else would report what is not the cause.
    return errors + schema_errors + ([] if errors or schema_errors else rule_errors)


def _root_errors(schema: Schema, field: str) -> list[FieldError]:
    kind = schema.get("type")
    if kind and kind != "object":
        text = 'only "object" is allowed as the type'
        return [invalid_value(f"{field}.type", kind, f"{text} {_WITH_STATUS}")]
    if any(key not in _AT_ROOT for key, value in schema.items() if value not in (None, "", [], {}, False)):
        text = f"only [{_ROOT_GO_FIELDS}] fields are allowed {_WITH_STATUS}"
        return [invalid_value(field, dict(schema), text)]
    return []


def _structural(schema: Schema, field: str, level: str) -> Iterator[FieldError]:
    """The invariants of a structural schema."""
    kind = schema.get("type") or ""
    properties: Mapping[str, Schema] = schema.get("properties") or {}
    additional = schema.get("additionalProperties")
    embedded = bool(schema.get("x-kubernetes-embedded-resource"))
    items = schema.get("items")
    if kind == "array" and items is None:
        yield required(f"{field}.items", "must be specified")
    if isinstance(items, Mapping):
        yield from _structural(items, f"{field}.items", "item")
    for key, child in properties.items():
        yield from _structural(child, f"{field}.properties[{key}]", "field")
    if additional is not None:
        if level == "root":
            yield forbidden_field(f"{field}.additionalProperties", "must not be used at the root")
        if isinstance(additional, Mapping):
            yield from _structural(additional, f"{field}.additionalProperties", "field")
    yield from _extensions(schema, field)
    yield from _junctors(schema, field, schema)
    yield from _type_invariants(schema, field, level)
    if embedded and additional is not None:
        yield forbidden_field(
            f"{field}.additionalProperties", "must not be used if x-kubernetes-embedded-resource is set"
        )
    if level == "root" or embedded:
        for key in ("kind", "apiVersion"):
            if key in properties and properties[key].get("type") != "string":
                where = f"{field}.properties[{key}].type"
                yield invalid_value(where, properties[key].get("type") or "", "must be string")
        if "metadata" in properties and properties["metadata"].get("type") != "object":
            where = f"{field}.properties[metadata].type"
            yield invalid_value(where, properties["metadata"].get("type") or "", "must be object")
    if level == "root" and not _bare_metadata(properties.get("metadata") or {}):
        yield forbidden_field(
            f"{field}.properties[metadata]",
            "must not specify anything other than name and generateName, but metadata is implicitly "
            "specified",
        )
    if embedded and not schema.get("x-kubernetes-preserve-unknown-fields") and not properties:
        yield required(
            f"{field}.properties",
            "must not be empty if x-kubernetes-embedded-resource is true without "
            "x-kubernetes-preserve-unknown-fields",
        )


def _bare_metadata(schema: Schema) -> bool:
    inside = schema.get("properties") or {}
    return set(inside) <= {"name", "generateName"} and set(schema) <= {"type", "properties"}


def _type_invariants(schema: Schema, field: str, level: str) -> Iterator[FieldError]:
    kind = schema.get("type") or ""
    where = f"{field}.type"
    if schema.get("x-kubernetes-embedded-resource") and kind != "object":
        text = "must be object if x-kubernetes-embedded-resource is true"
        yield invalid_value(where, kind, text) if kind else required(where, text)
    elif not kind and not (
        schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        of = {
            "root": "at the root",
            "item": "for specified array items",
            "field": "for specified object fields",
        }
        yield required(where, f"must not be empty {of[level]}")
    if level == "root" and kind and kind != "object":
        yield invalid_value(where, kind, "must be object at the root")


def _extensions(schema: Schema, field: str) -> Iterator[FieldError]:
    if schema.get("x-kubernetes-int-or-string"):
        for key in ("x-kubernetes-preserve-unknown-fields", "x-kubernetes-embedded-resource"):
            if schema.get(key):
                yield invalid_value(
                    f"{field}.{key}", True, "must be false if x-kubernetes-int-or-string is true"
                )


def _junctors(schema: Schema, field: str, whole: Schema | None) -> Iterator[FieldError]:
    """What stands under anyOf, allOf, oneOf and not: validation only, of fields that `whole` has too."""
    for key in _JUNCTORS:
        if key == "anyOf" and schema.get("x-kubernetes-int-or-string") and schema.get(key) == _INT_OR_STRING:
            continue
        for index, inner in enumerate(schema.get(key) or ()):
            where = f"{field}.{key}[{index}]"
            pair = key == "allOf" and index == 0 and inner.get("anyOf") == _INT_OR_STRING
            if pair and schema.get("x-kubernetes-int-or-string"):
                inner = {k: v for k, v in inner.items() if k != "anyOf"}
            yield from _nested(inner, where, whole, field)
    if isinstance(schema.get("not"), Mapping):
        yield from _nested(schema["not"], f"{field}.not", whole, field)
    if schema.get("pattern") and (problem := pattern_error(schema["pattern"])):
        text = f"must be a valid regular expression, but isn't: {problem}"
        yield invalid_value(f"{field}.pattern", schema["pattern"], text)


def _nested(schema: Schema, field: str, whole: Schema | None, whole_field: str) -> Iterator[FieldError]:
    if whole is None:
        yield required(whole_field, f"because it is defined in {field}")
        return
    for key, text in _EMPTY_IN_JUNCTOR.items():
        if schema.get(key) not in (None, "", [], False):
            yield forbidden_field(f"{field}.{key}", text)
    yield from _junctors_inside(schema, field, whole, whole_field)
    if isinstance(schema.get("items"), Mapping):
        inner = whole.get("items")
        yield from _nested(schema["items"], f"{field}.items", inner, f"{whole_field}.items")
    properties = schema.get("properties") or {}
    for key, child in properties.items():
        inner = (whole.get("properties") or {}).get(key)
        yield from _nested(child, f"{field}.properties[{key}]", inner, f"{whole_field}.properties[{key}]")
    if "metadata" in properties:
        yield forbidden_field(f"{field}.properties[metadata]", "must not be specified in a nested context")


def _junctors_inside(schema: Schema, field: str, whole: Schema, whole_field: str) -> Iterator[FieldError]:
    for key in _JUNCTORS:
        for index, inner in enumerate(schema.get(key) or ()):
            yield from _nested(inner, f"{field}.{key}[{index}]", whole, whole_field)
    if isinstance(schema.get("not"), Mapping):
        yield from _nested(schema["not"], f"{field}.not", whole, whole_field)
    if schema.get("pattern") and (problem := pattern_error(schema["pattern"])):
        text = f"must be a valid regular expression, but isn't: {problem}"
        yield invalid_value(f"{field}.pattern", schema["pattern"], text)


def _defaults(schema: Schema, field: str) -> Iterator[FieldError]:
    """Each default must be valid, and must have no field that pruning would remove."""
    value = schema.get("default")
    if value is not None:
        pruned = copy(value)
        if prune({"default": pruned}, {"properties": {"default": schema}}):
            yield invalid_value(f"{field}.default", value, "must not have unknown fields")
        filled = copy(value)
        default(filled, schema)
        yield from validate(filled, schema, field=f"{field}.default")
    for key, child in (schema.get("properties") or {}).items():
        yield from _defaults(child, f"{field}.properties[{key}]")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            yield from _defaults(schema[key], f"{field}.{key}")


class _Place:
    """Where the walk is: what is forbidden there, and whether it is a resource."""

    def __init__(self, *, root: bool = False, no_defaults: str = "", no_old: str = "") -> None:
        self.root = root
        self.no_defaults = no_defaults
        self.no_old = no_old


def _walk(
    schema: Schema, field: str, errors: list[FieldError], rule_errors: list[FieldError], place: _Place
) -> None:
    """The checks that hold for any schema, also under junctors, and its rules."""
    before = len(errors)
    errors += _plain_errors(schema, field, place)
    additional, properties = schema.get("additionalProperties"), schema.get("properties") or {}
    if additional is not None and properties and (additional is False or isinstance(additional, Mapping)):
        text = "additionalProperties and properties are mutual exclusive"
        errors.append(forbidden_field(f"{field}.additionalProperties", text))
    if isinstance(additional, Mapping):
        inner = _Place(no_defaults=place.no_defaults, no_old=place.no_old)
        _walk(additional, f"{field}.additionalProperties", errors, rule_errors, inner)
    atomic_map = field if schema.get("x-kubernetes-map-type") == "atomic" else place.no_old
    for key, child in properties.items():
        reserved = place.root and key in ("apiVersion", "kind", "metadata")
        reason = f"in top-level {key}" if reserved else place.no_defaults
        inner = _Place(no_defaults=reason, no_old=atomic_map)
        _walk(child, f"{field}.properties[{key}]", errors, rule_errors, inner)
    for key in _JUNCTORS:
        for index, child in enumerate(schema.get(key) or ()):
            _walk(child, f"{field}.{key}[{index}]", errors, [], _Place(no_old=place.no_old))
    if isinstance(schema.get("not"), Mapping):
        _walk(schema["not"], f"{field}.not", errors, [], _Place(no_old=place.no_old))
    items = schema.get("items")
    if isinstance(items, Mapping):
        keyed = schema.get("x-kubernetes-list-type") == "map"
        inner = _Place(no_defaults=place.no_defaults, no_old=place.no_old if keyed else field)
        _walk(items, f"{field}.items", errors, rule_errors, inner)
    errors += _list_type_errors(schema, field)
    errors += _rule_texts(schema, field)
    if len(errors) == before:
        rule_errors += _rule_errors(schema, field, place)


def _plain_errors(schema: Schema, field: str, place: _Place) -> Iterator[FieldError]:
    kind = schema.get("type") or ""
    if schema.get("default") is not None and place.no_defaults:
        yield forbidden_field(f"{field}.default", f"must not be set {place.no_defaults}")
    for key, text in _UNSUPPORTED.items():
        if schema.get(key):
            yield forbidden_field(f"{field}.{key}", text)
    if kind == "null":
        yield forbidden_field(f"{field}.type", "type cannot be set to null, use nullable as an alternative")
    elif kind and kind not in TYPES:
        yield not_supported(f"{field}.type", kind, TYPES)
    if isinstance(schema.get("items"), list):
        yield forbidden_field(f"{field}.items", "items must be a schema object and not an array")
    if schema.get("uniqueItems"):
        text = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        yield forbidden_field(f"{field}.uniqueItems", text)
    key = "x-kubernetes-preserve-unknown-fields"
    if schema.get(key) is False:
        yield invalid_value(f"{field}.{key}", False, "must be true or undefined")
    for key, wanted, allowed in (
        ("x-kubernetes-map-type", "object", ("atomic", "granular")),
        ("x-kubernetes-list-type", "array", ("atomic", "set", "map")),
    ):
        value = schema.get(key)
        if value is None:
            continue
        if kind != wanted:
            text = f"must be {wanted} if {key} is specified"
            where = f"{field}.type"
            yield invalid_value(where, kind, text) if kind else required(where, text)
        if value not in allowed:
            yield not_supported(f"{field}.{key}", value, allowed)


def _list_type_errors(schema: Schema, field: str) -> Iterator[FieldError]:
    kind, keys = schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys") or ()
    where = f"{field}.x-kubernetes-list-map-keys"
    items = schema.get("items")
    if keys and kind != "map":
        text, at = "must be map if x-kubernetes-list-map-keys is non-empty", f"{field}.x-kubernetes-list-type"
        yield invalid_value(at, kind, text) if kind else required(at, text)
    if kind in ("set", "map") and isinstance(items, Mapping) and items.get("nullable"):
        text = f"cannot be nullable when x-kubernetes-list-type is {kind}"
        yield forbidden_field(f"{field}.items.nullable", text)
    if kind != "map":
        return
    if not keys:
        yield required(where, "must not be empty if x-kubernetes-list-type is map")
    if items is None:
        yield required(f"{field}.items", "must have a schema if x-kubernetes-list-type is map")
    if not isinstance(items, Mapping):
        return
    if items.get("type") != "object":
        text = "must be object if parent array's x-kubernetes-list-type is map"
        yield invalid_value(f"{field}.items.type", items.get("type") or "", text)
        return
    properties = items.get("properties") or {}
    for index, key in enumerate(keys):
        if key in keys[:index]:
            yield invalid_value(where, list(keys), "must not contain duplicate entries")
        if key not in properties:
            yield invalid_value(where, list(keys), "entries must all be names of item properties")
        else:
            yield from _map_key_errors(key, properties[key], items, f"{field}.items.properties[{key}]")


def _map_key_errors(key: str, schema: Schema, items: Schema, field: str) -> Iterator[FieldError]:
    if schema.get("type") in ("array", "object"):
        text = "must be a scalar type if parent array's x-kubernetes-list-type is map"
        yield invalid_value(f"{field}.type", items.get("type"), text)
    named = "this property is in x-kubernetes-list-map-keys, so it"
    if schema.get("default") is None and key not in (items.get("required") or ()):
        yield required(f"{field}.default", f"{named} must have a default or be a required property")
    if schema.get("nullable"):
        yield forbidden_field(f"{field}.nullable", f"{named} cannot be nullable")


def _rule_texts(schema: Schema, field: str) -> Iterator[FieldError]:
    for index, entry in enumerate(schema.get("x-kubernetes-validations") or ()):
        where = f"{field}.x-kubernetes-validations[{index}]"
        rule, message = entry.get("rule") or "", entry.get("message") or ""
        if not rule.strip():
            yield required(f"{where}.rule", "rule is not specified")
        elif message and not message.strip():
            yield invalid_value(f"{where}.message", message, "must be non-empty if specified")
        elif "\n" in message.strip():
            yield invalid_value(f"{where}.message", message, "must not contain line breaks")
        elif "\n" in rule.strip() and not message.strip():
            yield required(f"{where}.message", "message must be specified if rule contains line breaks")
        text = entry.get("messageExpression") or ""
        if text and not text.strip():
            yield required(f"{where}.messageExpression", "messageExpression must be non-empty if specified")
        if entry.get("reason") is not None and entry["reason"] not in REASONS:
            yield not_supported(f"{where}.reason", entry["reason"], REASONS)
        path = entry.get("fieldPath") or ""
        if path and not path.strip():
            yield invalid_value(f"{where}.fieldPath", path, "must be non-empty if specified")
        elif "\n" in path:
            yield invalid_value(f"{where}.fieldPath", path, "must not contain line breaks")
        elif path and not _leads_somewhere(schema, path.strip()):
            yield invalid_value(f"{where}.fieldPath", path, "must be a valid path")


def _leads_somewhere(schema: Schema, path: str) -> bool:
    current: Any = schema
    for name in path.removeprefix(".").replace("['", ".").replace("']", "").strip(".").split("."):
        if not isinstance(current, Mapping):
            return False
        properties, additional = current.get("properties") or {}, current.get("additionalProperties")
        current = properties.get(name, additional)
    return isinstance(current, Mapping)


def _rule_errors(schema: Schema, field: str, place: _Place) -> Iterator[FieldError]:
    resource = place.root or bool(schema.get("x-kubernetes-embedded-resource"))
    for index, entry in enumerate(schema.get("x-kubernetes-validations") or ()):
        where = f"{field}.x-kubernetes-validations[{index}].rule"
        try:
            rule = compile_rule(entry, schema, is_resource=resource)
        except CelError as error:
            yield invalid_value(where, entry, str(error))
            continue
        if rule.expression.uses_old and place.no_old:
            text = f"oldSelf cannot be used on the uncorrelatable portion of the schema within {place.no_old}"
            yield invalid_value(where, entry["rule"], text)
