"""A `kind: List` with the real kubectl, which validates its items by the OpenAPI v2 document."""

import json

import pytest
import trio
import yaml

from tests.support.local_api import local_api
from tests.support.local_crd import BOX
from tests.support.local_http import KUBECTL, Browser, served

PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
ASKED = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
LIMIT_S = 45
APPLY = ("apply", "-f", "-")
MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "b"}}
POD_SPEC = {
    "containers": [
        {
            "name": "c",
            "image": "a:1",
            "resources": {"limits": {"cpu": 1}},
            "readinessProbe": {"httpGet": {"port": 80}},
        }
    ]
}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "d", "creationTimestamp": None},
    "spec": {
        "selector": {"matchLabels": {"app": "d"}},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": POD_SPEC},
    },
}
BOX_OBJECT = {
    "apiVersion": "shop.example/v1",
    "kind": "Box",
    "metadata": {"name": "b"},
    "spec": {"mode": "fast"},
}
kubectl_only = pytest.mark.skipif(not KUBECTL.exists(), reason="kubectl is not installed")


def listed(*items):
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def with_kubectl(tmp_path, story):
    async def main():
        with trio.fail_after(LIMIT_S):
            async with local_api(tmp_path) as api, served(api, tmp_path) as server:
                await server.kubectl("create", "namespace", "default")
                await story(server.kubectl)

    trio.run(main)


@kubectl_only
def test_the_items_of_a_list_are_applied(tmp_path):
    async def story(kubectl):
        shown = await kubectl(*APPLY, stdin=listed(MAP, DEPLOYMENT))
        assert shown == "configmap/m created\ndeployment.apps/d created\n"
        changed = MAP | {"data": {"a": "c"}}
        assert await kubectl(*APPLY, stdin=listed(changed)) == "configmap/m configured\n"

    with_kubectl(tmp_path, story)


@kubectl_only
def test_kubectl_refuses_a_list_with_an_item_that_does_not_fit(tmp_path):
    async def story(kubectl):
        wrong = DEPLOYMENT | {"spec": DEPLOYMENT["spec"] | {"paused": 3, "zz": 1}}
        refusal = await kubectl(*APPLY, stdin=listed(MAP, wrong), check=False)
        assert (
            'ValidationError(Deployment.spec): unknown field "zz" in io.k8s.api.apps.v1.DeploymentSpec'
            in refusal
        )
        assert (
            "ValidationError(Deployment.spec.paused): invalid type for"
            ' io.k8s.api.apps.v1.DeploymentSpec.paused: got "integer", expected "boolean"' in refusal
        )
        assert await kubectl("get", "configmaps,deployments", "-o", "name") == ""
        odd = MAP | {"zz": 1}
        assert await kubectl(*APPLY, "--validate=false", stdin=listed(odd)) == "configmap/m created\n"

    with_kubectl(tmp_path, story)


@kubectl_only
def test_kubectl_validates_a_custom_resource_in_a_list(tmp_path):
    async def story(kubectl):
        await kubectl(*APPLY, stdin=listed(MAP))
        await kubectl(*APPLY, stdin=BOX)
        await kubectl("wait", "--for=condition=Established", "crd/boxes.shop.example", "--timeout=20s")
        assert await kubectl(*APPLY, stdin=listed(BOX_OBJECT)) == "box.shop.example/b created\n"
        wrong = BOX_OBJECT | {"spec": {"mode": "fast", "hots": 1}}
        refusal = await kubectl(*APPLY, stdin=listed(wrong), check=False)
        assert 'ValidationError(Box.spec): unknown field "hots" in example.shop.v1.Box.spec' in refusal
        assert "mode" in await kubectl("explain", "box.spec")

    with_kubectl(tmp_path, story)


def test_the_document_is_negotiated_and_revalidated(tmp_path):
    async def story():
        async with local_api(tmp_path) as local:
            http = Browser(local.api)
            raw = await http("GET", "/openapi/v2", accept=ASKED)
            assert (raw.status, raw.header("content-type")) == (200, PROTOBUF)
            assert raw.body.startswith(b"\x0a\x032.0")
            etag = raw.header("etag")
            again = await http("GET", "/openapi/v2", accept=ASKED, headers={"if-none-match": etag})
            assert (again.status, again.body, again.header("etag")) == (304, b"", etag)
            text = await http("GET", "/openapi/v2", headers={"if-none-match": etag})
            assert (text.status, text.header("content-type")) == (200, "application/json")
            assert text.json["swagger"] == "2.0"
            assert (await http("GET", "/openapi/v2", accept="text/html")).status == 406
            assert "/openapi/v2" in (await http("GET", "/")).json["paths"]

    trio.run(story)


def test_the_document_follows_the_kinds(tmp_path):
    async def story():
        async with local_api(tmp_path) as local:
            http = Browser(local.api)
            before = await http("GET", "/openapi/v2", accept=ASKED)
            crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
            created = await http("POST", crds, yaml.safe_load(BOX))
            assert created.status == 201, created.body
            with trio.fail_after(5):
                while "example.shop.v1.Box" not in (await http("GET", "/openapi/v2")).json["definitions"]:
                    await trio.sleep(0.01)
            old = {"if-none-match": before.header("etag")}
            after = await http("GET", "/openapi/v2", accept=ASKED, headers=old)
            assert after.status == 200
            assert b"example.shop.v1.Box" in after.body

    trio.run(story)
