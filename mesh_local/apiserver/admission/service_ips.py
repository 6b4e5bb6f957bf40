"""Addresses and node ports of Services: chosen at random from ranges, or taken as asked for if free.

What is taken is what the stored Services have; so nothing has to be released. An address that was given out
is remembered for a while, as its Service is stored only after validating webhooks have answered.
"""

import ipaddress
import random
from collections import OrderedDict
from collections.abc import Sequence

from mesh_local.apiserver.types import Admission, Reader
from mesh_local.kinds.service_families import choose_families, keep_cluster_ips, sync_cluster_ips
from mesh_local.kinds.service_validation import family_of, is_headless
from mesh_local.machinery.errors import ApiError, FieldError, internal, invalid, invalid_value
from mesh_local.machinery.objects import Object, name_of, namespace_of

_PROMISES = 256
_WITH_NODE_PORTS = ("NodePort", "LoadBalancer")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Owner = tuple[str, str]


class ServiceIps:
    """Allocates `clusterIPs`, `nodePort` and `healthCheckNodePort`, and fills in the IP families.

    Args:
        cidrs: one network, or two of different families; the first one's family is the default.
        node_ports: lowest and highest node port.
    """

    def __init__(
        self, reader: Reader, cidrs: Sequence[str], node_ports: tuple[int, int], rng: random.Random
    ) -> None:
        networks = [ipaddress.ip_network(cidr) for cidr in cidrs]
        self._networks: dict[str, Network] = {f"IPv{n.version}": n for n in networks}
        self._reader = reader
        self._node_ports = node_ports
        self._rng = rng
        self._promised: OrderedDict[str | int, Owner] = OrderedDict()

    async def mutate(self, request: Admission) -> None:
        service = request.object
        if request.kind.resource != "services" or request.subresource or service is None:
            return
        if request.operation not in ("CREATE", "UPDATE"):
            return
        spec, old = service["spec"], (request.old or {}).get("spec")
        if old is not None:
            keep_cluster_ips(spec, old)
            _keep_node_ports(spec, old)
        sync_cluster_ips(spec, old)
        allocation = _Allocation(self, request, service, old)
        if spec.get("type") != "ExternalName":
            if faults := choose_families(spec, old, tuple(self._networks)):
                raise allocation.refused(faults)
            if not is_headless(spec):
                allocation.addresses(spec)
        if spec.get("type") in _WITH_NODE_PORTS:
            allocation.node_ports(spec)
            if spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
                spec["healthCheckNodePort"] = allocation.health_port(spec.get("healthCheckNodePort") or 0)

    async def validate(self, request: Admission) -> None: ...

    def network(self, family: str) -> Network:
        return self._networks[family]

    @property
    def ports(self) -> tuple[int, int]:
        return self._node_ports

    @property
    def rng(self) -> random.Random:
        return self._rng

    def in_use(self, owner: Owner) -> set[str | int]:
        """Addresses and node ports of all other Services, and those promised to them."""
        used: set[str | int] = {thing for thing, whose in self._promised.items() if whose != owner}
        for service in self._reader.list("services"):
            if (namespace_of(service), name_of(service)) == owner:
                continue
            spec = service.get("spec") or {}
            used.update(str(ipaddress.ip_address(ip)) for ip in spec.get("clusterIPs") or () if ip != "None")
            used.update(p["nodePort"] for p in spec.get("ports") or () if p.get("nodePort"))
            if spec.get("healthCheckNodePort"):
                used.add(spec["healthCheckNodePort"])
        return used

    def promise(self, thing: str | int, owner: Owner) -> None:
        self._promised[thing] = owner
        self._promised.move_to_end(thing)
        while len(self._promised) > _PROMISES:
            self._promised.popitem(last=False)


class _Allocation:
    """What one Service gets."""

    def __init__(self, plugin: ServiceIps, request: Admission, service: Object, old: Object | None) -> None:
        self._plugin = plugin
        self._name = name_of(service)
        self._owner = (request.namespace, self._name)
        self._dry_run = request.dry_run
        self._own = _ports_of(old or {})
        self._had = len((old or {}).get("clusterIPs") or ())
        self._used: set[str | int] | None = None

    def refused(self, faults: list[FieldError]) -> ApiError:
        return invalid("Service", "", self._name, faults)

    def addresses(self, spec: Object) -> None:
        """One address for every family."""
        asked: list[str] = list(spec.get("clusterIPs") or ())
        given: list[str] = []
        for i, family in enumerate(spec["ipFamilies"]):
            network = self._plugin.network(family)
            if i >= len(asked):
                given.append(self._any_address(network))
                continue
            ip = asked[i]
            if i >= self._had:  # an address that the Service had may not change: validation says so
                self._claim(ip, network, asked)
            given.append(ip)
        spec["clusterIPs"] = given
        spec["clusterIP"] = given[0]

    def _claim(self, ip: str, network: Network, asked: list[str]) -> None:
        address, problem = ipaddress.ip_address(ip), ""
        edges = (network.network_address, network.broadcast_address if network.version == 4 else None)
        if family_of(ip) != f"IPv{network.version}" or address not in network or address in edges:
            problem = "the provided network does not match the current range"
        elif str(address) in self._taken():
            problem = "provided IP is already allocated"
        if problem:
            detail = f"failed to allocate IP {ip}: {problem}"
            raise self.refused([invalid_value("spec.clusterIPs", asked, detail)])
        self._give(str(address))

    def _any_address(self, network: Network) -> str:
        """A random address of the upper part; the lower part is left to those who ask (KEP-3070)."""
        used = self._taken()
        last = network.num_addresses - (2 if network.version == 4 else 1)
        lower = min(max(16, network.num_addresses // 16), 256)
        for low, high in ((lower + 1, last), (1, min(lower, last))):
            if low > high:
                continue
            start = self._plugin.rng.randint(low, high)
            # A random start, then onwards: finds the last free one in bounded time.
            for offset in range(min(high - low + 1, len(used) + 1)):
                ip = str(network.network_address + low + (start - low + offset) % (high - low + 1))
                if ip not in used:
                    self._give(ip)
                    return ip
        raise internal("failed to allocate a serviceIP: range is full")

    def node_ports(self, spec: Object) -> None:
        """A node port for every port; the same number for the same port in several protocols."""
        ports = spec.get("ports") or []
        by_port: dict[int, int] = {}
        for i, port in enumerate(ports):
            wanted, number = port.get("nodePort") or 0, port.get("port") or 0
            if not wanted and spec.get("allocateLoadBalancerNodePorts") is False:
                continue
            if not wanted:
                later = next(
                    (p["nodePort"] for p in ports if p.get("port") == number and p.get("nodePort")), 0
                )
                wanted = by_port.get(number) or later
            if not wanted:
                wanted = self._any_port()
            elif wanted not in by_port.values() and wanted not in self._own:
                self._claim_port(wanted, f"spec.ports[{i}].nodePort")
            by_port.setdefault(number, wanted)
            port["nodePort"] = wanted

    def health_port(self, wanted: int) -> int:
        if not wanted:
            return self._any_port()
        if wanted not in self._own:
            self._claim_port(wanted, "spec.healthCheckNodePort")
        return wanted

    def _claim_port(self, port: int, path: str) -> None:
        low, high = self._plugin.ports
        problem = ""
        if not low <= port <= high:
            problem = f"provided port is not in the valid range. The range of valid ports is {low}-{high}"
        elif port in self._taken():
            problem = "provided port is already allocated"
        if problem:
            raise self.refused([invalid_value(path, port, problem)])
        self._give(port)

    def _any_port(self) -> int:
        low, high = self._plugin.ports
        free = [p for p in range(low, high + 1) if p not in self._taken()]
        if not free:
            raise internal("failed to allocate a nodePort: range is full")
        port = self._plugin.rng.choice(free)
        self._give(port)
        return port

    def _taken(self) -> set[str | int]:
        if self._used is None:
            self._used = self._plugin.in_use(self._owner)
        return self._used

    def _give(self, thing: str | int) -> None:
        self._taken().add(thing)
        if not self._dry_run:
            self._plugin.promise(thing, self._owner)


def _ports_of(spec: Object) -> set[str | int]:
    ports: set[str | int] = {p["nodePort"] for p in spec.get("ports") or () if p.get("nodePort")}
    if spec.get("healthCheckNodePort"):
        ports.add(spec["healthCheckNodePort"])
    return ports


def _keep_node_ports(spec: Object, old: Object) -> None:
    """A client that leaves node ports out keeps those of the ports with the same name."""
    if spec.get("type") not in _WITH_NODE_PORTS or old.get("type") not in _WITH_NODE_PORTS:
        return
    ports = spec.get("ports") or []
    used = {p.get("nodePort") for p in ports}
    before = {p.get("name") or "": p["nodePort"] for p in old.get("ports") or () if p.get("nodePort")}
    for port in ports:
        kept = before.get(port.get("name") or "")
        if not port.get("nodePort") and kept and kept not in used:
            port["nodePort"] = kept
    if not spec.get("healthCheckNodePort") and old.get("healthCheckNodePort"):
        spec["healthCheckNodePort"] = old["healthCheckNodePort"]
