"""What a name, a label or a key may look like, with the messages of apimachinery's `validation` package.

Every rule returns the list of what is wrong; an empty list means valid. Name rules take `is_prefix`, which
is true for a generateName: a trailing dash is then allowed.
"""

import ipaddress
import re
from collections.abc import Callable

LABEL_MAX = 63
SUBDOMAIN_MAX = 253
PORT_NAME_MAX = 15

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_LABEL_1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE = f"({_QUALIFIED})?"
_CONFIG_KEY = "[-._a-zA-Z0-9]+"
_HEADER = "[-A-Za-z0-9]+"
_PERCENT = "[0-9]+%"

NameRule = Callable[[str, bool], list[str]]


def too_long(limit: int) -> str:
    return f"must be no more than {limit} bytes"


def between(low: int, high: int) -> str:
    return f"must be between {low} and {high}, inclusive"


def _pattern(text: str, pattern: str, *examples: str) -> str:
    """The message for a value that does not match; the double space is Kubernetes' own."""
    shown = " or ".join(f"'{e}', " for e in examples)
    return f"{text} (e.g. {shown}regex used for validation is '{pattern}')"


_LABEL_TEXT = _pattern(
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start "
    "and end with an alphanumeric character",
    _LABEL,
    "my-name",
    "123-abc",
)
_SUBDOMAIN_TEXT = _pattern(
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and "
    "must start and end with an alphanumeric character",
    _SUBDOMAIN,
    "example.com",
)
_LABEL_1035_TEXT = _pattern(
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic "
    "character, and end with an alphanumeric character",
    _LABEL_1035,
    "my-name",
    "abc-123",
)
_QUALIFIED_TEXT = _pattern(
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character",
    _QUALIFIED,
    "MyName",
    "my.name",
    "123-abc",
)
_LABEL_VALUE_TEXT = _pattern(
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
    "start and end with an alphanumeric character",
    _LABEL_VALUE,
    "MyValue",
    "my_value",
    "12345",
)
_CONFIG_KEY_TEXT = _pattern(
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
    _CONFIG_KEY,
    "key.name",
    "KEY_NAME",
    "key-name",
)


def _check(text: str, pattern: str, message: str, limit: int) -> list[str]:
    errors = [too_long(limit)] if len(text.encode()) > limit else []
    if not re.fullmatch(pattern, text):
        errors.append(message)
    return errors


def _mask(name: str, is_prefix: bool) -> str:
    """A generateName with its trailing dash made harmless, so that the ordinary rule can judge it."""
    return f"{name[:-2]}a" if is_prefix and len(name) > 1 and name.endswith("-") else name


def dns_label(name: str, is_prefix: bool = False) -> list[str]:
    """RFC 1123 label."""
    return _check(_mask(name, is_prefix), _LABEL, _LABEL_TEXT, LABEL_MAX)


def dns_subdomain(name: str, is_prefix: bool = False) -> list[str]:
    """RFC 1123 subdomain."""
    return _check(_mask(name, is_prefix), _SUBDOMAIN, _SUBDOMAIN_TEXT, SUBDOMAIN_MAX)


def dns1035_label(name: str, is_prefix: bool = False) -> list[str]:
    """RFC 1035 label (Service names)."""
    return _check(_mask(name, is_prefix), _LABEL_1035, _LABEL_1035_TEXT, LABEL_MAX)


def path_segment_name(name: str, is_prefix: bool = False) -> list[str]:
    """Anything that can stand in a URL path (RBAC names)."""
    if not is_prefix and name in (".", ".."):
        return [f"may not be '{name}'"]
    return [f"may not contain '{c}'" for c in "/%" if c in name]


def qualified_name(text: str) -> list[str]:
    """A label key: a name, with an optional DNS subdomain and a slash before it."""
    parts = text.split("/")
    if len(parts) > 2:
        return [f"a qualified name {_QUALIFIED_TEXT} with an optional DNS subdomain prefix and '/' "
                "(e.g. 'example.com/MyName')"]  # fmt: skip
    errors = []
    if len(parts) == 2:
        prefix = parts[0]
        errors += [f"prefix part {m}" for m in dns_subdomain(prefix)] if prefix else [
            "prefix part must be non-empty"
        ]  # fmt: skip
    name = parts[-1]
    if not name:
        errors.append("name part must be non-empty")
    return errors + [f"name part {m}" for m in _check(name, _QUALIFIED, _QUALIFIED_TEXT, LABEL_MAX)]


def label_value(text: str) -> list[str]:
    return _check(text, _LABEL_VALUE, _LABEL_VALUE_TEXT, LABEL_MAX)


def port_name(text: str) -> list[str]:
    """An IANA service name (RFC 6335): container and target port names."""
    errors = [too_long(PORT_NAME_MAX)] if len(text.encode()) > PORT_NAME_MAX else []
    if not re.fullmatch("[-a-z0-9]+", text):
        errors.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search("[a-z]", text):
        errors.append("must contain at least one letter (a-z)")
    if "--" in text:
        errors.append("must not contain consecutive hyphens")
    if text.startswith("-") or text.endswith("-"):
        errors.append("must not begin or end with a hyphen")
    return errors


def port_number(value: int) -> list[str]:
    return [] if 1 <= value <= 65535 else [between(1, 65535)]


def env_var_name(text: str) -> list[str]:
    """Printable ASCII but '=' (KEP-4369, relaxed environment variable names)."""
    errors = [] if text else ["environment variable name must be non-empty"]
    if re.search("[^ -~]|=", text):
        errors.append(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
        )
    return errors


def config_key(text: str) -> list[str]:
    """A key of a ConfigMap or a Secret, which becomes a file name."""
    errors = _check(text, _CONFIG_KEY, _CONFIG_KEY_TEXT, SUBDOMAIN_MAX)
    if text in (".", ".."):
        errors.append(f"must not be '{text}'")
    elif text.startswith(".."):
        errors.append("must not start with '..'")
    return errors


def header_name(text: str) -> list[str]:
    if re.fullmatch(_HEADER, text):
        return []
    message = "a valid HTTP header must consist of alphanumeric characters or '-'"
    return [_pattern(message, _HEADER, "X-Header-Name")]


def percent(text: str) -> list[str]:
    if re.fullmatch(_PERCENT, text):
        return []
    message = "a valid percent string must be a numeric string followed by an ending '%'"
    return [_pattern(message, _PERCENT, "1%", "93%")]


def ip_address(text: str) -> list[str]:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return ["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]
    return []
