"""Writes through the HTTP face in process: what a client is answered, as recorded on Kubernetes 1.36."""

import base64
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.local_api import local_api
from tests.support.local_http import Browser

MAPS = "/api/v1/namespaces/ns/configmaps"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/ns/leases"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


@asynccontextmanager
async def server(directory: Path):
    async with local_api(directory) as local:
        yield Browser(local.api), local


def config_map(name: str, **fields):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **fields}


def run(test, directory: Path) -> None:
    async def main():
        async with server(directory) as (http, local):
            with trio.fail_after(20):
                await test(http, local)

    trio.run(main)


def test_a_created_object_gets_its_system_fields(tmp_path):
    async def test(http, local):
        answer = await http("POST", MAPS, config_map("a", data={"k": "v"}))
        assert answer.status == 201
        metadata = answer.json["metadata"]
        assert metadata["namespace"] == "ns"
        assert metadata["resourceVersion"] == str(local.store.version)
        assert {"uid", "creationTimestamp"} <= set(metadata)
        assert "generation" not in metadata
        assert (await http("GET", f"{MAPS}/a")).json == answer.json
        again = await http("POST", MAPS, config_map("a"))
        assert (again.status, again.json["reason"]) == (409, "AlreadyExists")
        assert again.json["message"] == 'configmaps "a" already exists'

    run(test, tmp_path)


def test_generate_name_appends_five_characters_and_avoids_taken_names(tmp_path):
    async def test(http, local):
        body = {"metadata": {"generateName": "gen-"}}
        made = [(await http("POST", MAPS, body)).json["metadata"]["name"] for _ in range(20)]
        assert len(set(made)) == 20
        assert all(len(name) == 9 and name.startswith("gen-") for name in made)

    run(test, tmp_path)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (
            {"metadata": {}},
            422,
            'ConfigMap "" is invalid: metadata.name: Required value: name or generateName is required',
        ),
        (
            {"metadata": {"name": "a", "namespace": "other"}},
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            {"metadata": {"name": "a", "resourceVersion": "5"}},
            500,
            "resourceVersion should not be set on objects to be created",
        ),
        (
            {"metadata": {"name": "a"}, "data": {"x": 1}},
            400,
            'ConfigMap in version "v1" cannot be handled as a ConfigMap: json: cannot unmarshal number into '
            "Go struct field ConfigMap.data of type string",
        ),
        (
            {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "a"}},
            400,
            'Secret in version "v1" cannot be handled as a ConfigMap: converting (v1.Secret) to '
            "(core.ConfigMap): unknown conversion",
        ),
        (
            {"kind": "ConfigMap", "apiVersion": "v2", "metadata": {"name": "a"}},
            400,
            "the API version in the data (v2) does not match the expected API version (v1)",
        ),
    ],
)
def test_a_wrong_object_is_refused_in_the_words_of_kubernetes(tmp_path, body, status, message):
    async def test(http, local):
        answer = await http("POST", MAPS, body)
        assert (answer.status, answer.json["message"]) == (status, message)
        assert ("reason" in answer.json) == (status != 500)

    run(test, tmp_path)


def test_unknown_fields_are_refused_warned_about_or_ignored(tmp_path):
    async def test(http, local):
        strict = await http("POST", f"{MAPS}?fieldValidation=Strict", config_map("a", dataa={}))
        assert strict.status == 400
        assert strict.json["message"].endswith('strict decoding error: unknown field "dataa"')
        warned = await http("POST", MAPS, config_map("b", dataa={}))
        assert (warned.status, warned.header("warning")) == (201, '299 - "unknown field \\"dataa\\""')
        assert "dataa" not in warned.json
        ignored = await http("POST", f"{MAPS}?fieldValidation=Ignore", config_map("c", dataa={}))
        assert (ignored.status, ignored.header("warning")) == (201, None)
        twice = b'{"metadata": {"name": "d"}, "data": {"k": "1", "k": "2"}}'
        doubled = await http("POST", f"{MAPS}?fieldValidation=Strict", twice)
        assert doubled.json["message"].endswith('strict decoding error: duplicate field "data.k"')
        bogus = await http("POST", f"{MAPS}?fieldValidation=Bogus", config_map("e"))
        assert bogus.json["message"] == (
            'CreateOptions.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: "Bogus": '
            'supported values: "", "Ignore", "Strict", "Warn"'
        )

    run(test, tmp_path)


def test_an_update_is_checked_against_the_version_it_was_made_from(tmp_path):
    async def test(http, local):
        first = (await http("POST", MAPS, config_map("a"))).json
        second = await http("PUT", f"{MAPS}/a", {**first, "data": {"k": "2"}})
        assert second.status == 200
        assert second.json["metadata"]["resourceVersion"] != first["metadata"]["resourceVersion"]
        stale = await http("PUT", f"{MAPS}/a", {**first, "data": {"k": "3"}})
        assert (stale.status, stale.json["reason"]) == (409, "Conflict")
        assert stale.json["message"] == (
            'Operation cannot be fulfilled on configmaps "a": the object has been modified; '
            "please apply your "
            "changes to the latest version and try again"
        )
        free = {**first, "metadata": {"name": "a"}, "data": {"k": "4"}}
        assert (await http("PUT", f"{MAPS}/a", free)).json["data"] == {"k": "4"}
        renamed = await http("PUT", f"{MAPS}/a", {**first, "metadata": {"name": "b"}})
        assert renamed.json["message"] == "the name of the object (b) does not match the name on the URL (a)"
        other = {**first, "metadata": {"name": "a", "uid": "00000000-0000-4000-8000-000000000000"}}
        assert (
            "Precondition failed: UID in precondition: 00000000"
            in (await http("PUT", f"{MAPS}/a", other)).json["message"]
        )

    run(test, tmp_path)


def test_a_change_of_nothing_keeps_the_version(tmp_path):
    async def test(http, local):
        first = (await http("POST", MAPS, config_map("a", data={"k": "v"}))).json
        version = local.store.version
        assert (await http("PUT", f"{MAPS}/a", first)).json == first
        patched = await http("PATCH", f"{MAPS}/a", {"data": {"k": "v"}}, type=MERGE)
        assert (patched.status, patched.json) == (200, first)
        assert local.store.version == version

    run(test, tmp_path)


def test_a_lease_needs_a_version_on_update_and_is_created_by_put(tmp_path):
    async def test(http, local):
        made = await http("PUT", f"{LEASES}/l", {"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}})
        assert made.status == 201
        blind = await http("PUT", f"{LEASES}/l", {"metadata": {"name": "l"}})
        assert blind.status == 422
        assert blind.json["message"] == (
            'leases.coordination.k8s.io "l" is invalid: metadata.resourceVersion: Invalid value: 0: must be '
            "specified for an update"
        )
        assert (await http("PUT", f"{MAPS}/absent", config_map("absent"))).status == 404

    run(test, tmp_path)


def test_each_kind_of_patch_applies(tmp_path):
    async def test(http, local):
        await http("POST", MAPS, config_map("a", data={"k": "v", "l": "w"}))
        merged = await http("PATCH", f"{MAPS}/a", {"data": {"k": None, "m": "x"}}, type=MERGE)
        assert merged.json["data"] == {"l": "w", "m": "x"}
        patched = await http("PATCH", f"{MAPS}/a", [{"op": "remove", "path": "/data/l"}], type=JSON_PATCH)
        assert patched.json["data"] == {"m": "x"}
        strategic = {"metadata": {"labels": {"a": "b"}}, "data": {"$patch": "replace", "n": "y"}}
        answer = await http("PATCH", f"{MAPS}/a", strategic, type=STRATEGIC)
        assert (answer.json["data"], answer.json["metadata"]["labels"]) == ({"n": "y"}, {"a": "b"})
        stale = {"metadata": {"resourceVersion": "3"}}
        assert (await http("PATCH", f"{MAPS}/a", stale, type=MERGE)).status == 409

    run(test, tmp_path)


@pytest.mark.parametrize(
    ("type", "body", "status", "message"),
    [
        (
            JSON_PATCH,
            [{"op": "test", "path": "/data/k", "value": "no"}],
            422,
            "the server rejected our request due to an error in our request",
        ),
        (
            JSON_PATCH,
            {"op": "x"},
            400,
            "error decoding patch: json: cannot unmarshal object into Go value of type "
            "[]handlers.jsonPatchOp",
        ),
        (
            MERGE,
            [],
            400,
            "error decoding patch: json: cannot unmarshal array into Go value of type "
            "map[string]interface {}",
        ),
        (
            MERGE,
            b"{bad",
            400,
            "error decoding patch: invalid character 'b' looking for beginning of object key string",
        ),
        ("application/json", {"a": 1}, 415, "415: Unsupported Media Type"),
        (
            "application/apply-patch+yaml",
            {},
            415,
            "server-side apply (application/apply-patch+yaml) is not supported here: use "
            "client-side apply, or a merge, strategic merge or JSON patch",
        ),
    ],
)
def test_a_patch_that_cannot_be_applied_says_why(tmp_path, type, body, status, message):
    async def test(http, local):
        await http("POST", MAPS, config_map("a", data={"k": "v"}))
        answer = await http("PATCH", f"{MAPS}/a", body, type=type)
        assert (answer.status, answer.json["message"]) == (status, message)

    run(test, tmp_path)


def test_two_patches_at_once_both_land(tmp_path):
    class Slow:
        """A webhook that takes its time, so that the other patch comes between read and write."""

        async def mutate(self, request):
            await trio.lowlevel.checkpoint()

        async def validate(self, request):
            await trio.lowlevel.checkpoint()

    async def main():
        async with local_api(tmp_path, plugins=[Slow()]) as local:
            http = Browser(local.api)
            await http("POST", MAPS, config_map("a"))
            async with trio.open_nursery() as nursery:
                for key in "klm":
                    nursery.start_soon(
                        lambda key=key: http("PATCH", f"{MAPS}/a", {"data": {key: "1"}}, type=MERGE)
                    )
            assert (await http("GET", f"{MAPS}/a")).json["data"] == {"k": "1", "l": "1", "m": "1"}

    trio.run(main)


def test_a_dry_run_answers_like_the_real_thing_and_stores_nothing(tmp_path):
    async def test(http, local):
        version = local.store.version
        made = await http("POST", f"{MAPS}?dryRun=All", config_map("a"))
        assert (made.status, "resourceVersion" in made.json["metadata"]) == (201, False)
        assert local.store.version == version
        await http("POST", MAPS, config_map("a"))
        patched = await http("PATCH", f"{MAPS}/a?dryRun=All", {"data": {"k": "v"}}, type=MERGE)
        assert patched.json["data"] == {"k": "v"}
        assert (await http("DELETE", f"{MAPS}/a?dryRun=All")).status == 200
        assert "data" not in (await http("GET", f"{MAPS}/a")).json
        assert (await http("POST", f"{MAPS}?dryRun=All", config_map("a"))).status == 409
        assert (await http("POST", f"{MAPS}?dryRun=Some", config_map("b"))).status == 422

    run(test, tmp_path)


def test_generation_counts_changes_of_spec_only_and_status_is_written_apart(tmp_path):
    async def test(http, local):
        base = "/apis/apps/v1/namespaces/ns/deployments"
        template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
        spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
        made = await http("POST", base, {"metadata": {"name": "d"}, "spec": spec, "status": {"replicas": 5}})
        assert (made.json["metadata"]["generation"], made.json["status"].get("replicas")) == (1, None)
        labelled = await http("PATCH", f"{base}/d", {"metadata": {"labels": {"x": "y"}}}, type=MERGE)
        assert labelled.json["metadata"]["generation"] == 1
        scaled = await http(
            "PATCH", f"{base}/d", {"spec": {"replicas": 3}, "status": {"replicas": 9}}, type=MERGE
        )
        assert (scaled.json["metadata"]["generation"], scaled.json["status"].get("replicas")) == (2, None)
        status = {"spec": {"replicas": 7}, "status": {"replicas": 3, "observedGeneration": 2}}
        reported = await http("PATCH", f"{base}/d/status", status, type=MERGE)
        assert (reported.json["spec"]["replicas"], reported.json["status"]["replicas"]) == (3, 3)
        assert reported.json["metadata"]["generation"] == 2

    run(test, tmp_path)


def test_scale_reads_and_writes_the_replicas_of_its_object(tmp_path):
    async def test(http, local):
        base = "/apis/apps/v1/namespaces/ns/deployments"
        template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
        spec = {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": template}
        await http("POST", base, {"metadata": {"name": "d"}, "spec": spec})
        scale = (await http("GET", f"{base}/d/scale")).json
        assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
        assert (scale["spec"], scale["status"]) == ({"replicas": 2}, {"replicas": 0, "selector": "a=b"})
        put = await http("PUT", f"{base}/d/scale", {"metadata": {"name": "d"}, "spec": {"replicas": 4}})
        assert put.json["spec"] == {"replicas": 4}
        patched = await http("PATCH", f"{base}/d/scale", {"spec": {"replicas": 5}}, type=STRATEGIC)
        assert patched.json["spec"] == {"replicas": 5}
        assert (await http("GET", f"{base}/d")).json["metadata"]["generation"] == 3
        negative = await http("PATCH", f"{base}/d/scale", {"spec": {"replicas": -1}}, type=MERGE)
        assert negative.json["message"] == (
            'Scale.autoscaling "d" is invalid: spec.replicas: Invalid value: -1: must be greater '
            "than or equal to 0"
        )
        stale = {"metadata": {"name": "d", "resourceVersion": "1"}, "spec": {"replicas": 1}}
        assert (await http("PUT", f"{base}/d/scale", stale)).status == 409

    run(test, tmp_path)


def test_a_pod_is_bound_once(tmp_path):
    async def test(http, local):
        pods = "/api/v1/namespaces/ns/pods"
        await http(
            "POST", pods, {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
        )
        binding = {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "node1"}}
        bound = await http("POST", f"{pods}/p/binding", binding)
        assert (bound.status, bound.json["status"]) == (201, "Success")
        pod = (await http("GET", f"{pods}/p")).json
        assert pod["spec"]["nodeName"] == "node1"
        assert [(c["type"], c["status"]) for c in pod["status"]["conditions"]] == [("PodScheduled", "True")]
        again = await http("POST", f"{pods}/p/binding", binding)
        assert (again.status, again.json["message"]) == (
            409,
            'Operation cannot be fulfilled on pods/binding "p": pod p is already assigned to node "node1"',
        )

    run(test, tmp_path)


def test_yaml_protobuf_and_untyped_bodies_are_read(tmp_path):
    async def test(http, local):
        text = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: y}\ndata: {a: b}\n"
        made = await http("POST", MAPS, text, type="application/yaml", accept="application/yaml")
        assert (made.status, made.header("content-type")) == (201, "application/yaml")
        assert b"kind: ConfigMap" in made.body
        # `kubectl create configmap c1 --from-literal=a=1` in namespace t3
        proto = base64.b64decode(
            "azhzAAoPCgJ2MRIJQ29uZmlnTWFwEh4KFAoCYzESABoCdDMiACoAMgA4AEIAEgYKAWESATEaACIA"
        )
        path = "/api/v1/namespaces/t3/configmaps?fieldManager=kubectl-create&fieldValidation=Strict"
        accept = "application/vnd.kubernetes.protobuf,application/json"
        created = await http("POST", path, proto, type="application/vnd.kubernetes.protobuf", accept=accept)
        assert (created.status, created.header("content-type")) == (201, "application/json")
        assert (created.json["metadata"]["name"], created.json["data"]) == ("c1", {"a": "1"})
        untyped = await http("POST", MAPS, config_map("u"), type="")
        assert untyped.status == 201
        unknown = await http("POST", MAPS, b"hello", type="text/plain")
        assert (unknown.status, unknown.json["reason"]) == (415, "UnsupportedMediaType")

    run(test, tmp_path)


def test_objects_and_their_version_survive_a_restart(tmp_path):
    async def main():
        async with server(tmp_path) as (http, local):
            made = (await http("POST", MAPS, config_map("a", data={"k": "v"}))).json
            version = local.store.version
        async with server(tmp_path) as (http, local):
            assert (await http("GET", f"{MAPS}/a")).json == made
            later = (await http("POST", MAPS, config_map("b"))).json
            assert int(later["metadata"]["resourceVersion"]) == version + 1
            watch = await http("GET", f"{MAPS}?watch=1&resourceVersion={version - 1}&timeoutSeconds=1")
            assert [e["object"]["code"] for e in watch.events] == [410]

    trio.run(main)
