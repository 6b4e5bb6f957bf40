"""EndpointSlices (discovery.k8s.io/v1) of a Service: what to create, update and delete."""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from mesh_local.controllers.decisions import pods as pod_facts
from mesh_local.machinery.objects import (
    Object,
    annotations_of,
    condition,
    dig,
    is_deleting,
    labels_of,
    meta,
    name_of,
    namespace_of,
    owner_reference,
    parse_time,
    rfc3339,
    uid_of,
)

SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.k8s.io"
HEADLESS = "service.kubernetes.io/headless"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
MAX_ENDPOINTS = 100


@dataclass(slots=True)
class SlicePlan:
    """Slices to write; those to update carry their metadata."""

    create: list[Object] = field(default_factory=list)
    update: list[Object] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)


def is_headless(service: Object) -> bool:
    return bool(dig(service, "spec", "clusterIP", default="") == "None")


def is_selected(service: Object) -> bool:
    """Whether the controllers make the endpoints of this Service."""
    kind = dig(service, "spec", "type", default="ClusterIP")
    return bool(dig(service, "spec", "selector")) and kind != "ExternalName"


def families(service: Object) -> list[str]:
    """IPv4, IPv6 or both, as the Service asks for."""
    return list(dig(service, "spec", "ipFamilies", default=["IPv4"]))


def family_of(address: str) -> str:
    return f"IPv{ipaddress.ip_address(address).version}"


def is_endpoint(pod: Object, *, terminating: bool) -> bool:
    """Whether the pod is to be listed; with `terminating` also while it is being deleted."""
    if pod_facts.is_finished(pod) or not pod_facts.pod_ips(pod):
        return False
    return terminating or not is_deleting(pod)


def ports_of(service: Object, pod: Object) -> list[Object]:
    """The Service's ports with the numbers that this pod gives to named ones; what it lacks is left out."""
    found = []
    for port in dig(service, "spec", "ports", default=[]):
        protocol = port.get("protocol", "TCP")
        number = target_port(pod, port.get("targetPort") or port["port"], protocol)
        if number is not None:
            entry: Object = {"name": port.get("name", ""), "protocol": protocol, "port": number}
            if port.get("appProtocol"):
                entry["appProtocol"] = port["appProtocol"]
            found.append(entry)
    return found


def target_port(pod: Object, target: int | str, protocol: str) -> int | None:
    """The number of a targetPort; names are looked up in containers and sidecars."""
    if isinstance(target, int):
        return target
    sidecars = [
        c for c in dig(pod, "spec", "initContainers", default=[]) if c.get("restartPolicy") == "Always"
    ]
    for container in [*dig(pod, "spec", "containers", default=[]), *sidecars]:
        for port in container.get("ports") or ():
            if port.get("name") == target and port.get("protocol", "TCP") == protocol:
                return int(port["containerPort"])
    return None


def endpoint_of(service: Object, pod: Object, addresses: list[str]) -> Object:
    ready, terminating = pod_facts.is_ready(pod), is_deleting(pod)
    published = bool(dig(service, "spec", "publishNotReadyAddresses", default=False))
    entry: Object = {
        "addresses": addresses,
        "conditions": {
            "ready": published or (ready and not terminating),
            "serving": ready,
            "terminating": terminating,
        },
    }
    hostname = dig(pod, "spec", "hostname")
    if hostname and dig(pod, "spec", "subdomain") == name_of(service):
        entry["hostname"] = hostname
    entry["targetRef"] = {
        "kind": "Pod",
        "namespace": namespace_of(pod),
        "name": name_of(pod),
        "uid": uid_of(pod),
    }
    if node := dig(pod, "spec", "nodeName"):
        entry["nodeName"] = node
    return entry


def endpoint_slices(
    service: Object, pods: Iterable[Object], existing: Sequence[Object], trigger: datetime | None
) -> SlicePlan:
    """What turns the existing slices into those that the Service should have.

    Endpoints stay in the slice that they are in. A family without endpoints keeps one empty slice.

    Args:
        pods: all that the selector matches.
        existing: the slices of this Service that carry our managed-by label.
        trigger: the moment of the change that is being followed; None where it is not known.
    """
    plan = SlicePlan()
    listed = [pod for pod in pods if is_endpoint(pod, terminating=True)]
    wanted_families = families(service)
    for family in wanted_families:
        mine = [s for s in existing if s.get("addressType") == family and not is_deleting(s)]
        _plan_family(service, family, listed, mine, trigger, plan)
    plan.delete += [s for s in existing if s.get("addressType") not in wanted_families and not is_deleting(s)]
    return plan


def _plan_family(
    service: Object,
    family: str,
    listed: Sequence[Object],
    existing: Sequence[Object],
    trigger: datetime | None,
    plan: SlicePlan,
) -> None:
    groups: dict[bytes, tuple[list[Object], dict[str, Object]]] = {}
    for pod in listed:
        addresses = [ip for ip in pod_facts.pod_ips(pod) if family_of(ip) == family]
        if addresses:
            ports = ports_of(service, pod)
            _, endpoints = groups.setdefault(msgspec.json.encode(ports), (ports, {}))
            endpoints[uid_of(pod)] = endpoint_of(service, pod, addresses)
    holders: dict[bytes, list[Object]] = {}
    for s in existing:
        key = msgspec.json.encode([_port(p) for p in s.get("ports") or ()])
        holders.setdefault(key if s.get("endpoints") and key in groups else b"", []).append(s)
    spare = holders.pop(b"", [])
    filled: list[tuple[Object | None, list[Object], list[Object]]] = []
    for key, (ports, endpoints) in groups.items():
        for present, found in _fill(holders.get(key, []), endpoints):
            if found:
                filled.append((present, found, ports))
            elif present is not None:
                spare.append(present)
    for present, found, ports in filled or [(None, [], [])]:
        base = present or (spare.pop(0) if spare else None)
        _write(base, _slice(service, family, found, ports, trigger, base), plan)
    plan.delete += spare


def _port(port: Object) -> Object:
    """A stored port as `ports_of` writes it."""
    kept = {"name": port.get("name", ""), "protocol": port.get("protocol", "TCP"), "port": port.get("port")}
    if port.get("appProtocol"):
        kept["appProtocol"] = port["appProtocol"]
    return kept


def _fill(slices: Sequence[Object], endpoints: dict[str, Object]) -> list[tuple[Object | None, list[Object]]]:
    """Spread endpoints over slices: each stays where it is, new ones fill up what has room."""
    left = dict(endpoints)
    filled: list[tuple[Object | None, list[Object]]] = []
    for s in slices:
        uids = [dig(e, "targetRef", "uid", default="") for e in s.get("endpoints") or ()]
        filled.append((s, [left.pop(uid) for uid in uids if uid in left]))
    new = list(left.values())
    for _, found in filled:
        room = MAX_ENDPOINTS - len(found)
        found += new[:room]
        new = new[room:]
    filled += [(None, new[i : i + MAX_ENDPOINTS]) for i in range(0, len(new), MAX_ENDPOINTS)]
    return filled


def _slice(
    service: Object,
    family: str,
    endpoints: list[Object],
    ports: list[Object],
    trigger: datetime | None,
    present: Object | None,
) -> Object:
    labels = dict(labels_of(service))
    labels |= {MANAGED_BY: MANAGER, SERVICE_NAME: name_of(service)}
    labels.pop(HEADLESS, None)
    if is_headless(service):
        labels[HEADLESS] = ""
    name = name_of(service)
    metadata: Object = {"generateName": f"{name}-", "namespace": namespace_of(service)}
    if present is not None:
        metadata = dict(meta(present))
    metadata |= {"labels": labels, "ownerReferences": [owner_reference(service)]}
    annotations = {k: v for k, v in annotations_of(present or {}).items() if k != TRIGGER_TIME}
    if trigger is not None:
        annotations[TRIGGER_TIME] = rfc3339(trigger)
    metadata.pop("annotations", None)
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": family,
        "endpoints": endpoints or None,
        "ports": ports if endpoints else None,
    }


def _write(present: Object | None, wanted: Object, plan: SlicePlan) -> None:
    if present is None:
        plan.create.append(wanted)
        return
    same = (
        (present.get("endpoints") or None) == wanted["endpoints"]
        and [_port(p) for p in present.get("ports") or ()] == (wanted["ports"] or [])
        and labels_of(present) == labels_of(wanted)
        and meta(present).get("ownerReferences") == meta(wanted)["ownerReferences"]
    )
    if not same:
        plan.update.append(wanted)


class TriggerTimes:
    """Which moment a change of endpoints goes back to, for one Service: the earliest readiness that is new.

    Follows kube-controller-manager's TriggerTimeTracker; the annotation lets consumers measure delay.
    """

    def __init__(self) -> None:
        self._known = False
        self._pods: dict[str, datetime] = {}

    def next(self, service: Object, pods: Iterable[Object]) -> datetime | None:
        """The moment to write, or None where nothing new has a time."""
        times = {}
        for pod in pods:
            changed = (condition(pod, "Ready") or {}).get("lastTransitionTime")
            if changed:
                times[name_of(pod)] = parse_time(changed)
        fresh = [t for name, t in times.items() if name not in self._pods or t > self._pods[name]]
        first, self._known, self._pods = not self._known, True, times
        if first:
            return parse_time(meta(service)["creationTimestamp"])
        return min(fresh, default=None)
