"""The subset of client-go's JSONPath that printer columns use.

`.a.b`, `['a.b']`, `[0]`, `[-1]`, `[1:3]`, `[*]` and filters such as `[?(@.type=="Ready")]`. Recursive
descent and unions are refused.
"""

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"\.((?:\\.|[^.\[\]\\])+)")
_KEY = re.compile(r"\[\s*(?:'((?:\\.|[^'\\])*)'|\"((?:\\.|[^\"\\])*)\")\s*\]")
_INDEX = re.compile(r"\[\s*(-?\d{1,9})\s*\]")
_SLICE = re.compile(r"\[\s*(-?\d{1,9})?\s*:\s*(-?\d{1,9})?\s*\]")
_ALL = re.compile(r"\[\s*\*\s*\]|\.\*")
_FILTER = re.compile(
    r"\[\?\(\s*@((?:\.(?:\\.|[^.\[\]\\\s=!<>()])+)*)\s*(?:(==|!=|<=|>=|<|>)\s*('(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[^\s()]+)\s*)?\)\]"
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class PathError(ValueError):
    """The text is not a path that is supported."""


@dataclass(frozen=True, slots=True)
class _Key:
    name: str

    def step(self, value: Any) -> Iterator[Any]:
        if isinstance(value, dict) and self.name in value:
            yield value[self.name]


@dataclass(frozen=True, slots=True)
class _Slice:
    start: int | None
    end: int | None

    def step(self, value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            yield from value[self.start : self.end]


@dataclass(frozen=True, slots=True)
class _All:
    def step(self, value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()


@dataclass(frozen=True, slots=True)
class _Filter:
    path: tuple[_Key, ...]
    compare: Callable[[Any, Any], bool] | None
    literal: Any

    def step(self, value: Any) -> Iterator[Any]:
        for item in value if isinstance(value, list) else ():
            found = next(_walk(self.path, item), None)
            if found is not None and (self.compare is None or self._holds(found)):
                yield item

    def _holds(self, found: Any) -> bool:
        try:
            return self.compare is None or self.compare(found, self.literal)
        except TypeError:
            return False


Step = _Key | _Slice | _All | _Filter


@dataclass(frozen=True, slots=True)
class Path:
    steps: tuple[Step, ...]

    def find(self, obj: Any) -> Iterator[Any]:
        """Every value that the path leads to."""
        return _walk(self.steps, obj)


def _walk(steps: Iterable[Step], value: Any) -> Iterator[Any]:
    values: Iterable[Any] = (value,)
    for step in steps:
        values = [found for v in values for found in step.step(v)]
    yield from values


def parse(text: str) -> Path:
    """The path that `text` (`.spec.replicas`) denotes.

    Raises:
        PathError: it is not of the supported form.
    """
    steps: list[Step] = []
    at = 0
    while at < len(text) and text != ".":
        step, at = _parse_step(text, at)
        steps.append(step)
    return Path(tuple(steps))


def _parse_step(text: str, at: int) -> tuple[Step, int]:
    if match := _ALL.match(text, at):
        return _All(), match.end()
    if match := _NAME.match(text, at):
        return _Key(_unescape(match[1])), match.end()
    if match := _KEY.match(text, at):
        return _Key(_unescape(match[1] if match[1] is not None else match[2])), match.end()
    if match := _INDEX.match(text, at):
        index = int(match[1])
        return _Slice(index, index + 1 or None), match.end()
    if match := _SLICE.match(text, at):
        return _Slice(*(int(g) if g else None for g in match.groups())), match.end()
    if match := _FILTER.match(text, at):
        path = tuple(_Key(_unescape(n)) for n in _NAME.findall(match[1]))
        return _Filter(path, _COMPARE.get(match[2] or ""), _literal(match[3])), match.end()
    raise PathError(f"{text!r} is not a supported JSONPath: cannot read {text[at:]!r}")


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _literal(text: str | None) -> Any:
    if text is None:
        return None
    if text[0] in "'\"":
        return _unescape(text[1:-1])
    try:
        return json.loads(text)
    except ValueError:
        raise PathError(f"{text!r} is neither quoted nor a number") from None
