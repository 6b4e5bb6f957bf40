"""Structural schemas and JSONPath: the details that the tests of custom resources do not reach."""
# ruff: noqa: E501  (messages are written whole)

import pytest

from mesh_local.machinery import structural_formats as formats
from mesh_local.machinery.jsonpath import PathError, parse
from mesh_local.machinery.structural import default, prune
from mesh_local.machinery.structural_check import check_schema
from mesh_local.machinery.structural_validate import validate, validate_embedded, validate_lists

STRING = {"type": "string"}
INT = {"type": "integer"}


def of(**properties):
    return {"type": "object", "properties": properties}


def said(value, schema, **kwargs):
    return [str(e) for e in validate(value, schema, **kwargs)]


def test_embedded_resources_keep_their_identity():
    schema = of(template=of(spec=of(a=INT)) | {"x-kubernetes-embedded-resource": True})
    inner = {"apiVersion": "v1", "kind": "K", "metadata": {"x": 1}, "other": 1, "spec": {"a": 1, "b": 2}}
    obj = {"template": inner}
    assert prune(obj, schema) == ["template.other", "template.spec.b"]
    assert inner == {"apiVersion": "v1", "kind": "K", "metadata": {"x": 1}, "spec": {"a": 1}}
    assert validate_embedded(obj, schema) == []
    inner["metadata"] = {"name": "Bad_Name"}
    del inner["kind"]
    assert [e.field for e in validate_embedded(obj, schema)] == ["template.kind", "template.metadata.name"]


def test_preserved_fields_still_prune_what_is_specified_below():
    schema = of(known=of(a=INT)) | {"x-kubernetes-preserve-unknown-fields": True}
    obj = {"known": {"a": 1, "b": 1}, "free": {"b": 1}}
    assert prune(obj, schema) == ["known.b"]
    assert obj == {"known": {"a": 1}, "free": {"b": 1}}


def test_additional_properties_true_prunes_inside():
    obj = {"m": {"x": {"y": 1}, "z": 1}}
    assert prune(obj, of(m={"type": "object", "additionalProperties": True})) == ["m.x.y"]
    assert obj == {"m": {"x": {}, "z": 1}}


def test_defaults_nest_and_are_copies():
    schema = of(a=of(b=INT | {"default": 1}) | {"default": {}})
    first, second = {}, {}
    default(first, schema)
    default(second, schema)
    assert first == second == {"a": {"b": 1}}
    assert first["a"] is not second["a"]
    assert schema["properties"]["a"]["default"] == {}


def test_nulls():
    schema = of(
        plain=STRING,
        filled=STRING | {"default": "x"},
        kept=STRING | {"nullable": True, "default": "x"},
        by={"type": "object", "additionalProperties": STRING},
        items={"type": "array", "items": of(a=STRING)},
    )
    obj = {
        "plain": None,
        "filled": None,
        "kept": None,
        "by": {"k": None},
        "items": [{"a": None}],
        "other": None,
    }
    default(obj, schema)
    assert obj == {"filled": "x", "kept": None, "by": {}, "items": [{}], "other": None}


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        (2.0, INT, []),
        (1, {"type": "number"}, []),
        (1 << 63, INT, ['<nil>: Invalid value: "": Checked value must be of type integer (default format) in ']),
        (1 << 31, INT | {"format": "int32"}, ['<nil>: Invalid value: "": Checked value must be of type integer with format int32 in ']),
        (True, INT, ['<nil>: Invalid value: "boolean":  in body must be of type integer: "boolean"']),
        (True, {"enum": [1]}, ["<nil>: Unsupported value: true: supported values: \"1\""]),
        ({"a": 1}, {"type": "object", "minProperties": 2}, ["<nil>: Invalid value: 1:  in body should have at least 2 properties"]),
        ({"a": 1}, {"type": "object", "additionalProperties": False}, ['<nil>: Invalid value: "a": .a in body is a forbidden property']),
        ("x", {"anyOf": [{"enum": ["y"]}, {"minLength": 2}]}, [
            '<nil>: Invalid value: "": "" must validate at least one schema (anyOf)',
            '<nil>: Unsupported value: "x": supported values: "y"',
        ]),
        ("x", {"allOf": [{"minLength": 2}, {"maxLength": 3}]}, [
            '<nil>: Invalid value: "x":  in body should be at least 2 chars long',
            '<nil>: Invalid value: "": "" must validate all the schemas (allOf)',
        ]),
        ("x", {"not": {"enum": ["x"]}}, ['<nil>: Invalid value: "": "" must not validate the schema (not)']),
        ("x", STRING | {"format": "no-such-format"}, []),
        (5, {"type": "number", "maximum": 5, "exclusiveMaximum": True}, ["<nil>: Invalid value: 5:  in body should be less than 5"]),
    ],
)  # fmt: skip
def test_values(value, schema, expected):
    assert said(value, schema) == expected


def test_errors_are_placed_in_the_field_given():
    assert said({"a": "x"}, of(a=INT), field="spec.x") == [
        'spec.x.a: Invalid value: "string": a in body must be of type integer: "string"'
    ]


def test_unchanged_items_of_a_keyed_list_are_not_checked_again():
    schema = {
        "type": "array",
        "items": of(name=STRING, v=INT | {"maximum": 5}),
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    }
    old = [{"name": "a", "v": 9}, {"name": "b", "v": 1}]
    assert said([{"name": "b", "v": 2}, {"name": "a", "v": 9}], schema, old=old) == []
    assert len(said([{"name": "b", "v": 7}, {"name": "a", "v": 9}], schema, old=old)) == 1
    assert len(said([{"name": "b", "v": 2}, {"name": "a", "v": 9}], schema | {"x-kubernetes-list-type": "atomic"}, old=old)) == 1  # fmt: skip


def test_duplicates_deep_in_maps():
    schema = of(
        m={
            "type": "object",
            "additionalProperties": {"type": "array", "items": INT, "x-kubernetes-list-type": "set"},
        }
    )
    errors = validate_lists({"m": {"k": [1, 2, 1, 1]}}, schema)
    assert [str(e) for e in errors] == ["m[k][2]: Duplicate value: 1"]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date-time", ["2026-01-01T00:00:00Z", "2026-01-01t00:00:00.123+01:00"], ["2026-02-30T00:00:00Z", "now", "2026-01-01"]),
        ("date", ["2026-02-28"], ["2026-02-30", "2026-W01-1", "26-1-1"]),
        ("ipv4", ["10.0.0.1"], ["::1", "10.0.0", "10.0.0.256"]),
        ("ipv6", ["::1"], ["10.0.0.1", "fe80::1%eth0"]),
        ("cidr", ["10.0.0.0/8", "::/0"], ["10.0.0.1", "10.0.0.0/33", "10.0.0.0/255.0.0.0"]),
        ("uri", ["https://a.example/b", "/path"], ["no", "http://a b"]),
        ("hostname", ["a.example", "a-b"], ["-a", "a..b", "a" * 256]),
        ("email", ["a@b.example"], ["a", "a@", "@b"]),
        ("mac", ["00:11:22:aa:bb:cc"], ["00:11:22:aa:bb", "00:11-22:aa:bb:cc"]),
        ("uuid", ["0f8fad5b-d9cb-469f-a165-70867728950e"], ["0f8fad5b"]),
        ("uuid4", ["0f8fad5b-d9cb-469f-a165-70867728950e"], ["0f8fad5b-d9cb-169f-a165-70867728950e"]),
        ("byte", ["YQ=="], ["YQ", "?"]),
        ("duration", ["1h30m", "1.5s", "3 days"], ["1x", ""]),
        ("isbn10", ["0-306-40615-2"], ["0-306-40615-3"]),
        ("isbn13", ["978-0-306-40615-7"], ["978-0-306-40615-8"]),
        ("creditcard", ["4111 1111 1111 1111"], ["4111 1111 1111 1112"]),
        ("hexcolor", ["#fff", "a0b1c2"], ["#ffff"]),
        ("rgbcolor", ["rgb(1, 2, 255)"], ["rgb(1,2,256)"]),
        ("ssn", ["111-22-3333"], ["111-22-333"]),
        ("bsonobjectid", ["507f1f77bcf86cd799439011"], ["507f"]),
        ("k8s-short-name", ["a-b"], ["a.b"]),
        ("k8s-long-name", ["a.b"], ["A"]),
    ],
)  # fmt: skip
def test_formats(name, good, bad):
    assert formats.known(name)
    assert [t for t in good if not formats.valid(name, t)] == []
    assert [t for t in bad if formats.valid(name, t)] == []


def test_the_two_forms_of_int_or_string():
    pair = [{"type": "integer"}, {"type": "string"}]
    for schema in ({"anyOf": pair}, {"allOf": [{"anyOf": pair}, {"pattern": "x"}]}):
        assert check_schema(of(a=schema | {"x-kubernetes-int-or-string": True}), "s", status=False) == []


def test_keys_of_a_list_must_be_there():
    schema = {
        "type": "array",
        "items": of(name=STRING),
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name", "other"],
    }
    assert [str(e) for e in check_schema(of(a=schema), "s", status=False)] == [
        "s.properties[a].items.properties[name].default: Required value: this property is in "
        "x-kubernetes-list-map-keys, so it must have a default or be a required property",
        's.properties[a].x-kubernetes-list-map-keys: Invalid value: ["name","other"]: entries must all be names '
        "of item properties",
    ]


def test_rule_texts_are_checked():
    schema = of(a=INT) | {
        "x-kubernetes-validations": [
            {"rule": " "},
            {"rule": "true", "message": "a\nb"},
            {"rule": "true\n", "reason": "Odd"},
            {"rule": "true", "fieldPath": ".b"},
        ]
    }
    assert [f"{e.field[1:]} {e.type}" for e in check_schema(schema, "s", status=False)] == [
        ".x-kubernetes-validations[0].rule FieldValueRequired",
        ".x-kubernetes-validations[1].message FieldValueInvalid",
        ".x-kubernetes-validations[2].reason FieldValueNotSupported",
        ".x-kubernetes-validations[3].fieldPath FieldValueInvalid",
    ]


OBJ = {
    "a": {"b": [1, 2, 3], "x.y": "dot", "q/r": "slash"},
    "items": [{"n": "p", "v": 1, "on": True}, {"n": "q", "v": 2}],
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".a.b", [[1, 2, 3]]),
        (".a.b[0]", [1]),
        (".a.b[-1]", [3]),
        (".a.b[1:]", [2, 3]),
        (".a.b[*]", [1, 2, 3]),
        (".a['x.y']", ["dot"]),
        (r".a.x\.y", ["dot"]),
        (".a.q/r", ["slash"]),
        ('.items[?(@.n=="q")].v', [2]),
        (".items[?(@.n != 'q')].v", [1]),
        (".items[?(@.v>1)].n", ["q"]),
        (".items[?(@.on==true)].n", ["p"]),
        (".items[?(@.on)].n", ["p"]),
        (".items[*].n", ["p", "q"]),
        (".a.none.b", []),
        (".a.b.c", []),
        (".", [OBJ]),
    ],
)
def test_json_paths(path, expected):
    assert list(parse(path).find(OBJ)) == expected


@pytest.mark.parametrize(
    "path", ["a", "..a", ".a[", ".a[?(@.b==)]", ".a[?(@.b==c)]", ".a['b','c']", ".a b[", "{.a}"]
)
def test_json_paths_that_are_refused(path):
    with pytest.raises(PathError):
        parse(path)
