"""What crosses the fields of a policy that has the right shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from mesh_api.policy_regex import compile_regex
from mesh_api.policy_shape import LATER, join
from mesh_api.policy_types import (
    HeaderEdits,
    Match,
    MeshPolicy,
    MeshSettings,
    PathRewrite,
    RouteRetries,
    TrafficPolicy,
    WeightedBackend,
    WorkloadKind,
)
from mesh_api.policy_types import Route as PolicyRoute
from mesh_api.policy_values import Problem, duration_text, listed, meant, show
from mesh_api.traffic import Backoff

_GROUPS = {WorkloadKind.JOB: "batch", WorkloadKind.CRON_JOB: "batch"}
_REDIRECTS = (301, 302, 303, 307, 308)
_BODILESS = (204, 205, 304)
_FRAMING = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""Of one connection or one message's framing (RFC 9110, 7.6.1): a change would break it."""
_OURS = "x-triomesh-"
MAX_REGEXES = 256
"""Of one policy."""
MAX_BACKENDS = 256
"""Services and ports that the routes of one policy lead to: every caller's sidecar is told all of them."""


def traffic_problems(policy: TrafficPolicy) -> Iterator[Problem]:
    """What crosses fields within one TrafficPolicy."""
    spec = policy.spec
    if "." in spec.target.service:
        own = f" ({policy.namespace})" if policy.namespace else ""
        yield Problem(
            "spec.target.service",
            f"expected the name of a Service in this policy's namespace{own}, got "
            f"{show(spec.target.service)}; a policy belongs in its Service's namespace",
        )
    yield from _retries("spec.retries", spec.retries)
    names: dict[str, str] = {}
    for i, route in enumerate(spec.routes):
        path = f"spec.routes[{i}]"
        if route.name is not None:
            first = names.setdefault(route.name, path)
            if first != path:
                yield Problem(f"{path}.name", f"expected a name of its own, got {route.name!r}, as {first}")
        yield from _route(path, route, policy)
    yield from _backends(spec.routes)
    yield from _regexes(spec.routes)


def mesh_problems(policy: MeshPolicy) -> Iterator[Problem]:
    """What crosses fields within one MeshPolicy."""
    spec = policy.spec
    seen: dict[tuple[str, str], int] = {}
    for i, ref in enumerate(spec.target_refs or ()):
        group = _GROUPS.get(ref.kind, "apps")
        if ref.group is not None and ref.group != group:
            yield Problem(
                f"spec.targetRefs[{i}].group",
                f"expected {group!r}, which has the kind {ref.kind.value}, got {ref.group!r}",
            )
        first = seen.setdefault((ref.kind.value, ref.name), i)
        if first != i:
            yield Problem(
                f"spec.targetRefs[{i}]", f"expected each workload once, got spec.targetRefs[{first}]"
            )
    for name, settings in (("defaults", spec.defaults), ("overrides", spec.overrides)):
        path = f"spec.{name}"
        yield from _retries(f"{path}.retries", settings.retries)
        if spec.target_refs:
            yield from _of_services(path, settings)


def _of_services(path: str, settings: MeshSettings) -> Iterator[Problem]:
    empty = MeshSettings()
    for name, said in (
        ("timeouts", settings.timeouts != empty.timeouts),
        ("retries", settings.retries != empty.retries),
    ):
        if said:
            yield Problem(
                f"{path}.{name}",
                "expected none beside targetRefs: they hold for calls to Services; "
                "use a TrafficPolicy, or a MeshPolicy without targetRefs",
            )


def _retries(path: str, retries: RouteRetries) -> Iterator[Problem]:
    for twice in (one for one, count in Counter(retries.on or ()).items() if count > 1):
        yield Problem(f"{path}.retryOn", f"expected each condition once, got {twice.value} twice")
    base = retries.backoff.base
    most = Backoff().max_s if retries.backoff.max is None else retries.backoff.max
    if base is not None and base > most:
        yield Problem(
            f"{path}.backoff.base",
            f"expected at most backoff.max, {duration_text(most)}, got {duration_text(base)}",
        )


# -- routes -------------------------------------------------------------------------------------------------


def _route(path: str, route: PolicyRoute, policy: TrafficPolicy) -> Iterator[Problem]:
    for i, match in enumerate(route.match):
        yield from _match(f"{path}.match[{i}]", match)
    if route.to is not None:
        yield from _split(f"{path}.to", route.to, policy)
        yield from _replaced_prefix(f"{path}.rewrite.path", route.rewrite.path, route.match)
    else:
        yield from _answered(path, route)
    yield from _retries(f"{path}.retries", route.retries)
    one_try = route.retries.per_try_timeout
    if route.timeout is not None and one_try is not None and one_try > route.timeout:
        yield Problem(
            f"{path}.retries.perTryTimeout",
            f"expected at most the route's timeout, {duration_text(route.timeout)}, "
            f"got {duration_text(one_try)}",
        )
    yield from _edits(f"{path}.headers.request", route.headers.request)
    yield from _edits(f"{path}.headers.response", route.headers.response)


def _answered(path: str, route: PolicyRoute) -> Iterator[Problem]:
    """A route that answers by itself: what would need an endpoint cannot act."""
    empty = PolicyRoute()
    what = "redirect" if route.redirect is not None else "respond"
    for name, said in (
        ("timeout", route.timeout is not None),
        ("retries", route.retries != empty.retries),
        ("rewrite", route.rewrite != empty.rewrite),
        ("headers.request", route.headers.request != empty.headers.request),
    ):
        if said:
            yield Problem(f"{path}.{name}", f"expected none beside {what}, which asks no endpoint")
    if route.redirect is not None:
        redirect = route.redirect
        if not (redirect.scheme or redirect.host or redirect.port or redirect.path):
            yield Problem(f"{path}.redirect", "expected scheme, host, port or path, got none of them")
        if redirect.status not in _REDIRECTS:
            yield Problem(
                f"{path}.redirect.status",
                f"expected {listed(map(str, _REDIRECTS))}, got {redirect.status}",
            )
        yield from _replaced_prefix(f"{path}.redirect.path", redirect.path, route.match)
    if route.respond is not None and route.respond.body and route.respond.status in _BODILESS:
        yield Problem(f"{path}.respond.body", f"expected no body with status {route.respond.status}")


def _match(path: str, match: Match) -> Iterator[Problem]:
    yield from _twice(f"{path}.headers", match.headers)


def _backends(routes: Iterable[PolicyRoute]) -> Iterator[Problem]:
    found = {(arm.service, arm.port) for route in routes for arm in route.to or ()}
    if len(found) > MAX_BACKENDS:
        yield Problem(
            "spec.routes",
            f"expected at most {MAX_BACKENDS} Services and ports that routes lead to, got {len(found)}",
        )


def _regexes(routes: Iterable[PolicyRoute]) -> Iterator[Problem]:
    """Whether all expressions compile; how many there may be bounds the time that it takes to say so."""
    found = {
        path: pattern
        for i, route in enumerate(routes)
        for j, match in enumerate(route.match)
        for path, pattern in _patterns(f"spec.routes[{i}].match[{j}]", match)
    }
    if len(found) > MAX_REGEXES:
        yield Problem(
            "spec.routes",
            f"expected at most {MAX_REGEXES} regular expressions in one policy, got {len(found)}",
        )
        return
    for path, pattern in found.items():
        try:
            compile_regex(pattern)
        except ValueError as exc:
            yield Problem(path, f"expected a regular expression of RE2, got {show(pattern)}: {exc}")


def _patterns(path: str, match: Match) -> Iterator[tuple[str, str]]:
    if match.path is not None and match.path.regex is not None:
        yield f"{path}.path.regex", match.path.regex
    for name, values in (("headers", match.headers), ("query", match.query)):
        for key, value in values.items():
            if value.regex is not None:
                yield f"{join(f'{path}.{name}', key)}.regex", value.regex


def _split(path: str, arms: Iterable[WeightedBackend], policy: TrafficPolicy) -> Iterator[Problem]:
    total = 0
    for i, arm in enumerate(arms):
        total += arm.weight
        yield from _arm(f"{path}[{i}]", arm, policy)
    if not total:
        yield Problem(path, "expected weights with a sum above 0, got 0")


def _arm(path: str, arm: WeightedBackend, policy: TrafficPolicy) -> Iterator[Problem]:
    subsets = policy.spec.subsets
    if arm.subset is not None and arm.subset not in subsets:
        known = listed(sorted(subsets)) or "none is defined"
        yield Problem(
            f"{path}.subset",
            f"expected a subset of spec.subsets ({known}), got {arm.subset!r}{meant(arm.subset, subsets)}",
        )
    if arm.subset is not None and (arm.service is not None or arm.port is not None):
        yield Problem(path, "expected either a subset or a service and port, got both")
    service, _, namespace = (arm.service or "").partition(".")
    if namespace and namespace != policy.namespace:
        yield Problem(
            f"{path}.service",
            f"{service}.{namespace} is in another namespace, which needs a ReferenceGrant there: {LATER}",
        )


def _replaced_prefix(path: str, rewrite: PathRewrite | None, matches: tuple[Match, ...]) -> Iterator[Problem]:
    if rewrite is None or rewrite.replace_prefix is None:
        return
    if not matches or any(match.path is None or match.path.prefix is None for match in matches):
        yield Problem(
            f"{path}.replacePrefix",
            "expected a path prefix in every match of the route, which it stands for; "
            "use replaceFull to replace the whole path",
        )


def _edits(path: str, edits: HeaderEdits) -> Iterator[Problem]:
    for name, values in (("set", edits.set), ("add", edits.add)):
        yield from _twice(f"{path}.{name}", values)
        for key, value in values.items():
            at = join(f"{path}.{name}", key)
            yield from _editable(at, key)
            if value != value.strip(" \t") or not all(c == "\t" or " " <= c <= "~" for c in value):
                yield Problem(
                    at,
                    f"expected visible ASCII without spaces at its ends (RFC 9110, 5.5), got {show(value)}",
                )
    for i, key in enumerate(edits.remove):
        yield from _editable(f"{path}.remove[{i}]", key)


def _editable(path: str, name: str) -> Iterator[Problem]:
    small = name.lower()
    if small == "host":
        yield Problem(path, "expected another header: the host is changed by rewrite.host")
    elif small in _FRAMING:
        yield Problem(path, f"expected another header: {small} belongs to the connection or to framing")
    elif small.startswith(_OURS):
        yield Problem(path, f"expected another header: {_OURS}* is the mesh's own")


def _twice(path: str, values: Mapping[str, object]) -> Iterator[Problem]:
    for small, count in Counter(key.lower() for key in values).items():
        if count > 1:
            yield Problem(
                path, f"expected each header once, got {small!r} {count} times (case does not count)"
            )
