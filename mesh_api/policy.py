"""Reads the native policies: one function that the webhook, the compiler, and `meshctl` share.

Nothing is ignored: what is unknown, of a wrong shape, contradictory, or part of the model but not supported
yet, is a `Problem`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TypeVar

import msgspec
from msgspec import inspect

from mesh_api.policy_rules import mesh_problems, traffic_problems
from mesh_api.policy_shape import LATER, misshapen
from mesh_api.policy_types import (
    API_VERSION,
    MeshPolicy,
    MeshSpec,
    Part,
    TrafficPolicy,
    TrafficSpec,
)
from mesh_api.policy_values import Problem, duration, listed, meant, show

S = TypeVar("S", bound=Part)
KINDS = ("TrafficPolicy", "MeshPolicy", "AccessPolicy")
SPECS: dict[str, type[Part]] = {"TrafficPolicy": TrafficSpec, "MeshPolicy": MeshSpec}
"""By kind; the others are not supported yet."""
MAX_PROBLEMS = 16
"""Of one policy: who reads the first ones mends the rest with them."""
_TOP = ("apiVersion", "kind", "metadata", "spec", "status")
_SHAPES = {kind: inspect.type_info(spec) for kind, spec in SPECS.items()}


class _Metadata(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    creation_timestamp: str | None = None
    generation: int = 0


def read_policy(kind: str, raw: bytes | Mapping[str, object]) -> TrafficPolicy | MeshPolicy | list[Problem]:
    """Read one object of a kind, from JSON or plain data; if anything is wrong with it, what that is.

    Its `status` is not looked at. Without a namespace the reference to a Service of another one is still a
    problem.
    """
    if isinstance(raw, bytes):
        try:
            raw = msgspec.json.decode(raw, type=dict[str, object])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            return [Problem(kind, f"expected an object in JSON: {exc}")]
    problems = list(islice(_problems(kind, raw), MAX_PROBLEMS))
    if problems:
        return problems
    meta = msgspec.convert(raw.get("metadata") or {}, _Metadata)
    head = (meta.namespace, meta.name, meta.creation_timestamp or "", meta.generation)
    policy: TrafficPolicy | MeshPolicy
    if kind == "TrafficPolicy":
        policy = TrafficPolicy(*head, _spec(raw, TrafficSpec))
        problems = list(islice(traffic_problems(policy), MAX_PROBLEMS))
    else:
        policy = MeshPolicy(*head, _spec(raw, MeshSpec))
        problems = list(islice(mesh_problems(policy), MAX_PROBLEMS))
    return problems or policy


def _spec(raw: Mapping[str, object], spec: type[S]) -> S:
    return msgspec.convert(raw["spec"], spec, dec_hook=lambda _, written: duration(written))


def _problems(kind: str, raw: Mapping[str, object]) -> Iterator[Problem]:
    if kind not in KINDS:
        yield Problem("kind", f"expected {listed(KINDS)}, got {show(kind)}{meant(kind, KINDS)}")
        return
    if kind not in SPECS:
        yield Problem("kind", f"{kind} is {LATER}")
        return
    for name, wanted in (("apiVersion", API_VERSION), ("kind", kind)):
        if name in raw and raw[name] != wanted:
            yield Problem(name, f"expected {wanted}, got {show(raw[name])}")
    for name in raw:
        if name not in _TOP:
            yield Problem(str(name)[:63], f"unknown field{meant(str(name), _TOP)}")
    try:
        msgspec.convert(raw.get("metadata") or {}, _Metadata)
    except msgspec.ValidationError as exc:
        yield Problem("metadata", str(exc))
    if "spec" in raw:
        yield from misshapen(raw["spec"], _SHAPES[kind], "spec")
    else:
        yield Problem("spec", "expected a value, got none")
