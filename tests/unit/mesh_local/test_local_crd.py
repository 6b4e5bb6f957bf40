"""CustomResourceDefinition: defaulting, validation, and the status that its controller writes."""
# ruff: noqa: E501  (messages are written whole)

from datetime import UTC, datetime

import pytest

from mesh_local.kinds.crd import CUSTOM_RESOURCE_DEFINITION as KIND
from mesh_local.kinds.crd import crd_status, is_established, terminating_status
from mesh_local.machinery.errors import ApiError, FieldError
from mesh_local.machinery.objects import copy
from tests.support.local_crd import box_crd, crd_with

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STRING = {"type": "string"}
ROOT = "spec.validation.openAPIV3Schema"
SPEC = f"{ROOT}.properties[spec]"


def created(crd):
    KIND.default(crd)
    KIND.prepare_create(crd)
    return crd


def errors(crd):
    return [str(e) for e in KIND.validate(created(crd))]


def established():
    crd = created(box_crd())
    crd["status"] = crd_status(crd, NOW)
    return crd


def test_defaults_fill_names_and_conversion():
    crd = created(box_crd())
    assert crd["spec"]["names"] == {
        "plural": "boxes",
        "kind": "Box",
        "shortNames": ["bx"],
        "singular": "box",
        "listKind": "BoxList",
    }
    assert crd["spec"]["conversion"] == {"strategy": "None"}
    assert crd["status"] == {
        "conditions": None,
        "acceptedNames": {"plural": "", "kind": ""},
        "storedVersions": ["v1"],
    }
    assert KIND.validate(crd) == []


def test_the_name_is_plural_and_group():
    crd = box_crd()
    crd["metadata"]["name"] = "other.shop.example"
    assert errors(crd) == [
        'metadata.name: Invalid value: "other.shop.example": must be spec.names.plural+"."+spec.group'
    ]


def test_a_default_must_be_valid():
    crd = box_crd()
    mode = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["mode"]
    mode["default"] = 5
    where = f"{SPEC}.properties[mode].default"
    assert KIND.validate(created(crd)) == [
        FieldError("FieldValueTypeInvalid", where, ' in body must be of type string: "integer"', "integer"),
        FieldError("FieldValueNotSupported", where, 'supported values: "fast", "slow"', 5),
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"group": "noDots"}, "spec.group: Invalid value"),
        (
            {"group": "nodots"},
            'spec.group: Invalid value: "nodots": should be a domain with at least one dot',
        ),
        (
            {"scope": "World"},
            'spec.scope: Unsupported value: "World": supported values: "Cluster", "Namespaced"',
        ),
        ({"scope": None}, "spec.scope: Required value"),
        (
            {"preserveUnknownFields": True},
            "spec.preserveUnknownFields: Invalid value: true: cannot set to true",
        ),
        ({"names": {"kind": "Box"}}, "spec.names.plural: Required value"),
        (
            {"names": {"plural": "boxes", "kind": "Box", "listKind": "Box"}},
            'spec.names.listKind: Invalid value: "Box": kind and listKind may not be the same',
        ),
        ({"conversion": {"strategy": "Webhook"}}, 'spec.conversion.strategy: Unsupported value: "Webhook"'),
    ],
)
def test_bad_specs(change, expected):
    crd = box_crd()
    crd["spec"].update(change)
    assert any(e.startswith(expected) for e in errors(crd)), errors(crd)


def test_exactly_one_storage_version():
    crd = box_crd()
    crd["spec"]["versions"].append({**copy(crd["spec"]["versions"][0]), "name": "v2"})
    assert [e.rsplit(": ", 1)[1] for e in errors(crd)] == [
        "must have exactly one version marked as storage version"
    ]
    crd["spec"]["versions"][1]["name"] = "v1"
    assert [e.rsplit(": ", 1)[1] for e in errors(crd)] == [
        "must contain unique version names",
        "must have exactly one version marked as storage version",
    ]


def test_a_version_needs_a_schema():
    crd = box_crd()
    del crd["spec"]["versions"][0]["schema"]
    assert errors(crd) == ["spec.versions[0].schema.openAPIV3Schema: Required value"]


def test_different_versions_are_reported_by_version():
    crd = box_crd()
    second = copy(crd["spec"]["versions"][0]) | {"name": "v2", "storage": False}
    second["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["mode"] = {"type": "text"}
    crd["spec"]["versions"].append(second)
    where = "spec.versions[1].schema.openAPIV3Schema.properties[spec].properties[mode].type"
    assert [e.split(": ")[0] for e in errors(crd)] == [where]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (
            {"type": "object", "properties": {"a": {}}},
            f"{SPEC}.properties[a].type: Required value: must not be empty for specified object fields",
        ),
        ({"type": "array"}, f"{SPEC}.items: Required value: must be specified"),
        (
            {"type": "array", "items": {}},
            f"{SPEC}.items.type: Required value: must not be empty for specified array items",
        ),
        (
            {"type": "object", "anyOf": [{"type": "object"}]},
            f"{SPEC}.anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            {"type": "object", "allOf": [{"properties": {"b": {"minimum": 1}}}]},
            f"{SPEC}.properties[b]: Required value: because it is defined in {SPEC}.allOf[0].properties[b]",
        ),
        (
            {"type": "string", "pattern": "("},
            f'{SPEC}.pattern: Invalid value: "(": must be a valid regular expression, but isn\'t: unclosed group',
        ),
        (
            {"type": "object", "properties": {"a": STRING}, "additionalProperties": STRING},
            f"{SPEC}.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
        ),
        (
            {"type": "array", "items": STRING, "uniqueItems": True},
            f"{SPEC}.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity "
            "becomes quadratic",
        ),
        ({"type": "object", "$ref": "#/a"}, f"{SPEC}.$ref: Forbidden: $ref is not supported"),
        (
            {"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"},
            f"{SPEC}.x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type "
            "is map",
        ),
        (
            {"type": "object", "x-kubernetes-list-type": "set"},
            f'{SPEC}.type: Invalid value: "object": must be array if x-kubernetes-list-type is specified',
        ),
        (
            {"type": "object", "default": {"b": 1}, "properties": {"a": STRING}},
            f'{SPEC}.default: Invalid value: {{"b":1}}: must not have unknown fields',
        ),
    ],
)
def test_bad_schemas(schema, expected):
    assert errors(crd_with(schema)) == [expected]


def test_schemas_inside_items_are_decoded_too():
    items = {"type": "string", "noSuchKeyword": 1}
    crd = crd_with({"type": "array", "items": items})
    assert errors(crd) == []
    root = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert root["properties"]["spec"]["items"] == {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "array", "items": 5}, "JSON schema or list of them expected in items"),
        ({"type": "object", "additionalProperties": "x"}, "boolean or JSON schema expected"),
        ({"type": "array", "items": {"type": 5}}, "cannot unmarshal number into Go struct field"),
    ],
)
def test_what_is_no_schema_cannot_be_decoded(schema, expected):
    with pytest.raises(ApiError) as error:
        KIND.default(crd_with(schema))
    assert error.value.code == 400
    assert expected in error.value.message


def test_selectable_fields_must_lead_to_a_scalar():
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}}
    paths = [{"jsonPath": p} for p in (".spec.on", ".spec", ".spec.off", "spec.on")]
    assert [e.split(": ")[0] for e in errors(crd_with(schema, selectableFields=paths))] == [
        f"spec.selectableFields[{i}].jsonPath" for i in (1, 2, 3)
    ]


def test_metadata_may_only_be_narrowed_by_name():
    crd = crd_with({"type": "object"})
    properties = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    properties["metadata"] = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}}
    assert errors(crd) == []
    properties["metadata"]["properties"]["labels"] = {"type": "object"}
    assert errors(crd) == [
        f"{ROOT}.properties[metadata]: Forbidden: must not specify anything other than name and generateName, "
        "but metadata is implicitly specified"
    ]


def test_the_root_of_a_schema_with_status_is_restricted():
    crd = crd_with({"type": "object"}, subresources={"status": {}})
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["anyOf"] = [{"required": ["spec"]}]
    (error,) = errors(crd)
    assert error.startswith(f"{ROOT}: Invalid value: ")
    assert error.endswith("fields are allowed at the root of the schema if the status subresource is enabled")


@pytest.mark.parametrize(
    ("rule", "detail"),
    [
        ("self.mod == 'x'", "compilation failed: ERROR: <input>:1:5: undefined field 'mod'\n | self.mod == 'x'\n | ....^"),
        (
            "selff == 1",
            "compilation failed: ERROR: <input>:1:1: undeclared reference to 'selff' (in container '')\n"
            " | selff == 1\n | ^",
        ),
    ],
)  # fmt: skip
def test_a_rule_that_does_not_compile_is_refused(rule, detail):
    schema = {"type": "object", "properties": {"mode": STRING}, "x-kubernetes-validations": [{"rule": rule}]}
    (error,) = KIND.validate(created(crd_with(schema)))
    assert (error.field, error.detail) == (f"{SPEC}.x-kubernetes-validations[0].rule", detail)


def test_old_values_of_an_unkeyed_list_cannot_be_ruled_on():
    rule = {"rule": "self == oldSelf"}
    schema = {"type": "array", "items": STRING | {"x-kubernetes-validations": [rule]}}
    (error,) = KIND.validate(created(crd_with(schema)))
    assert error.detail == f"oldSelf cannot be used on the uncorrelatable portion of the schema within {SPEC}"


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ({"type": "string", "jsonPath": ".a"}, ".name: Required value"),
        ({"name": "A", "type": "text", "jsonPath": ".a"}, ".type: Invalid value"),
        ({"name": "A", "type": "string", "jsonPath": "a"}, ".JSONPath: Invalid value"),
        ({"name": "A", "type": "string", "jsonPath": ".a[x"}, ".JSONPath: Invalid value"),
    ],
)
def test_bad_columns(column, expected):
    (error,) = errors(crd_with({"type": "object"}, additionalPrinterColumns=[column]))
    assert error.startswith(f"spec.additionalPrinterColumns[0]{expected}")


def test_scale_paths_lie_in_spec_and_status():
    scale = {"specReplicasPath": ".status.x", "statusReplicasPath": ""}
    assert errors(crd_with({"type": "object"}, subresources={"scale": scale})) == [
        'spec.subresources.scale.specReplicasPath: Invalid value: ".status.x": should be a json path under .spec',
        "spec.subresources.scale.statusReplicasPath: Required value",
    ]


def test_protected_groups_need_an_approval():
    crd = box_crd()
    crd["metadata"]["name"], crd["spec"]["group"] = "boxes.shop.k8s.io", "shop.k8s.io"
    assert errors(crd)[0].startswith(
        "metadata.annotations[api-approved.kubernetes.io]: Required value: protected"
    )
    crd["metadata"]["annotations"] = {"api-approved.kubernetes.io": "https://example.com/pull/1"}
    assert errors(crd) == []
    assert crd_status(crd, NOW)["conditions"][-1]["message"] == "approved in https://example.com/pull/1"


def test_status_of_a_new_definition():
    moment = "2026-01-01T00:00:00Z"
    assert established()["status"] == {
        "conditions": [
            {
                "type": "NamesAccepted",
                "status": "True",
                "lastTransitionTime": moment,
                "reason": "NoConflicts",
                "message": "no conflicts found",
            },
            {
                "type": "Established",
                "status": "True",
                "lastTransitionTime": moment,
                "reason": "InitialNamesAccepted",
                "message": "the initial names have been accepted",
            },
        ],
        "acceptedNames": {
            "plural": "boxes",
            "singular": "box",
            "shortNames": ["bx"],
            "kind": "Box",
            "listKind": "BoxList",
        },
        "storedVersions": ["v1"],
    }


def test_status_is_stable():
    crd = established()
    assert crd_status(crd, datetime(2027, 1, 1, tzinfo=UTC)) == crd["status"]


def test_a_name_in_use_is_not_accepted():
    other = established()
    crd = box_crd()
    crd["metadata"]["name"], crd["spec"]["names"]["plural"] = "cases.shop.example", "cases"
    crd["spec"]["names"]["kind"] = "Case"
    status = crd_status(created(crd), NOW, [other, crd])
    accepted, established_ = status["conditions"]
    assert (accepted["reason"], accepted["message"]) == ("ShortNamesConflict", '"bx" is already in use')
    assert (established_["status"], established_["reason"]) == ("False", "NotAccepted")
    assert "shortNames" not in status["acceptedNames"]
    assert not is_established({"status": status})


def test_deletion_is_told_in_two_steps():
    crd = established()
    crd["status"] = terminating_status(crd, NOW, started=False)
    assert crd["status"]["conditions"][-1]["reason"] == "InstanceDeletionPending"
    crd["status"] = terminating_status(crd, NOW, started=True)
    assert [c["type"] for c in crd["status"]["conditions"]] == ["NamesAccepted", "Established", "Terminating"]
    assert crd["status"]["conditions"][-1]["message"] == "CustomResource deletion is in progress"


def test_update_keeps_status_and_what_is_fixed():
    old = established()
    new = copy(old)
    new["status"] = {}
    new["spec"]["names"]["kind"] = "Crate"
    new["spec"]["scope"] = "Cluster"
    KIND.prepare_update(new, old)
    assert new["status"] == old["status"]
    assert [str(e) for e in KIND.validate_update(new, old)] == [
        'spec.scope: Invalid value: "Cluster": field is immutable',
        'spec.names.kind: Invalid value: "Crate": field is immutable',
    ]


def test_a_new_storage_version_is_remembered():
    old = established()
    new = copy(old)
    new["spec"]["versions"][0]["storage"] = False
    new["spec"]["versions"].append(copy(old["spec"]["versions"][0]) | {"name": "v2"})
    KIND.prepare_update(new, old)
    assert new["status"]["storedVersions"] == ["v1", "v2"]
    assert KIND.validate_update(new, old) == []
    del new["spec"]["versions"][0]
    assert [str(e) for e in KIND.validate_update(new, old)] == [
        'status.storedVersions[0]: Invalid value: "v1": must appear in spec.versions'
    ]
