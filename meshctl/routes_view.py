"""How `proxy-config routes` shows destinations: their routes, and how their endpoints are used. Pure."""

from collections.abc import Iterable, Iterator

from mesh_api.sidecar import Destination
from mesh_api.traffic import (
    Breaker,
    Fault,
    Labels,
    Match,
    Outliers,
    Retries,
    Route,
    Settings,
    ValueMatch,
    WeightedTarget,
)
from meshctl.policy_text import aborted
from meshctl.render import table

NONE = "-"
_ROUTES = (
    *("DESTINATION", "ADDRESSES", "PROTOCOL", "ROUTE", "MATCH", "TO", "TIMEOUT", "RETRIES"),
    *("CHANGES", "POLICY"),
)
_SETTINGS = ("DESTINATION", "SUBSET", "LABELS", "BALANCER", "TIMEOUTS", "BREAKER", "EJECTION", "HTTP")


def named(destination: Destination) -> str:
    return f"{destination.namespace}/{destination.name}:{destination.port}"


def routes(destinations: Iterable[Destination]) -> str:
    """Two tables: where requests go, and how endpoints are used."""
    found = list(destinations)
    return "\n\n".join(
        (
            table(_ROUTES, [row for one in found for row in _routes_of(one)]),
            table(_SETTINGS, [row for one in found for row in _settings_of(one)]),
        )
    )


def _routes_of(one: Destination) -> Iterator[tuple[str, ...]]:
    for number, route in enumerate(one.routes or (Route(to=(WeightedTarget(),)),)):
        yield (
            named(one),
            ", ".join(one.addresses) or "headless",
            one.protocol.value,
            route.name or (str(number) if one.routes else NONE),
            " | ".join(map(_match, route.match)) or "all",
            _leads(route),
            _seconds(route.timeout_s or one.settings.timeouts.request_s),
            _retries(route.retries or one.retries),
            _changes(route),
            one.policy or NONE,
        )


def _leads(route: Route) -> str:
    if route.redirect is not None:
        return f"redirect {route.redirect.status}"
    if route.respond is not None:
        return f"respond {route.respond.status}"
    arms = [arm.subset or arm.destination or "all" for arm in route.to]
    if len(arms) == 1:
        return arms[0]
    return ", ".join(f"{arm} {to.weight}" for arm, to in zip(arms, route.to, strict=True))


def _match(match: Match) -> str:
    parts = [match.method] if match.method else []
    if path := match.path:
        parts.append(
            f"path {path.exact}"
            if path.exact
            else f"prefix {path.prefix}"
            if path.prefix
            else f"path ~{path.regex}"
        )
    parts += [f"header {_value(value)}" for value in match.headers]
    parts += [f"query {_value(value)}" for value in match.query]
    if source := match.source:
        account = f"/{source.service_account}" if source.service_account else ""
        if source.namespace or account:
            parts.append(f"from {source.namespace or '*'}{account}")
        if source.labels:
            parts.append(f"from {_labels(source.labels)}")
    return " ".join(parts) or "all"


def _value(value: ValueMatch) -> str:
    if value.exact is not None:
        return f"{value.name}={value.exact}"
    if value.prefix is not None:
        return f"{value.name}={value.prefix}*"
    if value.regex is not None:
        return f"{value.name}~{value.regex}"
    return value.name if value.present else f"!{value.name}"


def _retries(retries: Retries) -> str:
    if not retries.attempts:
        return NONE
    on = ",".join(each.value for each in retries.on)
    each = f" per try {_seconds(retries.per_try_s)}" if retries.per_try_s else ""
    return f"{retries.attempts}{' on ' + on if on else ''}{each}"


def _changes(route: Route) -> str:
    changes = []
    if route.rewrite is not None:
        changes.append("rewrite")
    if route.request_headers is not None or route.response_headers is not None:
        changes.append("headers")
    if route.fault is not None:
        changes.append(_fault(route.fault))
    return ", ".join(changes) or NONE


def _fault(fault: Fault) -> str:
    delay = f"delay {fault.delay.percent:g}% {_seconds(fault.delay.fixed_s)}" if fault.delay else ""
    abort = f"abort {fault.abort.percent:g}% {aborted(fault.abort)}" if fault.abort else ""
    return ", ".join(filter(None, (delay, abort)))


def _settings_of(one: Destination) -> Iterator[tuple[str, ...]]:
    yield named(one), NONE, NONE, *_settings(one.settings)
    for name, subset in one.subsets.items():
        yield named(one), name, _labels(subset.labels), *_settings(subset.settings or one.settings)


def _settings(settings: Settings) -> tuple[str, ...]:
    timeouts = settings.timeouts
    shown = {
        "connect": timeouts.connect_s,
        "request": timeouts.request_s,
        "stream-idle": timeouts.stream_idle_s,
        "tcp-idle": timeouts.tcp_idle_s,
    }
    times = (("warm-up", settings.warmup_s), ("affinity", settings.affinity_s))
    return (
        ", ".join((settings.algorithm.value, *(f"{name} {_seconds(time)}" for name, time in times if time))),
        ", ".join(f"{name} {_seconds(value)}" for name, value in shown.items() if value),
        _breaker(settings.breaker),
        _ejection(settings.outliers),
        settings.http_version.value or NONE,
    )


def _breaker(breaker: Breaker) -> str:
    shown = {
        "connections": breaker.max_connections,
        "pending": breaker.max_pending,
        "requests": breaker.max_requests,
        "per connection": breaker.max_requests_per_connection or None,
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value is not None)


def _ejection(outliers: Outliers) -> str:
    shown = {
        "5xx": outliers.consecutive_5xx,
        "gateway": outliers.consecutive_gateway,
        "local": outliers.consecutive_local,
    }
    after = ", ".join(f"{name} {value}" for name, value in shown.items() if value)
    if not after:
        return "off"
    return f"{after}; {_seconds(outliers.base_ejection_s)}, at most {outliers.max_ejection_percent:g}%"


def _labels(labels: Labels) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _seconds(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:g}s" if value >= 1 else f"{value * 1000:g}ms"
