"""The CRDs' schemas and the typed policies say the same: fields, bounds and choices."""

import enum
from typing import Any

import pytest
from msgspec import inspect

from manifests.crds.mesh_policy import mesh_policy
from manifests.crds.traffic_policy import traffic_policy
from mesh_api.policy_types import LATER_VALUES, MeshSpec, Part, TrafficSpec, WorkloadKind

Schema = dict[str, Any]


def compare(wanted: inspect.Type, schema: Schema, path: str) -> list[str]:
    """Where a type and a schema differ."""
    if isinstance(wanted, inspect.UnionType):
        wanted = next(one for one in wanted.types if not isinstance(one, inspect.NoneType))
    if isinstance(wanted, inspect.Metadata):
        wanted = wanted.type
    match wanted:
        case inspect.StructType(cls=cls, fields=fields):
            assert issubclass(cls, Part)
            properties = schema["properties"]
            wrong = []
            names = {field.encode_name for field in fields} | set(cls.later)
            if names != set(properties):
                wrong.append(f"{path}: fields {sorted(names ^ set(properties))}")
            for field in fields:
                if field.encode_name in properties:
                    wrong += compare(field.type, properties[field.encode_name], f"{path}.{field.encode_name}")
            if cls.only_one:
                one_of = [tuple(each["required"]) for each in schema["oneOf"]]
                wrong += [] if one_of == [(name,) for name in cls.only_one] else [f"{path}: oneOf {one_of}"]
            return wrong
        case inspect.DictType(value_type=value):
            bounds = (wanted.min_length or 0, wanted.max_length)
            said = (schema.get("minProperties", 0), schema["maxProperties"])
            return compare(value, schema["additionalProperties"], f"{path}.*") + different(path, bounds, said)
        case inspect.VarTupleType(item_type=item):
            bounds = (wanted.min_length or 0, wanted.max_length)
            said = (schema.get("minItems", 0), schema["maxItems"])
            return compare(item, schema["items"], f"{path}[]") + different(path, bounds, said)
        case inspect.EnumType(cls=choices):
            return choice(path, choices, schema)
        case inspect.IntType() | inspect.FloatType():
            return different(path, (wanted.ge, wanted.le), (schema["minimum"], schema["maximum"]))
        case inspect.StrType():
            pattern = (wanted.pattern or "").replace(r"\Z", "$")
            bounds = (wanted.min_length or 0, wanted.max_length)
            wrong = different(path, bounds, (schema["minLength"], schema["maxLength"]))
            if "pattern" in schema:
                wrong += different(path, (pattern,), (schema["pattern"],))
            return wrong
        case inspect.CustomType():
            return different(path, ("string",), (schema["type"],))
        case inspect.BoolType():
            return different(path, ("boolean",), (schema["type"],))
    raise AssertionError(f"{path}: {wanted}")


def choice(path: str, choices: type[enum.Enum], schema: Schema) -> list[str]:
    if choices is WorkloadKind:
        return []  # kinds of other API groups come with time: only the webhook knows them
    known = {one.value for one in choices} | set(LATER_VALUES.get(choices, ()))
    return different(path, sorted(known), sorted(schema["enum"]))


def different(path: str, ours: Any, theirs: Any) -> list[str]:
    return [] if ours == theirs else [f"{path}: {ours} here, {theirs} in the schema"]


@pytest.mark.parametrize(("spec", "crd"), [(TrafficSpec, traffic_policy), (MeshSpec, mesh_policy)])
def test_types_and_schemas_agree(spec: type[Part], crd: Any) -> None:
    schema = crd({})["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert compare(inspect.type_info(spec), schema, "spec") == []
