"""A TrafficPolicy as sidecars get it: what `mesh_api.sidecar.Destination` says about requests.

Names are resolved and defaults filled in here; what is legal was decided by `mesh_api.policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import msgspec

from mesh_api import policy_types as written
from mesh_api import traffic
from mesh_api.policy_types import OutboundTlsMode, TrafficPolicy
from mesh_api.policy_values import Duration
from mesh_control.index.levels import Layer, Levels, over, source

Backend = Callable[[str, int | None], str]
"""The key of another destination ('' for the one that is compiled) by Service of the same namespace and port;
None is the port that the client asked for."""
_RETRIES = written.Retries()
_EDITS = written.HeaderEdits()


class Parts(msgspec.Struct, frozen=True):
    """What a destination takes from policies; see the fields of the same names."""

    subsets: dict[str, traffic.Subset] = {}
    routes: tuple[traffic.Route, ...] = ()
    settings: traffic.Settings = traffic.Settings()
    retries: traffic.Retries = traffic.Retries()
    budget: traffic.Budget = traffic.Budget()
    plaintext: bool = False
    """Every endpoint without mTLS."""
    policy: str = ""


def target(policy: TrafficPolicy) -> list[tuple[str, str]]:
    """The Service, namespace and name, that a policy is for (see `levels.held`)."""
    return [(policy.namespace, policy.spec.target.service)]


def layers(policy: TrafficPolicy | None, levels: Levels, namespace: str) -> tuple[list[Layer], list[Layer]]:
    """What holds for calls to a Service, from weak to strong: below its subsets and routes, and above."""
    below, above = levels.of_services(namespace)
    if policy is not None:
        below.append(Layer(source(policy), usage_of(policy.spec), policy.spec.retries))
    return below, above


def parts(policy: TrafficPolicy | None, levels: Levels, namespace: str, backend: Backend) -> Parts:
    """What a destination of a namespace takes from its policy, if it has one, and from MeshPolicies."""
    below, above = layers(policy, levels, namespace)
    usage, retries = _usage(below + above), _retries(below + above)
    common = Parts(
        settings=settings(usage),
        retries=_compiled_retries(retries),
        budget=traffic.Budget(
            **_said(percent=retries.budget.percent, min_per_s=retries.budget.min_per_second)
        ),
    )
    if policy is None:
        return common
    spec = policy.spec
    timeout_holds = _usage(above).timeouts.request is None
    return msgspec.structs.replace(
        common,
        subsets={name: _subset(one, below, above) for name, one in spec.subsets.items()},
        routes=tuple(_route(one, below, above, timeout_holds, backend) for one in spec.routes),
        plaintext=spec.tls.mode is OutboundTlsMode.DISABLE,
        policy=f"{policy.namespace}/{policy.name}",
    )


def usage_of(said: written.Usage) -> written.Usage:
    """Only what is about endpoints, of a whole spec or a subset."""
    return written.Usage(
        said.connection, said.timeouts, said.load_balancer, said.circuit_breaker, said.outliers
    )


def _usage(said: Sequence[Layer]) -> written.Usage:
    return reduce(over, (layer.usage for layer in said), written.Usage())


def _retries(said: Sequence[Layer]) -> written.Retries:
    return reduce(over, (layer.retries for layer in said), written.Retries())


def _said(**fields: Any) -> dict[str, Any]:
    """Without what nobody said; a duration of 0 is off, as where nobody said anything."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Duration):
            value = float(value) or None
        if value is not None:
            found[name] = value
    return found


def settings(usage: written.Usage) -> traffic.Settings:
    """With defaults where nothing was said."""
    version = usage.connection.http_version
    times, balancer, breaker, outliers = (
        usage.timeouts,
        usage.load_balancer,
        usage.circuit_breaker,
        usage.outliers,
    )
    return traffic.Settings(
        timeouts=traffic.Timeouts(
            **_said(
                connect_s=times.connect,
                request_s=times.request,
                stream_idle_s=times.stream_idle,
                pool_idle_s=times.pool_idle,
                tcp_idle_s=times.tcp_idle,
            )
        ),
        breaker=traffic.Breaker(
            **_said(
                max_connections=breaker.max_connections,
                max_pending=breaker.max_pending_requests,
                max_requests=breaker.max_requests,
                max_requests_per_connection=breaker.max_requests_per_connection,
            )
        ),
        outliers=traffic.Outliers(
            **_said(
                consecutive_5xx=outliers.consecutive_5xx,
                consecutive_gateway=outliers.consecutive_gateway_errors,
                consecutive_local=outliers.consecutive_local_failures,
                interval_s=outliers.interval,
                base_ejection_s=outliers.base_ejection,
                max_ejection_percent=outliers.max_ejection_percent,
                min_health_percent=outliers.min_health_percent,
            )
        ),
        **_said(
            http_version=traffic.HttpVersion(version.value) if version else None,
            algorithm=balancer.algorithm,
            warmup_s=balancer.warmup,
        ),
    )


def _subset(subset: written.Subset, below: list[Layer], above: list[Layer]) -> traffic.Subset:
    own = usage_of(subset)
    if own == written.Usage():
        return traffic.Subset(subset.labels)
    return traffic.Subset(subset.labels, settings(_usage([*below, Layer("", own, _RETRIES), *above])))


def _compiled_retries(retries: written.RouteRetries) -> traffic.Retries:
    backoff = retries.backoff
    return traffic.Retries(
        backoff=traffic.Backoff(**_said(base_s=backoff.base, max_s=backoff.max)),
        **_said(
            attempts=retries.attempts,
            on=retries.on,
            per_try_s=retries.per_try_timeout,
            methods=retries.methods,
            honor_retry_after=retries.honor_retry_after,
        ),
    )


# -- routes -------------------------------------------------------------------------------------------------


def _route(
    route: written.Route, below: list[Layer], above: list[Layer], timeout_holds: bool, backend: Backend
) -> traffic.Route:
    retries = None
    if route.retries != written.RouteRetries():
        merged = over(_retries(below), route.retries)
        retries = _compiled_retries(reduce(over, (layer.retries for layer in above), merged))
    return traffic.Route(
        name=route.name or "",
        match=tuple(_match(one) for one in route.match),
        to=tuple(_arm(one, backend) for one in route.to or ()),
        redirect=_redirect(route.redirect) if route.redirect else None,
        respond=traffic.Respond(route.respond.status, route.respond.body) if route.respond else None,
        timeout_s=float(route.timeout) if timeout_holds and route.timeout is not None else None,
        retries=retries,
        rewrite=_rewrite(route.rewrite),
        request_headers=_edits(route.headers.request),
        response_headers=_edits(route.headers.response),
        fault=_fault(route.fault),
    )


def _match(match: written.Match) -> traffic.Match:
    path, source = match.path, match.source
    return traffic.Match(
        path=traffic.PathMatch(path.exact or "", path.prefix or "", path.regex or "") if path else None,
        method=match.method or "",
        headers=_values({name.lower(): value for name, value in match.headers.items()}),
        query=_values(match.query),
        source=traffic.SourceMatch(source.namespace or "", source.service_account or "", source.labels)
        if source != written.SourceMatch()
        else None,
    )


def _values(values: Mapping[str, written.ValueMatch]) -> tuple[traffic.ValueMatch, ...]:
    return tuple(
        traffic.ValueMatch(name, value.exact, value.prefix, value.regex, value.present)
        for name, value in values.items()
    )


def _arm(arm: written.WeightedBackend, backend: Backend) -> traffic.WeightedTarget:
    key = ""
    if arm.service is not None or arm.port is not None:
        key = backend((arm.service or "").partition(".")[0], arm.port)
    return traffic.WeightedTarget(arm.subset or "", key, arm.weight)


def _path(rewrite: written.PathRewrite | None) -> traffic.PathRewrite | None:
    if rewrite is None:
        return None
    return traffic.PathRewrite(rewrite.replace_prefix or "", rewrite.replace_full or "")


def _rewrite(rewrite: written.Rewrite) -> traffic.Rewrite | None:
    if rewrite.path is None and rewrite.host is None:
        return None
    return traffic.Rewrite(_path(rewrite.path), rewrite.host or "")


def _redirect(redirect: written.Redirect) -> traffic.Redirect:
    return traffic.Redirect(
        scheme=redirect.scheme.value if redirect.scheme else "",
        host=redirect.host or "",
        port=redirect.port or 0,
        path=_path(redirect.path),
        status=redirect.status,
    )


def _edits(edits: written.HeaderEdits) -> traffic.HeaderEdits | None:
    if edits == _EDITS:
        return None
    return traffic.HeaderEdits(
        {name.lower(): value for name, value in edits.set.items()},
        {name.lower(): value for name, value in edits.add.items()},
        tuple(name.lower() for name in edits.remove),
    )


def _fault(fault: written.Fault) -> traffic.Fault | None:
    if fault.delay is None and fault.abort is None:
        return None
    delay, abort = fault.delay, fault.abort
    return traffic.Fault(
        traffic.Delay(delay.percent, float(delay.fixed)) if delay else None,
        traffic.Abort(abort.percent, **_said(status=abort.status, grpc_status=abort.grpc_status))
        if abort
        else None,
    )
