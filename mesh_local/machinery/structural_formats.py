"""String formats that Kubernetes checks in custom resources (kube-openapi's `strfmt`); others are ignored."""

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from datetime import date
from urllib.parse import urlsplit

from mesh_local.machinery import names

_DATE_TIME = re.compile(
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[Tt ]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?"
    r"([Zz]|[+-]\d\d:?\d\d)"
)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_EMAIL = re.compile(r"[^@\s<>()\[\],;:\\\"]+@[^@\s<>()\[\],;:\\\"]+")
_HOST_LABEL = re.compile(r"[a-zA-Z0-9_]([-a-zA-Z0-9_]{0,61}[a-zA-Z0-9_])?")
_MAC = re.compile(
    r"([0-9a-fA-F]{2}([:-]))([0-9a-fA-F]{2}\2){4}[0-9a-fA-F]{2}|([0-9a-fA-F]{4}\.){2}[0-9a-fA-F]{4}"
)
_HEX = "[0-9a-fA-F]"
_UUID = {
    "": rf"{_HEX}{{8}}-?{_HEX}{{4}}-?{_HEX}{{4}}-?{_HEX}{{4}}-?{_HEX}{{12}}",
    "3": rf"{_HEX}{{8}}-?{_HEX}{{4}}-?3{_HEX}{{3}}-?{_HEX}{{4}}-?{_HEX}{{12}}",
    "4": rf"{_HEX}{{8}}-?{_HEX}{{4}}-?4{_HEX}{{3}}-?[89abAB]{_HEX}{{3}}-?{_HEX}{{12}}",
    "5": rf"{_HEX}{{8}}-?{_HEX}{{4}}-?5{_HEX}{{3}}-?[89abAB]{_HEX}{{3}}-?{_HEX}{{12}}",
}
# Go's time.ParseDuration, and strfmt's words ("3 days").
_DURATION = re.compile(r"[-+]?(0|((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))+)")
_WORDS = re.compile(
    r"(\d+)\s*(ns|nanos?|nanoseconds?|us|µs|μs|micros?|microseconds?|ms|millis?|milliseconds?|"
    r"s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?|w|weeks?|wks?)",
    re.IGNORECASE,
)


def _date(text: str) -> bool:
    try:
        return bool(_DATE.fullmatch(text) and date.fromisoformat(text))
    except ValueError:
        return False


def _date_time(text: str) -> bool:
    return bool(_DATE_TIME.fullmatch(text)) and _date(text[:10])


def _address(version: int) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            return ipaddress.ip_address(text).version == version and "%" not in text
        except ValueError:
            return False

    return check


def _cidr(text: str) -> bool:
    address, slash, length = text.partition("/")
    try:
        ipaddress.ip_interface(text)
        return bool(address and slash) and length.isascii() and length.isdigit()
    except ValueError:
        return False


def _uri(text: str) -> bool:
    """Go's url.ParseRequestURI: absolute, or a path."""
    if any(c.isspace() or ord(c) < 0x20 for c in text):
        return False
    try:
        parts = urlsplit(text)
        return bool(parts.scheme) or text.startswith("/")
    except ValueError:
        return False


def _byte(text: str) -> bool:
    try:
        return base64.b64encode(base64.b64decode(text, validate=True)).decode() == text
    except (binascii.Error, ValueError):
        return False


def _hostname(text: str) -> bool:
    return len(text) <= 255 and all(_HOST_LABEL.fullmatch(part) for part in text.removesuffix(".").split("."))


def _full(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern)
    return lambda text: bool(compiled.fullmatch(text))


def _isbn10(text: str) -> bool:
    digits = re.sub("[- ]", "", text)
    if not re.fullmatch(r"\d{9}[\dX]", digits):
        return False
    return sum((10 - i) * (10 if d == "X" else int(d)) for i, d in enumerate(digits)) % 11 == 0


def _isbn13(text: str) -> bool:
    digits = re.sub("[- ]", "", text)
    if not re.fullmatch(r"\d{13}", digits):
        return False
    return sum((3 if i % 2 else 1) * int(d) for i, d in enumerate(digits)) % 10 == 0


def _credit_card(text: str) -> bool:
    digits = re.sub("[- ]", "", text)
    if not re.fullmatch(r"\d{13,19}", digits):
        return False
    doubled = (int(d) * (2 if i % 2 else 1) for i, d in enumerate(reversed(digits)))
    return sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0


CHECKS: dict[str, Callable[[str], bool]] = {
    "bsonobjectid": _full(rf"{_HEX}{{24}}"),
    "uri": _uri,
    "email": lambda text: bool(_EMAIL.fullmatch(text)),
    "hostname": _hostname,
    "ipv4": _address(4),
    "ipv6": _address(6),
    "cidr": _cidr,
    "mac": lambda text: bool(_MAC.fullmatch(text)),
    "uuid": _full(_UUID[""]),
    "uuid3": _full(_UUID["3"]),
    "uuid4": _full(_UUID["4"]),
    "uuid5": _full(_UUID["5"]),
    "isbn": lambda text: _isbn10(text) or _isbn13(text),
    "isbn10": _isbn10,
    "isbn13": _isbn13,
    "creditcard": _credit_card,
    "ssn": _full(r"\d{3}[- ]?\d{2}[- ]?\d{4}"),
    "hexcolor": _full(rf"#?({_HEX}{{3}}|{_HEX}{{6}})"),
    "rgbcolor": _full(r"rgb\(\s*(25[0-5]|2[0-4]\d|1?\d?\d)(\s*,\s*(25[0-5]|2[0-4]\d|1?\d?\d)){2}\s*\)"),
    "byte": _byte,
    "password": lambda _text: True,
    "date": _date,
    "duration": lambda text: bool(_DURATION.fullmatch(text) or _WORDS.fullmatch(text)),
    "datetime": _date_time,
    "k8sshortname": lambda text: not names.dns_label(text),
    "k8slongname": lambda text: not names.dns_subdomain(text),
}
NUMERIC = frozenset({"int32", "int64", "float", "double"})


def normal(name: str) -> str:
    """The format without dashes (`date-time` is `datetime`)."""
    return name.replace("-", "")


def known(name: str) -> bool:
    """Whether the format has a meaning; an unknown one is as if it were not there."""
    return name in NUMERIC or normal(name) in CHECKS


def valid(name: str, text: str) -> bool:
    check = CHECKS.get(normal(name))
    return check is None or check(text)
