"""Label and field selectors: matching, printing, and the messages recorded on Kubernetes 1.36."""

import pytest

from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.selectors import (
    FieldRequirement,
    FieldSelector,
    LabelSelector,
    validate_label_selector,
)


def refused(text: str) -> str:
    with pytest.raises(ApiError) as caught:
        LabelSelector.parse(text)
    assert (caught.value.code, caught.value.reason) == (400, "BadRequest")
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "matching", "other"),
    [
        ("g=a", {"g": "a"}, {"g": "b"}),
        ("g==a", {"g": "a"}, {}),
        ("g!=a", {}, {"g": "a"}),
        ("g", {"g": ""}, {"x": "g"}),
        ("!g", {"x": "1"}, {"g": "1"}),
        ("g in (a,b)", {"g": "b"}, {"g": "c"}),
        ("g notin (a,b)", {}, {"g": "a"}),
        ("n>3", {"n": "4"}, {"n": "3"}),
        ("n<3", {"n": "-2"}, {"n": "x"}),
        ("n>3", {"n": "+10"}, {}),
        ("g=", {"g": ""}, {"g": "a"}),
        ("n in ()", {"n": ""}, {}),
        ("x in (,a)", {"x": ""}, {"x": "b"}),
        ("in in (in)", {"in": "in"}, {}),
        ("a=1, b = 2", {"a": "1", "b": "2"}, {"a": "1"}),
        ("notin", {"notin": "x"}, {}),
    ],
)
def test_matches(text: str, matching: dict[str, str], other: dict[str, str]) -> None:
    selector = LabelSelector.parse(text)
    assert selector.matches(matching)
    assert not selector.matches(other)


def test_empty_matches_all() -> None:
    for text in ("", "  "):
        assert LabelSelector.parse(text).empty
        assert LabelSelector.parse(text).matches({})


def test_prints_sorted_by_key_with_sorted_values() -> None:
    assert str(LabelSelector.parse("z,b in (y, x),!a,c == 1,n>1")) == "!a,b in (x,y),c==1,n>1,z"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g=a=b", "found '=', expected: ',' or 'end of string'"),
        ("==", "found '==', expected: !, identifier, or 'end of string'"),
        ("a,", "found '', expected: identifier after ','"),
        ("!", "unable to parse requirement: found '', expected: identifier"),
        ("a in b", "unable to parse requirement: found 'b' expected: '('"),
        ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
        ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        (
            "x<z",
            "unable to parse requirement: values[0]: Invalid value: \"z\": for 'Gt', 'Lt' operators, the "
            "value must be an integer",
        ),
        ("/x=1", 'unable to parse requirement: <nil>: Invalid value: "/x": prefix part must be non-empty'),
    ],
)
def test_refuses_with_kubernetes_text(text: str, message: str) -> None:
    assert refused(text) == message


def test_refuses_a_bad_value() -> None:
    assert refused("a=-b").startswith(
        'unable to parse requirement: values[0][a]: Invalid value: "-b": a valid label'
    )


def test_from_object() -> None:
    selector = LabelSelector.from_object(
        {
            "matchLabels": {"app": "web"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "old", "operator": "DoesNotExist"},
            ],
        }
    )
    assert str(selector) == "app=web,!old,tier in (a,b)"
    assert selector.matches({"app": "web", "tier": "a"})
    assert not selector.matches({"app": "web", "tier": "a", "old": ""})


def test_nothing_and_everything() -> None:
    assert not LabelSelector.from_object(None).matches({})
    assert not LabelSelector.from_object(None).empty
    assert LabelSelector.from_object({}).matches({"a": "b"})
    assert LabelSelector.from_object({}).empty
    assert not LabelSelector.from_labels({}).matches({})
    assert LabelSelector.from_labels({"a": "b"}).matches({"a": "b", "c": "d"})


def test_from_object_refuses_what_was_never_validated() -> None:
    with pytest.raises(ApiError, match='"Near" is not a valid label selector operator'):
        LabelSelector.from_object({"matchExpressions": [{"key": "a", "operator": "Near"}]})


def test_validate_label_selector() -> None:
    found = validate_label_selector(
        {
            "matchLabels": {"bad key": "x"},
            "matchExpressions": [
                {"key": "a", "operator": "In"},
                {"key": "a", "operator": "Exists", "values": ["x"]},
                {"key": "a", "operator": "Near"},
            ],
        },
        "spec.selector",
    )
    assert [e.field for e in found] == [
        "spec.selector.matchLabels",
        "spec.selector.matchExpressions[0].values",
        "spec.selector.matchExpressions[1].values",
        "spec.selector.matchExpressions[2].operator",
    ]
    assert str(found[1]) == (
        "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' "
        "or 'NotIn'"
    )


def test_field_selector_matches() -> None:
    selector = FieldSelector.parse("metadata.name!=c1,metadata.namespace=t6,spec.x==1")
    assert selector.requirements == (
        FieldRequirement("metadata.name", "!=", "c1"),
        FieldRequirement("metadata.namespace", "=", "t6"),
        FieldRequirement("spec.x", "=", "1"),
    )
    values = {"metadata.name": "c2", "metadata.namespace": "t6", "spec.x": "1"}
    assert selector.matches(values.__getitem__)
    assert not selector.matches((values | {"metadata.name": "c1"}).__getitem__)


def test_field_selector_escapes() -> None:
    selector = FieldSelector.parse(r"a=x\,y\=z\\,b=")
    assert [r.value for r in selector.requirements] == [r"x,y=z" + "\\", ""]
    assert FieldSelector.parse(str(selector)) == selector
    assert FieldSelector.parse("").empty


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bad", "invalid selector: 'bad'; can't understand 'bad'"),
        ("a=b=c", "invalid field selector: unescaped character in value: ="),
        (r"a=b\x", r"invalid field selector: invalid escape sequence: \x"),
    ],
)
def test_field_selector_refuses(text: str, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        FieldSelector.parse(text)
    assert (caught.value.code, caught.value.message) == (400, message)


def test_field_selector_knows_the_fields_of_a_kind() -> None:
    FieldSelector.parse("spec.nodeName=n,metadata.name=x").check(["spec.nodeName"])
    with pytest.raises(ApiError, match=r"^field label not supported: spec\.hostname$"):
        FieldSelector.parse("spec.hostname=x").check(["spec.nodeName"])
    with pytest.raises(ApiError) as caught:
        FieldSelector.parse("data.x=y").check([])
    assert caught.value.message == (
        '"data.x" is not a known field selector: only "metadata.name", "metadata.namespace"'
    )
    with pytest.raises(ApiError, match="field label not supported"):
        FieldSelector.parse("spec.x=y").check([], custom=True)
