"""The scalar types of the API that are not plain JSON: times, quantities, bytes, int-or-string.

Each function takes the JSON value and returns it in canonical form, or raises ScalarError with Go's text.
"""

import base64
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from mesh_local.machinery.errors import go_quote
from mesh_local.machinery.objects import rfc3339, rfc3339_micro
from mesh_local.machinery.quantity import QuantityError, canonical

INT_LIMITS = {"int32": 2**31, "int64": 2**63}
_TIME_LAYOUT = "2006-01-02T15:04:05Z07:00"
_MICRO_LAYOUT = "2006-01-02T15:04:05.000000Z07:00"
# Each piece of Go's layout, and what it may stand for.
_TIME_PIECES = (
    ("2006", r"\d{4}"),
    ("-", "-"),
    ("01", r"\d\d"),
    ("-", "-"),
    ("02", r"\d\d"),
    ("T", "T"),
    ("15", r"\d\d"),
    (":", ":"),
    ("04", r"\d\d"),
    (":", ":"),
    ("05", r"\d\d"),
)
_ZONE = re.compile(r"Z|([+-])(\d\d):(\d\d)", re.ASCII)
_FRACTION = re.compile(r"[.,]\d+", re.ASCII)
_MICROS = re.compile(r"\.\d{6}", re.ASCII)


class ScalarError(ValueError):
    """The value is not of the type; the message is Go's."""


def json_type(value: Any) -> str:
    """What Go's decoder calls the kind of a JSON value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def mismatch(value: Any, go_type: str) -> ScalarError:
    return ScalarError(f"json: cannot unmarshal {json_type(value)} into Go value of type {go_type}")


def time(value: Any) -> str:
    """metav1.Time: RFC 3339, kept in UTC and whole seconds."""
    return rfc3339(_parse_time(_string(value), _TIME_LAYOUT))


def micro_time(value: Any) -> str:
    """metav1.MicroTime: RFC 3339 with exactly six fraction digits."""
    return rfc3339_micro(_parse_time(_string(value), _MICRO_LAYOUT))


def quantity(value: Any) -> str:
    """resource.Quantity in canonical form."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        value = ""
    try:
        return canonical(value.strip() if isinstance(value, str) else value)
    except QuantityError as error:
        raise ScalarError(str(error)) from None


def int_or_string(value: Any) -> int | str:
    """intstr.IntOrString."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise mismatch(value, "int32")
    if isinstance(value, float) or not -INT_LIMITS["int32"] <= value < INT_LIMITS["int32"]:
        raise ScalarError(f"json: cannot unmarshal number {value} into Go value of type int32")
    return value


def data_bytes(text: str) -> str:
    """A []byte: standard base64 (RFC 4648 section 4); line breaks are skipped."""
    clean = text.replace("\n", "").replace("\r", "")
    bad = _base64_error(clean)
    if bad is not None:
        skipped = 0
        for index, char in enumerate(text):
            if char in "\r\n":
                skipped += 1
            elif index - skipped >= bad:
                break
        raise ScalarError(f"illegal base64 data at input byte {bad + skipped}")
    # Go ignores the unused bits of the last character; encoding again clears them.
    return base64.b64encode(base64.b64decode(clean)).decode()


SCALARS: dict[str, Callable[[Any], Any]] = {
    "io.k8s.apimachinery.pkg.apis.meta.v1.Time": time,
    "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": micro_time,
    "io.k8s.apimachinery.pkg.api.resource.Quantity": quantity,
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": int_or_string,
}


def _base64_error(text: str) -> int | None:
    """The index at which Go's decoder gives up, or None."""
    found = re.match(r"[A-Za-z0-9+/]*", text)
    end = found.end() if found else 0
    rest = text[end:]
    if not rest:
        return None if end % 4 == 0 else end - end % 4
    if rest[0] != "=" or end % 4 < 2:
        return end
    padding = 4 - end % 4
    if rest == "=" * padding:
        return None
    if rest.startswith("=" * padding):
        return end + padding
    return len(text) if rest == "=" else end


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise mismatch(value, "string")
    return value


def _parse_time(text: str, layout: str) -> datetime:
    """The moment a text names, read as Go's time.Parse reads it."""

    def cannot(rest: str, piece: str) -> ScalarError:
        as_ = f"as {go_quote(layout)}: cannot parse {go_quote(rest)} as {go_quote(piece)}"
        return ScalarError(f"parsing time {go_quote(text)} {as_}")

    at = 0
    numbers = []
    for piece, pattern in _TIME_PIECES:
        found = re.compile(pattern, re.ASCII).match(text, at)
        if found is None:
            raise cannot(text[at:], piece)
        if piece.isdecimal():
            numbers.append(int(found[0]))
        at = found.end()
    micro = 0
    if layout == _MICRO_LAYOUT:
        found = _MICROS.match(text, at)
        if found is None:
            raise cannot(text[at:], ".000000")
        micro, at = int(found[0][1:]), found.end()
    elif found := _FRACTION.match(text, at):
        at = found.end()
    zone = _ZONE.match(text, at)
    if zone is None:
        raise cannot(text[at:], "Z07:00")
    if zone.end() != len(text):
        raise ScalarError(f"parsing time {go_quote(text)}: extra text: {go_quote(text[zone.end() :])}")
    return _moment(text, numbers, micro, zone)


def _moment(text: str, numbers: list[int], micro: int, zone: re.Match[str]) -> datetime:
    year, month, day, hour, minute, second = numbers
    limits = (("month", 1, 12, month), ("hour", 0, 23, hour), ("minute", 0, 59, minute))
    for name, low, high, value in (*limits, ("second", 0, 59, second)):
        if not low <= value <= high:
            raise ScalarError(f"parsing time {go_quote(text)}: {name} out of range")
    try:
        offset = timedelta()
        if zone[1]:
            offset = timedelta(hours=int(zone[2]), minutes=int(zone[3]))
            offset = -offset if zone[1] == "-" else offset
        return datetime(year, month, day, hour, minute, second, micro, tzinfo=timezone(offset)).astimezone(
            UTC
        )
    except (ValueError, OverflowError):
        name = "time zone offset hour" if zone[2] and int(zone[2]) > 23 else "day"
        raise ScalarError(f"parsing time {go_quote(text)}: {name} out of range") from None
