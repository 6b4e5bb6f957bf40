"""Custom resources: what a definition's kinds prune, default, refuse and print."""
# ruff: noqa: E501  (messages are written whole)

from datetime import UTC, datetime

import pytest

from mesh_local.kinds.base import ScalePaths
from mesh_local.kinds.crd import CUSTOM_RESOURCE_DEFINITION, crd_status
from mesh_local.kinds.custom import NOT_CHECKED, compile_crd
from mesh_local.machinery.objects import copy
from tests.support.local_crd import box_crd, crd_with

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BLOCKED = f"<nil>: Invalid value: null: {NOT_CHECKED}"


def kinds_of(crd):
    CUSTOM_RESOURCE_DEFINITION.default(crd)
    CUSTOM_RESOURCE_DEFINITION.prepare_create(crd)
    assert CUSTOM_RESOURCE_DEFINITION.validate(crd) == []
    crd["status"] = crd_status(crd, NOW)
    return compile_crd(crd)


@pytest.fixture(scope="module")
def box():
    (kind,) = kinds_of(box_crd())
    return kind


def an_object(spec=None, **more):
    obj = {
        "apiVersion": "shop.example/v1",
        "kind": "Box",
        "metadata": {"name": "b", "namespace": "x"},
        **more,
    }
    return obj | {"spec": spec} if spec is not None else obj


def create(kind, obj):
    kind.default(obj)
    kind.prepare_create(obj)
    return [str(e) for e in kind.validate(obj)]


def test_the_kind_is_what_the_definition_names(box):
    assert (box.kind, box.plural, box.singular, box.resource) == ("Box", "boxes", "box", "boxes.shop.example")
    assert (box.short_names, box.namespaced, box.api_version) == (("bx",), True, "shop.example/v1")
    assert [(s.name, s.kind, s.group) for s in box.subresources] == [
        ("status", "Box", ""),
        ("scale", "Scale", "autoscaling"),
    ]
    assert box.scale == ScalePaths("spec.size", "status.size", "")
    assert box.spec_fields == ("spec",)
    assert not box.unconditional_update
    assert box.openapi["x-kubernetes-group-version-kind"] == [
        {"group": "shop.example", "version": "v1", "kind": "Box"}
    ]


def test_unknown_fields_are_removed_and_named(box):
    obj = an_object(
        {"mode": "fast", "hots": "x", "one": {"a": "1", "zz": 1}, "free": {"a": {"b": 1}}}, extra=1
    )
    obj["spec"]["parts"] = [{"name": "p", "x": 1}]
    assert box.prune(obj) == ["extra", "spec.hots", "spec.one.zz", "spec.parts[0].x"]
    assert obj["spec"] == {
        "mode": "fast",
        "one": {"a": "1"},
        "free": {"a": {"b": 1}},
        "parts": [{"name": "p"}],
    }


def test_nulls_go_and_defaults_come(box):
    obj = an_object({"mode": "fast", "size": None, "empty": None, "host": None, "parts": [{"name": "p"}]})
    assert create(box, obj) == []
    assert obj["spec"] == {
        "mode": "fast",
        "size": 3,
        "empty": None,
        "parts": [{"name": "p", "count": 1}],
    }


def test_status_is_dropped_on_create(box):
    obj = an_object({"mode": "fast"}, status={"size": "bad"})
    assert create(box, obj) == []
    assert "status" not in obj


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"mode": "fast", "size": "big"}, [
            'spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"',
            ".spec.size: Invalid value: 0: .spec.size accessor error: big is of the type string, expected int64",
            BLOCKED,
        ]),
        ({"mode": "fast", "size": 1.5}, [
            'spec.size: Invalid value: "float64": spec.size in body must be of type int32: "float64"',
            '<nil>: Invalid value: "": Checked value must be of type integer with format int32 in spec.size',
            ".spec.size: Invalid value: 0: .spec.size accessor error: 1.5 is of the type float64, expected int64",
            BLOCKED,
        ]),
        ({"host": "aa"}, ["spec.mode: Required value", BLOCKED]),
        (None, ["spec: Required value", BLOCKED]),
        ({"mode": "odd"}, ['spec.mode: Unsupported value: "odd": supported values: "fast", "slow"', BLOCKED]),
        ({"mode": "fast", "host": "A_B"}, [
            "spec.host: Invalid value: \"A_B\": spec.host in body should match '^[a-z.]+$'",
        ]),
        ({"mode": "fast", "host": "ab\n"}, [
            "spec.host: Invalid value: \"ab\\n\": spec.host in body should match '^[a-z.]+$'",
        ]),
        ({"mode": "fast", "host": "a"}, [
            'spec.host: Invalid value: "a": spec.host in body should be at least 2 chars long',
        ]),
        ({"mode": "fast", "host": "AAAAAAAAA"}, ["spec.host: Too long: may not be more than 8 bytes", BLOCKED]),
        ({"mode": "fast", "size": 0}, [
            "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
        ]),
        ({"mode": "fast", "size": 11}, [
            "spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10",
        ]),
        ({"mode": "fast", "ratio": 0}, [
            "spec.ratio: Invalid value: 0: spec.ratio in body should be greater than 0",
        ]),
        ({"mode": "fast", "ratio": 0.7}, [
            "spec.ratio: Invalid value: 0.7: spec.ratio in body should be a multiple of 0.5",
        ]),
        ({"mode": "fast", "when": "noon"}, [
            'spec.when: Invalid value: "noon": spec.when in body must be of type date-time: "noon"', BLOCKED,
        ]),
        ({"mode": "fast", "tags": ["a", "b", "c"]}, [
            "spec.tags: Too many: 3: must have at most 2 items", BLOCKED,
        ]),
        ({"mode": "fast", "tags": []}, [
            "spec.tags: Invalid value: 0: spec.tags in body should have at least 1 items",
        ]),
        ({"mode": "fast", "tags": ["a", "a"]}, ['spec.tags[1]: Duplicate value: "a"']),
        ({"mode": "fast", "parts": [{"name": "p"}, {"name": "q"}, {"name": "p"}]}, [
            'spec.parts[2]: Duplicate value: {"name":"p"}',
        ]),
        ({"mode": "fast", "port": True}, [
            'spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean"',
            BLOCKED,
        ]),
        ({"mode": "fast", "one": {"a": "1", "b": "2"}}, [
            '<nil>: Invalid value: "": "spec.one" must validate one and only one schema (oneOf). '
            "Found 2 valid alternatives",
        ]),
        ({"mode": "fast", "one": {}}, [
            '<nil>: Invalid value: "": "spec.one" must validate one and only one schema (oneOf). '
            "Found none valid",
            "spec.one.a: Required value",
            BLOCKED,
        ]),
        ({"mode": "fast", "labels": {"a": 1}}, [
            'spec.labels.a: Invalid value: "integer": spec.labels.a in body must be of type string: "integer"',
            BLOCKED,
        ]),
        ({"mode": "fast", "labels": {"a": "", "b": "", "c": ""}}, [
            "spec.labels: Too many: 3: must have at most 2 items", BLOCKED,
        ]),
        ({"mode": None}, ["spec.mode: Required value", BLOCKED]),
        ({"mode": "slow", "size": 6}, ["spec: Invalid value: slow boxes are small"]),
    ],
)  # fmt: skip
def test_refusals(box, spec, expected):
    assert create(box, an_object(spec)) == expected


def test_good_values_of_every_field(box):
    spec = {
        "mode": "slow", "host": "a.b", "size": 5, "ratio": 1.5, "when": "2026-01-01T10:00:00.5+02:00",
        "tags": ["a", "b"], "port": "http", "labels": {"a": "b"}, "one": {"b": ""},
    }  # fmt: skip
    obj = an_object(spec)
    assert box.prune(obj) == []
    assert create(box, obj) == []


def test_without_rules_nothing_is_said_about_them():
    (kind,) = kinds_of(
        crd_with({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}})
    )
    assert create(kind, {"metadata": {"name": "t"}, "spec": {}}) == ["spec.a: Required value"]


def test_an_update_is_not_blamed_for_what_was_wrong_before(box):
    old = an_object({"mode": "gone", "size": 3, "host": "aa"})
    new = copy(old)
    new["spec"]["host"] = "bb"
    assert [e.field for e in box.validate_update(new, old)] == []
    new["spec"]["mode"] = "odd"
    assert [e.field for e in box.validate_update(new, old)] == ["spec.mode", "<nil>"]


def test_the_main_resource_keeps_status(box):
    old = an_object({"mode": "fast"}, status={"size": 1})
    new = an_object({"mode": "slow"}, status={"size": 2})
    box.prepare_update(new, old)
    assert (new["spec"], new["status"]) == ({"mode": "slow"}, {"size": 1})


def test_the_status_resource_keeps_all_else(box):
    old = an_object({"mode": "fast"}, status={"size": 1})
    old["metadata"]["resourceVersion"] = "7"
    new = copy(old)
    new["metadata"] |= {"labels": {"a": "b"}, "resourceVersion": "6"}
    new["spec"], new["status"] = {"mode": "slow"}, {"size": 2}
    box.prepare_status(new, old)
    assert (new["spec"], new["status"]) == ({"mode": "fast"}, {"size": 2})
    assert new["metadata"] == {"name": "b", "namespace": "x", "resourceVersion": "6"}


def test_status_is_validated(box):
    old = an_object({"mode": "fast"})
    new = an_object({"mode": "fast"}, status={"conditions": [{"type": "Ready", "status": "maybe"}]})
    assert [str(e) for e in box.validate_update(new, old)] == [
        'status.conditions[0].status: Unsupported value: "maybe": supported values: "True", "False"',
        BLOCKED,
    ]


def test_rows_follow_the_printer_columns(box):
    assert [(c.name, c.type, c.priority) for c in box.columns] == [
        ("Name", "string", 0),
        ("Mode", "string", 0),
        ("Size", "integer", 0),
        ("Ready", "string", 1),
        ("Age", "date", 0),
    ]
    assert box.columns[1].description == "Custom resource definition column (in JSONPath format): .spec.mode"
    assert box.columns[2].description == "the size"
    obj = an_object({"mode": "fast", "size": 3})
    obj["metadata"]["creationTimestamp"] = "2025-12-31T23:59:55Z"
    assert box.row(obj, NOW) == ["b", "fast", 3, None, "5s"]
    obj["status"] = {"conditions": [{"type": "Other", "status": "x"}, {"type": "Ready", "status": "True"}]}
    obj["spec"]["mode"] = ["a"]
    assert box.row(obj, NOW) == ["b", '["a"]', 3, "True", "5s"]


def test_without_columns_the_age_is_shown():
    (kind,) = kinds_of(crd_with({"type": "object"}))
    assert [c.name for c in kind.columns] == ["Name", "Age"]
    obj = {"metadata": {"name": "t", "creationTimestamp": "2025-12-31T22:00:00Z"}}
    assert kind.row(obj, NOW) == ["t", "120m"]


def versions():
    crd = crd_with({"type": "object"})
    (only,) = crd["spec"]["versions"]
    names = ("v1beta1", "v2alpha1", "v1", "v10", "v2", "zulu", "old")
    crd["spec"]["versions"] = [
        copy(only) | {"name": n, "storage": n == "v1", "served": n != "old"} for n in names
    ]
    return kinds_of(crd)


def test_versions_come_in_order_of_preference():
    assert [k.version for k in versions()] == ["v10", "v2", "v1", "v1beta1", "v2alpha1", "zulu"]


def test_every_version_is_stored_as_one():
    v10 = versions()[0]
    obj = {"apiVersion": "shop.example/v10", "kind": "Thing", "spec": {}}
    stored = v10.to_stored(obj)
    assert stored["apiVersion"] == "shop.example/v1"
    assert v10.from_stored(stored) == obj
    assert len({k.stored_as for k in versions()}) == 1


def test_a_deprecated_version_warns():
    (kind,) = kinds_of(crd_with({"type": "object"}, deprecated=True))
    assert kind.deprecation == "shop.example/v1 Thing is deprecated"


def test_selectable_fields_become_field_selectors():
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}}
    (kind,) = kinds_of(crd_with(schema, selectableFields=[{"jsonPath": ".spec.on"}]))
    assert kind.fields["spec.on"]({"spec": {"on": True}}) == "true"
    assert kind.fields["spec.on"]({}) == ""
