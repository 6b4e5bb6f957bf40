"""Which endpoints a Service's port has: pure, shared by the service proxy and the DNS."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from mesh_local.machinery.objects import Object, dig, labels_of, namespace_of

SERVICE_LABEL = "kubernetes.io/service-name"
Key = tuple[str, str]


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One address and port behind a Service's port, with its conditions as consumers read them."""

    ip: str
    port: int
    ready: bool
    serving: bool
    terminating: bool


def group_slices(slices: Iterable[Object]) -> dict[Key, list[Object]]:
    """EndpointSlices by the namespace and name of their Service."""
    groups: dict[Key, list[Object]] = {}
    for item in slices:
        service = labels_of(item).get(SERVICE_LABEL)
        if service:
            groups.setdefault((namespace_of(item), service), []).append(item)
    return groups


def version_of(text: str) -> int:
    """4 or 6, or 0 for what is not an IP address; one with a zone, which may hold any text, is none."""
    try:
        return 0 if "%" in text else ip_address(text).version
    except ValueError:
        return 0


def conditions(endpoint: Object) -> tuple[bool, bool, bool]:
    """(ready, serving, terminating) of an endpoint; what is not known counts as discovery/v1 says."""
    found = endpoint.get("conditions") or {}
    ready = found.get("ready") is not False
    serving = found.get("serving")
    return ready, ready if serving is None else bool(serving), bool(found.get("terminating"))


def of_port(slices: Sequence[Object], version: int, port: Object) -> list[Endpoint]:
    """The endpoints of a Service's port, in order, without duplicates.

    Slices name their ports as the Service does, whatever number each has there, so target ports by name
    need no more. Consumers use the first address of an endpoint only (discovery/v1).
    """
    wanted = (port.get("name") or "", port.get("protocol") or "TCP")
    found: dict[tuple[str, int], Endpoint] = {}
    for item in slices:
        if item.get("addressType") != f"IPv{version}":
            continue
        numbers = [
            p["port"]
            for p in item.get("ports") or ()
            if (p.get("name") or "", p.get("protocol") or "TCP") == wanted and p.get("port")
        ]
        for endpoint in item.get("endpoints") or ():
            ip = str(dig(endpoint, "addresses", 0, default=""))
            if version_of(ip) != version:
                continue
            for number in numbers:
                entry = Endpoint(ip, number, *conditions(endpoint))
                other = found.get((ip, number))
                # While a pod moves from slice to slice it may be in two; the ready entry counts.
                if other is None or (entry.ready and not other.ready):
                    found[ip, number] = entry
    return sorted(found.values())


def usable(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """The ready ones; if there are none, those that still serve while they terminate (KEP-1669)."""
    return [e for e in endpoints if e.ready] or [e for e in endpoints if e.serving and e.terminating]
