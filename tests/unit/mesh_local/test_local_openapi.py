"""The OpenAPI v3 documents and their index."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from mesh_local.kinds.base import Kind, Subresource
from mesh_local.machinery import openapi

POD = Kind(
    kind="Pod",
    plural="pods",
    singular="pod",
    definition="io.k8s.api.core.v1.Pod",
    subresources=(
        Subresource("status", "Pod", ("get", "patch", "update")),
        Subresource("binding", "Binding", ("create",)),
    ),
)
NODE = Kind(
    kind="Node", plural="nodes", singular="node", namespaced=False, definition="io.k8s.api.core.v1.Node"
)
DEPLOYMENT = Kind(
    kind="Deployment",
    plural="deployments",
    singular="deployment",
    group="apps",
    definition="io.k8s.api.apps.v1.Deployment",
    subresources=(
        Subresource("scale", "Scale", ("get", "patch", "update"), group="autoscaling", version="v1"),
    ),
)
REVIEW = Kind(
    kind="TokenReview",
    plural="tokenreviews",
    singular="tokenreview",
    group="authentication.k8s.io",
    namespaced=False,
    verbs=("create",),
    definition="io.k8s.api.authentication.v1.TokenReview",
)
WIDGET = Kind(
    kind="Widget",
    plural="widgets",
    singular="widget",
    group="demo.example.com",
    openapi={
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "nullable": True}
        },
    },
)
KINDS = [POD, NODE, DEPLOYMENT, REVIEW, WIDGET]


def walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def operation(document: dict[str, Any], path: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = document["paths"][path][method]
    return found


def test_the_index_has_a_document_for_each_group_version() -> None:
    paths = openapi.index(KINDS)["paths"]
    assert sorted(paths) == [
        "api/v1",
        "apis/apps/v1",
        "apis/authentication.k8s.io/v1",
        "apis/demo.example.com/v1",
    ]
    digest = openapi.digest("apps", "v1", KINDS)
    assert paths["apis/apps/v1"]["serverRelativeURL"] == f"/openapi/v3/apis/apps/v1?hash={digest}"


def test_the_hash_follows_the_content() -> None:
    before = openapi.digest("demo.example.com", "v1", KINDS)
    assert openapi.digest("demo.example.com", "v1", KINDS[::-1]) == before
    changed = dataclasses.replace(WIDGET, openapi={"type": "object"})
    assert openapi.digest("demo.example.com", "v1", [POD, changed]) != before
    assert openapi.digest("", "v1", [POD, changed]) == openapi.digest("", "v1", [POD, WIDGET])


def test_every_reference_resolves_within_the_document() -> None:
    for group in ("", "apps", "authentication.k8s.io", "demo.example.com"):
        document = openapi.document(group, "v1", KINDS)
        schemas = document["components"]["schemas"]
        references = [v["$ref"] for v in walk(document) if "$ref" in v]
        assert references
        assert {r.removeprefix("#/components/schemas/") for r in references} <= set(schemas)


def test_only_what_is_reachable_is_published() -> None:
    schemas = openapi.document("", "v1", KINDS)["components"]["schemas"]
    assert {"io.k8s.api.core.v1.PodList", "io.k8s.api.core.v1.Binding", "io.k8s.api.core.v1.NodeSpec"} <= set(
        schemas
    )
    assert "io.k8s.api.apps.v1.Deployment" not in schemas


def test_schemas_have_no_null_types_and_keep_the_extensions() -> None:
    document = openapi.document("", "v1", KINDS)
    assert not [v for v in walk(document) if isinstance(v.get("type"), list)]
    schemas = document["components"]["schemas"]
    pod = schemas["io.k8s.api.core.v1.Pod"]
    assert pod["x-kubernetes-group-version-kind"] == [{"group": "", "kind": "Pod", "version": "v1"}]
    assert "enum" not in pod["properties"]["kind"]
    containers = schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"]
    assert containers["x-kubernetes-patch-merge-key"] == "name"
    assert containers["items"] == {"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"}
    spec = pod["properties"]["spec"]
    assert spec["allOf"] == [{"$ref": "#/components/schemas/io.k8s.api.core.v1.PodSpec"}]
    assert spec["description"]


def test_writes_take_the_parameters_that_kubectl_looks_for() -> None:
    document = openapi.document("", "v1", KINDS)
    item = "/api/v1/namespaces/{namespace}/pods/{name}"
    patch = operation(document, item, "patch")
    assert patch["x-kubernetes-group-version-kind"] == {"group": "", "version": "v1", "kind": "Pod"}
    assert patch["x-kubernetes-action"] == "patch"
    assert [p["name"] for p in patch["parameters"]] == ["dryRun", "fieldManager", "fieldValidation"]
    assert "application/strategic-merge-patch+json" in patch["requestBody"]["content"]
    assert [p["name"] for p in operation(document, item, "delete")["parameters"]] == ["dryRun"]
    assert operation(document, item, "get")["parameters"] == []


def test_paths_follow_scope_verbs_and_subresources() -> None:
    paths = set(openapi.document("", "v1", KINDS)["paths"])
    assert paths == {
        "/api/v1/nodes",
        "/api/v1/nodes/{name}",
        "/api/v1/pods",
        "/api/v1/namespaces/{namespace}/pods",
        "/api/v1/namespaces/{namespace}/pods/{name}",
        "/api/v1/namespaces/{namespace}/pods/{name}/status",
        "/api/v1/namespaces/{namespace}/pods/{name}/binding",
    }
    reviews = openapi.document("authentication.k8s.io", "v1", KINDS)["paths"]
    assert set(reviews["/apis/authentication.k8s.io/v1/tokenreviews"]) == {"post"}
    assert len(reviews) == 1


def test_a_subresource_may_be_of_another_group() -> None:
    document = openapi.document("apps", "v1", KINDS)
    scale = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"
    found = operation(document, scale, "put")
    assert found["x-kubernetes-group-version-kind"] == {
        "group": "autoscaling",
        "version": "v1",
        "kind": "Scale",
    }
    assert "io.k8s.api.autoscaling.v1.Scale" in document["components"]["schemas"]


def test_operation_ids_are_unique() -> None:
    document = openapi.document("", "v1", KINDS)
    ids = [v["operationId"] for v in walk(document["paths"]) if "operationId" in v]
    assert len(ids) == len(set(ids))
    assert "readCoreV1NamespacedPod" in ids
    assert "listCoreV1PodForAllNamespaces" in ids


def test_a_custom_resource_is_published_with_its_schema() -> None:
    document = openapi.document("demo.example.com", "v1", KINDS)
    widget = document["components"]["schemas"]["com.example.demo.v1.Widget"]
    assert widget["properties"]["spec"]["nullable"] is True
    assert set(widget["properties"]) == {"apiVersion", "kind", "metadata", "spec"}
    assert widget["required"] == ["spec"]
    assert WIDGET.openapi is not None
    assert set(WIDGET.openapi["properties"]) == {"spec"}
    item = "/apis/demo.example.com/v1/namespaces/{namespace}/widgets/{name}"
    content = operation(document, item, "patch")["requestBody"]["content"]
    assert set(content) == {"application/json-patch+json", "application/merge-patch+json"}


def test_documents_are_json() -> None:
    assert json.loads(json.dumps(openapi.document("", "v1", KINDS)))["openapi"] == "3.0.0"
