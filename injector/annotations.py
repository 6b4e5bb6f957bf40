"""Every annotation of a pod that the mesh reads: name, form, meaning, and how it is checked. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar, cast

import msgspec

from injector.netinit import plan
from injector.values import Values
from mesh_api.limits import parse_pairs
from mesh_api.names import MAX_LISTED_PORTS, PREFIX

_Part = TypeVar("_Part", bound=msgspec.Struct)


class AnnotationError(ValueError):
    """An annotation that cannot be used; the message names it and says what was expected."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotation.

    Args:
        name: without the prefix.
        form: what its value looks like, for documentation and messages.
        about: what it does.
        read: the value from the text; raises ValueError with the reason.
    """

    name: str
    form: str
    about: str
    read: Callable[[str], object]


def _ports(text: str) -> str:
    plan.Options(exclude_outbound_ports=plan.parse_ports(text, "ports"))
    return text.strip()


def _listed_ports(text: str) -> str:
    """Of ports that the control plane tells other sidecars one by one."""
    listed = sum(high - low + 1 for low, high in plan.parse_ports(_ports(text), "ports"))
    if listed > MAX_LISTED_PORTS:
        raise ValueError(f"{listed} ports are more than {MAX_LISTED_PORTS}")
    return text.strip()


def _listed_ports_or_all(text: str) -> str:
    return text.strip() if text.strip() == plan.ALL else _listed_ports(text)


def _cidrs(text: str) -> str:
    plan.parse_cidrs(text, "networks")
    return text.strip()


def _cidrs_or_all(text: str) -> str:
    plan.parse_cidrs_or_all(text, "networks")
    return text.strip()


def _interfaces(text: str) -> str:
    plan.Options(exclude_interfaces=plan.parse_names(text, "interfaces"))
    return text.strip()


_BOOLEANS: Final = {"true": True, "false": False}
_LEVELS: Final = ("debug", "info", "warning", "error")
_QUANTITY: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:m|k|M|G|T|Ki|Mi|Gi|Ti)?", re.ASCII)


def _boolean(text: str) -> bool:
    if text not in _BOOLEANS:
        raise ValueError(f"{text!r} is neither true nor false")
    return _BOOLEANS[text]


def _level(text: str) -> str:
    if text not in _LEVELS:
        raise ValueError(f"{text!r} is none of them")
    return text


def _quantity(text: str) -> str:
    if not _QUANTITY.fullmatch(text) or not re.search("[1-9]", text):
        raise ValueError(f"{text!r} is not a quantity above zero")
    return text


def _seconds(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text, re.ASCII) or int(text) > 86_400:
        raise ValueError(f"{text!r} is not a number of seconds up to 86400")
    return int(text)


def _image(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}", text, re.ASCII):
        raise ValueError(f"{text!r} is not the name of an image")
    return text


def _any(text: str) -> str:
    return text


_PORTS: Final = "ports such as 80,8000-8010"
_NETWORKS: Final = "networks such as 10.0.0.0/8,fd00::/8"
_A_QUANTITY: Final = "a quantity such as 100m or 128Mi"

ANNOTATIONS: Final = {
    PREFIX + one.name: one
    for one in (
        Annotation("inject", "true or false", "`false`: this pod gets no sidecar", _boolean),
        Annotation("injected", "a version", "written by the injector: what it has been injected with", _any),
        Annotation(
            "include-inbound-ports", f"*, none, or {_PORTS}", "inbound ports to capture", _listed_ports_or_all
        ),
        Annotation("exclude-inbound-ports", _PORTS, "inbound ports that pass the sidecar by", _listed_ports),
        Annotation(
            "include-outbound-ports", _PORTS, "outbound ports to capture whatever the network", _ports
        ),
        Annotation("exclude-outbound-ports", _PORTS, "outbound ports that pass the sidecar by", _ports),
        Annotation("include-cidrs", f"*, none, or {_NETWORKS}", "networks to capture", _cidrs_or_all),
        Annotation("exclude-cidrs", _NETWORKS, "networks that are reached around the sidecar", _cidrs),
        Annotation(
            "exclude-interfaces", "names such as net1,net2", "interfaces that are not captured", _interfaces
        ),
        Annotation(
            "opaque-ports",
            _PORTS,
            "ports whose bytes are relayed, never read as HTTP",
            _listed_ports,
        ),
        Annotation("proxy-image", "the name of an image", "image of sidecar and network init", _image),
        Annotation("proxy-cpu-request", _A_QUANTITY, "CPU that the sidecar asks for", _quantity),
        Annotation("proxy-cpu-limit", _A_QUANTITY, "CPU that the sidecar may not exceed", _quantity),
        Annotation("proxy-memory-request", _A_QUANTITY, "memory that the sidecar asks for", _quantity),
        Annotation("proxy-memory-limit", _A_QUANTITY, "memory that the sidecar may not exceed", _quantity),
        Annotation(
            "proxy-limits",
            "limits such as headBytes=131072,streams=50",
            "[limits](operations.md#limits) of the sidecar; the others stay",
            parse_pairs,
        ),
        Annotation("proxy-log-level", "one of " + ", ".join(_LEVELS), "least level of its log", _level),
        Annotation(
            "drain-seconds", "seconds", "how long the sidecar waits at the end for connections", _seconds
        ),
        Annotation(
            "rewrite-probes",
            "true or false",
            "`false`: the kubelet probes the application itself, which STRICT refuses",
            _boolean,
        ),
        Annotation(
            "merge-metrics",
            "true or false",
            "`false`: the annotations prometheus.io/* stay as they are",
            _boolean,
        ),
    )
}

_CAPTURE: Final = (
    "include-inbound-ports",
    "exclude-inbound-ports",
    "include-outbound-ports",
    "exclude-outbound-ports",
    "include-cidrs",
    "exclude-cidrs",
    "exclude-interfaces",
)
_RESOURCES: Final = ("cpu-request", "cpu-limit", "memory-request", "memory-limit")


def effective(annotations: Mapping[str, str], values: Values) -> tuple[Values, tuple[str, ...]]:
    """The installation's values with what the pod's annotations say instead, and warnings.

    Raises:
        AnnotationError: one cannot be read, or two contradict each other.
    """
    given = _read(annotations)
    capture = _replaced(values.capture, {name.replace("-", "_"): given.get(name) for name in _CAPTURE})
    try:
        capture.options()
    except plan.OptionError as exc:
        name, _, rest = str(exc).partition(":")
        raise AnnotationError(f"annotation {PREFIX}{name.replace('_', '-')}:{rest}") from None
    resources = {name.replace("-", "_"): given.get(f"proxy-{name}") for name in _RESOURCES}
    limits = _replaced(values.limits, cast(Mapping[str, object], given.get("proxy-limits", {})))
    changed = _replaced(
        values,
        {
            "capture": capture,
            "resources": _replaced(values.resources, resources),
            "limits": limits,
            "image": given.get("proxy-image"),
            "log_level": given.get("proxy-log-level"),
            "drain_seconds": given.get("drain-seconds"),
            "rewrite_probes": given.get("rewrite-probes"),
            "merge_metrics": given.get("merge-metrics"),
        },
    )
    # A later version may know more, so that an unknown one is no reason to stop a pod.
    unknown = sorted(key for key in annotations if key.startswith(PREFIX) and key not in ANNOTATIONS)
    return changed, tuple(f"annotation {key} is not one of the mesh and has no effect" for key in unknown)


def _read(annotations: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, known in ANNOTATIONS.items():
        if key not in annotations:
            continue
        try:
            found[known.name] = known.read(annotations[key])
        except plan.OptionError as exc:
            reason = str(exc).partition(": ")[2]
            raise AnnotationError(f"annotation {key}: expected {known.form}: {reason}") from None
        except ValueError as exc:
            raise AnnotationError(f"annotation {key}: expected {known.form}: {exc}") from None
    return found


def _replaced(part: _Part, changes: Mapping[str, object]) -> _Part:
    return msgspec.structs.replace(
        part, **{key: value for key, value in changes.items() if value is not None}
    )
