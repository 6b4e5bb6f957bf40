"""core/v1 Node."""

from datetime import datetime
from typing import Any

from mesh_local.kinds import columns
from mesh_local.kinds.age import age_of
from mesh_local.kinds.base import Kind
from mesh_local.kinds.hooks import field, keep_all_but_status, keep_status, status_subresource
from mesh_local.machinery import names
from mesh_local.machinery.errors import FieldError, forbidden_field
from mesh_local.machinery.objects import Object, condition, copy, dig, labels_of, name_of

_ROLE = "node-role.kubernetes.io/"
_INFO = (
    "machineID",
    "systemUUID",
    "bootID",
    "kernelVersion",
    "osImage",
    "containerRuntimeVersion",
    "kubeletVersion",
    "kubeProxyVersion",
    "operatingSystem",
    "architecture",
)


def _default(obj: Object) -> None:
    obj.setdefault("spec", {})
    status = obj.setdefault("status", {})
    status.setdefault("daemonEndpoints", {}).setdefault("kubeletEndpoint", {"Port": 0})
    info = status.setdefault("nodeInfo", {})
    for key in _INFO:
        info.setdefault(key, "")
    if not status.get("allocatable") and status.get("capacity"):
        status["allocatable"] = copy(status["capacity"])


def _validate_update(new: Object, old: Object) -> list[FieldError]:
    cidr = dig(old, "spec", "podCIDR", default="")
    if cidr and dig(new, "spec", "podCIDR", default="") != cidr:
        return [
            forbidden_field("spec.podCIDR", 'node updates may not change podCIDR except from "" to valid')
        ]
    return []


def _status(obj: Object) -> str:
    ready = condition(obj, "Ready")
    word = "Unknown"
    if ready is not None:
        word = "Ready" if ready.get("status") == "True" else "NotReady"
    return f"{word},SchedulingDisabled" if dig(obj, "spec", "unschedulable") else word


def _roles(obj: Object) -> str:
    labels = labels_of(obj)
    roles = {k.removeprefix(_ROLE) for k in labels if k.startswith(_ROLE)} - {""}
    if legacy := labels.get("kubernetes.io/role"):
        roles.add(legacy)
    return ",".join(sorted(roles)) or "<none>"


def _address(obj: Object, type_: str) -> str:
    addresses = dig(obj, "status", "addresses", default=[])
    return next((a["address"] for a in addresses if a.get("type") == type_), "<none>")


def _row(obj: Object, now: datetime) -> list[Any]:
    info = dig(obj, "status", "nodeInfo", default={})
    return [
        name_of(obj),
        _status(obj),
        _roles(obj),
        age_of(obj, now),
        info.get("kubeletVersion") or "",
        _address(obj, "InternalIP"),
        _address(obj, "ExternalIP"),
        info.get("osImage") or "<unknown>",
        info.get("kernelVersion") or "<unknown>",
        info.get("containerRuntimeVersion") or "<unknown>",
    ]


NODE = Kind(
    kind="Node",
    plural="nodes",
    singular="node",
    namespaced=False,
    short_names=("no",),
    subresources=(status_subresource("Node"),),
    definition="io.k8s.api.core.v1.Node",
    default=_default,
    prepare_update=keep_status,
    prepare_status=keep_all_but_status,
    validate_update=_validate_update,
    name_rule=names.dns_subdomain,
    spec_fields=(),
    columns=columns.NODE,
    row=_row,
    fields={"spec.unschedulable": field("spec", "unschedulable", default="false")},
)

KINDS = (NODE,)
