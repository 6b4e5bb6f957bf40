"""The OpenAPI v2 document, and its protobuf form."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from mesh_local.kinds.base import Kind
from mesh_local.kinds.builtin import BUILTIN
from mesh_local.machinery import openapi_v2
from mesh_local.machinery.protobuf_wire import fields

META = "io.k8s.apimachinery.pkg.apis.meta.v1."
GEAR = "dev.triomesh.test.v1.Gear"
PRESERVE = "x-kubernetes-preserve-unknown-fields"
EMBEDDED = "x-kubernetes-embedded-resource"


def gear(**properties: Any) -> Kind:
    return custom({"type": "object", "properties": properties})


def custom(schema: dict[str, Any]) -> Kind:
    return Kind(kind="Gear", plural="gears", singular="gear", group="test.triomesh.dev", openapi=schema)


def published(**properties: Any) -> dict[str, Any]:
    """The properties of a custom resource as v2 has them."""
    found: dict[str, Any] = openapi_v2.document([gear(**properties)])["definitions"][GEAR]["properties"]
    return found


def walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def at(data: bytes, *numbers: int) -> list[Any]:
    """Every value at a path of field numbers."""
    found: list[Any] = [data]
    for wanted in numbers:
        found = [value for message in found for number, _, value in fields(message, "") if number == wanted]
    return found


def named(entries: list[bytes]) -> dict[str, bytes]:
    return {at(entry, 1)[0].decode(): b"".join(at(entry, 2)) for entry in entries}


def encoded_definition(schema: dict[str, Any]) -> bytes:
    return named(at(openapi_v2.encode({"definitions": {"x": schema}}), 9, 1))["x"]


def test_every_reference_resolves_and_nothing_is_left_of_v3() -> None:
    document = openapi_v2.document([*BUILTIN, gear(a={"type": "string"})])
    references = {v["$ref"] for v in walk(document) if isinstance(v.get("$ref"), str)}
    assert len(references) > 100
    assert {r.removeprefix("#/definitions/") for r in references} <= set(document["definitions"])
    for definition in document["definitions"].values():
        for schema in [definition, *(definition.get("properties") or {}).values()]:
            assert not schema.keys() & {"allOf", "oneOf", "anyOf", "not", "nullable"}
            assert not isinstance(schema.get("type"), list)


def test_unions_are_strings_and_a_reference_keeps_what_is_beside_it() -> None:
    definitions = openapi_v2.document(BUILTIN)["definitions"]
    assert definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] == {"type": "string"}
    port = definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]
    assert port == {"type": "string", "format": "int-or-string"}
    metadata = definitions["io.k8s.api.core.v1.Pod"]["properties"]["metadata"]
    assert metadata["$ref"] == f"#/definitions/{META}ObjectMeta"
    assert metadata["description"].startswith("Standard object's metadata.")
    containers = definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]
    assert containers["x-kubernetes-patch-merge-key"] == "name"


def test_an_operation_has_its_bodies_as_parameter_and_media_types() -> None:
    paths = openapi_v2.document(BUILTIN)["paths"]
    item = paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]
    assert {"name": "name", "in": "path", "required": True, "type": "string"}.items() <= item["parameters"][
        0
    ].items()
    patch = item["patch"]
    assert patch["parameters"][0] == {
        "name": "body",
        "in": "body",
        "required": True,
        "schema": {"$ref": f"#/definitions/{META}Patch"},
    }
    query = {p["name"]: p["type"] for p in patch["parameters"] if p["in"] == "query"}
    assert query == {"dryRun": "string", "fieldManager": "string", "fieldValidation": "string"}
    assert "application/strategic-merge-patch+json" in patch["consumes"]
    assert patch["produces"] == ["application/json", "application/yaml"]
    deployment = {"$ref": "#/definitions/io.k8s.api.apps.v1.Deployment"}
    assert patch["responses"]["200"] == {"description": "OK", "schema": deployment}
    assert patch["responses"]["401"] == {"description": "Unauthorized"}
    assert "requestBody" not in patch


def test_a_custom_kind_has_the_reversed_name_of_its_group() -> None:
    definition = openapi_v2.document([gear(spec={"type": "object"})])["definitions"][GEAR]
    gvk = {"group": "test.triomesh.dev", "version": "v1", "kind": "Gear"}
    assert definition["x-kubernetes-group-version-kind"] == [gvk]
    assert definition["properties"]["metadata"]["$ref"] == f"#/definitions/{META}ObjectMeta"
    assert set(definition["properties"]) == {"apiVersion", "kind", "metadata", "spec"}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "array", "items": {"type": "string"}, "nullable": True}, {}),
        (
            {"type": "object", PRESERVE: True, "properties": {"a": {"type": "string"}}},
            {PRESERVE: True},
        ),
        ({"type": "array", PRESERVE: True, "items": {"type": "string"}}, {PRESERVE: True}),
        ({"type": "object", "properties": {}}, {"type": "object"}),
        ({"type": "", PRESERVE: True}, {PRESERVE: True}),
        (
            {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            {"x-kubernetes-int-or-string": True},
        ),
        (
            {"type": "array", "items": {"type": "string", "nullable": True}},
            {"type": "array", "items": {}},
        ),
        (
            {"type": "object", "additionalProperties": {"type": "integer", "not": {"enum": [1]}}},
            {"type": "object", "additionalProperties": {"type": "integer"}},
        ),
    ],
)
def test_what_kubectl_cannot_read_is_left_out(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert published(a=schema)["a"] == expected


def test_a_nullable_field_is_not_required() -> None:
    properties = {"a": {"type": "string", "nullable": True}, "b": {"type": "string"}}
    spec = {"type": "object", "required": ["a", "b"], "properties": properties}
    assert published(spec=spec)["spec"]["required"] == ["b"]


def test_an_embedded_resource_has_the_fields_of_a_resource() -> None:
    properties = {"spec": {"type": "object", "properties": {"a": {"type": "string"}}}}
    schema = {"type": "array", "items": {"type": "object", EMBEDDED: True, "properties": properties}}
    item = published(a=schema)["a"]["items"]
    assert set(item["properties"]) == {"apiVersion", "kind", "metadata", "spec"}
    assert item["required"] == ["apiVersion", "kind"]
    assert item["properties"]["metadata"]["$ref"] == f"#/definitions/{META}ObjectMeta"


def test_a_custom_kind_without_a_strict_schema_takes_anything() -> None:
    schema = {"type": "object", PRESERVE: True, "properties": {"spec": {"type": "object"}}}
    definition = openapi_v2.document([custom(schema)])["definitions"][GEAR]
    assert set(definition) == {"type", "x-kubernetes-group-version-kind"}


def test_the_protobuf_has_every_definition_and_path() -> None:
    document = openapi_v2.document(BUILTIN)
    raw = openapi_v2.encode(document)
    assert at(raw, 1) == [b"2.0"]
    assert at(raw, 2, 1) == [b"Kubernetes"]
    assert list(named(at(raw, 8, 2))) == list(document["paths"])
    definitions = named(at(raw, 9, 1))
    assert list(definitions) == list(document["definitions"])
    pod = definitions["io.k8s.api.core.v1.Pod"]
    assert at(pod, 22, 1) == [b"object"]
    extensions = {k: yaml.safe_load(at(v, 2)[0]) for k, v in named(at(pod, 31)).items()}
    gvk = {"group": "", "version": "v1", "kind": "Pod"}
    assert extensions == {"x-kubernetes-group-version-kind": [gvk]}
    spec = named(at(pod, 25, 1))["spec"]
    assert at(spec, 1) == [b"#/definitions/io.k8s.api.core.v1.PodSpec"]
    containers = named(at(definitions["io.k8s.api.core.v1.PodSpec"], 25, 1))["containers"]
    assert at(containers, 23, 1, 1) == [b"#/definitions/io.k8s.api.core.v1.Container"]
    data = named(at(definitions["io.k8s.api.core.v1.ConfigMap"], 25, 1))["data"]
    assert at(data, 21, 1, 22, 1) == [b"string"]


def test_the_protobuf_says_that_a_patch_takes_field_validation() -> None:
    raw = openapi_v2.encode(openapi_v2.document(BUILTIN))
    patch = at(named(at(raw, 8, 2))["/api/v1/namespaces/{namespace}/pods/{name}"], 8)[0]
    (extension,) = at(named(at(patch, 13))["x-kubernetes-group-version-kind"], 2)
    assert yaml.safe_load(extension) == {"group": "", "version": "v1", "kind": "Pod"}
    parameters = at(patch, 8, 1)
    assert at(parameters[0], 1, 2) == [b"body"]
    assert [at(p, 2, 3, 4)[0] for p in parameters[1:]] == [b"dryRun", b"fieldManager", b"fieldValidation"]
    assert [at(p, 2, 3, 6)[0] for p in parameters[1:]] == [b"string"] * 3
    responses = named(at(patch, 9, 1))
    assert at(responses["200"], 1, 2, 1, 1) == [b"#/definitions/io.k8s.api.core.v1.Pod"]


def test_limits_and_values_of_a_schema() -> None:
    raw = encoded_definition(
        {
            "minimum": -1.5,
            "exclusiveMinimum": True,
            "maxLength": 300,
            "required": ["a", "b"],
            "enum": ["a", 1, None],
            "default": {"a": [1.5, True]},
            "additionalProperties": False,
        }
    )
    assert struct.unpack("<d", at(raw, 9)[0]) == (-1.5,)
    assert (at(raw, 10), at(raw, 11)) == ([1], [300])
    assert at(raw, 19) == [b"a", b"b"]
    assert [yaml.safe_load(text) for text in at(raw, 20, 2)] == ["a", 1, None]
    assert yaml.safe_load(at(raw, 5, 2)[0]) == {"a": [1.5, True]}
    assert at(raw, 21, 2) == [0]


def test_any_text_survives_as_yaml() -> None:
    value = "a: 'b' \"c\"\n\t# \x7f\x85\u2028\ufeffé\U0001f600\\u"
    raw = encoded_definition({"default": value, "x-more": {value: [value]}})
    assert yaml.safe_load(at(raw, 5, 2)[0]) == value
    assert yaml.safe_load(at(named(at(raw, 31))["x-more"], 2)[0]) == {value: [value]}


@pytest.mark.parametrize(
    ("accepted", "media"),
    [
        (["application/com.github.proto-openapi.spec.v2@v1.0+protobuf"], openapi_v2.PROTOBUF),
        ([openapi_v2.PROTOBUF, "application/json"], openapi_v2.PROTOBUF),
        (["text/html", "application/json"], openapi_v2.JSON),
        (["*/*"], openapi_v2.JSON),
        (["text/html"], ""),
    ],
)
def test_the_media_type_follows_the_client(accepted: list[str], media: str) -> None:
    assert openapi_v2.media_type(accepted) == media


def test_both_forms_are_of_the_same_document() -> None:
    document = openapi_v2.document(BUILTIN)
    assert json.loads(openapi_v2.document_bytes(BUILTIN, openapi_v2.JSON)) == document
    assert openapi_v2.document_bytes(BUILTIN, openapi_v2.PROTOBUF) == openapi_v2.encode(document)
