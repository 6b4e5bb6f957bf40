"""Texts and numbers in policies: what is legal, and what a refusal says was expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

import msgspec

MAX_DURATION_S = 86_400


class Duration(float):
    """A time in seconds, written as 500ms, 2s, 5m or 1h30m."""


def text(limit: int, description: str, pattern: str | None = None, least: int = 1) -> msgspec.Meta:
    return msgspec.Meta(min_length=least, max_length=limit, pattern=pattern, description=description)


def number(least: float, most: float, description: str) -> msgspec.Meta:
    return msgspec.Meta(ge=least, le=most, description=description)


_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z"
_HOST = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z"
_LABEL_KEY = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z"
)
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?\Z"

Name = Annotated[str, text(63, "a name in small letters, digits and '-'", _LABEL)]
Host = Annotated[str, text(253, "a DNS name in small letters", _HOST)]
Reference = Annotated[str, text(127, "a Service's name, or NAME.NAMESPACE", _HOST)]
LabelKey = Annotated[str, text(317, "a label's name", _LABEL_KEY)]
LabelValue = Annotated[str, text(63, "a label's value", _LABEL_VALUE, 0)]
Labels = Annotated[dict[LabelKey, LabelValue], msgspec.Meta(max_length=16)]
SomeLabels = Annotated[dict[LabelKey, LabelValue], msgspec.Meta(min_length=1, max_length=16)]
Path = Annotated[str, text(1024, "a path that begins with '/', without query", r"^/[!-\"$->@-~]*\Z")]
Regex = Annotated[str, text(1024, "a regular expression")]
Method = Annotated[str, text(32, "a method in capital letters", r"^[A-Z][A-Z-]*\Z")]
HeaderName = Annotated[str, text(256, "a header's name", r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")]
HeaderValue = Annotated[str, text(4096, "a header's value", least=0)]
Port = Annotated[int, number(1, 65535, "a port from 1 to 65535")]
PortKey = Annotated[
    str,
    text(
        5,
        "a port from 1 to 65535",
        r"^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])\Z",
    ),
]
Percent = Annotated[float, number(0, 100, "a percentage from 0 to 100, such as 5 or 0.1")]
WholePercent = Annotated[int, number(0, 100, "a whole percentage from 0 to 100")]
Weight = Annotated[int, number(0, 1_000_000, "a whole number from 0 to 1000000")]
Count = Annotated[int, number(0, 1000, "a whole number from 0 to 1000, where 0 is off")]
Limit = Annotated[int, number(0, 2**31 - 1, "a whole number from 0 to 2147483647")]
SomeLimit = Annotated[int, number(1, 2**31 - 1, "a whole number from 1 to 2147483647")]
Attempts = Annotated[int, number(0, 10, "a whole number from 0 to 10")]
PerSecond = Annotated[int, number(0, 10_000, "a whole number from 0 to 10000")]
GrpcStatus = Annotated[int, number(0, 16, "a status of gRPC from 0 to 16")]
Status = Annotated[int, number(200, 599, "a status from 200 to 599")]


class Problem(NamedTuple):
    """What is wrong with a policy: where, and what was expected there."""

    path: str
    expected: str

    def __str__(self) -> str:
        return f"{self.path}: {self.expected}"


def show(value: object) -> str:
    """A value as a message quotes it: short, in one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    shown = repr(value)
    return shown if len(shown) <= 62 else f"{shown[:58]}...{shown[0]}"


def listed(names: Iterable[str], last: str = "or") -> str:
    """`a, b or c`."""
    found = list(names)
    return f"{', '.join(found[:-1])} {last} {found[-1]}" if len(found) > 1 else "".join(found)


def meant(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is near, else nothing."""
    near = difflib.get_close_matches(name, known, 1) if len(name) <= 253 else []
    return f"; did you mean {near[0]!r}?" if near else ""


_DURATION = re.compile(r"(?:[0-9]{1,7}(?:ms|s|m|h)){1,4}", re.ASCII)
_PIECE = re.compile(r"([0-9]+)(ms|s|m|h)", re.ASCII)
_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


def duration(written: object) -> Duration:
    """Read 500ms, 2s, 5m or 1h30m (as GEP-2257). Raises ValueError that says what was expected."""
    if not isinstance(written, str) or not _DURATION.fullmatch(written):
        bare = isinstance(written, int | float | str) and str(written).replace(".", "", 1).isdigit()
        hint = f"; write {written!s}s for seconds" if bare and "." not in str(written) else ""
        raise ValueError(
            f"expected a duration with its unit, such as 500ms, 2s, 5m or 1h, got {show(written)}{hint}"
        )
    total_ms = sum(int(count) * _UNIT_MS[unit] for count, unit in _PIECE.findall(written))
    if total_ms > MAX_DURATION_S * 1000:
        raise ValueError(f"expected at most 24h, got {show(written)}")
    return Duration(total_ms / 1000)


def duration_text(seconds: float) -> str:
    """A time as a policy says it."""
    left_ms = round(seconds * 1000)
    pieces = []
    for unit in ("h", "m", "s", "ms"):
        count, left_ms = divmod(left_ms, _UNIT_MS[unit])
        if count:
            pieces.append(f"{count}{unit}")
    return "".join(pieces) or "0s"
