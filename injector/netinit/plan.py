"""Which iptables rules a pod gets. Pure: options in, rules and `iptables-restore` text out.

Only TCP enters our chains. A connection of the application is decided in this order: excluded interfaces,
excluded ports, the sidecar's own connections, loopback, excluded networks, included ports, and last the
included networks or everything.

A call of the application to its own Service leaves through the sidecar, which may choose this very pod: that
second connection goes out on `lo` with the sidecar's uid. It is sent through TRIOMESH_INBOUND, the chain for
connections from the network, so a port that is not captured from outside is not captured here either.

IPv4 and IPv6 come from one model. A list of include networks speaks only for the families that occur in it:
the other family is captured wholly, because silently leaving it alone would open a way around the mesh. To
leave a family alone, exclude its /0; an empty list captures no network at all, in both families.
"""

import ipaddress
import itertools
import re
import shlex
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, Literal, NamedTuple

ALL: Final = "*"
NONE: Final = "none"
PREFIX: Final = "TRIOMESH_"
COMMENT: Final = "triomesh/"

INBOUND: Final = "TRIOMESH_INBOUND"
IN_REDIRECT: Final = "TRIOMESH_IN_REDIRECT"
OUTPUT: Final = "TRIOMESH_OUTPUT"
REDIRECT: Final = "TRIOMESH_REDIRECT"
DROP: Final = "TRIOMESH_DROP"

# Metrics and health: scraped and probed by parties that are not in the mesh.
NEVER_INBOUND: Final = (15020, 15021)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Family = Literal[4, 6]
FAMILIES: Final[tuple[Family, Family]] = (4, 6)


class OptionError(ValueError):
    """An option that cannot be used; the message begins with the option's name."""


class PortRange(NamedTuple):
    """Ports from `low` to `high`, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"

    def overlaps(self, other: "PortRange") -> bool:
        return self.low <= other.high and other.low <= self.high


Ports = tuple[PortRange, ...]


def parse_ports(text: str, option: str) -> Ports:
    """Read `80,443,8000-8010`; the empty text and `none` are the empty list."""
    return tuple(_port_range(item, option) for item in _items(text, option))


def parse_ports_or_all(text: str, option: str) -> Ports | Literal["*"]:
    return ALL if text.strip() == ALL else parse_ports(text, option)


def parse_cidrs(text: str, option: str) -> tuple[Network, ...]:
    """Read `10.0.0.0/8,fd00::/8`; an address alone is a network of one."""
    return tuple(_network(item, option) for item in _items(text, option))


def parse_cidrs_or_all(text: str, option: str) -> tuple[Network, ...] | Literal["*"]:
    return ALL if text.strip() == ALL else parse_cidrs(text, option)


def parse_names(text: str, option: str) -> tuple[str, ...]:
    return tuple(_items(text, option))


def _items(text: str, option: str) -> list[str]:
    if text.strip() in ("", NONE):
        return []
    items = [item.strip() for item in text.split(",")]
    if "" in items:
        raise OptionError(f"{option}: empty item in {text!r}")
    if ALL in items:
        raise OptionError(f"{option}: '*' cannot be an item of a list")
    return items


def _port_range(item: str, option: str) -> PortRange:
    match = re.fullmatch(r"([0-9]{1,5})(?:[-:]([0-9]{1,5}))?", item, re.ASCII)
    if match is None:
        raise OptionError(f"{option}: {item!r} is not a port or a range of ports such as 8000-8010")
    low = int(match[1])
    return PortRange(low, low if match[2] is None else int(match[2]))


def _network(item: str, option: str) -> Network:
    if "%" in item:
        raise OptionError(f"{option}: {item!r} has a zone, which a network cannot have")
    try:
        return ipaddress.ip_network(item, strict=True)
    except ValueError as error:
        raise OptionError(f"{option}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to capture. Lists are kept sorted and without repetition, so equal wishes give equal rules."""

    outbound_port: int = 15001
    inbound_port: int = 15006
    probe_port: int = 15002
    proxy_uid: int = 1337
    proxy_gid: int = 1337
    include_inbound_ports: Ports | Literal["*"] = ALL
    exclude_inbound_ports: Ports = ()
    include_outbound_ports: Ports = ()
    exclude_outbound_ports: Ports = ()
    include_cidrs: tuple[Network, ...] | Literal["*"] = ALL
    exclude_cidrs: tuple[Network, ...] = ()
    exclude_interfaces: tuple[str, ...] = ()
    drop_invalid: bool = True

    def __post_init__(self) -> None:
        self._check_single_ports()
        for name in ("proxy_uid", "proxy_gid"):
            number = getattr(self, name)
            if not 1 <= number <= 0xFFFFFFFE:
                raise OptionError(f"{name}: {number} is not usable (1 to 4294967294; 0 would exempt root)")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_ports") and value != ALL:
                object.__setattr__(self, field.name, _checked_ports(value, field.name))
            elif field.name.endswith("_cidrs") and value != ALL:
                unique = sorted(set(value), key=lambda net: (net.version, net))
                object.__setattr__(self, field.name, tuple(unique))
        for interface in self.exclude_interfaces:
            _check_interface(interface)
        object.__setattr__(self, "exclude_interfaces", tuple(sorted(set(self.exclude_interfaces))))
        self._check_conflicts()

    def _check_single_ports(self) -> None:
        seen: dict[int, str] = {}
        for name in ("outbound_port", "inbound_port", "probe_port"):
            port = getattr(self, name)
            if not 1 <= port <= 65535:
                raise OptionError(f"{name}: {port} is not a port (1 to 65535)")
            if port in NEVER_INBOUND:
                raise OptionError(f"{name}: {port} is the sidecar's health or metrics port")
            if port in seen:
                raise OptionError(f"{name}: {port} is already used by {seen[port]}")
            seen[port] = name

    def _check_conflicts(self) -> None:
        if self.include_inbound_ports != ALL:
            own = (*NEVER_INBOUND, self.outbound_port, self.inbound_port)
            for wanted in self.include_inbound_ports:
                for port in own:
                    if wanted.low <= port <= wanted.high:
                        raise OptionError(f"include_inbound_ports: {port} is a port of the sidecar itself")
            _check_disjoint("inbound_ports", self.include_inbound_ports, self.exclude_inbound_ports)
        _check_disjoint("outbound_ports", self.include_outbound_ports, self.exclude_outbound_ports)
        for network in () if self.include_cidrs == ALL else self.include_cidrs:
            for hole in self.exclude_cidrs:
                if _contains(hole, network):
                    raise OptionError(f"include_cidrs: {network} lies wholly in exclude_cidrs {hole}")


def _checked_ports(ports: Ports, option: str) -> Ports:
    for low, high in ports:
        for port in (low, high):
            if not 1 <= port <= 65535:
                raise OptionError(f"{option}: {port} is not a port (1 to 65535)")
        if low > high:
            raise OptionError(f"{option}: {low}-{high} runs backwards")
    return tuple(sorted({PortRange(*item) for item in ports}))


def _check_interface(name: str) -> None:
    if name == "lo":
        raise OptionError("exclude_interfaces: lo is needed by the sidecar and cannot be excluded")
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,14}", name, re.ASCII) is None:
        raise OptionError(f"exclude_interfaces: {name!r} is not an interface name")


def _check_disjoint(what: str, included: Ports, excluded: Ports) -> None:
    for one in included:
        for other in excluded:
            if one.overlaps(other):
                raise OptionError(f"include_{what}: {one} is also in exclude_{what} ({other})")


def _contains(outer: Network, inner: Network) -> bool:
    if isinstance(outer, ipaddress.IPv4Network):
        return isinstance(inner, ipaddress.IPv4Network) and inner.subnet_of(outer)
    return isinstance(inner, ipaddress.IPv6Network) and inner.subnet_of(outer)


class Owner(NamedTuple):
    """Whose socket it is. `other` turns it round: neither this uid nor this gid."""

    uid: int | None = None
    gid: int | None = None
    other: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule; what is None or False is not asked for."""

    chain: str
    name: str
    target: str
    to_port: int | None = None
    source: Network | None = None
    destination: Network | None = None
    not_destination: Network | None = None
    in_interface: str | None = None
    out_interface: str | None = None
    tcp: bool = False
    port: PortRange | None = None
    owner: Owner | None = None
    invalid: bool = False

    def tokens(self) -> tuple[str, ...]:
        """The rule as `iptables-save` prints it, so that the two can be compared word by word."""
        out = ["-A", self.chain]
        if self.source is not None and self.source.prefixlen:
            out += ["-s", _network_text(self.source)]
        if self.destination is not None and self.destination.prefixlen:
            out += ["-d", _network_text(self.destination)]
        if self.not_destination is not None:
            out += ["!", "-d", _network_text(self.not_destination)]
        if self.in_interface is not None:
            out += ["-i", self.in_interface]
        if self.out_interface is not None:
            out += ["-o", self.out_interface]
        if self.tcp or self.port is not None:
            out += ["-p", "tcp"]
        if self.port is not None:
            out += ["-m", "tcp", "--dport", str(self.port)]
        if self.invalid:
            out += ["-m", "conntrack", "--ctstate", "INVALID"]
        if self.owner is not None:
            out += ["-m", "owner"]
            for flag, number in (("--uid-owner", self.owner.uid), ("--gid-owner", self.owner.gid)):
                if number is not None:
                    out += [*(["!"] if self.owner.other else []), flag, str(number)]
        out += ["-m", "comment", "--comment", COMMENT + self.name, "-j", self.target]
        if self.to_port is not None:
            out += ["--to-ports", str(self.to_port)]
        return tuple(out)


def _network_text(network: Network) -> str:
    # inet_ntop, as iptables-save does: ipaddress writes mapped addresses in another way.
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, network.network_address.packed)}/{network.prefixlen}"


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    chains: tuple[str, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The rules of one family, `mangle` first: capture begins with the last table."""

    family: Family
    tables: tuple[Table, ...]


LOOPBACK: Final[Mapping[Family, Network]] = {
    4: ipaddress.ip_network("127.0.0.0/8"),
    6: ipaddress.ip_network("::1/128"),
}
# The source address of the sidecar's connections to the application.
PASS_THROUGH: Final[Mapping[Family, Network]] = {
    4: ipaddress.ip_network("127.0.0.6/32"),
    6: ipaddress.ip_network("::6/128"),
}


def plan(options: Options, family: Family) -> Plan:
    """The rules of one family."""
    tables = [_nat(options, family)]
    if options.drop_invalid:
        tables.insert(0, _mangle(options))
    return Plan(family, tuple(tables))


def _mangle(options: Options) -> Table:
    # A packet that conntrack cannot place is not translated; delivered, it would make the application's own
    # stack answer with RST and end the connection.
    return Table(
        "mangle",
        (DROP,),
        (
            *_excluded_interfaces(options, DROP, inbound=True),
            Rule(chain=DROP, name="drop", target="DROP"),
            Rule(chain="PREROUTING", name="drop-invalid", target=DROP, tcp=True, invalid=True),
        ),
    )


def _nat(options: Options, family: Family) -> Table:
    inbound = _inbound(options)
    outbound = _outbound(options, family)
    chains = [OUTPUT, REDIRECT]
    rules = [
        Rule(chain=REDIRECT, name="to-outbound", target="REDIRECT", tcp=True, to_port=options.outbound_port)
    ]
    jumps = [Rule(chain="OUTPUT", name="outbound", target=OUTPUT, tcp=True)]
    if inbound:
        chains = [INBOUND, IN_REDIRECT, *chains]
        rules += [
            Rule(
                chain=IN_REDIRECT,
                name="to-inbound",
                target="REDIRECT",
                tcp=True,
                to_port=options.inbound_port,
            )
        ]
        jumps = [Rule(chain="PREROUTING", name="inbound", target=INBOUND, tcp=True), *jumps]
    return Table("nat", tuple(chains), (*rules, *inbound, *outbound, *jumps))


def _inbound(options: Options) -> list[Rule]:
    if not options.include_inbound_ports:
        return []
    rules = _excluded_interfaces(options, INBOUND, inbound=True)
    if options.include_inbound_ports == ALL:
        always = {PortRange(port, port) for port in NEVER_INBOUND}
        rules += [
            Rule(chain=INBOUND, name=f"exclude-port-{port}", target="RETURN", port=port)
            for port in sorted({*options.exclude_inbound_ports, *always})
        ]
        return [*rules, Rule(chain=INBOUND, name="capture-all", target=IN_REDIRECT, tcp=True)]
    return [
        *rules,
        *(
            Rule(chain=INBOUND, name=f"include-port-{port}", target=IN_REDIRECT, port=port)
            for port in options.include_inbound_ports
        ),
    ]


def _outbound(options: Options, family: Family) -> list[Rule]:
    def rule(name: str, target: str = "RETURN") -> Rule:
        return Rule(chain=OUTPUT, name=name, target=target)

    rules = _excluded_interfaces(options, OUTPUT, inbound=False)
    rules += [
        Rule(chain=OUTPUT, name=f"exclude-port-{port}", target="RETURN", port=port)
        for port in options.exclude_outbound_ports
    ]
    rules += _own_traffic(options, family)
    rules.append(Rule(chain=OUTPUT, name="loopback", target="RETURN", destination=LOOPBACK[family]))
    rules += [
        Rule(chain=OUTPUT, name=f"exclude-{_network_text(network)}", target="RETURN", destination=network)
        for network in options.exclude_cidrs
        if network.version == family
    ]
    rules += [
        Rule(chain=OUTPUT, name=f"include-port-{port}", target=REDIRECT, port=port)
        for port in options.include_outbound_ports
    ]
    if options.include_cidrs != ALL:
        ours = [network for network in options.include_cidrs if network.version == family]
        if ours or not options.include_cidrs:
            return rules + [
                Rule(chain=OUTPUT, name=f"include-{_network_text(net)}", target=REDIRECT, destination=net)
                for net in ours
            ]
    return [*rules, rule("capture-all", REDIRECT)]


def _own_traffic(options: Options, family: Family) -> list[Rule]:
    """Connections of the sidecar, and of anybody on loopback.

    Both owner forms of one step come before the next step. Were the uid's three rules followed by the gid's
    three, the uid's "somebody else on lo" would return a process that is the sidecar by gid only, before its
    self-call rule is reached.
    """
    uid, gid = options.proxy_uid, options.proxy_gid
    owners = (("uid", Owner(uid=uid)), ("gid", Owner(gid=gid)))
    rules = [
        Rule(
            chain=OUTPUT,
            name="pass-through",
            target="RETURN",
            source=PASS_THROUGH[family],
            out_interface="lo",
        )
    ]
    if options.include_inbound_ports:
        rules += [
            Rule(
                chain=OUTPUT,
                name=f"self-call-{kind}",
                target=INBOUND,
                not_destination=LOOPBACK[family],
                out_interface="lo",
                owner=owner,
            )
            for kind, owner in owners
        ]
    rules.append(
        Rule(
            chain=OUTPUT,
            name="application-on-lo",
            target="RETURN",
            out_interface="lo",
            owner=Owner(uid=uid, gid=gid, other=True),
        )
    )
    rules += [
        Rule(chain=OUTPUT, name=f"sidecar-{kind}", target="RETURN", owner=owner) for kind, owner in owners
    ]
    return rules


def _excluded_interfaces(options: Options, chain: str, *, inbound: bool) -> list[Rule]:
    return [
        Rule(
            chain=chain,
            name=f"exclude-interface-{interface}",
            target="RETURN",
            in_interface=interface if inbound else None,
            out_interface=None if inbound else interface,
        )
        for interface in options.exclude_interfaces
    ]


Tokens = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """What one table holds of ours: our chains with their rules, and our rules in other chains."""

    chains: Mapping[str, tuple[Tokens, ...]]
    hooks: tuple[Tokens, ...]


State = Mapping[str, Held]
_NOTHING: Final = Held({}, ())


def wanted(plan: Plan) -> State:
    """The state in which `plan` is applied."""
    return {table.name: _held(table.chains, [rule.tokens() for rule in table.rules]) for table in plan.tables}


def held(save_text: str) -> State:
    """What is ours in the output of `iptables-save`."""
    chains: dict[str, list[str]] = {}
    rules: dict[str, list[Tokens]] = {}
    table = ""
    for line in save_text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
            chains.setdefault(table, [])
            rules.setdefault(table, [])
        elif line.startswith(":" + PREFIX):
            chains[table].append(line[1:].split()[0])
        elif line.startswith("-A ") and (PREFIX in line or COMMENT in line):
            tokens = tuple(shlex.split(line))
            if _is_ours(tokens):
                rules[table].append(tokens)
    state = {name: _held(chains[name], rules[name]) for name in chains}
    return {name: found for name, found in state.items() if found != _NOTHING}


def _held(chains: Iterable[str], rules: Sequence[Tokens]) -> Held:
    hooks = [tokens for tokens in rules if not tokens[1].startswith(PREFIX)]
    return Held(
        {chain: tuple(tokens for tokens in rules if tokens[1] == chain) for chain in chains},
        tuple(sorted(hooks, key=lambda tokens: tokens[1])),
    )


def _is_ours(tokens: Tokens) -> bool:
    if tokens[1].startswith(PREFIX):
        return True
    return any(
        (flag in ("-j", "-g") and value.startswith(PREFIX))
        or (flag == "--comment" and value.startswith(COMMENT))
        for flag, value in itertools.pairwise(tokens)
    )


def transition(now: State, then: State) -> str:
    """The `iptables-restore --noflush` text that leads from `now` to `then`; empty when nothing differs.

    A table changes in one step: connections see the old rules or the new ones, never none. Rules that are
    not ours keep their place, and so do our jumps unless they differ.
    """
    lines: list[str] = []
    for table in sorted({*now, *then}):
        old, new = now.get(table, _NOTHING), then.get(table, _NOTHING)
        if old == new:
            continue
        lines.append("*" + table)
        lines += [f":{chain} - [0:0]" for chain in sorted({*old.chains, *new.chains})]
        if old.hooks != new.hooks:
            lines += [_line(("-D", *tokens[1:])) for tokens in old.hooks]
        for rules in new.chains.values():
            lines += [_line(tokens) for tokens in rules]
        if old.hooks != new.hooks:
            lines += [_line(tokens) for tokens in new.hooks]
        lines += [f"-X {chain}" for chain in sorted({*old.chains} - {*new.chains})]
        lines.append("COMMIT")
    return "".join(line + "\n" for line in lines)


def _line(tokens: Tokens) -> str:
    return " ".join(map(_quoted, tokens))


def _quoted(token: str) -> str:
    if token and not re.search(r"""[\s"'\\]""", token):
        return token
    return '"' + re.sub(r'(["\\])', r"\\\1", token) + '"'


def render_restore(plan: Plan, current_save: str = "") -> str:
    """The text that applies `plan` where `iptables-save` prints `current_save`; empty if it is applied."""
    return transition(held(current_save), wanted(plan))


def render_cleanup(current_save: str) -> str:
    """The text that removes everything of ours and nothing else; empty if there is nothing."""
    return transition(held(current_save), {})


def is_applied(plan: Plan, save_text: str) -> bool:
    """Whether chains, rules and their order are exactly those of `plan`; other people's are not looked at."""
    return held(save_text) == wanted(plan)
