"""What may be wrong with a Service."""

import ipaddress
from collections.abc import Sequence

from mesh_local.kinds.checks import (
    PROTOCOLS,
    dns_label,
    one_of,
    optional_one_of,
    port_number,
    port_number_or_name,
)
from mesh_local.machinery import names
from mesh_local.machinery.errors import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
)
from mesh_local.machinery.metadata import validate_labels
from mesh_local.machinery.objects import Object, dig

NONE = "None"
TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
FAMILIES = ("IPv4", "IPv6")
_POLICIES = ("PreferDualStack", "RequireDualStack", "SingleStack")
_KUBELET_PORT = 10250
_MAX_STICKY_S = 86400
_IP_FIELDS = ("clusterIPs", "ipFamilies", "ipFamilyPolicy")


def is_headless(spec: Object) -> bool:
    return (spec.get("clusterIP") or "") == NONE or NONE in (spec.get("clusterIPs") or ())


def validate_service(obj: Object) -> list[FieldError]:
    spec = obj.get("spec") or {}
    ports = spec.get("ports") or []
    errors = []
    if not ports and not is_headless(spec) and spec.get("type") != "ExternalName":
        errors.append(required("spec.ports"))
    errors += _of_type(spec, ports)
    seen: set[str] = set()
    for i, port in enumerate(ports):
        errors += _port(port, len(ports) > 1, seen, f"spec.ports[{i}]")
    errors += validate_labels(spec.get("selector") or {}, "spec.selector")
    errors += _affinity(spec)
    errors += cluster_ip_errors(spec)
    errors += _external_ips(spec.get("externalIPs") or ())
    errors += one_of("spec.type", spec.get("type"), TYPES)
    errors += _node_ports(spec, ports)
    errors += _duplicate_ports(ports)
    return errors + _traffic_policies(spec)


def validate_service_update(new: Object, old: Object) -> list[FieldError]:
    """An address that a Service has stays with it, unless its type changes to or from ExternalName."""
    after, before = new.get("spec") or {}, old.get("spec") or {}
    errors: list[FieldError] = []
    if "ExternalName" not in (after.get("type"), before.get("type")):
        for key, what in (("clusterIPs", "clusterIP"), ("ipFamilies", "ipFamily")):
            errors += _first_kept(after.get(key) or [], before.get(key) or [], f"spec.{key}", what)
    return errors + validate_service(new)


def _first_kept(new: Sequence[str], old: Sequence[str], path: str, what: str) -> list[FieldError]:
    if not old:
        return []
    if not new:
        return [invalid_value(f"{path}[0]", list(new), f"primary {what} can not be unset")]
    if new[0] != old[0]:
        return [invalid_value(f"{path}[0]", list(new), "may not change once set")]
    return []


def _of_type(spec: Object, ports: Sequence[Object]) -> list[FieldError]:
    """What depends on the type."""
    kind = spec.get("type")
    errors: list[FieldError] = []
    if kind == "LoadBalancer":
        errors += [
            invalid_value(
                f"spec.ports[{i}].port",
                _KUBELET_PORT,
                f"may not expose port {_KUBELET_PORT} externally since it is used by kubelet",
            )
            for i, port in enumerate(ports)
            if port.get("port") == _KUBELET_PORT
        ]
    if kind in ("LoadBalancer", "NodePort") and is_headless(spec):
        detail = f"may not be set to 'None' for {kind} services"
        errors.append(invalid_value("spec.clusterIPs[0]", NONE, detail))
    if kind == "ExternalName":
        errors += [
            forbidden_field(f"spec.{key}", "may not be set for ExternalName services")
            for key in _IP_FIELDS
            if spec.get(key)
        ]
        errors += _external_name(spec.get("externalName") or "")
    return errors


def _external_name(name: str) -> list[FieldError]:
    if not name:
        return [required("spec.externalName")]
    bare = name.removesuffix(".")
    return [invalid_value("spec.externalName", name, m) for m in names.dns_subdomain(bare)]


def _port(port: Object, named: bool, seen: set[str], path: str) -> list[FieldError]:
    name = port.get("name") or ""
    errors: list[FieldError] = []
    if named or name:
        errors += dns_label(f"{path}.name", name)
        if name and name in seen:
            errors.append(duplicate(f"{path}.name", name))
        seen.add(name)
    errors += port_number(f"{path}.port", port.get("port") or 0)
    errors += one_of(f"{path}.protocol", port.get("protocol"), PROTOCOLS)
    errors += port_number_or_name(f"{path}.targetPort", port.get("targetPort") or 0)
    protocol = port.get("appProtocol")
    if protocol is not None:
        errors += [invalid_value(f"{path}.appProtocol", protocol, m) for m in names.qualified_name(protocol)]
    return errors


def _affinity(spec: Object) -> list[FieldError]:
    affinity, config = spec.get("sessionAffinity"), spec.get("sessionAffinityConfig")
    errors = one_of("spec.sessionAffinity", affinity, ("ClientIP", "None"))
    path = "spec.sessionAffinityConfig"
    if affinity == "ClientIP":
        seconds = dig(config, "clientIP", "timeoutSeconds")
        if seconds is None or not 0 < seconds <= _MAX_STICKY_S:
            detail = f"must be greater than 0 and less than {_MAX_STICKY_S}"
            errors.append(invalid_value(f"{path}.clientIP.timeoutSeconds", seconds, detail))
    elif config is not None:
        errors.append(forbidden_field(path, "must not be set when session affinity is None"))
    return errors


def cluster_ip_errors(spec: Object) -> list[FieldError]:
    """Addresses, families and policy must agree with each other; absent ones are allocated."""
    if spec.get("type") == "ExternalName":
        return []
    ips, families = spec.get("clusterIPs") or [], spec.get("ipFamilies") or []
    errors: list[FieldError] = []
    if ips and spec.get("clusterIP") != ips[0]:
        errors.append(invalid_value("spec.clusterIPs", ips, "first value must match `clusterIP`"))
    for i, family in enumerate(families):
        if family not in FAMILIES:
            errors.append(not_supported(f"spec.ipFamilies[{i}]", family, FAMILIES))
        elif family in families[:i]:
            errors.append(duplicate(f"spec.ipFamilies[{i}]", family))
    policy = spec.get("ipFamilyPolicy")
    errors += optional_one_of("spec.ipFamilyPolicy", policy, _POLICIES)
    if is_headless(spec):
        if len(ips) > 1:
            errors.append(invalid_value("spec.clusterIPs", ips, "may not be set to 'None' and other values"))
        return errors
    for i, ip in enumerate(ips):
        wrong = names.ip_address(ip)
        errors += [invalid_value(f"spec.clusterIPs[{i}]", ip, m) for m in wrong]
        if not wrong and i < len(families) and family_of(ip) != families[i]:
            detail = f"expected an {families[i]} value as indicated by `ipFamilies[{i}]`"
            errors.append(invalid_value(f"spec.clusterIPs[{i}]", ip, detail))
    if len(ips) > 2:
        errors.append(invalid_value("spec.clusterIPs", ips, "may only hold up to 2 values"))
    elif len(ips) == 2 and not errors and family_of(ips[0]) == family_of(ips[1]):
        detail = "may specify no more than one IP for each IP family"
        errors.append(invalid_value("spec.clusterIPs", ips, detail))
    return errors


def family_of(ip: str) -> str:
    return f"IPv{ipaddress.ip_address(ip).version}"


def _external_ips(ips: Sequence[str]) -> list[FieldError]:
    return [
        invalid_value(f"spec.externalIPs[{i}]", ip, message)
        for i, ip in enumerate(ips)
        for message in names.ip_address(ip)
    ]


def _node_ports(spec: Object, ports: Sequence[Object]) -> list[FieldError]:
    errors: list[FieldError] = []
    if spec.get("type") == "ClusterIP":
        detail = "may not be used when `type` is 'ClusterIP'"
        return [
            forbidden_field(f"spec.ports[{i}].nodePort", detail)
            for i, port in enumerate(ports)
            if port.get("nodePort")
        ]
    seen: set[tuple[str, int]] = set()
    for i, port in enumerate(ports):
        key = (port.get("protocol") or "", port.get("nodePort") or 0)
        if not key[1]:
            continue
        if key in seen:
            errors.append(duplicate(f"spec.ports[{i}].nodePort", key[1]))
        seen.add(key)
    return errors


def _duplicate_ports(ports: Sequence[Object]) -> list[FieldError]:
    errors: list[FieldError] = []
    seen: set[tuple[str, int]] = set()
    for i, port in enumerate(ports):
        key = (port.get("protocol") or "", port.get("port") or 0)
        if key in seen:
            errors.append(
                duplicate(f"spec.ports[{i}]", {"protocol": key[0], "port": key[1], "targetPort": 0})
            )
        seen.add(key)
    return errors


def _traffic_policies(spec: Object) -> list[FieldError]:
    errors: list[FieldError] = []
    both = ("Cluster", "Local")
    kind, external = spec.get("type"), spec.get("externalTrafficPolicy")
    if external:
        if kind in ("NodePort", "LoadBalancer") or spec.get("externalIPs"):
            errors += one_of("spec.externalTrafficPolicy", external, both)
        else:
            detail = "may only be set for externally-accessible services"
            errors.append(invalid_value("spec.externalTrafficPolicy", external, detail))
    if kind in ("ClusterIP", "NodePort", "LoadBalancer"):
        errors += one_of("spec.internalTrafficPolicy", spec.get("internalTrafficPolicy"), both)
    return errors
