"""Whatever is written as a policy is read or refused in words; and what is read, sidecars take."""

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_api.discovery import Resource, encode_content, read_content
from mesh_api.policy import MAX_PROBLEMS, read_policy
from mesh_api.policy_types import MeshPolicy, TrafficPolicy
from mesh_api.policy_values import duration, duration_text
from mesh_api.sidecar import Destination
from mesh_control.compile.native import parts
from mesh_control.index.levels import Levels
from mesh_proxy.policy.routing import Caller, Router
from tests.support.policy_docs import examples

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
TEXT = st.text(max_size=12) | st.sampled_from(
    ["/", "/a", "/a b", "/ä", "a", "[a-z]+", "(", "x-a", "Host", "v1", "1s", "\ud800"]
)


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in plain data."""
    found = [way] if way else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*way, key))
    return found


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """An example of the reference in which some places say something else."""
    found = copy.deepcopy(draw(st.sampled_from(examples())))
    for _ in range(draw(st.integers(1, 3))):
        ways = places(found["spec"])
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        place = found["spec"]
        for step in way:
            place = place[step]
        if isinstance(place, dict) and draw(st.booleans()):
            place[draw(TEXT)] = place.pop(last)
        else:
            place[last] = draw(TEXT | JSON if draw(st.booleans()) else TEXT)
    return found


@settings(max_examples=300, deadline=None)
@given(mutated())
def test_a_changed_policy_is_read_or_refused_and_what_is_read_sidecars_take(obj: dict[str, Any]) -> None:
    found = read_policy(obj["kind"], obj)
    if isinstance(found, list):
        assert 0 < len(found) <= MAX_PROBLEMS
        for problem in found:
            assert problem.path
            assert problem.expected
            assert "\n" not in str(problem)
        return
    if isinstance(found, MeshPolicy):
        return
    made = parts(
        found, Levels("triomesh-system", {}), found.namespace, lambda name, port: f"bookshop/{name}:80"
    )
    destination = Destination(
        "reviews",
        "bookshop",
        9080,
        (),
        subsets=made.subsets,
        routes=made.routes,
        settings=made.settings,
        retries=made.retries,
        budget=made.budget,
    )
    told = Resource("destination/bookshop/reviews:9080", "1", encode_content(destination))
    assert read_content(told, "cluster.local") == destination
    Router(made.routes, Caller("bookshop", "web", {"app": "web"}))


@settings(max_examples=200, deadline=None)
@given(JSON, st.sampled_from(["TrafficPolicy", "MeshPolicy", "AccessPolicy", "x"]))
def test_any_spec_is_read_or_refused(spec: Any, kind: str) -> None:
    found = read_policy(kind, {"metadata": {"name": "a", "namespace": "b"}, "spec": spec})
    assert isinstance(found, TrafficPolicy | MeshPolicy) or (found and all(str(each) for each in found))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    assert read_policy("MeshPolicy", raw)


@given(st.integers(0, 86_400_000))
def test_a_duration_survives_its_text(milliseconds: int) -> None:
    assert duration(duration_text(milliseconds / 1000)) == milliseconds / 1000
