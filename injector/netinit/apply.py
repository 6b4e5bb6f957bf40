"""Bring a network namespace into the state that a plan describes, and out of it again.

Each table changes in one step, so a namespace that has rules never loses them half-way. What fails is put
back as it was; what is already right is not touched.
"""

from dataclasses import dataclass, field
from typing import Literal

from injector.netinit import host, plan
from injector.netinit.host import BACKENDS, Backend, NetinitError, SetupError, Tools
from injector.netinit.plan import FAMILIES, Family, Options
from injector.netinit.probe import Say, probe

BackendChoice = Literal["auto", "nft", "legacy"]
Ipv6Choice = Literal["auto", "on", "off"]


@dataclass(slots=True)
class Result:
    """What was done: the back end, the families whose rules are in force, and whether anything changed."""

    backend: Backend
    families: tuple[Family, ...]
    changed: bool


@dataclass(slots=True)
class _Session:
    """What one run has touched, to be able to put it back."""

    tools: dict[Family, Tools]
    before: dict[Family, plan.State] = field(default_factory=dict)
    added_address: bool = False
    changed: bool = False

    def reach(self, family: Family, then: plan.State) -> None:
        tools = self.tools[family]
        now = plan.held(tools.read())
        self.before.setdefault(family, now)
        text = plan.transition(now, then)
        if text:
            self.changed = True
            tools.write(text)

    def put_back(self, family: Family) -> str:
        """Undo one family; the answer is a remark for the message, for an undo can fail too."""
        if family not in self.before:
            return ""
        try:
            self.reach(family, self.before[family])
        except NetinitError as error:
            return f"; the IPv{family} rules could not be put back: {error}"
        return f"; the IPv{family} rules are as before"


def apply(
    options: Options,
    *,
    backend: BackendChoice = "auto",
    ipv6: Ipv6Choice = "auto",
    check: bool = True,
    netns: str | None = None,
    say: Say = lambda _message: None,
    warn: Say = lambda _message: None,
) -> Result:
    """Apply `options` in the calling thread's network namespace, or in the one at `netns`.

    Raises NetinitError, with `exit_code` 2 if the work cannot be started here and 1 if it failed.
    """
    with host.network_namespace(netns):
        host.require_capabilities()
        with_v6 = _with_ipv6(ipv6, say)
        chosen = _choose(backend)
        session = _Session({4: _need(chosen, 4)})
        try:
            session.reach(4, plan.wanted(plan.plan(options, 4)))
        except NetinitError as error:
            raise NetinitError(f"{error}{session.put_back(4)}") from None
        families: tuple[Family, ...] = (4,)
        if with_v6:
            if _apply_v6(session, chosen, options, required=ipv6 == "on", warn=warn):
                families = FAMILIES
        else:
            _remove(chosen, 6, session)
            if host.has_pass_through_address():
                host.change_pass_through_address(present=False)
                session.changed = True
        # Only after the new rules are in force: connections are never outside both.
        for other in BACKENDS:
            if other != chosen:
                for family in FAMILIES:
                    _remove(other, family, session)
        if session.changed:
            say(f"rules applied with iptables-{chosen}, IPv4{' and IPv6' if 6 in families else ' only'}")
        else:
            say(f"nothing to do: the rules are already in force (iptables-{chosen})")
        if check:
            for family in families:
                probe(options, family, say)
        return Result(chosen, families, session.changed)


def cleanup(*, netns: str | None = None, say: Say = lambda _message: None) -> bool:
    """Remove every rule, chain and address of ours, whichever back end holds it; whether there was any."""
    with host.network_namespace(netns):
        host.require_capabilities()
        found = [(tools, text) for tools, text in _cleanup_texts() if text]
        for tools, text in found:
            tools.write(text)
            say(f"IPv{tools.family} rules removed (iptables-{tools.backend})")
        address = host.has_pass_through_address()
        if address:
            host.change_pass_through_address(present=False)
            say(f"address {host.PASS_THROUGH_V6} removed from lo")
        if not found and not address:
            say("nothing to remove")
        return bool(found) or address


def describe(options: Options, *, ipv6: Ipv6Choice = "auto", netns: str | None = None) -> str:
    """The restore text for an untouched namespace. Reads nothing but whether IPv6 is on."""
    with host.network_namespace(netns):
        with_v6 = ipv6 == "on" or (ipv6 == "auto" and host.has_ipv6())
    families: tuple[Family, ...] = FAMILIES if with_v6 else (4,)
    return "".join(f"# IPv{family}\n{plan.render_restore(plan.plan(options, family))}" for family in families)


def describe_cleanup(*, netns: str | None = None) -> str:
    """The restore texts with which `cleanup` would remove our rules."""
    with host.network_namespace(netns):
        host.require_capabilities()
        return "".join(
            f"# IPv{tools.family} (iptables-{tools.backend})\n{text}"
            for tools, text in _cleanup_texts()
            if text
        )


def _with_ipv6(choice: Ipv6Choice, say: Say) -> bool:
    if choice == "off":
        return False
    present = host.has_ipv6()
    if not present:
        if choice == "on":
            raise SetupError("IPv6 was asked for, but it is disabled in this network namespace")
        say("IPv6 is disabled in this network namespace: IPv4 only")
    return present


def _choose(choice: BackendChoice) -> Backend:
    """The back end asked for; else the one with our rules, else the one with anybody's, else nft."""
    if choice != "auto":
        return choice
    usable: list[Backend] = []
    with_rules: list[Backend] = []
    problems: list[str] = []
    for backend in BACKENDS:
        texts: list[str] = []
        for family in FAMILIES:
            tools = host.find_tools(backend, family)
            if tools is None:
                continue
            try:
                texts.append(tools.read())
            except NetinitError as error:
                problems.append(str(error))
                continue
            if family == 4:
                usable.append(backend)
        if backend not in usable:
            continue
        if any(map(plan.held, texts)):
            return backend
        if any(line.startswith("-A ") for text in texts for line in text.splitlines()):
            with_rules.append(backend)
    for backend in (*with_rules, *usable):
        return backend
    if problems:
        raise NetinitError("; ".join(problems))
    raise SetupError("no iptables found: neither iptables-nft-restore nor iptables-legacy-restore is in PATH")


def _need(backend: Backend, family: Family) -> Tools:
    tools = host.find_tools(backend, family)
    if tools is None:
        program = "iptables" if family == 4 else "ip6tables"
        raise SetupError(f"{program}-{backend}-restore or {program}-{backend}-save is not in PATH")
    return tools


def _apply_v6(session: _Session, backend: Backend, options: Options, *, required: bool, warn: Say) -> bool:
    try:
        session.tools[6] = _need(backend, 6)
        if not host.has_pass_through_address():
            host.change_pass_through_address(present=True)
            session.added_address = session.changed = True
        session.reach(6, plan.wanted(plan.plan(options, 6)))
    except NetinitError as error:
        remark = session.put_back(6)
        if session.added_address:
            try:
                host.change_pass_through_address(present=False)
            except NetinitError as problem:
                remark += f"; {problem}"
        if not required and not host.has_global_ipv6():
            warn(f"IPv6 is not captured: {error}{remark}; the pod has no global IPv6 address, going on")
            return False
        raise type(error)(f"IPv6: {error}{remark}{session.put_back(4)}") from None
    return True


def _remove(backend: Backend, family: Family, session: _Session) -> None:
    """Remove what an earlier run with other options left with this back end."""
    tools = host.find_tools(backend, family)
    if tools is None:
        return
    text = plan.render_cleanup(_read_if_possible(tools))
    if text:
        tools.write(text)
        session.changed = True


def _cleanup_texts() -> list[tuple[Tools, str]]:
    found = [
        tools for backend in BACKENDS for family in FAMILIES if (tools := host.find_tools(backend, family))
    ]
    if not found:
        raise SetupError("no iptables found: neither the nft nor the legacy programs are in PATH")
    return [(tools, plan.render_cleanup(_read_if_possible(tools))) for tools in found]


def _read_if_possible(tools: Tools) -> str:
    # A back end that this kernel lacks holds nothing.
    try:
        return tools.read()
    except NetinitError:
        return ""
