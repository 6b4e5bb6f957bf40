"""Endpoints (core/v1) of a Service: the older form of EndpointSlices, in the primary family only."""

import ipaddress
from collections.abc import Iterable
from datetime import datetime

import msgspec

from mesh_local.controllers.decisions import pods as pod_facts
from mesh_local.controllers.decisions.slices import (
    HEADLESS,
    TRIGGER_TIME,
    families,
    family_of,
    is_endpoint,
    is_headless,
    ports_of,
)
from mesh_local.machinery.objects import (
    Object,
    annotations_of,
    dig,
    labels_of,
    meta,
    name_of,
    namespace_of,
    rfc3339,
    uid_of,
)

MANAGED_BY = "endpoints.kubernetes.io/managed-by"
MANAGER = "endpoint-controller"
OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
MAX_ADDRESSES = 1000


def subsets_of(service: Object, pods: Iterable[Object]) -> list[Object]:
    """Addresses grouped by ports; a pod that terminates is left out, unless not ready ones are published."""
    published = bool(dig(service, "spec", "publishNotReadyAddresses", default=False))
    primary = families(service)[0]
    groups: dict[bytes, Object] = {}
    for pod in pods:
        if not is_endpoint(pod, terminating=published):
            continue
        ip = next((ip for ip in pod_facts.pod_ips(pod) if family_of(ip) == primary), None)
        if ip is None:
            continue
        ports = [_port(p) for p in ports_of(service, pod)]
        if not ports and not is_headless(service):
            continue
        group = groups.setdefault(msgspec.json.encode(ports), {"ports": ports})
        field = "addresses" if published or pod_facts.is_ready(pod) else "notReadyAddresses"
        group.setdefault(field, []).append(_address(service, pod, ip))
    return [_sorted(group) for group in groups.values()]


def endpoints_of(
    service: Object, pods: Iterable[Object], present: Object | None, trigger: datetime | None
) -> Object | None:
    """The Endpoints object to write, or None where the present one says it already."""
    subsets, cut = _capped(subsets_of(service, pods))
    labels = {**labels_of(service), MANAGED_BY: MANAGER}
    labels.pop(HEADLESS, None)
    if is_headless(service):
        labels[HEADLESS] = ""
    if present is not None and (present.get("subsets") or []) == subsets and labels_of(present) == labels:
        return None
    metadata: Object = dict(meta(present or {}))
    metadata |= {"name": name_of(service), "namespace": namespace_of(service), "labels": labels}
    annotations = {
        k: v for k, v in annotations_of(present or {}).items() if k not in (TRIGGER_TIME, OVER_CAPACITY)
    }
    if trigger is not None:
        annotations[TRIGGER_TIME] = rfc3339(trigger)
    if cut:
        annotations[OVER_CAPACITY] = "truncated"
    metadata.pop("annotations", None)
    if annotations:
        metadata["annotations"] = annotations
    written: Object = {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata}
    if subsets:
        written["subsets"] = subsets
    return written


def _port(port: Object) -> Object:
    kept = {"name": port["name"]} if port["name"] else {}
    kept |= {"port": port["port"], "protocol": port["protocol"]}
    if "appProtocol" in port:
        kept["appProtocol"] = port["appProtocol"]
    return kept


def _address(service: Object, pod: Object, ip: str) -> Object:
    entry: Object = {"ip": ip}
    if dig(pod, "spec", "hostname") and dig(pod, "spec", "subdomain") == name_of(service):
        entry["hostname"] = pod["spec"]["hostname"]
    if node := dig(pod, "spec", "nodeName"):
        entry["nodeName"] = node
    entry["targetRef"] = {
        "kind": "Pod",
        "namespace": namespace_of(pod),
        "name": name_of(pod),
        "uid": uid_of(pod),
    }
    return entry


def _sorted(group: Object) -> Object:
    subset: Object = {}
    for field in ("addresses", "notReadyAddresses"):
        if field in group:
            subset[field] = sorted(group[field], key=lambda a: ipaddress.ip_address(a["ip"]))
    if group["ports"]:
        subset["ports"] = group["ports"]
    return subset


def _capped(subsets: list[Object]) -> tuple[list[Object], bool]:
    """At most 1000 addresses in all, ready ones first."""
    room, cut = MAX_ADDRESSES, False
    for field in ("addresses", "notReadyAddresses"):
        for subset in subsets:
            if field in subset and len(subset[field]) > room:
                subset[field] = subset[field][:room]
                cut = True
            room -= len(subset.get(field, ()))
            if field in subset and not subset[field]:
                del subset[field]
    return subsets, cut
