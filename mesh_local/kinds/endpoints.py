"""core/v1 Endpoints and discovery.k8s.io/v1 EndpointSlice."""

import ipaddress
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from mesh_local.kinds import columns
from mesh_local.kinds.age import age_of
from mesh_local.kinds.base import Kind
from mesh_local.kinds.checks import PROTOCOLS, port_number
from mesh_local.machinery import names
from mesh_local.machinery.errors import (
    FieldError,
    duplicate,
    invalid_value,
    not_supported,
    required,
    too_many,
)
from mesh_local.machinery.objects import Object, name_of

_SHOWN = 3
_MAX_ENDPOINTS = 1000
_MAX_ADDRESSES = 100
_MAX_PORTS = 100
_ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")


def _summary(words: Iterable[str], total: int, empty: str) -> str:
    """The first three, and how many more there are."""
    shown = ",".join(words)
    if total > _SHOWN:
        return f"{shown} + {total - _SHOWN} more..."
    return shown or empty


# Endpoints


def _default_endpoints(obj: Object) -> None:
    for subset in obj.get("subsets") or ():
        for port in subset.get("ports") or ():
            port["protocol"] = port.get("protocol") or "TCP"


def _validate_endpoints(obj: Object) -> list[FieldError]:
    errors = []
    for i, subset in enumerate(obj.get("subsets") or ()):
        path = f"subsets[{i}]"
        ready, waiting = subset.get("addresses") or [], subset.get("notReadyAddresses") or []
        if not ready and not waiting:
            errors.append(required(path, "must specify `addresses` or `notReadyAddresses`"))
        for key, addresses in (("addresses", ready), ("notReadyAddresses", waiting)):
            for j, address in enumerate(addresses):
                errors += _endpoint_ip(address.get("ip") or "", f"{path}.{key}[{j}].ip")
        ports = subset.get("ports") or []
        for j, port in enumerate(ports):
            errors += _endpoints_port(port, len(ports) > 1, f"{path}.ports[{j}]")
    return errors


def _endpoints_port(port: Object, named: bool, path: str) -> list[FieldError]:
    errors = []
    name = port.get("name") or ""
    if named and not name:
        errors.append(required(f"{path}.name"))
    elif name:
        errors += [invalid_value(f"{path}.name", name, m) for m in names.dns_label(name)]
    errors += port_number(f"{path}.port", port.get("port") or 0)
    if port.get("protocol") not in PROTOCOLS:
        errors.append(not_supported(f"{path}.protocol", port.get("protocol") or "", PROTOCOLS))
    return errors


def _endpoint_ip(text: str, path: str) -> list[FieldError]:
    """An address that a Pod can have: not unspecified, loopback, link-local or link-local multicast."""
    if messages := names.ip_address(text):
        return [invalid_value(path, text, m) for m in messages]
    ip = ipaddress.ip_address(text)
    reasons = {
        f"may not be unspecified ({text})": ip.is_unspecified,
        "may not be in the loopback range (127.0.0.0/8, ::1/128)": ip.is_loopback,
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)": ip.is_link_local,
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)": _local_multicast(ip),
    }
    return [invalid_value(path, text, reason) for reason, holds in reasons.items() if holds]


def _local_multicast(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    network = "224.0.0.0/24" if ip.version == 4 else "ff02::/16"
    return ip in ipaddress.ip_network(network)


def _update_endpoints(new: Object, _old: Object) -> list[FieldError]:
    return _validate_endpoints(new)


def _host_port(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _endpoints_row(obj: Object, now: datetime) -> list[Any]:
    found: list[str] = []
    for subset in obj.get("subsets") or ():
        ips = [a.get("ip") or "" for a in subset.get("addresses") or ()]
        ports = subset.get("ports") or []
        found += [_host_port(ip, p.get("port") or 0) for p in ports for ip in ips] if ports else ips
    shown = _summary(found[:_SHOWN], len(found), "" if obj.get("subsets") else "<none>")
    return [name_of(obj), shown, age_of(obj, now)]


# EndpointSlice


def _default_slice(obj: Object) -> None:
    # The real server stores no empty lists: they come back as null.
    obj["endpoints"] = obj.get("endpoints") or None
    obj["ports"] = obj.get("ports") or None
    for endpoint in obj["endpoints"] or ():
        endpoint.setdefault("conditions", {})
    for port in obj["ports"] or ():
        port.setdefault("name", "")
        port["protocol"] = port.get("protocol") or "TCP"


def _validate_slice(obj: Object) -> list[FieldError]:
    kind = obj.get("addressType") or ""
    errors = []
    if not kind:
        errors.append(required("addressType"))
    elif kind not in _ADDRESS_TYPES:
        errors.append(not_supported("addressType", kind, _ADDRESS_TYPES))
    endpoints = obj.get("endpoints") or []
    if len(endpoints) > _MAX_ENDPOINTS:
        return [*errors, too_many("endpoints", len(endpoints), _MAX_ENDPOINTS)]
    for i, endpoint in enumerate(endpoints):
        errors += _validate_endpoint(endpoint, kind, f"endpoints[{i}]")
    return errors + _slice_ports(obj.get("ports") or [])


def _validate_endpoint(endpoint: Object, kind: str, path: str) -> list[FieldError]:
    addresses = endpoint.get("addresses") or []
    errors = []
    if not addresses:
        errors.append(required(f"{path}.addresses", "must contain at least 1 address"))
    elif len(addresses) > _MAX_ADDRESSES:
        errors.append(too_many(f"{path}.addresses", len(addresses), _MAX_ADDRESSES))
    for i, address in enumerate(addresses):
        errors += _slice_address(address, kind, f"{path}.addresses[{i}]")
    hostname, node = endpoint.get("hostname"), endpoint.get("nodeName")
    if hostname is not None:
        errors += [invalid_value(f"{path}.hostname", hostname, m) for m in names.dns_label(hostname)]
    if node is not None:
        errors += [invalid_value(f"{path}.nodeName", node, m) for m in names.dns_subdomain(node)]
    return errors


def _slice_address(text: str, kind: str, path: str) -> list[FieldError]:
    if kind == "FQDN":
        return [invalid_value(path, text, m) for m in names.dns_subdomain(text)]
    if kind not in _ADDRESS_TYPES:
        return []
    if names.ip_address(text) or f"IPv{ipaddress.ip_address(text).version}" != kind:
        return [invalid_value(path, text, f"must be a valid {kind} address")]
    return _endpoint_ip(text, path)


def _slice_ports(ports: list[Object]) -> list[FieldError]:
    if len(ports) > _MAX_PORTS:
        return [too_many("ports", len(ports), _MAX_PORTS)]
    errors: list[FieldError] = []
    seen: set[str] = set()
    for i, port in enumerate(ports):
        path, name = f"ports[{i}]", port.get("name") or ""
        if name in seen:
            errors.append(duplicate(f"{path}.name", name))
        seen.add(name)
        if name:
            errors += [invalid_value(f"{path}.name", name, m) for m in names.dns_label(name)]
        if port.get("protocol") not in PROTOCOLS:
            errors.append(not_supported(f"{path}.protocol", port.get("protocol") or "", PROTOCOLS))
        if port.get("port") is not None:
            errors += port_number(f"{path}.port", port["port"])
    return errors


def _update_slice(new: Object, old: Object) -> list[FieldError]:
    errors = _validate_slice(new)
    if new.get("addressType") != old.get("addressType"):
        errors.append(invalid_value("addressType", new.get("addressType"), "field is immutable"))
    return errors


def _slice_row(obj: Object, now: datetime) -> list[Any]:
    ports = [_port_word(p) for p in obj.get("ports") or ()]
    addresses = [a for e in obj.get("endpoints") or () for a in e.get("addresses") or ()]
    return [
        name_of(obj),
        obj.get("addressType") or "",
        _summary(ports[:_SHOWN], len(ports), "<unset>"),
        _summary(addresses[:_SHOWN], len(addresses), "<unset>"),
        age_of(obj, now),
    ]


def _port_word(port: Object) -> str:
    """The number, else the name; a port with neither means all ports."""
    number = port.get("port")
    return str(number) if number is not None else port.get("name") or "*"


ENDPOINTS = Kind(
    kind="Endpoints",
    plural="endpoints",
    singular="endpoints",
    short_names=("ep",),
    definition="io.k8s.api.core.v1.Endpoints",
    default=_default_endpoints,
    validate=_validate_endpoints,
    validate_update=_update_endpoints,
    name_rule=names.dns_subdomain,
    spec_fields=(),
    columns=columns.ENDPOINTS,
    row=_endpoints_row,
    deprecation="v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
)
ENDPOINT_SLICE = Kind(
    kind="EndpointSlice",
    plural="endpointslices",
    singular="endpointslice",
    group="discovery.k8s.io",
    definition="io.k8s.api.discovery.v1.EndpointSlice",
    default=_default_slice,
    validate=_validate_slice,
    validate_update=_update_slice,
    name_rule=names.dns_subdomain,
    spec_fields=("endpoints", "ports"),
    columns=columns.ENDPOINT_SLICE,
    row=_slice_row,
)

KINDS = (ENDPOINTS, ENDPOINT_SLICE)
