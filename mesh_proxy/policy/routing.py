"""Which route a request takes: the first one, in order, of which a match holds.

    router = Router(routes, Caller(namespace, service_account, labels))     # ConfigError: a bad route
    rule = router.match(method, target, read_header)        # Rule | None (404 NR); rule.py says what is in it
    rule = router.tcp()                                     # for opaque TCP: no conditions, and targets

`read_header` is matching.ReadHeader; `functools.partial(edits.field, head.block)` is one. Sources are
compared when the table is built, as a sidecar has one workload only. Candidates are found by exact path, by
each prefix of whole segments, and within these by one exact header, so the cost of a request hardly depends
on the number of routes; only regex and prefix conditions on the same path are tried one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mesh_api.sidecar import ConfigError
from mesh_api.traffic import Labels, Match, PathMatch, Route, SourceMatch
from mesh_proxy.policy.matching import (
    Condition,
    Facts,
    Pattern,
    ReadHeader,
    headers_hold,
    path_of,
    query_holds,
)
from mesh_proxy.policy.rule import Rule


class Caller(NamedTuple):
    """The workload whose requests are routed."""

    namespace: str
    service_account: str
    labels: Labels

    def is_meant(self, source: SourceMatch | None) -> bool:
        """Whether a source condition holds for this workload."""
        if source is None:
            return True
        return (
            source.namespace in ("", self.namespace)
            and source.service_account in ("", self.service_account)
            and source.labels.items() <= self.labels.items()
        )


class _Candidate:
    """One match of one route; `order` is its place in the table."""

    __slots__ = ("_headers", "_method", "_query", "_regex", "order", "pivot", "rule")

    def __init__(self, path: str, order: int, rule: Rule, match: Match) -> None:
        self.order = order
        self.rule = rule
        self._method = match.method.encode()
        self._headers = tuple(
            Condition(f"{path}.headers[{i}]", value) for i, value in enumerate(match.headers)
        )
        self._query = tuple(Condition(f"{path}.query[{i}]", value) for i, value in enumerate(match.query))
        regex = match.path.regex if match.path is not None else ""
        self._regex = Pattern(f"{path}.path.regex", regex) if regex else None
        self.pivot = next((c for c in self._headers if c.exact is not None), None)
        """A condition by which this candidate can be found."""

    @property
    def needs_facts(self) -> bool:
        """Whether header fields or query parameters are asked for."""
        return bool(self._headers or self._query)

    @property
    def conditional(self) -> bool:
        """Whether anything but the path, exact or by prefix, is asked for."""
        return bool(self._method or self._headers or self._query or self._regex)

    def holds(self, method: bytes, path: bytes, facts: Facts | None) -> bool:
        """Whether all conditions hold but for an exact path and a prefix, which led here."""
        if self._method and self._method != method:
            return False
        if self._regex is not None and not self._regex(path):
            return False
        if facts is None:
            return True
        return headers_hold(self._headers, facts) and query_holds(self._query, facts)


class _Bucket:
    """Candidates for one path, one prefix, or any path, in order."""

    __slots__ = ("_by_header", "_others", "first")

    def __init__(self) -> None:
        self.first = -1
        """The lowest order in here."""
        self._others: list[_Candidate] = []
        self._by_header: dict[bytes, dict[bytes, list[_Candidate]]] = {}

    def add(self, candidate: _Candidate) -> None:
        """Append a candidate; they come in order."""
        if self.first < 0:
            self.first = candidate.order
        pivot = candidate.pivot
        if pivot is None or pivot.exact is None:
            # What comes after one that always holds is never reached.
            if not self._others or self._others[-1].conditional:
                self._others.append(candidate)
            return
        self._by_header.setdefault(pivot.name, {}).setdefault(pivot.exact, []).append(candidate)

    def find(
        self, best: _Candidate | None, method: bytes, path: bytes, facts: Facts | None
    ) -> _Candidate | None:
        """The first candidate in here that holds, if it comes before `best`; otherwise `best`."""
        best = _first(self._others, best, method, path, facts)
        if facts is not None:
            for name, by_value in self._by_header.items():
                value = facts.header(name)
                found = by_value.get(value) if value is not None else None
                if found is not None:
                    best = _first(found, best, method, path, facts)
        return best


def _first(
    candidates: list[_Candidate], best: _Candidate | None, method: bytes, path: bytes, facts: Facts | None
) -> _Candidate | None:
    for candidate in candidates:
        if best is not None and candidate.order > best.order:
            return best
        if candidate.holds(method, path, facts):
            return candidate
    return best


class Router:
    """The routes of one destination for one calling workload.

    Raises ConfigError for a route that cannot be prepared, with its path below `path`.
    """

    __slots__ = ("_any", "_deepest", "_exact", "_needs_facts", "_only", "_prefix", "_tcp", "rules")

    def __init__(self, routes: Sequence[Route], caller: Caller, path: str = "$.routes") -> None:
        self._exact: dict[bytes, _Bucket] = {}
        self._prefix: dict[bytes, _Bucket] = {}
        self._any = _Bucket()
        self._deepest = 0
        """Slashes in the deepest prefix: no more of a path's are looked at."""
        self._needs_facts = False
        self._only: Rule | None = None
        """The rule that every request takes."""
        self._tcp: Rule | None = None
        order = 0
        rules: dict[Rule, None] = {}
        for index, route in enumerate(routes):
            for rule, match, at in _matches(f"{path}[{index}]", index, route, caller):
                rules[rule] = None
                self._add(_Candidate(at, order, rule, match), match.path, at)
                order += 1
        self.rules = tuple(rules)
        """Every rule that some request of this workload can take; several of one route have one index."""

    def match(self, method: bytes, target: bytes, header: ReadHeader) -> Rule | None:
        """The rule for a request; None when no route matches.

        Args:
            method: as the client wrote it; case matters.
            target: the request target, in any form but CONNECT's.
            header: the value of a header field by its lower-case name.
        """
        if self._only is not None:
            return self._only
        path = path_of(target)
        facts = Facts(target, header) if self._needs_facts else None
        best: _Candidate | None = None
        bucket = self._exact.get(path)
        if bucket is not None:
            best = bucket.find(None, method, path, facts)
        prefixes = self._prefix
        at = 0
        for _ in range(self._deepest):
            at = path.find(b"/", at + 1)
            bucket = prefixes.get(path if at < 0 else path[:at])
            if bucket is not None and (best is None or bucket.first < best.order):
                best = bucket.find(best, method, path, facts)
            if at < 0:
                break
        bucket = self._any
        if bucket.first >= 0 and (best is None or bucket.first < best.order):
            best = bucket.find(best, method, path, facts)
        return best.rule if best is not None else None

    def tcp(self) -> Rule | None:
        """The rule for opaque TCP: the first that asks nothing of a request and has targets."""
        return self._tcp

    def _add(self, candidate: _Candidate, path: PathMatch | None, at: str) -> None:
        exact, prefix = _keys(path, at)
        self._needs_facts = self._needs_facts or candidate.needs_facts
        if exact:
            self._exact.setdefault(exact, _Bucket()).add(candidate)
        elif prefix:
            self._deepest = max(self._deepest, prefix.count(b"/"))
            self._prefix.setdefault(prefix, _Bucket()).add(candidate)
        else:
            if not candidate.conditional:
                if candidate.order == 0:
                    self._only = candidate.rule
                if self._tcp is None and candidate.rule.targets:
                    self._tcp = candidate.rule
            self._any.add(candidate)


def _matches(path: str, index: int, route: Route, caller: Caller) -> Iterator[tuple[Rule, Match, str]]:
    """What of a route can hold for this workload, each with its rule and its place."""
    replaces = [part.path for part in (route.rewrite, route.redirect) if part is not None]
    by_prefix = any(change is not None and change.replace_prefix for change in replaces)
    rules: dict[str, Rule] = {}
    for i, match in enumerate(route.match or (Match(),)):
        if not caller.is_meant(match.source):
            continue
        matched = (match.path.prefix or match.path.exact or "/") if match.path and by_prefix else "/"
        rule = rules.get(matched)
        if rule is None:
            rule = rules[matched] = Rule(path, index, route, matched)
        yield rule, match, f"{path}.match[{i}]"


def _keys(path: PathMatch | None, at: str) -> tuple[bytes, bytes]:
    """Exact path and prefix to index by; b"" for none, which is also what the prefix `/` asks for."""
    if path is None:
        return b"", b""
    if sum(map(bool, (path.exact, path.prefix, path.regex))) != 1:
        raise ConfigError(f"{at}.path", "expected exactly one of exact, prefix and regex")
    for text in (path.exact, path.prefix):
        if text and text[0] != "/":
            raise ConfigError(f"{at}.path", f"expected a path that begins with /, got {text[:100]!r}")
    return path.exact.encode(), path.prefix.encode().rstrip(b"/")
