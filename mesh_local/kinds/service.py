"""core/v1 Service. Addresses and node ports come in admission (`apiserver.admission.service_ips`)."""

from datetime import datetime
from typing import Any

from mesh_local.kinds import columns
from mesh_local.kinds.age import age_of
from mesh_local.kinds.base import Kind, Subresource
from mesh_local.kinds.hooks import (
    field,
    keep_all_but_status,
    keep_status,
    reset_status,
    status_subresource,
)
from mesh_local.kinds.service_validation import validate_service, validate_service_update
from mesh_local.machinery import names
from mesh_local.machinery.objects import Object, dig, name_of

_PROXY_VERBS = ("create", "delete", "get", "patch", "update")
_STICKY_S = 10800
_NONE = "<none>"
_EMPTY_STATUS: Object = {"loadBalancer": {}}


def _default(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec["type"] = kind = spec.get("type") or "ClusterIP"
    spec["sessionAffinity"] = spec.get("sessionAffinity") or "None"
    if spec["sessionAffinity"] == "None":
        spec.pop("sessionAffinityConfig", None)
    elif spec["sessionAffinity"] == "ClientIP":
        config = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
        config.setdefault("timeoutSeconds", _STICKY_S)
    for port in spec.get("ports") or ():
        port["protocol"] = port.get("protocol") or "TCP"
        port["targetPort"] = port.get("targetPort") or port.get("port") or 0
    outside = kind in ("NodePort", "LoadBalancer")
    if outside or (kind == "ClusterIP" and spec.get("externalIPs")):
        spec["externalTrafficPolicy"] = spec.get("externalTrafficPolicy") or "Cluster"
    if outside or kind == "ClusterIP":
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if kind == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    for ingress in dig(obj, "status", "loadBalancer", "ingress", default=[]):
        if ingress.get("ip"):
            ingress.setdefault("ipMode", "VIP")


def _prepare_update(new: Object, old: Object) -> None:
    keep_status(new, old)
    _drop_what_the_type_had(new["spec"], old.get("spec") or {})


def _drop_what_the_type_had(spec: Object, old: Object) -> None:
    """A client that only changes the type means to give up what the old type needed."""
    kind, outside = spec["type"], ("NodePort", "LoadBalancer")
    gone: list[str] = []
    if kind == "ExternalName" != old.get("type"):
        gone += ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]
    if kind not in outside and not spec.get("externalIPs"):
        gone.append("externalTrafficPolicy")
    if kind != "LoadBalancer":
        gone += ["allocateLoadBalancerNodePorts", "healthCheckNodePort", "loadBalancerClass"]
    for key in gone:
        if spec.get(key) == old.get(key):
            spec.pop(key, None)
    if kind not in outside and old.get("type") in outside:
        former = {p.get("nodePort") for p in old.get("ports") or ()}
        for port in spec.get("ports") or ():
            if port.get("nodePort") in former:
                port.pop("nodePort", None)


def _ports(spec: Object) -> str:
    words = []
    for port in spec.get("ports") or ():
        number, node = port.get("port") or 0, port.get("nodePort")
        words.append(
            f"{number}:{node}/{port.get('protocol')}" if node else f"{number}/{port.get('protocol')}"
        )
    return ",".join(words) or _NONE


def _external(obj: Object) -> str:
    spec = obj.get("spec") or {}
    given = spec.get("externalIPs") or []
    if spec.get("type") == "ExternalName":
        return spec.get("externalName") or ""
    if spec.get("type") != "LoadBalancer":
        return ",".join(given) or _NONE
    ingress = dig(obj, "status", "loadBalancer", "ingress", default=[])
    balanced = sorted({i.get("ip") or i.get("hostname") or "" for i in ingress} - {""})
    return ",".join([*balanced, *given]) or "<pending>"


def _row(obj: Object, now: datetime) -> list[Any]:
    spec = obj.get("spec") or {}
    selector = spec.get("selector") or {}
    return [
        name_of(obj),
        spec.get("type") or "",
        dig(spec, "clusterIPs", 0) or _NONE,
        _external(obj),
        _ports(spec),
        age_of(obj, now),
        ",".join(f"{k}={v}" for k, v in sorted(selector.items())) or _NONE,
    ]


SERVICE = Kind(
    kind="Service",
    plural="services",
    singular="service",
    short_names=("svc",),
    categories=("all",),
    subresources=(Subresource("proxy", "ServiceProxyOptions", _PROXY_VERBS), status_subresource("Service")),
    definition="io.k8s.api.core.v1.Service",
    default=_default,
    prepare_create=reset_status(_EMPTY_STATUS),
    prepare_update=_prepare_update,
    prepare_status=keep_all_but_status,
    validate=validate_service,
    validate_update=validate_service_update,
    name_rule=names.dns_label,
    spec_fields=(),
    columns=columns.SERVICE,
    row=_row,
    fields={"spec.clusterIP": field("spec", "clusterIP"), "spec.type": field("spec", "type")},
    delete_returns_object=True,
)

KINDS = (SERVICE,)
