"""What the rules of a plan do with the first packet of a connection. Pure.

The probe uses it to choose a destination that must be captured; tests use it to state what any options mean.
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from injector.netinit.plan import ALL, Family, Network, Options, Plan, PortRange, Rule, Table, plan

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """The first packet of a TCP connection; `uid` and `gid` are known only where it is sent."""

    hook: Literal["PREROUTING", "OUTPUT"]
    source: Address
    destination: Address
    port: int
    interface: str = "eth0"
    uid: int | None = None
    gid: int | None = None
    invalid: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    action: Literal["pass", "drop", "redirect"]
    port: int | None = None


PASS: Final = Verdict("pass")


def decide(plan: Plan, packet: Packet) -> Verdict:
    """Walk the tables in the kernel's order; a drop in an earlier one ends it."""
    for table in plan.tables:
        verdict = _chain(table, packet.hook, packet)
        if verdict is not None:
            return verdict
    return PASS


def _chain(table: Table, chain: str, packet: Packet) -> Verdict | None:
    for rule in table.rules:
        if rule.chain != chain or not _matches(rule, packet):
            continue
        match rule.target:
            case "RETURN":
                return None
            case "DROP":
                return Verdict("drop")
            case "REDIRECT":
                return Verdict("redirect", rule.to_port)
            case target:
                verdict = _chain(table, target, packet)
                if verdict is not None:
                    return verdict
    return None


def _matches(rule: Rule, packet: Packet) -> bool:
    if rule.invalid and not packet.invalid:
        return False
    if rule.source is not None and packet.source not in rule.source:
        return False
    if rule.destination is not None and packet.destination not in rule.destination:
        return False
    if rule.not_destination is not None and packet.destination in rule.not_destination:
        return False
    if rule.in_interface is not None and (packet.hook, packet.interface) != ("PREROUTING", rule.in_interface):
        return False
    if rule.out_interface is not None and (packet.hook, packet.interface) != ("OUTPUT", rule.out_interface):
        return False
    if rule.port is not None and not rule.port.low <= packet.port <= rule.port.high:
        return False
    if rule.owner is not None:
        asked = ((rule.owner.uid, packet.uid), (rule.owner.gid, packet.gid))
        return all(want is None or (want == have) != rule.owner.other for want, have in asked)
    return True


# Addresses kept for documentation: no pod and no Service has one.
NOWHERE: Final[dict[Family, Address]] = {
    4: ipaddress.ip_address("192.0.2.1"),
    6: ipaddress.ip_address("2001:db8::1"),
}


def outbound_target(options: Options, family: Family) -> tuple[Address, int] | None:
    """An address and port that the application's connection to is captured; None if there is none."""
    rules = plan(options, family)
    cidrs = () if options.include_cidrs == ALL else options.include_cidrs
    addresses = [NOWHERE[family], *(_inside(net) for net in cidrs if net.version == family)]
    for port in _ports(options, options.include_outbound_ports):
        for address in addresses:
            packet = Packet(
                hook="OUTPUT", source=address, destination=address, port=port, interface="", uid=0, gid=0
            )
            if decide(rules, packet) == Verdict("redirect", options.outbound_port):
                return address, port
    return None


def inbound_port(options: Options, family: Family) -> int | None:
    """A port whose connections from the network are captured; None if there is none."""
    rules = plan(options, family)
    listed = () if options.include_inbound_ports == ALL else options.include_inbound_ports
    for port in _ports(options, listed):
        packet = Packet(
            hook="PREROUTING", source=NOWHERE[family], destination=NOWHERE[family], port=port, interface=""
        )
        if decide(rules, packet) == Verdict("redirect", options.inbound_port):
            return port
    return None


def _ports(options: Options, listed: tuple[PortRange, ...]) -> Iterator[int]:
    yield options.probe_port
    for ports in listed:
        yield ports.low
    yield from range(20000, 20016)


def _inside(network: Network) -> Address:
    return network[1] if network.num_addresses > 2 else network[0]
