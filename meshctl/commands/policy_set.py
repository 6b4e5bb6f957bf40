"""`meshctl policy set`: change what holds for a Service, field by field."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import click
import yaml

from mesh_api.policy import read_policy
from mesh_api.policy_types import API_VERSION, HttpVersion, OutboundTlsMode
from mesh_api.policy_values import listed
from mesh_api.traffic import Algorithm
from meshctl import policy_find as find
from meshctl.apply import title
from meshctl.commands.policy import refused
from meshctl.context import with_kube
from meshctl.errors import KubeError, MeshctlError
from meshctl.kube import Kube
from meshctl.policy_edit import edited

Object = dict[str, Any]
_TRIES = 5
_KIND = "TrafficPolicy"

_FIELDS: dict[str, tuple[str, Any, str, str]] = {
    "timeout": ("timeouts.request", str, "TIME", "The whole request, retries included."),
    "http-version": (
        "connection.httpVersion",
        click.Choice([one.value for one in HttpVersion]),
        "",
        "What endpoints are asked in.",
    ),
    "connect-timeout": ("timeouts.connect", str, "TIME", "TCP and TLS together."),
    "stream-idle-timeout": ("timeouts.streamIdle", str, "TIME", "A stream without a byte."),
    "pool-idle-timeout": ("timeouts.poolIdle", str, "TIME", "An idle pooled connection."),
    "tcp-idle-timeout": ("timeouts.tcpIdle", str, "TIME", "An opaque connection without a byte."),
    "retries": ("retries.attempts", int, "COUNT", "Retries, the first try not counted."),
    "retry-on": ("retries.retryOn", list, "LIST", "Conditions, such as 5xx,connect-failure."),
    "per-try-timeout": ("retries.perTryTimeout", str, "TIME", "One attempt."),
    "retry-methods": ("retries.methods", list, "LIST", "Methods, such as GET,PUT."),
    "retry-backoff": ("retries.backoff.base", str, "TIME", "Pause before the first retry."),
    "retry-budget": ("retries.budget.percent", float, "PERCENT", "Retries as a share of requests."),
    "max-connections": ("circuitBreaker.maxConnections", int, "COUNT", "Of each calling pod."),
    "max-pending": ("circuitBreaker.maxPendingRequests", int, "COUNT", "Requests that wait."),
    "max-requests": ("circuitBreaker.maxRequests", int, "COUNT", "Requests under way."),
    "max-requests-per-connection": (
        "circuitBreaker.maxRequestsPerConnection",
        int,
        "COUNT",
        "0: no limit.",
    ),
    "eject-after": ("outliers.consecutive5xx", int, "COUNT", "Failures in a row; 0 is off."),
    "eject-after-gateway": ("outliers.consecutiveGatewayErrors", int, "COUNT", "Of 502, 503, 504."),
    "eject-after-local": ("outliers.consecutiveLocalFailures", int, "COUNT", "Without an answer."),
    "ejection-interval": ("outliers.interval", str, "TIME", "Failures further apart are not in a row."),
    "base-ejection": ("outliers.baseEjection", str, "TIME", "The first ejection."),
    "max-ejection": ("outliers.maxEjectionPercent", int, "PERCENT", "Most endpoints at once."),
    "balancer": (
        "loadBalancer.algorithm",
        click.Choice([one.value for one in Algorithm]),
        "",
        "Which endpoint gets a request.",
    ),
    "warmup": ("loadBalancer.warmup", str, "TIME", "A new endpoint's share grows over so long."),
    "tls": (
        "tls.mode",
        click.Choice([one.value for one in OutboundTlsMode]),
        "",
        "How endpoints are reached.",
    ),
}
"""Options that set one field: path, type, placeholder, help."""


def _field_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, (_, kind, placeholder, text) in reversed(_FIELDS.items()):
        command = click.option(
            f"--{name}", type=str if kind is list else kind, metavar=placeholder or None, help=text
        )(command)
    return command


@click.command("set")
@click.argument("service")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option(
    "--subset", "subsets", multiple=True, metavar="NAME=LABEL:VALUE", help="Define a subset; may be repeated."
)
@click.option("--split", "weights", metavar="SUBSET=WEIGHT,...", help="Also service/NAME[:PORT]=WEIGHT.")
@_field_options
@click.option("--fault-delay", "delay", metavar="PERCENT:TIME", help="Hold a share of the requests.")
@click.option("--fault-abort", "abort", metavar="PERCENT:STATUS", help="STATUS of HTTP, or grpc-STATUS.")
@click.option("--route", metavar="NAME", help="For --split and faults; else the route for all requests.")
@click.option("--unset", multiple=True, metavar="PATH", help="Remove a field, such as timeouts.request.")
@click.option("--dry-run", is_flag=True, help="Print the policy instead of writing it.")
@click.option("-o", "--output", type=click.Choice(("yaml", "json")), help="With --dry-run.")
@with_kube
def set_(
    kube: Kube,
    service: str,
    namespace: str,
    subsets: tuple[str, ...],
    weights: str | None,
    delay: str | None,
    abort: str | None,
    route: str | None,
    unset: tuple[str, ...],
    dry_run: bool,
    output: str | None,
    **options: Any,
) -> None:
    """Change the policy of a Service; what is not named stays. The policy is made if there is none."""
    if output and not dry_run:
        raise click.UsageError("-o goes with --dry-run")
    fields = _fields(options)
    if not (fields or subsets or weights or delay or abort or unset):
        raise click.UsageError("nothing to set: name a field, such as --timeout 2s (see --help)")
    if route and not (weights or delay or abort):
        raise click.UsageError("--route goes with --split, --fault-delay or --fault-abort")
    target = find.service(kube, namespace, service)

    def change(spec: Object) -> Object:
        return edited(
            spec,
            fields=fields,
            subsets=subsets,
            weights=weights,
            delay=delay,
            abort=abort,
            route_name=route,
            unset=unset,
        )

    for _ in range(_TRIES):
        live, new = _changed(kube, namespace, service, change)
        if dry_run:
            _warn(kube, target, new)
            click.echo(json.dumps(new, indent=2) if output == "json" else _yaml(new))
            return
        done = _write(kube, live, new)
        if done:
            _warn(kube, target, new)
            click.echo(f"{title(new)} {done}")
            return
    raise MeshctlError(f"TrafficPolicy {namespace}/{service}: others keep changing it; {_TRIES} tries")


def _fields(options: Mapping[str, Any]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, (path, kind, _, _) in _FIELDS.items():
        value = options[name.replace("-", "_")]
        if kind is list and value is not None:
            value = [item for item in value.split(",") if item]
        elif kind is float and value is not None and value.is_integer():
            value = int(value)
        if value is not None:
            found[path] = value
    return found


def _changed(
    kube: Kube, namespace: str, service: str, change: Callable[[Object], Object]
) -> tuple[Object | None, Object]:
    """The policy of the Service that is there, and as it will be."""
    there = find.policies(kube, _KIND, namespace)
    own = find.for_service(there, service)
    live = own[0] if own else None
    if len(own) > 1:
        others = listed((each["metadata"]["name"] for each in own[1:]), "and")
        click.echo(f"warning: {own[0]['metadata']['name']} is changed; {others} conflict with it", err=True)
    if live is not None:
        new = copy.deepcopy(live)
    else:
        taken = next((each for each in there if each["metadata"]["name"] == service), None)
        if taken is not None:
            raise MeshctlError(
                f"TrafficPolicy {namespace}/{service} is there already, and for another Service, "
                f"{find.target(taken)!r}: rename it, or make one for {service!r} with meshctl policy apply"
            )
        new = {
            "apiVersion": API_VERSION,
            "kind": _KIND,
            "metadata": {"name": service, "namespace": namespace},
            "spec": {"target": {"service": service}},
        }
    new["spec"] = change(new["spec"])
    found = read_policy(_KIND, new)
    if isinstance(found, list):
        raise refused(f"TrafficPolicy {namespace}/{new['metadata']['name']}", found)
    return live, new


def _write(kube: Kube, live: Object | None, new: Object) -> str:
    """What was done; '' where somebody else wrote in between."""
    try:
        if live is None:
            kube.create(new)
            return "created"
        if live == new:
            return "unchanged"
        kube.replace(new)
    except KubeError as exc:
        if exc.status == 409:
            return ""
        raise KubeError(f"{title(new)}: {exc}", exc.status, exc.reason) from None
    return "configured"


def _warn(kube: Kube, target: Object, policy: Object) -> None:
    """Say which subsets select no pod."""
    pods = find.pods_of(kube, target)
    for name, subset in (policy["spec"].get("subsets") or {}).items():
        labels: dict[str, str] = subset["labels"]
        if any(find.has(pod, labels) for pod in pods):
            continue
        shown = ",".join(f"{key}={value}" for key, value in labels.items())
        theirs = {
            f"{key}={value}"
            for pod in pods
            for key, value in (pod["metadata"].get("labels") or {}).items()
            if key in labels
        }
        have = f"; they have {listed(sorted(theirs)[:8], 'and')}" if theirs else ""
        click.echo(
            f"warning: subset {name} ({shown}) selects none of the {len(pods)} pods of "
            f"{target['metadata']['name']}{have}",
            err=True,
        )


def _yaml(policy: Object) -> str:
    return yaml.safe_dump(policy, sort_keys=False, default_flow_style=False).rstrip("\n")
