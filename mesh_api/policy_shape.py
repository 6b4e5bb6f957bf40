"""Whether plain data has the shape of a policy's part; every place that has not, not only the first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from msgspec import inspect

from mesh_api.policy_types import LATER_VALUES, Part
from mesh_api.policy_values import Problem, duration, listed, meant, show

LATER = "not supported yet"
_half_a_character = re.compile("[\ud800-\udfff]").search
"""JSON can write one as an escape; it has no bytes in UTF-8, so it could not be told to a sidecar."""


def misshapen(value: object, wanted: inspect.Type, path: str) -> Iterator[Problem]:
    """What of `value` has not the shape `wanted`: of Parts, mappings, lists and plain values."""
    what = ""
    if isinstance(wanted, inspect.UnionType):
        # Only `X | None` occurs, and null is not a way to leave something out.
        wanted = next(one for one in wanted.types if not isinstance(one, inspect.NoneType))
    if isinstance(wanted, inspect.Metadata):
        what = str((wanted.extra_json_schema or {}).get("description", ""))
        wanted = wanted.type
    match wanted:
        case inspect.StructType():
            yield from _struct(value, wanted, path)
        case inspect.DictType():
            yield from _mapping(value, wanted, path)
        case inspect.VarTupleType():
            yield from _list(value, wanted, path)
        case _:
            problem = _scalar(value, wanted, what)
            if problem:
                yield Problem(path, problem)


def join(path: str, key: str) -> str:
    """The path of a field or key; one with odd characters is quoted."""
    plain = key.replace("-", "").replace("_", "").isalnum() and key.isascii() and len(key) <= 63
    return f"{path}.{key}" if plain else f"{path}[{show(key)}]"


def _struct(value: object, wanted: inspect.StructType, path: str) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        yield Problem(path, f"expected a mapping, got {show(value)}")
        return
    part = wanted.cls
    assert issubclass(part, Part)
    fields = {field.encode_name: field for field in wanted.fields}
    later = False
    for key, inner in value.items():
        if key in part.later:
            later = True
            yield Problem(join(path, key), LATER)
        elif key not in fields:
            known = [*fields, *part.later]
            yield Problem(join(path, str(key)), f"unknown field{meant(str(key), known)}")
        else:
            yield from misshapen(inner, fields[key].type, join(path, key))
            if _is_time(fields[key]) and key not in part.zero_is_off and _is_zero(inner):
                yield Problem(join(path, key), f"expected a duration above 0, got {show(inner)}")
    if later:
        return  # what is missing beside it would mislead
    for name, field in fields.items():
        if field.required and name not in value:
            yield Problem(join(path, name), "expected a value, got none")
    there = [name for name in part.only_one if name in value]
    if part.only_one and len(there) != 1:
        got = listed(there, "and") if there else "none"
        yield Problem(path, f"expected exactly one of {listed(part.only_one, 'and')}, got {got}")


def _is_time(field: inspect.Field) -> bool:
    types = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
    return any(isinstance(one, inspect.CustomType) for one in types)


def _is_zero(value: object) -> bool:
    try:
        return not duration(value)
    except ValueError:
        return False  # told already


def _sized(value: Mapping[object, object] | list[object], least: int | None, most: int | None) -> str:
    if len(value) < (least or 0):
        return f"expected at least {least} item{'s' if least != 1 else ''}, got {len(value)}"
    if most is not None and len(value) > most:
        return f"expected at most {most} items, got {len(value)}"
    return ""


def _mapping(value: object, wanted: inspect.DictType, path: str) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        yield Problem(path, f"expected a mapping, got {show(value)}")
        return
    if wrong := _sized(value, wanted.min_length, wanted.max_length):
        yield Problem(path, wrong)
        return
    for key, inner in value.items():
        for problem in misshapen(key, wanted.key_type, path):
            yield Problem(path, f"{problem.expected} as a key")
        yield from misshapen(inner, wanted.value_type, join(path, str(key)))


def _list(value: object, wanted: inspect.VarTupleType, path: str) -> Iterator[Problem]:
    if not isinstance(value, list | tuple):
        yield Problem(path, f"expected a list, got {show(value)}")
        return
    if wrong := _sized(list(value), wanted.min_length, wanted.max_length):
        yield Problem(path, wrong)
        return
    for i, inner in enumerate(value):
        yield from misshapen(inner, wanted.item_type, f"{path}[{i}]")


def _scalar(value: object, wanted: inspect.Type, what: str) -> str:
    match wanted:
        case inspect.CustomType():
            try:
                duration(value)
            except ValueError as exc:
                return str(exc)
        case inspect.EnumType(cls=cls):
            return _choice(value, [str(one.value) for one in cls], LATER_VALUES.get(cls, ()))
        case inspect.BoolType():
            return "" if isinstance(value, bool) else f"expected true or false, got {show(value)}"
        case inspect.IntType():
            whole = isinstance(value, int) and not isinstance(value, bool)
            return "" if whole and _within(value, wanted) else f"expected {what}, got {show(value)}"
        case inspect.FloatType():
            real = isinstance(value, int | float) and not isinstance(value, bool)
            return "" if real and _within(value, wanted) else f"expected {what}, got {show(value)}"
        case inspect.StrType():
            return _string(value, wanted, what)
    return ""


def _within(value: object, wanted: inspect.IntType | inspect.FloatType) -> bool:
    assert isinstance(value, int | float)
    assert wanted.ge is not None
    assert wanted.le is not None
    return wanted.ge <= value <= wanted.le


def _choice(value: object, known: list[str], later: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in known:
        return ""
    if isinstance(value, str) and value in later:
        return f"{value} is {LATER}; expected {listed(known)}"
    near = meant(value, known) if isinstance(value, str) else _in_quotes(value)
    return f"expected {listed(known)}, got {show(value)}{near}"


def _in_quotes(value: object) -> str:
    """What to do where YAML has taken a text for something else."""
    return f'; write it in quotes: "{show(value)}"' if isinstance(value, bool | int | float) else ""


def _string(value: object, wanted: inspect.StrType, what: str) -> str:
    if not isinstance(value, str):
        return f"expected {what}, got {show(value)}{_in_quotes(value)}"
    if _half_a_character(value):
        return (
            f"expected {what}, got {show(value)}, in which a part of a character (a surrogate) stands alone"
        )
    if not value and wanted.min_length:
        return f"expected {what}, got an empty text"
    if wanted.max_length is not None and len(value) > wanted.max_length:
        return f"expected {what} of at most {wanted.max_length} characters, got {len(value)}"
    if wanted.pattern and not re.search(wanted.pattern, value):
        return f"expected {what}, got {show(value)}"
    return ""
