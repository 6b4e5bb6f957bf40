"""What would happen to one request under a policy: by the routes' own code, without a cluster. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mesh_api import traffic
from mesh_api.policy_values import duration_text
from mesh_api.traffic import PathNormalization
from mesh_control.compile.native import Parts
from mesh_proxy.policy.matching import Condition, Pattern, parameters, path_of, query_of
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.policy.routing import Caller, Router
from mesh_proxy.policy.rule import Rule
from mesh_proxy.wire.message import HttpError
from mesh_proxy.wire.path import normalise
from meshctl.policy_text import aborted


class Request(NamedTuple):
    """A request that was made up."""

    method: str
    target: str
    """Path and query."""
    headers: Mapping[str, str]
    """By name in lower case."""
    caller: Caller

    def header(self, name: bytes) -> bytes | None:
        value = self.headers.get(name.decode())
        return None if value is None else value.encode()


class Verdict(NamedTuple):
    """One route, in order."""

    route: str
    taken: bool
    why: str
    """Why it does not match, or why it does not count."""


class Trial(NamedTuple):
    """What happens, line by line, and why."""

    taken: str
    """Name of the route; '' for none."""
    outcome: tuple[str, ...]
    verdicts: tuple[Verdict, ...]


def tried(parts: Parts, request: Request, spelling: PathNormalization = PathNormalization.BASE) -> Trial:
    """Decide as a sidecar does that spells paths so."""
    try:
        target = normalise(request.target.encode(), spelling).decode()
    except HttpError as exc:
        return Trial("", (f"refused: {exc.status}, flag {Flag.DPE.value}: {exc}",), ())
    request = request._replace(target=target)
    if not parts.routes:
        return Trial("(no routes)", ("every endpoint", *_limits(parts, None)), ())
    rule = Router(parts.routes, request.caller).match(
        request.method.encode(), request.target.encode(), request.header
    )
    verdicts = []
    for i, route in enumerate(parts.routes):
        name = route.name or f"#{i}"
        if rule is not None and i == rule.index:
            verdicts.append(Verdict(name, True, "the first that matches"))
        elif rule is not None and i > rule.index:
            verdicts.append(Verdict(name, False, f"not looked at: {rule.name} comes first"))
        else:
            verdicts.append(Verdict(name, False, " | ".join(_why_not(route, request))))
    if rule is None:
        outcome = ("no route matches: 404, flag NR",)
        return Trial("", outcome, tuple(verdicts))
    return Trial(rule.name, tuple(_outcome(parts, rule, request)), tuple(verdicts))


# -- why not ------------------------------------------------------------------------------------------------


def _why_not(route: traffic.Route, request: Request) -> Iterator[str]:
    """For each match of a route what of it does not hold."""
    for match in route.match:
        yield "; ".join(_unmet(match, request))


def _unmet(match: traffic.Match, request: Request) -> Iterator[str]:
    target = request.target.encode()
    path = path_of(target)
    if match.path is not None and not _path_holds(match.path, path):
        how = "is not" if match.path.exact else "is not below" if match.path.prefix else "is not like"
        asked = match.path.exact or match.path.prefix or match.path.regex
        yield f"path {path.decode()} {how} {asked}"
    if match.method and match.method != request.method:
        yield f"method is {request.method}, not {match.method}"
    for value in match.headers:
        yield from _unmet_value("header", value, request.header(value.name.encode()))
    given = parameters(query_of(target))
    for value in match.query:
        yield from _unmet_value("query", value, given.get(value.name.encode()))
    if not request.caller.is_meant(match.source) and match.source is not None:
        yield from _unmet_source(match.source, request.caller)


def _path_holds(asked: traffic.PathMatch, path: bytes) -> bool:
    if asked.exact:
        return path == asked.exact.encode()
    if asked.prefix:
        prefix = asked.prefix.rstrip("/").encode()
        return path == prefix or path.startswith(prefix + b"/")
    return Pattern("path", asked.regex)(path)


def _unmet_value(what: str, asked: traffic.ValueMatch, value: bytes | None) -> Iterator[str]:
    if Condition(what, asked).holds(value):
        return
    got = "is missing" if value is None else f"is {value.decode()!r}"
    if asked.exact is not None:
        wanted = f"expected {asked.exact!r}"
    elif asked.prefix is not None:
        wanted = f"expected a value that begins with {asked.prefix!r}"
    elif asked.regex is not None:
        wanted = f"expected a value like {asked.regex}"
    else:
        wanted = "expected it to be there" if asked.present else "expected it not to be there"
    yield f"{what} {asked.name} {got}, {wanted}"


def _unmet_source(asked: traffic.SourceMatch, caller: Caller) -> Iterator[str]:
    if asked.namespace not in ("", caller.namespace):
        yield f"caller is in namespace {caller.namespace}, not {asked.namespace}"
    if asked.service_account not in ("", caller.service_account):
        yield f"caller's account is {caller.service_account}, not {asked.service_account}"
    for key, value in asked.labels.items():
        if caller.labels.get(key) != value:
            yield f"caller has {key}={caller.labels.get(key, '(nothing)')}, not {key}={value}"


# -- what happens -------------------------------------------------------------------------------------------


def _outcome(parts: Parts, rule: Rule, request: Request) -> Iterator[str]:
    route = parts.routes[rule.index]
    target = request.target.encode()
    yield from _fault(route.fault)
    if rule.redirect is not None:
        host = request.headers.get("host", "").encode()
        location = rule.redirect.location(target, host, b"http")
        yield f"answer {route.redirect.status if route.redirect else ''}, Location: {location.decode()}"
    elif route.respond is not None:
        yield f"answer {route.respond.status}, {len(route.respond.body.encode())} bytes"
    else:
        total = sum(arm.weight for arm in route.to)
        for arm in route.to:
            where = f"subset {arm.subset}" if arm.subset else arm.destination or "every endpoint"
            yield f"to {where}: {100 * arm.weight / total:g} %"
        if rule.rewrite is not None:
            yield f"sent as {request.method} {rule.rewrite.target(target).decode()}"
            if rule.rewrite.host:
                yield f"with Host: {rule.rewrite.host.decode()}"
        yield from _edits("request", route.request_headers)
        yield from _limits(parts, route)
    yield from _edits("response", route.response_headers)


def _fault(fault: traffic.Fault | None) -> Iterator[str]:
    if fault is not None and fault.delay is not None:
        yield f"held for {duration_text(fault.delay.fixed_s)}: {fault.delay.percent:g} %"
    if fault is not None and fault.abort is not None:
        yield f"answer {aborted(fault.abort)}: {fault.abort.percent:g} %"


def _edits(what: str, edits: traffic.HeaderEdits | None) -> Iterator[str]:
    if edits is None:
        return
    yield from (f"{what} header removed: {name}" for name in edits.remove)
    yield from (f"{what} header set: {name}: {value}" for name, value in edits.set.items())
    yield from (f"{what} header added: {name}: {value}" for name, value in edits.add.items())


def _limits(parts: Parts, route: traffic.Route | None) -> Iterator[str]:
    request_s = parts.settings.timeouts.request_s
    if route is not None and route.timeout_s is not None:
        request_s = route.timeout_s
    yield f"timeout: {duration_text(request_s) if request_s else 'off'}"
    retries = route.retries if route is not None and route.retries is not None else parts.retries
    on = ", ".join(one.value for one in retries.on) or "the safe set"
    yield f"retries: at most {retries.attempts}, on {on}" if retries.attempts else "retries: none"
