"""What a pod may ask about itself: fieldRef and resourceFieldRef (the downward API). Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh_local.kubelet.types import ConfigError
from mesh_local.machinery import quantity
from mesh_local.machinery.objects import Object, annotations_of, dig, labels_of, name_of, namespace_of, uid_of

_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


@dataclass(frozen=True, slots=True)
class Node:
    """Args:
    capacity: amounts by resource name, which stand for a limit that is not set.
    """

    name: str
    ips: Sequence[str]
    capacity: Mapping[str, str]


def field_value(path: str, pod: Object, node: Node, pod_ips: Sequence[str]) -> str:
    """The value that a fieldRef names.

    Raises:
        ConfigError: the path is not one of those that Kubernetes knows.
    """
    found = _SUBSCRIPT.fullmatch(path)
    if found:
        return (labels_of if found[1] == "labels" else annotations_of)(pod).get(found[2], "")
    if path in ("metadata.labels", "metadata.annotations"):
        return format_map((labels_of if path == "metadata.labels" else annotations_of)(pod))
    values = {
        "metadata.name": name_of(pod),
        "metadata.namespace": namespace_of(pod),
        "metadata.uid": uid_of(pod),
        "spec.nodeName": node.name,
        "spec.serviceAccountName": str(dig(pod, "spec", "serviceAccountName", default="")),
        "status.hostIP": node.ips[0],
        "status.hostIPs": ",".join(node.ips),
        "status.podIP": pod_ips[0] if pod_ips else "",
        "status.podIPs": ",".join(pod_ips),
    }
    if path not in values:
        raise ConfigError(f"unsupported fieldPath: {path}")
    return values[path]


def format_map(values: Mapping[str, str]) -> str:
    """`key="value"` lines in the order of the keys, quoted as Go's %q does for plain text."""
    return "\n".join(f'{key}="{_escape(values[key])}"' for key in sorted(values))


def _escape(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return escaped.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def resource_value(ref: Object, pod: Object, container: str, node: Node) -> str:
    """The whole number that a resourceFieldRef names, in units of its divisor, rounded up.

    Raises:
        ConfigError: there is no such container or resource.
    """
    name = str(ref.get("containerName") or container)
    specs = [*dig(pod, "spec", "initContainers", default=[]), *dig(pod, "spec", "containers", default=[])]
    spec = next((s for s in specs if s["name"] == name), None)
    if spec is None:
        raise ConfigError(f"container {name} not found")
    kind, _, resource = str(ref["resource"]).partition(".")
    if kind not in ("limits", "requests") or not resource:
        raise ConfigError(f"unsupported container resource : {ref['resource']}")
    default = node.capacity.get(resource, "0") if kind == "limits" else "0"
    amount = quantity.parse(dig(spec, "resources", kind, resource, default=default)).value
    divisor = quantity.parse(str(ref.get("divisor") or "0")).value or 1
    return str(-(-amount // divisor))
