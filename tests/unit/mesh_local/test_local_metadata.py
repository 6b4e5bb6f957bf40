"""The rules for metadata, with the messages recorded on Kubernetes 1.36."""

from typing import Any

from mesh_local.machinery import names
from mesh_local.machinery.metadata import validate_metadata, validate_metadata_update

OLD = {
    "name": "a",
    "namespace": "ns",
    "uid": "1",
    "resourceVersion": "5",
    "creationTimestamp": "2026-01-01T00:00:00Z",
    "generation": 2,
}


def created(namespaced: bool = True, **meta: Any) -> list[str]:
    base = {"name": "a", "namespace": "ns"} if namespaced else {"name": "a"}
    rule = names.dns_label
    return [str(e) for e in validate_metadata(base | meta, namespaced=namespaced, name_rule=rule)]


def updated(old: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    old = old or OLD
    return [str(e) for e in validate_metadata_update(old | changes, old)]


def test_good_metadata() -> None:
    assert created() == []
    assert created(
        labels={"a": "b", "example.com/x": ""},
        annotations={"Example.COM/X": "anything at all\n"},
        finalizers=["example.com/hold", "orphan"],
        ownerReferences=[{"apiVersion": "apps/v1", "kind": "D", "name": "d", "uid": "1", "controller": True}],
    ) == []  # fmt: skip


def test_a_name_is_required() -> None:
    assert created(name="") == ["metadata.name: Required value: name or generateName is required"]


def test_the_name_follows_the_rule_of_the_kind() -> None:
    (message,) = created(name="Bad_Name")
    assert message.startswith(
        'metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 label must consist of'
    )
    assert created(generateName="web-") == []
    assert len(created(generateName="Web-")) == 1
    assert validate_metadata({"name": "a.b"}, namespaced=False, name_rule=None) == []


def test_namespaces() -> None:
    assert created(namespace="") == ["metadata.namespace: Required value"]
    assert created(namespaced=False, namespace="x") == [
        "metadata.namespace: Forbidden: not allowed on this type"
    ]


def test_labels_and_annotations() -> None:
    assert [m.split(": ")[0:3] for m in created(labels={"bad key": "-"})] == [
        ["metadata.labels", "Invalid value", '"bad key"'],
        ["metadata.labels", "Invalid value", '"-"'],
    ]
    assert created(annotations={"a": "x" * 262_144}) == [
        "metadata.annotations: Too long: may not be more than 262144 bytes"
    ]
    assert created(annotations={"a": "x" * 262_143}) == []


def test_owner_references() -> None:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "1", "controller": True}
    assert created(ownerReferences=[owner | {"uid": ""}]) == [
        'metadata.ownerReferences.uid: Invalid value: "": must not be empty'
    ]
    (message,) = created(ownerReferences=[owner, owner | {"name": "q"}])
    assert message.endswith(
        'Only one reference can have Controller set to true. Found "true" in references for Pod/p and Pod/q'
    )
    (message,) = created(ownerReferences=[owner | {"kind": "Event"}])
    assert message.endswith("/v1, Kind=Event is disallowed from being an owner")


def test_both_deletion_finalizers_exclude_each_other() -> None:
    assert created(finalizers=["orphan", "foregroundDeletion"]) == [
        'metadata.finalizers: Invalid value: ["orphan","foregroundDeletion"]: finalizer orphan and '
        "foregroundDeletion cannot be both set"
    ]


def test_an_unchanged_update_is_valid() -> None:
    assert updated() == []
    assert updated(creationTimestamp="2026-01-01T01:00:00+01:00") == []
    assert updated(labels={"a": "b"}, generation=3) == []


def test_immutable_fields() -> None:
    assert updated(name="b") == ['metadata.name: Invalid value: "b": field is immutable']
    assert updated(uid="2") == ['metadata.uid: Invalid value: "2": field is immutable']
    assert len(updated(deletionTimestamp="2026-01-01T00:00:00Z", deletionGracePeriodSeconds=0)) == 2
    assert updated(generation=1) == ["metadata.generation: Invalid value: 1: must not be decremented"]


def test_an_update_needs_a_resource_version() -> None:
    assert updated(resourceVersion="") == [
        'metadata.resourceVersion: Invalid value: "": must be specified for an update'
    ]


def test_no_new_finalizers_while_deleting() -> None:
    old = OLD | {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/hold"]}
    assert updated(old, finalizers=["example.com/hold", "example.com/new"]) == [
        "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, "
        'found new finalizers []string{"example.com/new"}'
    ]
    assert updated(old, finalizers=[]) == []
    assert updated(finalizers=["example.com/new"]) == []
