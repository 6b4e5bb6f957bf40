"""The rules of netinit: what they say, what they mean, and how they are brought in and out."""

import ipaddress
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from injector.netinit import walk
from injector.netinit.plan import (
    ALL,
    COMMENT,
    DROP,
    FAMILIES,
    IN_REDIRECT,
    INBOUND,
    OUTPUT,
    REDIRECT,
    Family,
    OptionError,
    Options,
    PortRange,
    held,
    is_applied,
    parse_cidrs,
    parse_cidrs_or_all,
    parse_names,
    parse_ports,
    parse_ports_or_all,
    plan,
    render_cleanup,
    render_restore,
    transition,
    wanted,
)
from injector.netinit.walk import PASS, Packet, Verdict, decide

GOLDEN = Path(__file__).parents[2] / "golden" / "netinit"

CASES = {
    "default": Options(),
    "ports": Options(outbound_port=16001, inbound_port=16006, probe_port=16002),
    "owner": Options(proxy_uid=2000, proxy_gid=3000),
    "include-inbound": Options(include_inbound_ports=parse_ports("80,8000-8010", "o")),
    "no-inbound": Options(include_inbound_ports=()),
    "exclude-inbound": Options(exclude_inbound_ports=parse_ports("22,15020,9000-9010", "o")),
    "include-outbound": Options(include_cidrs=(), include_outbound_ports=parse_ports("443,8443", "o")),
    "exclude-outbound": Options(exclude_outbound_ports=parse_ports("3306,6000-6010", "o")),
    "include-cidrs": Options(include_cidrs=parse_cidrs("10.0.0.0/8,192.168.0.0/16,fd00::/8", "o")),
    "include-cidrs-v4": Options(include_cidrs=parse_cidrs("10.0.0.0/8", "o")),
    "exclude-cidrs": Options(exclude_cidrs=parse_cidrs("169.254.169.254,fd00:ec2::254,::ffff:1.2.3.4", "o")),
    "exclude-family": Options(exclude_cidrs=parse_cidrs("::/0", "o")),
    "exclude-interfaces": Options(exclude_interfaces=("net2", "net1")),
    "keep-invalid": Options(drop_invalid=False),
    "everything": Options(
        include_inbound_ports=ALL,
        exclude_inbound_ports=parse_ports("22", "o"),
        include_outbound_ports=parse_ports("443", "o"),
        exclude_outbound_ports=parse_ports("3306", "o"),
        include_cidrs=parse_cidrs("10.0.0.0/8,fd00::/8", "o"),
        exclude_cidrs=parse_cidrs("10.1.0.0/16,fd00:1::/32", "o"),
        exclude_interfaces=("net1",),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, family: Family) -> None:
    path = GOLDEN / f"{case}.v{family}.rules"
    text = render_restore(plan(CASES[case], family))
    if os.environ.get("TRIOMESH_UPDATE_GOLDEN") == "1":
        path.write_text(text)
    assert text == path.read_text(), "set TRIOMESH_UPDATE_GOLDEN=1 if the change is meant"


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {
        f"{case}.v{family}.rules" for case in CASES for family in FAMILIES
    }


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({"outbound_port": 0}, "outbound_port: 0 is not a port"),
        ({"inbound_port": 65536}, "inbound_port: 65536 is not a port"),
        ({"inbound_port": 15001}, "inbound_port: 15001 is already used by outbound_port"),
        ({"probe_port": 15006}, "probe_port: 15006 is already used by inbound_port"),
        ({"inbound_port": 15021}, "inbound_port: 15021 is the sidecar's health or metrics port"),
        ({"proxy_uid": 0}, "proxy_uid: 0 is not usable"),
        ({"proxy_gid": 2**32 - 1}, "proxy_gid: 4294967295 is not usable"),
        (
            {"exclude_outbound_ports": (PortRange(70000, 70000),)},
            "exclude_outbound_ports: 70000 is not a port",
        ),
        ({"exclude_inbound_ports": (PortRange(20, 10),)}, "exclude_inbound_ports: 20-10 runs backwards"),
        (
            {"include_inbound_ports": (PortRange(15000, 15010),)},
            "include_inbound_ports: 15001 is a port of the sidecar",
        ),
        (
            {"include_inbound_ports": (PortRange(15021, 15021),)},
            "include_inbound_ports: 15021 is a port of the sidecar",
        ),
        (
            {"include_inbound_ports": (PortRange(80, 90),), "exclude_inbound_ports": (PortRange(85, 85),)},
            r"include_inbound_ports: 80:90 is also in exclude_inbound_ports \(85\)",
        ),
        (
            {
                "include_outbound_ports": (PortRange(443, 443),),
                "exclude_outbound_ports": (PortRange(443, 443),),
            },
            "include_outbound_ports: 443 is also in exclude_outbound_ports",
        ),
        (
            {
                "include_cidrs": parse_cidrs("10.1.0.0/16", "o"),
                "exclude_cidrs": parse_cidrs("10.0.0.0/8", "o"),
            },
            "include_cidrs: 10.1.0.0/16 lies wholly in exclude_cidrs 10.0.0.0/8",
        ),
        (
            {"include_cidrs": parse_cidrs("fd00::/16", "o"), "exclude_cidrs": parse_cidrs("::/0", "o")},
            "include_cidrs: fd00::/16 lies wholly in exclude_cidrs ::/0",
        ),
        ({"exclude_interfaces": ("lo",)}, "exclude_interfaces: lo is needed"),
        ({"exclude_interfaces": ("e" * 16,)}, "exclude_interfaces: 'eeee"),
        ({"exclude_interfaces": ("eth0 -j ACCEPT",)}, "exclude_interfaces: "),
        ({"exclude_interfaces": ("-x",)}, "exclude_interfaces: "),
        ({"exclude_interfaces": ("l+",)}, "exclude_interfaces: "),
    ],
)
def test_bad_options_are_named(given_options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match="^" + message):
        Options(**given_options)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["x", "80;81", "1,,2", "*,80", "1-2-3", "-1", "８０"])
def test_bad_port_lists(text: str) -> None:
    with pytest.raises(OptionError, match=r"^o: "):
        parse_ports(text, "o")


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "fe80::1%eth0", "host", "10.0.0.0/8,*"])
def test_bad_cidr_lists(text: str) -> None:
    with pytest.raises(OptionError, match=r"^o: "):
        parse_cidrs(text, "o")


def test_lists() -> None:
    assert parse_ports("", "o") == parse_ports("none", "o") == ()
    assert parse_ports(" 80, 90-91 ,7:8", "o") == (PortRange(80, 80), PortRange(90, 91), PortRange(7, 8))
    assert parse_ports_or_all(" * ", "o") == parse_cidrs_or_all("*", "o") == ALL
    assert parse_names("a, b", "o") == ("a", "b")
    assert parse_cidrs("::1", "o") == (ipaddress.ip_network("::1/128"),)


def test_equal_wishes_give_equal_options() -> None:
    one = Options(
        exclude_outbound_ports=parse_ports("90,80,90", "o"),
        exclude_cidrs=parse_cidrs("fd00::/8,10.0.0.0/8", "o"),
    )
    two = Options(
        exclude_outbound_ports=parse_ports("80,90", "o"),
        exclude_cidrs=parse_cidrs("10.0.0.0/8,fd00::/8", "o"),
    )
    assert one == two


# What the rules mean: the connections of a pod at 10.1.0.2.

POD = {4: ipaddress.ip_address("10.1.0.2"), 6: ipaddress.ip_address("fd01::2")}
VIP = {4: ipaddress.ip_address("10.96.0.10"), 6: ipaddress.ip_address("fd96::10")}
LOCALHOST = {4: ipaddress.ip_address("127.0.0.1"), 6: ipaddress.ip_address("::1")}
PASS_SOURCE = {4: ipaddress.ip_address("127.0.0.6"), 6: ipaddress.ip_address("::6")}
TO_OUTBOUND = Verdict("redirect", 15001)
TO_INBOUND = Verdict("redirect", 15006)


def sent(
    family: Family,
    destination: walk.Address,
    *,
    port: int = 8080,
    uid: int = 0,
    gid: int | None = None,
    source: walk.Address | None = None,
    options: Options | None = None,
) -> Verdict:
    local = destination in (POD[family], LOCALHOST[family])
    packet = Packet(
        hook="OUTPUT",
        source=source or POD[family],
        destination=destination,
        port=port,
        interface="lo" if local else "eth0",
        uid=uid,
        gid=uid if gid is None else gid,
    )
    return decide(plan(options or Options(), family), packet)


def received(family: Family, *, port: int = 8080, options: Options | None = None, **more: object) -> Verdict:
    packet = Packet(hook="PREROUTING", source=VIP[family], destination=POD[family], port=port, **more)  # type: ignore[arg-type]
    return decide(plan(options or Options(), family), packet)


@pytest.mark.parametrize("family", FAMILIES)
def test_connections_of_the_application(family: Family) -> None:
    assert sent(family, VIP[family]) == TO_OUTBOUND
    assert sent(family, POD[family]) == PASS
    assert sent(family, LOCALHOST[family]) == PASS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("owner", [(1337, 1337), (1337, 0), (0, 1337)])
def test_connections_of_the_sidecar(family: Family, owner: tuple[int, int]) -> None:
    uid, gid = owner
    assert sent(family, VIP[family], uid=uid, gid=gid) == PASS
    assert sent(family, LOCALHOST[family], uid=uid, gid=gid) == PASS
    # A self-call: the sidecar chose this very pod.
    assert sent(family, POD[family], uid=uid, gid=gid) == TO_INBOUND
    # Its inbound half towards the application.
    assert sent(family, POD[family], uid=uid, gid=gid, source=PASS_SOURCE[family]) == PASS


@pytest.mark.parametrize("family", FAMILIES)
def test_connections_from_the_network(family: Family) -> None:
    assert received(family) == TO_INBOUND
    assert received(family, port=15020) == received(family, port=15021) == PASS
    assert received(family, invalid=True) == Verdict("drop")
    assert received(family, invalid=True, options=Options(drop_invalid=False)) == TO_INBOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_a_self_call_is_captured_like_a_call_from_the_network(family: Family) -> None:
    for options in (*CASES.values(), Options(include_inbound_ports=parse_ports("80", "o"))):
        for port in (22, 80, 8080, 8005, 9005, 15020):
            if any(item.low <= port <= item.high for item in options.exclude_outbound_ports):
                continue
            uid, gid = options.proxy_uid, options.proxy_gid
            own = sent(family, POD[family], port=port, uid=uid, gid=gid, options=options)
            assert own == received(family, port=port, options=options)


def test_a_family_without_an_include_network_is_captured() -> None:
    v4_only = Options(include_cidrs=parse_cidrs("10.0.0.0/8", "o"))
    assert sent(4, ipaddress.ip_address("10.96.0.10"), options=v4_only) == TO_OUTBOUND
    assert sent(4, ipaddress.ip_address("11.0.0.1"), options=v4_only) == PASS
    assert sent(6, VIP[6], options=v4_only) == TO_OUTBOUND
    assert sent(6, VIP[6], options=CASES["exclude-family"]) == PASS
    nothing = Options(include_cidrs=())
    assert sent(4, VIP[4], options=nothing) == sent(6, VIP[6], options=nothing) == PASS


@pytest.mark.parametrize("family", FAMILIES)
def test_an_excluded_interface_is_left_alone(family: Family) -> None:
    options = Options(exclude_interfaces=("eth0",))
    assert sent(family, VIP[family], options=options) == PASS
    assert received(family, options=options) == received(family, options=options, invalid=True) == PASS
    assert received(family, options=options, interface="eth1") == TO_INBOUND


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_the_probe_dials_what_is_captured(case: str, family: Family) -> None:
    options = CASES[case]
    target = walk.outbound_target(options, family)
    if case == "exclude-family" and family == 6:
        assert target is None
    else:
        assert target is not None
        assert sent(family, target[0], port=target[1], options=options).port == options.outbound_port
    port = walk.inbound_port(options, family)
    if case == "no-inbound":
        assert port is None
    else:
        assert port is not None
        assert received(family, port=port, options=options).port == options.inbound_port


# Texts.


def after(save: str, text: str) -> str:
    """What `iptables-save` would print once `text` was restored: a small model of iptables-restore."""
    tables: dict[str, tuple[list[str], list[str]]] = {}
    for line in [*save.splitlines(), *text.splitlines()]:
        if line.startswith("*"):
            chains, rules = tables.setdefault(line[1:], ([], []))
        elif line.startswith(":"):
            chain = line[1:].split()[0]
            rules[:] = [rule for rule in rules if rule.split()[1] != chain]
            if chain not in chains:
                chains.append(chain)
        elif line.startswith("-A"):
            rules.append(line)
        elif line.startswith("-D"):
            rules.remove("-A" + line[2:])
        elif line.startswith("-X"):
            chain = line.split()[1]
            assert not any(rule.split()[1] == chain or rule.endswith("-j " + chain) for rule in rules)
            chains.remove(chain)
    out = []
    for name, (chains, rules) in tables.items():
        out += [f"*{name}", *(f":{chain} - [0:0]" for chain in chains), *rules, "COMMIT"]
    return "\n".join(out) + "\n"


FOREIGN = """# made by somebody else
*nat
:PREROUTING ACCEPT [1:60]
:OUTPUT ACCEPT [0:0]
:OTHER - [0:0]
-A PREROUTING -p tcp -m tcp --dport 9 -m comment --comment "not ours" -j OTHER
-A OUTPUT -d 10.0.0.1/32 -j OTHER
-A OTHER -j RETURN
COMMIT
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_apply_change_and_clean_up(family: Family) -> None:
    start = after(FOREIGN, "")
    state = start
    for options in CASES.values():
        rules = plan(options, family)
        text = render_restore(rules, state)
        state = after(state, text)
        assert is_applied(rules, state)
        assert render_restore(rules, state) == ""
        assert [line for line in state.splitlines() if "OTHER" in line] == [
            line for line in start.splitlines() if "OTHER" in line
        ]
    clean = after(state, render_cleanup(state))
    assert held(clean) == {}
    assert [line for line in clean.splitlines() if line.startswith("-A")] == [
        line for line in start.splitlines() if line.startswith("-A")
    ]
    assert render_cleanup(clean) == ""


def test_is_applied_sees_order_extra_and_missing_rules() -> None:
    rules = plan(Options(), 4)
    lines = after("", render_restore(rules)).splitlines()
    assert is_applied(rules, "\n".join(lines))
    spots = [number for number, line in enumerate(lines) if line.startswith(f"-A {OUTPUT}")]
    swapped = lines.copy()
    swapped[spots[0]], swapped[spots[1]] = swapped[spots[1]], swapped[spots[0]]
    assert not is_applied(rules, "\n".join(swapped))
    assert not is_applied(rules, "\n".join(lines[: spots[0]] + lines[spots[0] + 1 :]))
    assert not is_applied(rules, "\n".join([*lines[: spots[0]], lines[spots[0]], *lines[spots[0] :]]))
    assert not is_applied(rules, "")
    assert not is_applied(plan(Options(drop_invalid=False), 4), "\n".join(lines))


def test_jumps_that_are_right_keep_their_place() -> None:
    applied = after("", render_restore(plan(Options(), 4)))
    text = render_restore(plan(Options(exclude_outbound_ports=parse_ports("25", "o")), 4), applied)
    assert "-D" not in text
    assert "-A OUTPUT" not in text
    assert "*mangle" not in text


def test_duplicated_jumps_are_removed() -> None:
    applied = after("", render_restore(plan(Options(), 4)))
    jump = next(line for line in applied.splitlines() if line.startswith("-A OUTPUT"))
    doubled = applied.replace(jump, jump + "\n" + jump)
    text = render_restore(plan(Options(), 4), doubled)
    assert text.count("-D OUTPUT") == 2
    assert is_applied(plan(Options(), 4), after(doubled, text))


def test_a_rule_put_into_our_chain_survives_an_undo() -> None:
    save = '*nat\n:TRIOMESH_X - [0:0]\n-A TRIOMESH_X -m comment --comment "a \\"b\\" c" -j RETURN\nCOMMIT\n'
    assert '--comment "a \\"b\\" c"' in transition({}, held(save))


PORT = st.integers(1, 65535)
RANGES = st.lists(
    st.tuples(PORT, PORT).map(lambda pair: PortRange(min(pair), min(max(pair), min(pair) + 20))), max_size=4
).map(tuple)
CIDRS = st.lists(
    st.ip_addresses().flatmap(
        lambda a: st.integers(0, a.max_prefixlen).map(lambda n: ipaddress.ip_network((a, n), strict=False))
    ),
    max_size=4,
).map(tuple)


@st.composite
def any_options(draw: st.DrawFn) -> Options:
    given_options = {
        "outbound_port": draw(PORT),
        "inbound_port": draw(PORT),
        "proxy_uid": draw(st.integers(1, 2**32 - 2)),
        "include_inbound_ports": draw(st.just(ALL) | RANGES),
        "exclude_inbound_ports": draw(RANGES),
        "include_outbound_ports": draw(RANGES),
        "exclude_outbound_ports": draw(RANGES),
        "include_cidrs": draw(st.just(ALL) | CIDRS),
        "exclude_cidrs": draw(CIDRS),
        "exclude_interfaces": draw(
            st.lists(st.sampled_from(["net1", "eth0", "a.b-c"]), max_size=2).map(tuple)
        ),
        "drop_invalid": draw(st.booleans()),
    }
    try:
        return Options(**given_options)  # type: ignore[arg-type]
    except OptionError:
        return Options(exclude_cidrs=given_options["exclude_cidrs"])


@given(any_options(), st.sampled_from(FAMILIES))
def test_any_options_keep_the_order(options: Options, family: Family) -> None:
    rules = plan(options, family)
    assert render_restore(rules) == render_restore(plan(options, family))
    assert held(after("", render_restore(rules))) == wanted(rules)
    for table in rules.tables:
        assert len({rule.chain for rule in table.rules} - {"PREROUTING", "OUTPUT"}) == len(table.chains)
        assert set(table.chains) <= {INBOUND, IN_REDIRECT, OUTPUT, REDIRECT, DROP}
        for rule in table.rules:
            assert f"--comment {COMMENT}" in " ".join(rule.tokens())
            assert rule.target in {*table.chains, "RETURN", "DROP", "REDIRECT"}
        for chain in table.chains:
            targets = [rule.target for rule in table.rules if rule.chain == chain]
            captures = [spot for spot, target in enumerate(targets) if target in (REDIRECT, IN_REDIRECT)]
            # Everything that lets a connection pass comes before everything that captures.
            assert captures == list(range(len(targets) - len(captures), len(targets)))
            names = [rule.name for rule in table.rules if rule.chain == chain]
            assert "capture-all" not in names[:-1]


@given(any_options(), st.sampled_from(FAMILIES), st.integers(1, 65535))
def test_any_options_never_loop(options: Options, family: Family, port: int) -> None:
    """The sidecar's connections never come back to its outbound port, nor its inbound half to itself."""
    uid, gid = options.proxy_uid, options.proxy_gid
    for destination in (POD[family], VIP[family], LOCALHOST[family]):
        verdict = sent(family, destination, port=port, uid=uid, gid=gid, options=options)
        assert verdict == PASS or (verdict.port == options.inbound_port and destination == POD[family])
    inner = sent(
        family, POD[family], port=port, uid=uid, gid=gid, source=PASS_SOURCE[family], options=options
    )
    assert inner == PASS
