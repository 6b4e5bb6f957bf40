"""The official Python client against a local cluster."""

import json
from typing import Any

import pytest
from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.exceptions import ApiException

from tests.support.local_cluster import Cluster

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:kubernetes"),
    # The client leaves the sockets of watches to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "gears.test.triomesh.dev"},
    "spec": {
        "group": "test.triomesh.dev",
        "scope": "Namespaced",
        "names": {"plural": "gears", "singular": "gear", "kind": "Gear"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "required": ["teeth"],
                                "properties": {
                                    "teeth": {"type": "integer", "minimum": 3},
                                    "metal": {"type": "string", "default": "steel"},
                                },
                            },
                            "status": {"type": "object", "properties": {"turns": {"type": "integer"}}},
                        },
                    }
                },
            }
        ],
    },
}


@pytest.fixture(scope="module")
def api(cluster: Cluster) -> client.ApiClient:
    return config.new_client_from_config(str(cluster.kubeconfig))


@pytest.fixture(scope="module")
def gears(cluster: Cluster) -> Any:
    cluster.apply(CRD)
    cluster.kubectl("wait", "--for=condition=Established", "crd/gears.test.triomesh.dev", "--timeout=20s")
    yield ("test.triomesh.dev", "v1")
    cluster.kubectl("delete", "crd", "gears.test.triomesh.dev")


def test_list_watch_and_errors(api: client.ApiClient, namespace: str) -> None:
    core = client.CoreV1Api(api)
    body = {"metadata": {"name": "a"}, "data": {"k": "1"}}
    core.create_namespaced_config_map(namespace, body)
    listed = core.list_namespaced_config_map(namespace)
    assert {m.metadata.name for m in listed.items} >= {"a"}
    core.patch_namespaced_config_map("a", namespace, {"data": {"k": "2"}})
    core.patch_namespaced_config_map("a", namespace, [{"op": "replace", "path": "/data/k", "value": "3"}])
    core.delete_namespaced_config_map("a", namespace)
    stream = watch.Watch().stream(
        core.list_namespaced_config_map,
        namespace,
        resource_version=listed.metadata.resource_version,
        field_selector="metadata.name=a",
        timeout_seconds=5,
    )
    seen = []
    for event in stream:
        seen.append((event["type"], event["object"].data["k"]))
        if event["type"] == "DELETED":
            break
    assert seen == [("MODIFIED", "2"), ("MODIFIED", "3"), ("DELETED", "3")]
    with pytest.raises(ApiException) as caught:
        core.read_namespaced_config_map("a", namespace)
    assert caught.value.status == 404
    assert json.loads(caught.value.body)["message"] == 'configmaps "a" not found'
    with pytest.raises(ApiException) as caught:
        core.create_namespace({"metadata": {"name": namespace}})
    assert caught.value.reason == "Conflict"


def test_custom_objects(api: client.ApiClient, gears: tuple[str, str], namespace: str) -> None:
    custom = client.CustomObjectsApi(api)
    where = (*gears, namespace, "gears")
    gear = {"apiVersion": "test.triomesh.dev/v1", "kind": "Gear", "metadata": {"name": "g"}}
    made = custom.create_namespaced_custom_object(*where, {**gear, "spec": {"teeth": 9, "colour": "red"}})
    assert made["spec"] == {"teeth": 9, "metal": "steel"}
    assert made["metadata"]["generation"] == 1
    changed = custom.patch_namespaced_custom_object(*where, "g", {"spec": {"metal": None, "teeth": 12}})
    assert changed["spec"] == {"teeth": 12, "metal": "steel"}
    assert changed["metadata"]["generation"] == 2
    status = custom.patch_namespaced_custom_object_status(*where, "g", {"status": {"turns": 4}})
    assert status["status"] == {"turns": 4}
    assert status["metadata"]["generation"] == 2
    stale = {**made, "spec": {"teeth": 5}}
    with pytest.raises(ApiException) as caught:
        custom.replace_namespaced_custom_object(*where, "g", stale)
    assert caught.value.status == 409
    with pytest.raises(ApiException) as caught:
        custom.create_namespaced_custom_object(
            *where, {**gear, "metadata": {"name": "bad"}, "spec": {"teeth": "many"}}
        )
    assert caught.value.status == 422
    assert 'spec.teeth: Invalid value: "string"' in json.loads(caught.value.body)["message"]
    page = custom.list_namespaced_custom_object(*where, limit=1)
    assert page["items"][0]["kind"] == "Gear"


def test_dynamic_client_and_create_from_dict(
    api: client.ApiClient, gears: tuple[str, str], namespace: str
) -> None:
    resources = dynamic.DynamicClient(api).resources
    found = resources.get(api_version="test.triomesh.dev/v1", kind="Gear")
    assert found.get(namespace=namespace).items == []
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": namespace},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "local", "command": ["true"]}]},
            },
        },
    }
    utils.create_from_dict(api, deployment)
    with pytest.raises(utils.FailToCreateError, match="already exists"):
        utils.create_from_dict(api, deployment)
    apps = client.AppsV1Api(api)
    scaled = apps.patch_namespaced_deployment_scale("d", namespace, {"spec": {"replicas": 1}})
    assert scaled.spec.replicas == 1


def test_a_watch_from_a_version_too_old_is_410(api: client.ApiClient, gears: tuple[str, str]) -> None:
    custom = client.CustomObjectsApi(api)
    stream = watch.Watch().stream(
        custom.list_cluster_custom_object, *gears, "gears", resource_version="1", timeout_seconds=5
    )
    with pytest.raises(ApiException) as caught:
        next(iter(stream))
    assert caught.value.status == 410


def test_version_and_resources(api: client.ApiClient) -> None:
    assert client.VersionApi(api).get_code().minor.startswith("36")
    names = {r.name for r in client.CoreV1Api(api).get_api_resources().resources}
    assert {"pods", "pods/log", "services/proxy", "serviceaccounts/token"} <= names
    groups = {g.name for g in client.ApisApi(api).get_api_versions().groups}
    assert "apps" in groups
