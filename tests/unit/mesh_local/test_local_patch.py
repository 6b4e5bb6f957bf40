"""JSON patch, merge patch and strategic merge patch."""

import copy
from typing import Any

import pytest

from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.patch import (
    MAX_COPIED_BYTES,
    JsonPatchError,
    apply_json_patch,
    json_patch,
    merge_patch,
    strategic_merge,
)

POD = "io.k8s.api.core.v1.Pod"
DEPLOYMENT = "io.k8s.api.apps.v1.Deployment"
UNDECODABLE = "error decoding patch: json: cannot unmarshal"
SERVICE = "io.k8s.api.core.v1.Service"


def pod(*names: str) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": n, "image": f"{n}:1"} for n in names]}}


def containers(doc: dict[str, Any], *patch: Any, order: list[str] | None = None) -> Any:
    spec: dict[str, Any] = {"containers": list(patch)} if patch else {}
    if order is not None:
        spec["$setElementOrder/containers"] = [{"name": n} for n in order]
    return strategic_merge(POD, doc, {"spec": spec})["spec"]["containers"]


def refused(function: Any, *args: Any) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        function(*args)
    return caught.value.code, caught.value.message


# JSON patch


def test_json_patch_applies_in_order_and_changes_nothing_it_is_given() -> None:
    doc = {"spec": {"mode": "fast", "size": 3}, "metadata": {"annotations": {}}}
    patch = [
        {"op": "test", "path": "/spec/mode", "value": "fast"},
        {"op": "replace", "path": "/spec/size", "value": 4},
        {"op": "add", "path": "/metadata/annotations/a~1b", "value": "c"},
        {"op": "add", "path": "/spec/tags", "value": []},
        {"op": "add", "path": "/spec/tags/-", "value": "x"},
    ]
    before = copy.deepcopy((doc, patch))
    assert json_patch(doc, patch) == {
        "spec": {"mode": "fast", "size": 4, "tags": ["x"]},
        "metadata": {"annotations": {"a/b": "c"}},
    }
    assert (doc, patch) == before


def test_replace_of_an_absent_key_adds_it() -> None:
    assert json_patch({"spec": {}}, [{"op": "replace", "path": "/spec/absent", "value": 1}]) == {
        "spec": {"absent": 1}
    }
    assert json_patch({"a": 1}, [{"op": "test", "path": "/b", "value": None}]) == {"a": 1}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a", "value": 2},
        {"op": "remove", "path": "/absent"},
        {"op": "add", "path": "/absent/x", "value": 1},
        {"op": "add", "path": "/list/9", "value": 1},
        {"op": "add", "path": "/a/b", "value": 1},
        {"op": "replace", "path": "/list/5", "value": 1},
        {"op": "move", "from": "/absent", "path": "/b"},
        {"op": "nonsense", "path": "/a"},
        {"op": "add", "path": "/b"},
        {"path": "/b"},
    ],
)
def test_json_patch_that_does_not_apply_is_422(operation: dict[str, Any]) -> None:
    assert refused(json_patch, {"a": 1, "list": [0]}, [operation]) == (
        422,
        "the server rejected our request due to an error in our request",
    )


@pytest.mark.parametrize(
    ("patch", "code", "message"),
    [
        (
            {"op": "x"},
            400,
            f"{UNDECODABLE} object into Go value of type []handlers.jsonPatchOp",
        ),
        (
            [1],
            400,
            f"{UNDECODABLE} number into Go value of type handlers.jsonPatchOp",
        ),
        (
            [{"op": "test", "path": "/a", "value": 1}] * 10_001,
            413,
            "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001",
        ),
    ],
)
def test_what_is_no_json_patch(patch: Any, code: int, message: str) -> None:
    assert refused(json_patch, {"a": 1}, patch) == (code, message)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (
            {"op": "replace", "path": "/spec/absent/x", "value": 1},
            "replace operation does not apply: doc is missing path: /spec/absent/x: missing value",
        ),
        (
            {"op": "add", "path": "/spec/zzz", "value": 1},
            'add operation does not apply: doc is missing path: "/spec/zzz": missing value',
        ),
        ({"op": "test", "path": "/a", "value": 2}, "testing value /a failed: test failed"),
    ],
)
def test_json_patch_says_why(operation: dict[str, Any], message: str) -> None:
    with pytest.raises(JsonPatchError) as caught:
        apply_json_patch({"a": 1}, [operation])
    assert str(caught.value) == message


def test_copies_cannot_blow_up_a_document() -> None:
    double = [{"op": "copy", "from": "/a", "path": "/a/-"}] * 60
    with pytest.raises(JsonPatchError, match=str(MAX_COPIED_BYTES)):
        apply_json_patch({"a": ["x" * 1000]}, double)


def test_a_patch_cannot_nest_too_deep() -> None:
    deeper = [{"op": "add", "path": "/a" * n, "value": {}} for n in range(1, 300)]
    with pytest.raises(JsonPatchError):
        apply_json_patch({}, deeper)


# Merge patch


@pytest.mark.parametrize(
    ("doc", "patch", "expected"),
    [
        # RFC 7396, appendix A, as far as patches are objects
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(doc: Any, patch: Any, expected: Any) -> None:
    assert merge_patch(doc, patch) == expected


def test_merge_patch_must_be_an_object() -> None:
    assert refused(merge_patch, {}, [1]) == (
        400,
        f"{UNDECODABLE} array into Go value of type map[string]interface {{}}",
    )


# Strategic merge patch


def test_lists_merge_by_key() -> None:
    doc = pod("a", "b")
    assert containers(doc, {"name": "b", "image": "b:2"}) == [
        {"name": "a", "image": "a:1"},
        {"name": "b", "image": "b:2"},
    ]
    assert doc == pod("a", "b")


def test_new_items_stand_before_those_that_only_the_server_has() -> None:
    assert [c["name"] for c in containers(pod("a", "b"), {"name": "n"})] == ["n", "a", "b"]
    assert [c["name"] for c in containers(pod("a", "b", "c"), {"name": "n"}, {"name": "b"})] == [
        "n",
        "a",
        "b",
        "c",
    ]


def test_set_element_order() -> None:
    assert [c["name"] for c in containers(pod("a", "b", "c"), order=["c", "a"])] == ["b", "c", "a"]
    patched = containers(
        pod("a", "b"), {"name": "n", "image": "n:1"}, {"name": "a", "$patch": "delete"}, order=["b", "n"]
    )
    assert [c["name"] for c in patched] == ["b", "n"]


def test_a_patch_must_follow_its_own_order() -> None:
    with pytest.raises(ApiError) as caught:
        containers(pod("a", "b"), {"name": "b"}, {"name": "a"}, order=["a", "b"])
    assert caught.value.code == 500
    assert caught.value.message.startswith(
        "The order in patch list:\n[map[name:b] map[name:a]]\n doesn't match $setElementOrder list"
    )


def test_delete_and_replace_directives() -> None:
    assert containers(pod("a", "b"), {"name": "b", "$patch": "delete"}) == pod("a")["spec"]["containers"]
    assert containers(pod("a", "b"), {"name": "z"}, {"$patch": "replace"}) == [{"name": "z"}]
    doc = {"metadata": {"labels": {"a": "1"}}, "spec": {"nodeName": "n"}}
    assert strategic_merge(POD, doc, {"metadata": {"labels": {"$patch": "replace", "b": "2"}}}) == {
        "metadata": {"labels": {"b": "2"}},
        "spec": {"nodeName": "n"},
    }
    assert strategic_merge(POD, doc, {"spec": {"$patch": "delete"}})["spec"] == {}


def test_null_deletes_and_is_not_kept_in_new_parts() -> None:
    doc = {"metadata": {"labels": {"a": "1"}}}
    assert strategic_merge(POD, doc, {"metadata": {"labels": {"a": None, "b": "1", "c": None}}}) == {
        "metadata": {"labels": {"b": "1"}}
    }
    patch = {"spec": {"securityContext": {"runAsUser": None, "runAsGroup": 1}}}
    assert strategic_merge(POD, {}, patch) == {"spec": {"securityContext": {"runAsGroup": 1}}}


def test_lists_of_primitives() -> None:
    doc = {"metadata": {"finalizers": ["a", "b"]}}
    added = strategic_merge(POD, doc, {"metadata": {"finalizers": ["c", "b"]}})
    assert added == {"metadata": {"finalizers": ["c", "a", "b"]}}
    gone = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["b"]}}
    assert strategic_merge(POD, doc, gone) == {"metadata": {"finalizers": ["b"]}}


def test_a_list_without_strategy_is_replaced() -> None:
    doc = {"spec": {"containers": [{"name": "a", "args": ["1", "2"]}], "tolerations": [{"key": "a"}]}}
    patched = strategic_merge(
        POD, doc, {"spec": {"containers": [{"name": "a", "args": ["3"]}], "tolerations": [{"key": "b"}]}}
    )
    assert patched == {"spec": {"containers": [{"name": "a", "args": ["3"]}], "tolerations": [{"key": "b"}]}}


def test_retain_keys() -> None:
    doc = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}
    patch = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert strategic_merge(DEPLOYMENT, doc, patch) == {"spec": {"strategy": {"type": "Recreate"}}}
    patch = {"spec": {"strategy": {"$retainKeys": [], "type": "Recreate"}}}
    assert refused(strategic_merge, DEPLOYMENT, doc, patch) == (400, "invalid patch format of retainKeys")


def test_keys_may_be_numbers() -> None:
    doc = {"spec": {"ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}
    patch = {
        "spec": {
            "$setElementOrder/ports": [{"port": 81}],
            "ports": [{"name": "http", "port": 81}, {"$patch": "delete", "port": 80}],
        }
    }
    assert strategic_merge(SERVICE, doc, patch) == {"spec": {"ports": [{"name": "http", "port": 81}]}}


def test_a_changed_type_is_replaced() -> None:
    assert strategic_merge(POD, {"spec": {"containers": "x"}}, pod("a")) == pod("a")


@pytest.mark.parametrize(
    ("patch", "code", "message"),
    [
        (
            {"spec": {"containers": [{"image": "x"}]}},
            500,
            "map: map[image:x] does not contain declared merge key: name",
        ),
        (
            {"spec": {"containers": [["x"]]}},
            422,
            "the server rejected our request due to an error in our request",
        ),
        ({"spec": {"$patch": "mangle"}}, 500, "unknown patch type: mangle in map: map[$patch:mangle]"),
        ({"spec": {"$setElementOrder/containers": {}}}, 400, "invalid patch format of setElementOrder list"),
        (
            {"metadata": {"$deleteFromPrimitiveList/finalizers": "a"}},
            400,
            "invalid patch format of primitive list",
        ),
        (
            [],
            400,
            f"{UNDECODABLE} array into Go value of type map[string]interface {{}}",
        ),
    ],
)
def test_strategic_merge_refuses(patch: Any, code: int, message: str) -> None:
    doc = {"metadata": {"finalizers": ["a"]}, **pod("a")}
    assert refused(strategic_merge, POD, doc, patch) == (code, message)
