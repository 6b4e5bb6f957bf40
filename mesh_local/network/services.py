"""Services as iptables rules of the node: pure. The scheme is kube-proxy's, on one node.

In `nat`: TM-SERVICES finds the Service port, its TM-SVC chain picks an endpoint, whose TM-SEP chain
translates. In `filter`: what reaches a Service address untranslated is refused.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final

from mesh_local.machinery.objects import Object, dig, name_of, namespace_of
from mesh_local.network.addressing import NODE_LINK, Family, Version
from mesh_local.network.endpoints import Endpoint, group_slices, of_port, usable, version_of

_MASQUERADE: Final = "0x4000/0x4000"
_AFFINITY_S: Final = 10800
_PROTOCOLS: Final = {"TCP": "tcp", "UDP": "udp"}
_UNREACHABLE: Final = {4: "icmp-port-unreachable", 6: "icmp6-port-unreachable"}
_NO_ROUTE: Final = {4: "icmp-net-unreachable", 6: "icmp6-no-route"}


@dataclass(frozen=True, slots=True)
class UdpFlow:
    """A translation that conntrack may remember: Service address and port to endpoint address and port."""

    address: str
    port: int
    endpoint: str
    endpoint_port: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the node is to do.

    Args:
        texts: by IP version, what iptables-restore takes.
        udp: the UDP translations; of those that vanish, conntrack's entries must go.
        refused: what cannot be served, for the log.
    """

    texts: Mapping[Version, str]
    udp: frozenset[UdpFlow]
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Target:
    """An address and port at which a Service port is reached; `sources` restricts who may."""

    address: str
    port: int
    sources: tuple[str, ...] = ("",)


@dataclass(slots=True)
class _Tables:
    chains: list[str] = field(default_factory=list)
    services: list[str] = field(default_factory=list)
    nodeports: list[str] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    udp: set[UdpFlow] = field(default_factory=set)


def plan(services: Iterable[Object], slices: Iterable[Object], families: Sequence[Family]) -> Plan:
    """The rules for all Services. Headless and ExternalName Services need none."""
    by_service = group_slices(slices)
    ordered = sorted((s for s in services if _is_proxied(s)), key=lambda s: (namespace_of(s), name_of(s)))
    refused: list[str] = []
    for service in ordered:
        refused += [
            f"Service {_title(service, port)}: protocol {port.get('protocol')} is not supported"
            for port in _ports(service)
            if port.get("protocol", "TCP") not in _PROTOCOLS
        ]
    texts: dict[Version, str] = {}
    udp: set[UdpFlow] = set()
    for family in families:
        tables = _Tables()
        for service in ordered:
            found = by_service.get((namespace_of(service), name_of(service)), [])
            for port in _ports(service):
                if port.get("protocol", "TCP") in _PROTOCOLS:
                    _add_port(tables, family, service, port, found)
        texts[family.version] = _render(tables, family)
        udp |= tables.udp
    return Plan(texts, frozenset(udp), tuple(refused))


def _is_proxied(service: Object) -> bool:
    return dig(service, "spec", "type") != "ExternalName" and dig(service, "spec", "clusterIP") not in (
        None,
        "",
        "None",
    )


def _ports(service: Object) -> list[Object]:
    return dig(service, "spec", "ports", default=[])  # type: ignore[no-any-return]


def _title(service: Object, port: Object) -> str:
    name = f"{namespace_of(service)}/{name_of(service)}"
    return f"{name}:{port['name']}" if port.get("name") else name


def _chain(kind: str, *parts: str) -> str:
    """A chain name that stays the same while its subject does (at most 28 bytes)."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return f"TM-{kind}-{base64.b32encode(digest).decode()[:16]}"


def _targets(service: Object, port: Object, version: int) -> list[_Target]:
    """Where the port is reached, but for the node port."""
    spec = service["spec"]
    cluster = spec.get("clusterIPs") or [spec["clusterIP"]]
    number = port["port"]
    plain = [*cluster, *(spec.get("externalIPs") or ())]
    sources = tuple(_ranges(spec.get("loadBalancerSourceRanges") or (), version))
    restricted = bool(spec.get("loadBalancerSourceRanges"))
    ingress = [
        str(i["ip"])
        for i in dig(service, "status", "loadBalancer", "ingress", default=[])
        if i.get("ip") and i.get("ipMode", "VIP") == "VIP"
    ]
    targets = [_Target(ip, number) for ip in plain]
    targets += [_Target(ip, number, sources if restricted else ("",)) for ip in ingress]
    return [target for target in targets if version_of(target.address) == version]


def _ranges(texts: Iterable[str], version: int) -> Iterator[str]:
    """Those that are networks of this version."""
    for text in texts:
        try:
            network = ip_network(text.strip(), strict=False)
        except ValueError:
            continue
        if network.version == version and "%" not in text:
            yield str(network)


def _has_family(service: Object, version: int) -> bool:
    spec = service["spec"]
    return any(version_of(ip) == version for ip in spec.get("clusterIPs") or [spec["clusterIP"]])


def _add_port(
    tables: _Tables, family: Family, service: Object, port: Object, slices: Sequence[Object]
) -> None:
    targets = _targets(service, port, family.version)
    node_port = port.get("nodePort") if _has_family(service, family.version) else None
    node_targets = [_Target(family.node, node_port)] if node_port else []
    if not targets and not node_targets:
        return
    protocol = _PROTOCOLS[port.get("protocol", "TCP")]
    title = _title(service, port)
    endpoints = usable(of_port(slices, family.version, port))
    if not endpoints:
        for target in (*targets, *node_targets):
            tables.refusals += _refusal(
                family, _match(target, protocol, f"{title} has no endpoints"), protocol
            )
        return
    chain = _chain("SVC", title, protocol)
    _add_chains(tables, chain, title, protocol, endpoints, _affinity(service), family)
    for target in targets:
        for source in target.sources:
            restriction = f"-s {source} " if source else ""
            tables.services.append(
                f"-A TM-SERVICES {restriction}{_match(target, protocol, title)} -j {chain}"
            )
    tables.nodeports += [
        f"-A TM-SERVICES {_match(target, protocol, title)} -j {chain}" for target in node_targets
    ]
    if protocol == "udp":
        tables.udp |= {
            UdpFlow(t.address, t.port, e.ip, e.port) for t in (*targets, *node_targets) for e in endpoints
        }


def _affinity(service: Object) -> int:
    """Seconds for which a client stays with its endpoint; 0: no affinity."""
    if dig(service, "spec", "sessionAffinity") != "ClientIP":
        return 0
    return int(
        dig(service, "spec", "sessionAffinityConfig", "clientIP", "timeoutSeconds", default=_AFFINITY_S)
    )


def _match(target: _Target, protocol: str, comment: str) -> str:
    bits = 32 if version_of(target.address) == 4 else 128
    return (
        f"-d {target.address}/{bits} -p {protocol} -m {protocol} --dport {target.port}"
        f' -m comment --comment "{comment}"'
    )


def _refusal(family: Family, match: str, protocol: str) -> list[str]:
    answer = "tcp-reset" if protocol == "tcp" else _UNREACHABLE[family.version]
    return [f"-A TM-REFUSE {match} -j REJECT --reject-with {answer}"]


def _add_chains(
    tables: _Tables,
    chain: str,
    title: str,
    protocol: str,
    endpoints: Sequence[Endpoint],
    affinity_s: int,
    family: Family,
) -> None:
    """The choice among the endpoints, each with equal probability, and a chain for each."""
    ends = [_chain("SEP", title, protocol, e.ip, str(e.port)) for e in endpoints]
    tables.chains += [chain, *ends]
    if affinity_s:
        tables.rules += [
            f"-A {chain} -m recent --name {end} --rcheck --seconds {affinity_s} --reap --rsource -j {end}"
            for end in ends
        ]
    for left, end in zip(range(len(ends), 0, -1), ends, strict=True):
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        tables.rules.append(f"-A {chain} {chance}-j {end}")
    for end, endpoint in zip(ends, endpoints, strict=True):
        remember = f"-m recent --name {end} --set --rsource " if affinity_s else ""
        host = endpoint.ip if family.version == 4 else f"[{endpoint.ip}]"
        tables.rules += [
            # A pod that reaches itself must answer to the node, or it would answer to itself untranslated.
            f"-A {end} -s {endpoint.ip}/{family.bits} -j MARK --set-xmark {_MASQUERADE}",
            f"-A {end} -p {protocol} {remember}-m {protocol} -j DNAT --to-destination {host}:{endpoint.port}",
        ]


def _render(tables: _Tables, family: Family) -> str:
    chains = ["TM-SERVICES", *tables.chains]
    nat = [
        "*nat",
        *(f":{chain} - [0:0]" for chain in chains),
        "-A PREROUTING -j TM-SERVICES",
        "-A OUTPUT -j TM-SERVICES",
        f"-A POSTROUTING -m mark --mark {_MASQUERADE} -j SNAT --to-source {family.node}",
        *tables.services,
        *tables.nodeports,
        *tables.rules,
        "COMMIT",
    ]
    anywhere = f"-d {family.services}"
    lost = f"REJECT --reject-with {_NO_ROUTE[family.version]}"
    filter_ = [
        "*filter",
        ":TM-REFUSE - [0:0]",
        "-A INPUT -m conntrack --ctstate NEW -j TM-REFUSE",
        "-A FORWARD -m conntrack --ctstate NEW -j TM-REFUSE",
        "-A OUTPUT -m conntrack --ctstate NEW -j TM-REFUSE",
        # There is no way out of the cluster. In OUTPUT the link is the one chosen before translation.
        f"-A FORWARD -m conntrack --ctstate NEW -o {NODE_LINK} -j {lost}",
        f"-A OUTPUT -m conntrack --ctstate NEW -o {NODE_LINK} -m conntrack ! --ctstate DNAT -j {lost}",
        *tables.refusals,
        # Service addresses that nobody has, and ports that a Service has not.
        *_refusal(family, f"{anywhere} -p tcp", "tcp"),
        *_refusal(family, anywhere, ""),
        "COMMIT",
    ]
    return "\n".join([*nat, *filter_, ""])
