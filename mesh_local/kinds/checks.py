"""Field checks that several kinds share."""

from collections.abc import Mapping, Sequence
from typing import Any

from mesh_local.machinery import names
from mesh_local.machinery.errors import FieldError, invalid_value, not_supported, required

PROTOCOLS = ("SCTP", "TCP", "UDP")
IMMUTABLE = "field is immutable"
MAX_INT32 = 2**31 - 1


def port_number(path: str, value: int) -> list[FieldError]:
    return [invalid_value(path, value, m) for m in names.port_number(value)]


def port_number_or_name(path: str, value: int | str) -> list[FieldError]:
    """IntOrString: a number, or an IANA service name."""
    if isinstance(value, str):
        return [invalid_value(path, value, m) for m in names.port_name(value)]
    return port_number(path, value)


def one_of(path: str, value: str | None, allowed: Sequence[str]) -> list[FieldError]:
    """A required enumeration; `allowed` in the order of Kubernetes' message (sorted)."""
    if not value:
        return [required(path)]
    return [] if value in allowed else [not_supported(path, value, allowed)]


def optional_one_of(path: str, value: str | None, allowed: Sequence[str]) -> list[FieldError]:
    return one_of(path, value, allowed) if value is not None else []


def non_negative(path: str, value: int | None) -> list[FieldError]:
    if value is None or value >= 0:
        return []
    return [invalid_value(path, value, "must be greater than or equal to 0")]


def immutable(path: str, new: Any, old: Any) -> list[FieldError]:
    """A change of a field that is fixed; absent and empty are the same."""
    return [] if (new or None) == (old or None) else [invalid_value(path, new, IMMUTABLE)]


def dns_label(path: str, value: str | None) -> list[FieldError]:
    """A required RFC 1123 label."""
    if not value:
        return [required(path)]
    return [invalid_value(path, value, m) for m in names.dns_label(value)]


def ordered(labels: Mapping[str, str]) -> dict[str, str]:
    """A map with its keys in order, as Go prints it."""
    return dict(sorted(labels.items()))
