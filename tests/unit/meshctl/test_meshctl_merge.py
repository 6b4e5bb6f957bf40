"""Three-way merge: what we said last, what we say now, what is there."""

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from manifests.render import render
from manifests.values import Values
from meshctl.merge import LAST_APPLIED, annotated, last_applied, merged

Object = dict[str, Any]


def config(**data: Any) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, **data}


def served(obj: Object) -> Object:
    """What a server makes of an object that was created from it."""
    live = copy.deepcopy(annotated(obj))
    live["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    return live


def test_the_same_again_is_no_change() -> None:
    for obj in render(Values()):
        live = served(obj)
        assert merged(obj, live) is live


def test_our_fields_come_back_and_others_stay() -> None:
    live = served(config(data={"ours": "1"}))
    live["data"] = {"ours": "changed", "theirs": "2"}
    result = merged(config(data={"ours": "1"}), live)
    assert result["data"] == {"ours": "1", "theirs": "2"}
    assert result["metadata"]["resourceVersion"] == "1"


def test_what_we_no_longer_say_goes() -> None:
    live = served(config(data={"a": "1", "b": "2"}))
    live["data"]["theirs"] = "3"
    result = merged(config(data={"a": "1"}), live)
    assert result["data"] == {"a": "1", "theirs": "3"}
    assert last_applied(result)["data"] == {"a": "1"}


def test_webhooks_keep_the_bundle_that_the_control_plane_wrote() -> None:
    desired = config(webhooks=[{"name": "a", "clientConfig": {"service": {"path": "/x"}}}])
    live = served(desired)
    live["webhooks"][0]["clientConfig"]["caBundle"] = "PEM"
    assert merged(desired, live) is live
    changed = config(webhooks=[{"name": "a", "clientConfig": {"service": {"path": "/y"}}}, {"name": "b"}])
    result = merged(changed, live)
    assert result["webhooks"] == [
        {"name": "a", "clientConfig": {"service": {"path": "/y"}, "caBundle": "PEM"}},
        {"name": "b"},
    ]
    assert merged(config(webhooks=[{"name": "b"}]), served(changed))["webhooks"] == [{"name": "b"}]


def test_rules_of_a_role_are_taken_whole() -> None:
    narrow = {"resources": ["secrets"], "resourceNames": ["x"], "verbs": ["get"]}
    live = served(config(rules=[narrow]))
    live["rules"] = [{**narrow, "verbs": ["get", "list"]}, {"resources": ["*"], "verbs": ["*"]}]
    assert merged(config(rules=[narrow]), live)["rules"] == [narrow]


def test_an_object_made_by_hand_is_taken_over() -> None:
    live = config(data={"theirs": "1"})
    result = merged(config(data={"a": "1"}), live)
    assert result["data"] == {"theirs": "1", "a": "1"}
    assert LAST_APPLIED in result["metadata"]["annotations"]


def test_a_damaged_annotation_is_no_memory() -> None:
    for text in ("{", "[]", "1", '{"metadata": 3}'):
        live = config(data={"old": "1"})
        live["metadata"]["annotations"] = {LAST_APPLIED: text}
        assert merged(config(data={"a": "1"}), live)["data"] == {"old": "1", "a": "1"}


names = st.sampled_from(["a", "b", "c"])
values = st.recursive(
    st.integers(0, 3) | st.lists(st.integers(0, 2), max_size=3),
    lambda below: st.dictionaries(names, below, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(names, values), st.dictionaries(names, values), st.dictionaries(names, values))
def test_merging_twice_changes_nothing_more(before: Object, now: Object, theirs: Object) -> None:
    live = served(config(data=before))
    live["data"] = theirs
    once = merged(config(data=now), live)
    assert merged(config(data=now), once) is once
