"""The real kubectl with custom resources, and with the protobuf bodies that its `create` sends."""

import json

import pytest
import trio
import yaml

from tests.support.local_api import local_api
from tests.support.local_crd import BOX
from tests.support.local_http import KUBECTL, served

pytestmark = pytest.mark.skipif(not KUBECTL.exists(), reason="kubectl is not installed")
OBJECT = {
    "apiVersion": "shop.example/v1",
    "kind": "Box",
    "metadata": {"name": "b", "namespace": "t"},
    "spec": {"mode": "fast"},
}
LIMIT_S = 45


def with_kubectl(tmp_path, story):
    async def main():
        with trio.fail_after(LIMIT_S):
            async with local_api(tmp_path) as api, served(api, tmp_path) as server:
                await story(server.kubectl)

    trio.run(main)


def test_the_life_of_a_custom_resource(tmp_path):
    async def story(kubectl):
        apply = ("apply", "-f", "-")
        await kubectl("create", "namespace", "t")
        assert await kubectl(*apply, stdin=BOX) == (
            "customresourcedefinition.apiextensions.k8s.io/boxes.shop.example created\n"
        )
        await kubectl("wait", "--for=condition=Established", "crd/boxes.shop.example", "--timeout=20s")
        assert await kubectl(*apply, stdin=json.dumps(OBJECT)) == "box.shop.example/b created\n"
        assert await kubectl(*apply, stdin=json.dumps(OBJECT)) == "box.shop.example/b unchanged\n"
        header, row = (await kubectl("-n", "t", "get", "bx", "-o", "wide")).splitlines()
        assert header.split() == ["NAME", "MODE", "SIZE", "READY", "AGE"]
        assert row.split()[:3] == ["b", "fast", "3"]
        wrong = OBJECT | {"spec": {"mode": "odd", "size": 99}}
        refusal = await kubectl(*apply, stdin=json.dumps(wrong), check=False)
        assert '* spec.mode: Unsupported value: "odd": supported values: "fast", "slow"' in refusal
        assert (
            "* spec.size: Invalid value: 99: spec.size in body should be less than or equal to 10" in refusal
        )
        unknown = OBJECT | {"spec": {"mode": "fast", "hots": 1}}
        assert 'unknown field "spec.hots"' in await kubectl(*apply, stdin=json.dumps(unknown), check=False)
        assert await kubectl("-n", "t", "scale", "box", "b", "--replicas=2") == "box.shop.example/b scaled\n"
        patch = ("patch", "box", "b", "--type=merge")
        await kubectl("-n", "t", *patch, "--subresource=status", "-p", '{"status": {"size": 2}}')
        await kubectl("-n", "t", *patch, "-p", '{"status": {"size": 9}, "metadata": {"labels": {"x": "y"}}}')
        found = json.loads(await kubectl("-n", "t", "get", "box", "b", "-o", "json"))
        assert (found["spec"], found["status"]) == ({"mode": "fast", "size": 2}, {"size": 2})
        assert found["metadata"]["generation"] == 2
        assert "Mode:  fast" in await kubectl("-n", "t", "describe", "box", "b")
        await kubectl("delete", "crd", "boxes.shop.example")
        assert "could not find the requested resource" in await kubectl("-n", "t", "get", "bx", check=False)

    with_kubectl(tmp_path, story)


def test_a_bad_definition_is_refused(tmp_path):
    async def story(kubectl):
        crd = yaml.safe_load(BOX)
        crd["metadata"]["name"] = "other.shop.example"
        refusal = await kubectl("apply", "-f", "-", stdin=json.dumps(crd), check=False)
        assert (
            'metadata.name: Invalid value: "other.shop.example": must be spec.names.plural+"."+spec.group'
            in (refusal)
        )

    with_kubectl(tmp_path, story)


def test_kinds_that_kubectl_creates_with_protobuf(tmp_path):
    async def story(kubectl):
        await kubectl("create", "namespace", "t")
        created = [
            ("deployment/d", ("deployment", "d", "--image=a/b:1", "--replicas=0", "--port=80")),
            ("service/s", ("service", "nodeport", "s", "--tcp=80:http")),
            ("secret/s", ("secret", "generic", "s", "--from-literal=a=b")),
            ("serviceaccount/a", ("serviceaccount", "a")),
            ("role/r", ("role", "r", "--verb=get", "--resource=pods")),
            ("rolebinding/b", ("rolebinding", "b", "--role=r", "--user=u")),
            ("clusterrole/c", ("clusterrole", "c", "--verb=get", "--non-resource-url=/metrics")),
            ("clusterrolebinding/b", ("clusterrolebinding", "b", "--clusterrole=c", "--group=g")),
            ("job/j", ("job", "j", "--image=a/b:1")),
        ]
        for _name, command in created:
            assert "created" in await kubectl("-n", "t", "create", *command)
        deployment = json.loads(await kubectl("-n", "t", "get", "deployment", "d", "-o", "json"))
        assert deployment["spec"]["replicas"] == 0
        assert deployment["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] == 80
        assert await kubectl("-n", "t", "get", "secret", "s", "-o", "jsonpath={.data.a}") == "Yg=="
        assert (
            await kubectl("-n", "t", "get", "svc", "s", "-o", "jsonpath={.spec.ports[0].targetPort}")
            == "http"
        )

    with_kubectl(tmp_path, story)
