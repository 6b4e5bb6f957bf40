"""Names of a cluster (Kubernetes DNS-based service discovery, version 1.1.0): pure.

Everything is text here, in lower case and with the final dot; the answerer makes wire data of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Final

from mesh_local.machinery.objects import Object, dig, name_of, namespace_of
from mesh_local.network.addressing import Family
from mesh_local.network.endpoints import conditions, group_slices, of_port, version_of

TTL: Final = 5
SCHEMA: Final = "1.1.0"
_ADDRESS_TYPES: Final = {4: "A", 6: "AAAA"}
_FINISHED: Final = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Zones:
    """What this server answers for.

    Args:
        domain: the cluster's domain, such as `cluster.local`.
        networks: pod and Service ranges, whose reverse zones are ours; prefixes at byte (IPv4) and nibble
            (IPv6) boundaries.
        servers: addresses of the DNS Service.
    """

    domain: str
    networks: tuple[IPv4Network | IPv6Network, ...]
    servers: tuple[str, ...]

    @classmethod
    def of_cluster(cls, domain: str, families: tuple[Family, ...]) -> "Zones":
        networks = tuple(network for family in families for network in (family.pods, family.services))
        return cls(domain, networks, tuple(family.dns for family in families))

    @property
    def apexes(self) -> tuple[str, ...]:
        return (f"{self.domain}.", *(_reverse_zone(network) for network in self.networks))

    def zone_of(self, name: str) -> str:
        """The zone that `name` is in, or '' for names that are not ours."""
        return next((apex for apex in self.apexes if name == apex or name.endswith(f".{apex}")), "")


def _reverse_zone(network: IPv4Network | IPv6Network) -> str:
    labels = network.network_address.reverse_pointer.split(".")
    per_label = 8 if network.version == 4 else 4
    return ".".join(labels[(network.max_prefixlen - network.prefixlen) // per_label :]) + "."


class Index:
    """The records of one moment, by name and type."""

    def __init__(self, zones: Zones) -> None:
        self.zones = zones
        self._records: dict[str, dict[str, list[str]]] = {}
        self._names: set[str] = set(zones.apexes)

    def add(self, name: str, type_: str, value: str) -> None:
        """Add a record; the names above it exist from then on, too."""
        values = self._records.setdefault(name, {}).setdefault(type_, [])
        if value not in values:
            values.append(value)
        while name not in self._names:
            self._names.add(name)
            name = name.partition(".")[2]

    def exists(self, name: str) -> bool:
        """Whether the name has records, or there are names below it (RFC 8020)."""
        return name in self._names

    def at(self, name: str) -> Mapping[str, list[str]]:
        """The records of a name by type."""
        return self._records.get(name, {})


def build(
    zones: Zones, services: Iterable[Object], slices: Iterable[Object], pods: Iterable[Object]
) -> Index:
    """All records of the cluster."""
    index = Index(zones)
    _add_server(index)
    by_service = group_slices(slices)
    for service in services:
        spec = service.get("spec") or {}
        name = f"{name_of(service)}.{namespace_of(service)}.svc.{zones.domain}.".lower()
        if spec.get("type") == "ExternalName":
            index.add(name, "CNAME", str(spec.get("externalName", "")).lower().rstrip(".") + ".")
        elif spec.get("clusterIP") == "None":
            found = by_service.get((namespace_of(service), name_of(service)), [])
            _add_headless(index, name, spec, found)
        elif spec.get("clusterIP"):
            _add_cluster_ips(index, name, spec)
    for pod in pods:
        _add_pod(index, pod)
    return index


def _add_server(index: Index) -> None:
    zones = index.zones
    server = f"ns.dns.{zones.domain}."
    for address in zones.servers:
        index.add(server, _ADDRESS_TYPES[version_of(address)], address)
    for apex in zones.apexes:
        index.add(apex, "NS", server)
        # serial, refresh, retry, expire, TTL of negative answers; there is no transfer, so no serial
        index.add(apex, "SOA", f"{server} hostmaster.{zones.domain}. 1 7200 1800 86400 {TTL}")
    index.add(f"dns-version.{zones.domain}.", "TXT", f'"{SCHEMA}"')


def _add_reverse(index: Index, address: str, name: str) -> None:
    pointer = ip_address(address).reverse_pointer + "."
    if index.zones.zone_of(pointer):
        index.add(pointer, "PTR", name)


def _add_cluster_ips(index: Index, name: str, spec: Object) -> None:
    for address in spec.get("clusterIPs") or [spec["clusterIP"]]:
        if version := version_of(address):
            index.add(name, _ADDRESS_TYPES[version], address)
            _add_reverse(index, address, name)
    for port in spec.get("ports") or ():
        if port.get("name"):
            index.add(_port_name(port, name), "SRV", f"0 100 {port['port']} {name}")


def _port_name(port: Object, name: str) -> str:
    return f"_{port['name']}._{port.get('protocol') or 'TCP'}.{name}".lower()


def _add_headless(index: Index, name: str, spec: Object, slices: list[Object]) -> None:
    """Records of the ready endpoints. Without any there is no name: the specification wants NXDOMAIN."""
    with_unready = bool(spec.get("publishNotReadyAddresses"))
    hosts: dict[str, str] = {}
    for item in slices:
        version = {"IPv4": 4, "IPv6": 6}.get(str(item.get("addressType")), 0)
        for endpoint in item.get("endpoints") or ():
            address = str(dig(endpoint, "addresses", 0, default=""))
            if not version or version_of(address) != version:
                continue
            if not (conditions(endpoint)[0] or with_unready):
                continue
            host = f"{endpoint.get('hostname') or _dashed(address)}.{name}".lower()
            hosts[address] = host
            for owner in (name, host):
                index.add(owner, _ADDRESS_TYPES[version], address)
            _add_reverse(index, address, host)
    for port in spec.get("ports") or ():
        if port.get("name"):
            found = [e for version in (4, 6) for e in of_port(slices, version, port) if e.ip in hosts]
            for end in found:
                weight = max(1, 100 // len(found))
                index.add(_port_name(port, name), "SRV", f"0 {weight} {end.port} {hosts[end.ip]}")


def _dashed(address: str) -> str:
    return address.replace(".", "-").replace(":", "-")


def _add_pod(index: Index, pod: Object) -> None:
    """`1-2-3-4.<namespace>.pod.<domain>`, for pods that exist."""
    if dig(pod, "spec", "hostNetwork") or dig(pod, "status", "phase") in _FINISHED:
        return
    for entry in dig(pod, "status", "podIPs", default=[]):
        address = str(entry.get("ip") or "")
        if version := version_of(address):
            name = f"{_dashed(address)}.{namespace_of(pod)}.pod.{index.zones.domain}.".lower()
            index.add(name, _ADDRESS_TYPES[version], address)


def resolv_conf(namespace: str, servers: Iterable[str], domain: str) -> str:
    """What a pod with `dnsPolicy: ClusterFirst` has in /etc/resolv.conf."""
    lines = [f"search {namespace}.svc.{domain} svc.{domain} {domain}"]
    lines += [f"nameserver {server}" for server in servers]
    return "\n".join([*lines, "options ndots:5", ""])
