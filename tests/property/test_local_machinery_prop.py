"""Laws of the local cluster's machinery: patches, selectors, quantities, decoding, reading of bodies."""

import contextlib
import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_local.machinery import jsontext, schema
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.patch import json_patch, merge_patch, strategic_merge
from mesh_local.machinery.quantity import QuantityError, canonical, parse
from mesh_local.machinery.selectors import FieldSelector, LabelSelector

POD = "io.k8s.api.core.v1.Pod"
KEYS = st.sampled_from(["a", "b", "c", "d/e", "~f", ""])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return value


def difference(old: Any, new: Any) -> Any:
    """The merge patch from one object to another (neither holds nulls in objects)."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    patch = {k: None for k in old if k not in new}
    for key, value in new.items():
        if key not in old:
            patch[key] = value
        elif old[key] != value or type(old[key]) is not type(value):
            patch[key] = difference(old[key], value)
    return patch


@given(OBJECTS, OBJECTS)
def test_merge_patch_is_idempotent_and_pure(doc: Any, patch: Any) -> None:
    before = copy.deepcopy((doc, patch))
    once = merge_patch(doc, patch)
    assert merge_patch(once, patch) == once
    assert merge_patch(doc, {}) == doc
    assert (doc, patch) == before


@given(OBJECTS.map(without_nulls), OBJECTS.map(without_nulls))
def test_merge_patch_reaches_every_object(old: Any, new: Any) -> None:
    assert merge_patch(old, difference(old, new)) == new


POINTERS = st.lists(st.sampled_from(["a", "b", "0", "1", "-", "d~1e", "01", ""]), max_size=3).map(
    lambda parts: "".join(f"/{p}" for p in parts)
)
OPERATIONS = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test", "x"]),
        "path": POINTERS | st.text(),
    },
    optional={"value": VALUES, "from": POINTERS | st.text()},
)


@given(VALUES, st.lists(OPERATIONS | OBJECTS, max_size=5) | VALUES)
def test_json_patch_fails_only_with_an_api_error(doc: Any, operations: Any) -> None:
    before = copy.deepcopy((doc, operations))
    with contextlib.suppress(ApiError):
        json_patch(doc, operations)
    assert (doc, operations) == before


NAMES = st.sampled_from(["a", "b", "c", "d"])
LABELS = st.dictionaries(NAMES, st.none() | st.text(max_size=2), max_size=3)
ENV = st.fixed_dictionaries(
    {"name": NAMES}, optional={"value": st.none() | NAMES, "$patch": st.just("delete")}
)
CONTAINER = st.fixed_dictionaries(
    {"name": NAMES},
    optional={
        "image": st.none() | NAMES,
        "args": st.lists(NAMES, max_size=2),
        "env": st.lists(ENV, max_size=3, unique_by=lambda e: e["name"]),
        "$patch": st.sampled_from(["delete", "replace"]),
    },
)
PODS = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.fixed_dictionaries(
            {},
            optional={"labels": st.none() | LABELS, "finalizers": st.lists(NAMES, max_size=3, unique=True)},
        ),
        "spec": st.fixed_dictionaries(
            {},
            optional={
                "containers": st.lists(CONTAINER, max_size=4, unique_by=lambda c: c["name"]),
                "securityContext": st.none()
                | st.fixed_dictionaries({}, optional={"runAsUser": st.integers(0, 3)}),
            },
        ),
    },
)


def stored(pod: Any) -> Any:
    """A pod as the server holds one: without nulls and directives."""
    return strategic_merge(POD, {}, pod)


@given(PODS.map(stored), PODS)
def test_strategic_merge_is_idempotent_and_pure(doc: Any, patch: Any) -> None:
    before = copy.deepcopy((doc, patch))
    once = strategic_merge(POD, doc, patch)
    assert strategic_merge(POD, once, patch) == once
    assert strategic_merge(POD, doc, {}) == doc
    assert (doc, patch) == before


@given(PODS.map(stored), PODS)
def test_strategic_merge_leaves_no_directive_and_no_null(doc: Any, patch: Any) -> None:
    text = json.dumps(strategic_merge(POD, doc, patch))
    assert "$patch" not in text
    assert "null" not in text


@given(PODS.map(stored), st.lists(NAMES, unique=True, min_size=1))
def test_set_element_order_orders_what_it_names(doc: Any, order: list[str]) -> None:
    names = [c["name"] for c in doc.get("spec", {}).get("containers", [])]
    patch = {"spec": {"$setElementOrder/containers": [{"name": n} for n in order]}}
    merged = strategic_merge(POD, doc, patch)
    found = [c["name"] for c in merged.get("spec", {}).get("containers", [])]
    assert sorted(found) == sorted(names)
    assert [n for n in found if n in order] == [n for n in order if n in names]
    assert [n for n in found if n not in order] == [n for n in names if n not in order]


ARBITRARY = st.recursive(
    SCALARS | st.just("$patch") | NAMES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("metadata", "spec", "containers", "name", "labels", "finalizers", "env", "$patch"),
                    *("$retainKeys", "$setElementOrder/containers", "$deleteFromPrimitiveList/finalizers"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(ARBITRARY, ARBITRARY)
def test_strategic_merge_fails_only_with_an_api_error(doc: Any, patch: Any) -> None:
    with contextlib.suppress(ApiError):
        strategic_merge(POD, doc if isinstance(doc, dict) else {}, patch)


LABEL_KEYS = st.from_regex(
    r"([a-z]{1,4}\.[a-z]{1,4}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,4}[A-Za-z0-9])?", fullmatch=True
)
LABEL_VALUES = st.from_regex(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,4}[A-Za-z0-9])?)?", fullmatch=True)


@st.composite
def requirements(draw: st.DrawFn) -> str:
    key = draw(LABEL_KEYS)
    operator = draw(st.sampled_from(["", "!", "=", "==", "!=", " in ", " notin ", ">", "<"]))
    if operator in ("", "!"):
        return operator + key
    if operator in (">", "<"):
        return f"{key}{operator}{draw(st.integers(0, 99))}"
    if operator.strip() != operator:
        return f"{key}{operator}({','.join(draw(st.lists(LABEL_VALUES, min_size=1, max_size=3)))})"
    return f"{key}{operator}{draw(LABEL_VALUES)}"


@given(
    st.lists(requirements(), max_size=4).map(",".join), st.dictionaries(LABEL_KEYS, LABEL_VALUES, max_size=4)
)
def test_label_selectors_survive_printing(text: str, labels: dict[str, str]) -> None:
    selector = LabelSelector.parse(text)
    again = LabelSelector.parse(str(selector))
    assert str(again) == str(selector)
    assert again == selector
    assert again.matches(labels) == selector.matches(labels)


@given(st.text(alphabet="ab=!<>(), in-/\t\x00é", max_size=16))
def test_label_selectors_fail_only_with_an_api_error(text: str) -> None:
    with contextlib.suppress(ApiError):
        LabelSelector.parse(text)


@given(st.text(alphabet="ab=!,\\é", max_size=16))
def test_field_selectors_survive_printing(text: str) -> None:
    try:
        selector = FieldSelector.parse(text)
    except ApiError:
        return
    assert FieldSelector.parse(str(selector)) == selector


@given(st.from_regex(r"[+-]?[0-9]{1,6}(\.[0-9]{1,4})?(n|u|m|k|M|G|Ki|Mi|Gi|e[0-9]|E-[0-9])?", fullmatch=True))
def test_canonical_quantities_are_equal_and_stable(text: str) -> None:
    shown = canonical(text)
    assert parse(shown) == parse(text)
    assert canonical(shown) == shown


@given(st.text(alphabet="0123456789.+-eEinumkKMGTP \n", max_size=12))
def test_quantities_fail_only_with_their_own_error(text: str) -> None:
    with contextlib.suppress(QuantityError):
        parse(text)


FIELD_NAMES = sorted(
    {
        name
        for definition in (
            "Pod",
            "PodSpec",
            "Container",
            "EnvVar",
            "Secret",
            "ServicePort",
            "ServiceSpec",
            "ResourceRequirements",
        )
        for name in schema.definition(f"io.k8s.api.core.v1.{definition}")["properties"]
    }
    | set(schema.definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")["properties"])
    | {"unknown"}
)
TYPED = st.recursive(
    SCALARS | st.sampled_from(["1Gi", "2026-01-01T00:00:00Z", "aGk=", "%%"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELD_NAMES), inner, max_size=4)
    ),
    max_leaves=16,
)


@settings(max_examples=300)
@given(TYPED, st.sampled_from(["Pod", "Secret", "Service"]))
def test_decode_fails_only_with_an_api_error_and_is_stable(data: Any, kind: str) -> None:
    name = f"io.k8s.api.core.v1.{kind}"
    before = copy.deepcopy(data)
    try:
        decoded = schema.decode(name, data, kind=kind, version="v1")
    except ApiError:
        return
    finally:
        assert data == before
    again = schema.decode(name, decoded.object, kind=kind, version="v1")
    assert again.object == decoded.object
    assert again.unknown == []


@given(VALUES)
def test_json_is_read_as_written(value: Any) -> None:
    assert schema.parse_json(json.dumps(value).encode()) == (value, [])


@given(st.binary(max_size=30) | st.text(alphabet='{}[]",:\\u0dntrflase1.-+E \n', max_size=24).map(str.encode))
def test_bodies_fail_only_with_an_api_error(body: bytes) -> None:
    for read in (schema.parse_json, schema.parse_yaml):
        with contextlib.suppress(ApiError):
            read(body)


@settings(max_examples=300)
@given(st.text(alphabet='{}[]",:\\u0dntrflase1.-+E \n\x01', max_size=24))
def test_every_refused_text_is_explained(text: str) -> None:
    try:
        json.loads(text, parse_constant=float)
    except json.JSONDecodeError:
        shown = jsontext.explain(text)
        assert shown.startswith(("invalid character ", "unexpected end of JSON input"))
