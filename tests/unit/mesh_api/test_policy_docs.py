"""docs/policy.md: every example is legal, every field has one, and the defaults are those of the code."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import inspect

from mesh_api.policy import SPECS, read_policy
from mesh_api.policy_types import MeshPolicy, TrafficPolicy
from mesh_control.index.levels import Levels, WorkloadSettings
from meshctl.policy_explain import CALLER, DEFAULTS
from tests.support.policy_docs import DOCS, examples


@pytest.mark.parametrize("example", examples(), ids=lambda each: each["metadata"]["name"])
def test_examples_are_legal(example: dict[str, Any]) -> None:
    found = read_policy(example["kind"], example)
    assert isinstance(found, TrafficPolicy | MeshPolicy), [str(one) for one in found]


def fields(wanted: inspect.Type, path: str) -> Iterator[str]:
    """Every field of a type; a mapping's keys are `*`."""
    if isinstance(wanted, inspect.UnionType):
        wanted = next(one for one in wanted.types if not isinstance(one, inspect.NoneType))
    if isinstance(wanted, inspect.Metadata):
        wanted = wanted.type
    match wanted:
        case inspect.StructType():
            for field in wanted.fields:
                yield f"{path}.{field.encode_name}"
                yield from fields(field.type, f"{path}.{field.encode_name}")
        case inspect.DictType():
            yield from fields(wanted.value_type, f"{path}.*")
        case inspect.VarTupleType():
            yield from fields(wanted.item_type, path)


def used(wanted: inspect.Type, value: Any, path: str) -> Iterator[str]:
    """The fields that a value sets, named as `fields` names them."""
    if isinstance(wanted, inspect.UnionType):
        wanted = next(one for one in wanted.types if not isinstance(one, inspect.NoneType))
    if isinstance(wanted, inspect.Metadata):
        wanted = wanted.type
    match wanted:
        case inspect.StructType():
            types = {field.encode_name: field.type for field in wanted.fields}
            for key, inner in value.items():
                yield f"{path}.{key}"
                yield from used(types[key], inner, f"{path}.{key}")
        case inspect.DictType():
            for inner in value.values():
                yield from used(wanted.value_type, inner, f"{path}.*")
        case inspect.VarTupleType():
            for inner in value:
                yield from used(wanted.item_type, inner, path)


# What is the same as elsewhere need not be shown twice.
ALIKE = (
    (r"^MeshPolicy\.overrides\.", "MeshPolicy.defaults."),
    (
        r"^TrafficPolicy\.subsets\.\*\.(connection|timeouts|loadBalancer|circuitBreaker|outliers)\.",
        r"TrafficPolicy.\1.",
    ),
    (r"\.(headers|query)\.\*\.", ".query.*."),
)


def canonical(path: str) -> str:
    for pattern, instead in ALIKE:
        path = re.sub(pattern, instead, path)
    return path


def test_every_field_has_an_example() -> None:
    shown = {
        canonical(path)
        for each in examples()
        for path in used(inspect.type_info(SPECS[each["kind"]]), each["spec"], each["kind"])
    }
    # `present`, `exact`, `prefix`, `regex` of values are shown with headers or with query
    known = {
        canonical(path) for kind, spec in SPECS.items() for path in fields(inspect.type_info(spec), kind)
    }
    assert known - shown == set()


def test_the_defaults_are_those_of_the_code() -> None:
    text = DOCS.read_text().partition("## Defaults and sides")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| (\w+) \|", text, re.MULTILINE)
    sides = {field: side for field, _, side in rows}
    written = {field: default for field, default, _ in rows}
    settings = Levels("triomesh-system", {}).of_workload("bookshop")
    assert settings == WorkloadSettings()
    expected = {
        **DEFAULTS,
        "mtls.mode": settings.mtls.value,
        "egress.mode": settings.egress.value,
        "pathNormalization": settings.path_normalization.value,
        "accessLog": "all" if settings.access_log else "errors",
    }
    print(*(f"{field}: {default}" for field, default in expected.items()), sep="\n")
    assert written == expected
    assert {sides[field] for field in DEFAULTS} == {CALLER}


BAD = {
    "spec: {timeuts: {}}": {"timeuts": {}},
    "30s for seconds": {"timeouts": {"request": "30"}},
    "sum above 0": {"routes": [{"to": [{"weight": 0}]}]},
    "missing ): (": {"routes": [{"match": [{"path": {"regex": "("}}], "to": [{}]}]},
    "got 'v9'": {"routes": [{"to": [{"subset": "v9"}]}]},
    "reviews.other": {"target": {"service": "reviews.other"}},
    "as spec.routes[0]": {"routes": [{"name": "a", "to": [{}]}, {"name": "a", "to": [{}]}]},
}


@pytest.mark.parametrize("what", BAD)
def test_the_messages_are_those_of_the_code(what: str) -> None:
    meta = {"name": "reviews", "namespace": "bookshop"}
    found = read_policy(
        "TrafficPolicy", {"metadata": meta, "spec": {"target": {"service": "reviews"}, **BAD[what]}}
    )
    assert isinstance(found, list)
    rows = DOCS.read_text().partition("## What goes wrong")[2].splitlines()
    assert any(what in row and f"`{found[0]}`" in row for row in rows), str(found[0])
