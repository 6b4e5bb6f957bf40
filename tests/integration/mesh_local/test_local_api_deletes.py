"""Deletion: answers, grace, finalizers, propagation, namespaces and definitions."""

import pytest
import trio

from tests.support.local_api import local_api
from tests.support.local_http import Browser

MAPS = "/api/v1/namespaces/ns/configmaps"
PODS = "/api/v1/namespaces/ns/pods"
MERGE = "application/merge-patch+json"
POD = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}


def run(directory, test):
    async def main():
        async with local_api(directory) as local:
            with trio.fail_after(20):
                await test(Browser(local.api), local)

    trio.run(main)


def test_most_deletes_answer_with_a_status_that_names_the_object(tmp_path):
    async def test(http, local):
        made = (await http("POST", MAPS, {"metadata": {"name": "a"}})).json
        answer = await http("DELETE", f"{MAPS}/a")
        assert answer.json == {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]},
        }
        assert (await http("DELETE", f"{MAPS}/a")).status == 404

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("preconditions", "message"),
    [
        ({"uid": "u-1"}, "the UID in the precondition (u-1) does not match the UID in record"),
        ({"resourceVersion": "3"}, "the ResourceVersion in the precondition (3) does not match"),
    ],
)
def test_a_failed_precondition_names_the_kind(tmp_path, preconditions, message):
    async def test(http, local):
        await http("POST", MAPS, {"metadata": {"name": "a"}})
        answer = await http("DELETE", f"{MAPS}/a", {"preconditions": preconditions})
        assert answer.status == 409
        assert answer.json["message"].startswith(f'Operation cannot be fulfilled on ConfigMap "a": {message}')
        assert answer.json["details"]["kind"] == "ConfigMap"
        assert (await http("GET", f"{MAPS}/a")).status == 200

    run(tmp_path, test)


def test_a_finalizer_keeps_the_object_until_it_is_removed(tmp_path):
    async def test(http, local):
        await http("POST", MAPS, {"metadata": {"name": "a", "finalizers": ["example.com/hold"]}})
        first = await http("DELETE", f"{MAPS}/a")
        assert (first.status, first.json["kind"]) == (200, "ConfigMap")
        assert first.json["metadata"]["deletionGracePeriodSeconds"] == 0
        assert (await http("DELETE", f"{MAPS}/a")).json == first.json
        more = {"metadata": {"finalizers": ["example.com/hold", "example.com/new"]}}
        refused = await http("PATCH", f"{MAPS}/a", more, type=MERGE)
        assert refused.status == 422
        assert 'found new finalizers []string{"example.com/new"}' in refused.json["message"]
        released = await http("PATCH", f"{MAPS}/a", {"metadata": {"finalizers": None}}, type=MERGE)
        assert (released.status, released.json["metadata"]["name"]) == (200, "a")
        assert (await http("GET", f"{MAPS}/a")).status == 404

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("policy", "finalizers"), [("Foreground", ["foregroundDeletion"]), ("Orphan", ["orphan"])]
)
def test_a_policy_that_needs_the_collector_leaves_its_finalizer(tmp_path, policy, finalizers):
    async def test(http, local):
        await http("POST", MAPS, {"metadata": {"name": "a"}})
        answer = await http("DELETE", f"{MAPS}/a", {"propagationPolicy": policy})
        assert answer.json["metadata"]["finalizers"] == finalizers
        assert answer.json["metadata"]["deletionTimestamp"]
        unknown = await http("DELETE", f"{MAPS}/a", {"propagationPolicy": "Sideways"})
        assert unknown.status == 422

    run(tmp_path, test)


def test_a_running_pod_gets_its_grace_which_later_deletes_only_shorten(tmp_path):
    async def test(http, local):
        await http("POST", PODS, POD)
        await http("POST", f"{PODS}/p/binding", {"target": {"name": "node1"}})
        first = (await http("DELETE", f"{PODS}/p", {"gracePeriodSeconds": 20})).json
        assert first["metadata"]["deletionGracePeriodSeconds"] == 20
        assert first["metadata"]["generation"] == 2
        longer = (await http("DELETE", f"{PODS}/p", {"gracePeriodSeconds": 60})).json
        assert longer == first
        shorter = (await http("DELETE", f"{PODS}/p?gracePeriodSeconds=5")).json
        assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
        assert shorter["metadata"]["deletionTimestamp"] < first["metadata"]["deletionTimestamp"]
        assert shorter["metadata"]["generation"] == 2
        last = await http("DELETE", f"{PODS}/p", {"gracePeriodSeconds": 0})
        assert (last.status, last.json["metadata"]["deletionGracePeriodSeconds"]) == (200, 0)
        assert (await http("GET", f"{PODS}/p")).status == 404

    run(tmp_path, test)


def test_a_pod_without_a_node_is_gone_at_once(tmp_path):
    async def test(http, local):
        await http("POST", PODS, POD)
        answer = await http("DELETE", f"{PODS}/p")
        assert (answer.json["kind"], answer.json["metadata"]["deletionGracePeriodSeconds"]) == ("Pod", 0)
        assert (await http("GET", f"{PODS}/p")).status == 404

    run(tmp_path, test)


def test_eviction_deletes_the_pod(tmp_path):
    async def test(http, local):
        await http("POST", PODS, POD)
        answer = await http("POST", f"{PODS}/p/eviction", {"metadata": {"name": "p"}})
        assert (answer.status, answer.json["status"]) == (201, "Success")
        assert (await http("GET", f"{PODS}/p")).status == 404

    run(tmp_path, test)


def test_a_namespace_terminates_until_it_is_finalized(tmp_path):
    async def test(http, local):
        await http("POST", "/api/v1/namespaces", {"metadata": {"name": "n"}})
        answer = await http("DELETE", "/api/v1/namespaces/n", {"propagationPolicy": "Background"})
        assert answer.json["status"]["phase"] == "Terminating"
        assert "deletionGracePeriodSeconds" not in answer.json["metadata"]
        again = await http("DELETE", "/api/v1/namespaces/n")
        assert (again.status, again.json) == (200, answer.json)
        finalized = {**answer.json, "spec": {"finalizers": []}}
        assert (await http("PUT", "/api/v1/namespaces/n/finalize", finalized)).status == 200
        assert (await http("GET", "/api/v1/namespaces/n")).status == 404

    run(tmp_path, test)


def test_deletecollection_takes_what_the_selector_lists(tmp_path):
    async def test(http, local):
        for name, label in (("a", "x"), ("b", "y"), ("c", "x")):
            await http("POST", MAPS, {"metadata": {"name": name, "labels": {"l": label}}})
        answer = await http("DELETE", f"{MAPS}?labelSelector=l%3Dx")
        assert answer.json["kind"] == "ConfigMapList"
        assert [o["metadata"]["name"] for o in answer.json["items"]] == ["a", "c"]
        assert [o["metadata"]["name"] for o in (await http("GET", MAPS)).json["items"]] == ["b"]

    run(tmp_path, test)


def definition(plural: str = "widgets") -> dict:
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "default": 3}}}},
    }
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": plural, "singular": "widget", "kind": "Widget", "listKind": "WidgetList"}
    return {
        "metadata": {"name": f"{plural}.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [version]},
    }


CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
WIDGETS = "/apis/example.com/v1/namespaces/ns/widgets"


def test_a_definition_serves_its_kind_and_takes_its_objects_along(tmp_path):
    async def test(http, local):
        assert (await http("GET", WIDGETS)).status == 404
        made = await http("POST", CRDS, definition())
        assert made.json["status"]["conditions"] is None
        crd = (await http("GET", f"{CRDS}/widgets.example.com")).json
        assert {c["type"]: c["status"] for c in crd["status"]["conditions"]}["Established"] == "True"
        widget = await http("POST", WIDGETS, {"metadata": {"name": "w"}, "spec": {"siez": 1}})
        assert (widget.json["spec"], widget.json["kind"]) == ({"size": 3}, "Widget")
        assert widget.header("warning") == '299 - "unknown field \\"spec.siez\\""'
        listed = (await http("GET", WIDGETS)).json
        assert (listed["items"][0]["kind"], listed["metadata"]["continue"]) == ("Widget", "")
        strategic = await http("PATCH", f"{WIDGETS}/w", {}, type="application/strategic-merge-patch+json")
        assert strategic.status == 415
        deleted = await http("DELETE", f"{CRDS}/widgets.example.com")
        assert deleted.json["metadata"]["finalizers"] == ["customresourcecleanup.apiextensions.k8s.io"]
        assert (await http("GET", f"{CRDS}/widgets.example.com")).status == 404
        gone = await http("GET", f"{WIDGETS}/w")
        assert (gone.status, gone.body) == (404, b"404 page not found\n")

    run(tmp_path, test)


def test_a_definition_waits_for_objects_with_finalizers(tmp_path):
    async def test(http, local):
        await http("POST", CRDS, definition())
        held = {"metadata": {"name": "w", "finalizers": ["example.com/hold"]}}
        await http("POST", WIDGETS, held)
        await http("POST", WIDGETS, {"metadata": {"name": "free"}})
        await http("DELETE", f"{CRDS}/widgets.example.com")
        left = (await http("GET", WIDGETS)).json["items"]
        assert [(o["metadata"]["name"], "deletionTimestamp" in o["metadata"]) for o in left] == [("w", True)]
        await http("PATCH", f"{WIDGETS}/w", {"metadata": {"finalizers": None}}, type=MERGE)
        assert (await http("GET", f"{CRDS}/widgets.example.com")).status == 404

    run(tmp_path, test)


def test_a_watch_ends_with_its_definition(tmp_path):
    async def test(http, local):
        await http("POST", CRDS, definition())
        async with local.client.watch("widgets.example.com") as events:
            await http("POST", WIDGETS, {"metadata": {"name": "w"}})
            await http("DELETE", f"{CRDS}/widgets.example.com")
            assert [e.type async for e in events] == ["ADDED", "DELETED"]
        assert local.api.core.registry.by_name("widgets.example.com") is None

    run(tmp_path, test)


def test_definitions_are_served_again_after_a_restart(tmp_path):
    async def before(http, local):
        await http("POST", CRDS, definition())
        await http("POST", WIDGETS, {"metadata": {"name": "w"}})

    async def after(http, local):
        assert (await http("GET", f"{WIDGETS}/w")).json["kind"] == "Widget"

    run(tmp_path, before)
    run(tmp_path, after)
