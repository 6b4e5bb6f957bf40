"""The environment of a container: variables from everywhere that a pod's spec may take them from. Pure."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from mesh_local.kubelet.fields import Node, field_value, resource_value
from mesh_local.kubelet.types import ConfigError
from mesh_local.machinery.objects import Object, dig, name_of, namespace_of

# `get(kind, name)` in the pod's namespace.
Lookup = Callable[[Literal["ConfigMap", "Secret"], str], Object | None]
_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace `$(NAME)`; `$$` stands for `$`, and an unknown name stays as it is."""

    def replace(found: re.Match[str]) -> str:
        if found[1] is None:
            return "$"
        return values.get(found[1], found[0])

    return _REFERENCE.sub(replace, text)


def decoded(obj: Object) -> dict[str, bytes]:
    """The content of a ConfigMap or Secret."""
    plain = {key: str(value).encode() for key, value in (obj.get("data") or {}).items()}
    if obj.get("kind") == "Secret":
        return {key: base64.b64decode(value) for key, value in plain.items()}
    return plain | {key: base64.b64decode(value) for key, value in (obj.get("binaryData") or {}).items()}


def container_env(
    spec: Object, pod: Object, node: Node, pod_ips: Sequence[str], lookup: Lookup, services: Mapping[str, str]
) -> dict[str, str]:
    """All variables that `spec` gives its container.

    Args:
        spec: the container.
        services: from `service_env`; anything in the spec comes before it.

    Raises:
        ConfigError: something that is not optional is missing.
    """
    found: dict[str, str] = {}
    for source in spec.get("envFrom") or ():
        found |= _env_from(source, namespace_of(pod), lookup)
    for item in spec.get("env") or ():
        known = {**services, **found}
        value = _value(item, spec, pod, node, pod_ips, lookup, known)
        if value is not None:
            found[item["name"]] = value
    return {**services, **found}


def _env_from(source: Object, namespace: str, lookup: Lookup) -> dict[str, str]:
    prefix = str(source.get("prefix") or "")
    kind: Literal["ConfigMap", "Secret"] = "ConfigMap" if source.get("configMapRef") else "Secret"
    ref = source.get("configMapRef") or source["secretRef"]
    obj = lookup(kind, ref["name"])
    if obj is None:
        if ref.get("optional"):
            return {}
        raise ConfigError(missing(kind, ref["name"]))
    content = decoded({"kind": kind} | obj)
    if kind == "ConfigMap":
        content = {key: content[key] for key in (obj.get("data") or {})}
    return {prefix + key: value.decode(errors="replace") for key, value in sorted(content.items())}


def missing(kind: str, name: str) -> str:
    return f'{kind.lower()} "{name}" not found'


def _value(
    item: Object,
    spec: Object,
    pod: Object,
    node: Node,
    pod_ips: Sequence[str],
    lookup: Lookup,
    known: Mapping[str, str],
) -> str | None:
    source = item.get("valueFrom")
    if not source:
        return expand(str(item.get("value") or ""), known)
    if "fieldRef" in source:
        return field_value(source["fieldRef"]["fieldPath"], pod, node, pod_ips)
    if "resourceFieldRef" in source:
        return resource_value(source["resourceFieldRef"], pod, spec["name"], node)
    if "configMapKeyRef" in source:
        return _key("ConfigMap", source["configMapKeyRef"], namespace_of(pod), lookup)
    if "secretKeyRef" in source:
        return _key("Secret", source["secretKeyRef"], namespace_of(pod), lookup)
    raise ConfigError(f"environment variable {item['name']}: {', '.join(source)} is not supported here")


def _key(kind: Literal["ConfigMap", "Secret"], ref: Object, namespace: str, lookup: Lookup) -> str | None:
    obj = lookup(kind, ref["name"])
    if obj is None:
        if ref.get("optional"):
            return None
        raise ConfigError(missing(kind, ref["name"]))
    value = decoded({"kind": kind} | obj).get(ref["key"])
    if value is None:
        if ref.get("optional"):
            return None
        raise ConfigError(f"couldn't find key {ref['key']} in {kind} {namespace}/{ref['name']}")
    return value.decode(errors="replace")


def service_env(pod: Object, services: Sequence[Object]) -> dict[str, str]:
    """Variables for the Services of the pod's namespace, and always for `kubernetes` in `default`."""
    links = dig(pod, "spec", "enableServiceLinks", default=True) is not False
    chosen: dict[str, Object] = {}
    for service in services:
        ip = dig(service, "spec", "clusterIP", default="None")
        if ip in ("", "None"):
            continue
        master = namespace_of(service) == "default" and name_of(service) == "kubernetes"
        if master:
            chosen.setdefault(name_of(service), service)
        elif links and namespace_of(service) == namespace_of(pod):
            chosen[name_of(service)] = service
    found: dict[str, str] = {}
    for service in chosen.values():
        found |= _service(service)
    return found


def _upper(name: str) -> str:
    return name.upper().replace("-", "_")


def _service(service: Object) -> dict[str, str]:
    name, ip = _upper(name_of(service)), str(service["spec"]["clusterIP"])
    ports = dig(service, "spec", "ports", default=[])
    if not ports:
        return {}
    found = {f"{name}_SERVICE_HOST": ip, f"{name}_SERVICE_PORT": str(ports[0]["port"])}
    for at, port in enumerate(ports):
        number, protocol = str(port["port"]), str(port.get("protocol") or "TCP")
        if port.get("name"):
            found[f"{name}_SERVICE_PORT_{_upper(port['name'])}"] = number
        host = f"[{ip}]" if ":" in ip else ip
        url = f"{protocol.lower()}://{host}:{number}"
        if at == 0:
            found[f"{name}_PORT"] = url
        link = f"{name}_PORT_{number}_{protocol}"
        found |= {link: url, f"{link}_PROTO": protocol.lower(), f"{link}_PORT": number, f"{link}_ADDR": ip}
    return found
