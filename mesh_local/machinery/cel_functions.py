"""The functions that Kubernetes adds to CEL and the `cel` library does not have.

A URL, an IP address or a quantity is its text. Not here, so that a rule that uses them is refused: regular
expressions beyond `matches`, properties of IP addresses, sets, optional values of a path (`.?`), two-variable
comprehensions and formats of `format` other than %s and %d.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from mesh_local.machinery import quantity

_BUILT_IN = (
    "size contains startsWith endsWith matches int uint double string bytes bool dyn type timestamp duration "
    "getFullYear getMonth getDayOfYear getDayOfMonth getDate getDayOfWeek getHours getMinutes getSeconds "
    "getMilliseconds hasValue value orValue or"
)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.scheme and parts.netloc) or text.startswith("/")


def _url(text: str) -> str:
    if not _is_url(text):
        raise ValueError(f"URL parse error during conversion from string: {text!r}")
    return text


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _port(url: str) -> str:
    return _host(url).rpartition("]")[2].rpartition(":")[2] if ":" in _host(url).rpartition("]")[2] else ""


def _is_ip(text: str) -> bool:
    try:
        return "%" not in text and bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _is_cidr(text: str) -> bool:
    try:
        return "/" in text and bool(ipaddress.ip_interface(text))
    except ValueError:
        return False


def _is_quantity(text: str) -> bool:
    try:
        quantity.parse(text)
    except quantity.QuantityError:
        return False
    return True


def _quantity(text: str) -> str:
    quantity.parse(text)
    return text


def _compare(a: str, b: str) -> int:
    left, right = quantity.parse(a).value, quantity.parse(b).value
    return (left > right) - (left < right)


def _substring(text: str, start: int, end: int | None = None) -> str:
    end = len(text) if end is None else end
    if not 0 <= start <= end <= len(text):
        raise ValueError(f"index out of range: {start}, {end}")
    return text[start:end]


def _char_at(text: str, index: int) -> str:
    if not 0 <= index <= len(text):
        raise ValueError(f"index out of range: {index}")
    return text[index : index + 1]


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    return text.replace(old, new, count)


def _split(text: str, separator: str, count: int = -1) -> list[str]:
    if count == 0:
        return []
    pieces = list(text) if not separator else text.split(separator, count - 1 if count > 0 else -1)
    return pieces


def _find(where: Any, what: Any) -> int:
    if isinstance(where, str):
        return where.find(what)
    return next((i for i, v in enumerate(where) if v == what), -1)


def _rfind(where: Any, what: Any) -> int:
    if isinstance(where, str):
        return where.rfind(what)
    return next((i for i in reversed(range(len(where))) if where[i] == what), -1)


def _is_sorted(values: Sequence[Any]) -> bool:
    return all(a <= b for a, b in pairwise(values))


def _lower(text: str) -> str:
    return re.sub("[A-Z]+", lambda m: m.group().lower(), text)


def _upper(text: str) -> str:
    return re.sub("[a-z]+", lambda m: m.group().upper(), text)


def _format(template: str, values: Sequence[Any]) -> str:
    left = iter(values)

    def one(match: re.Match[str]) -> str:
        verb = match.group(1)
        if verb == "%":
            return "%"
        if verb not in ("s", "d"):
            raise ValueError(f"could not parse formatting clause: unrecognized formatting clause {verb!r}")
        value = next(left, None)
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value)

    return re.sub(r"%(.)", one, template)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "charAt": _char_at,
    "indexOf": _find,
    "lastIndexOf": _rfind,
    "lowerAscii": _lower,
    "upperAscii": _upper,
    "replace": _replace,
    "split": _split,
    "substring": _substring,
    "trim": str.strip,
    "join": lambda values, separator="": separator.join(values),
    "format": _format,
    "isSorted": _is_sorted,
    "sum": sum,
    "min": min,
    "max": max,
    "isURL": _is_url,
    "url": _url,
    "getScheme": lambda url: urlsplit(url).scheme,
    "getHost": _host,
    "getHostname": lambda url: urlsplit(url).hostname or "",
    "getPort": _port,
    "getEscapedPath": lambda url: urlsplit(url).path,
    "isIP": _is_ip,
    "isCIDR": _is_cidr,
    "isQuantity": _is_quantity,
    "quantity": _quantity,
    "isGreaterThan": lambda a, b: _compare(a, b) > 0,
    "isLessThan": lambda a, b: _compare(a, b) < 0,
    "compareTo": _compare,
}
KNOWN = FUNCTIONS.keys() | set(_BUILT_IN.split())
