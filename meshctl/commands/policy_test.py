"""`meshctl policy test`: which route a request takes, and what happens to it."""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import quote

import click

from manifests.names import SYSTEM_NAMESPACE
from mesh_api.keys import DestinationName
from mesh_api.policy_types import TrafficPolicy
from mesh_api.policy_values import listed, meant
from mesh_control.compile.native import parts
from mesh_proxy.policy.routing import Caller
from meshctl import policy_find as find
from meshctl.commands.policy_explain import in_force
from meshctl.commands.policy_files import checked, documents
from meshctl.context import kube_options
from meshctl.errors import MeshctlError
from meshctl.kube import connect
from meshctl.policy_held import Held, holding
from meshctl.policy_trial import Request, Trial, tried
from meshctl.render import output_option, structured, table


@click.command("test")
@click.argument("service", required=False)
@click.option("-f", "--filename", "files", multiple=True, help="File with policies instead of a cluster's.")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("--method", default="GET", show_default=True)
@click.option("--path", default="/", show_default=True, help="With or without a query.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="May be repeated.")
@click.option("--query", "queries", multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.option(
    "--from", "source", metavar="NAMESPACE/ACCOUNT", help="Who calls. Default: this namespace's default."
)
@click.option("--from-label", "labels", multiple=True, metavar="LABEL=VALUE", help="Of the calling pod.")
@click.option("--port", type=click.IntRange(1, 65535), default=80, show_default=True, help="Of the Service.")
@output_option
@kube_options
def test(
    service: str | None,
    files: tuple[str, ...],
    namespace: str,
    method: str,
    path: str,
    headers: tuple[str, ...],
    queries: tuple[str, ...],
    source: str | None,
    labels: tuple[str, ...],
    port: int,
    output: str,
    kubeconfig: str | None,
    context: str | None,
) -> None:
    """Say which route a request takes and what happens to it; exit code 1 where none matches."""
    request = _request(method, path, headers, queries, _caller(namespace, source, labels))
    policy: TrafficPolicy | None
    if files:
        held = _from_files(files, namespace)
        policy = _chosen(held, namespace, service)
    else:
        if service is None:
            raise click.UsageError("name a Service, or a file with -f")
        kube = connect(kubeconfig, context)
        find.service(kube, namespace, service)
        held = in_force(kube, namespace, request.caller.namespace)
        policy = held.policies.get((namespace, service))
    where = (policy.namespace, policy.spec.target.service) if policy else (namespace, service or "")

    def backend(name: str, wanted: int | None) -> str:
        return str(DestinationName(where[0], name or where[1], wanted or port))

    spelling = held.levels.of_workload(request.caller.namespace).path_normalization
    trial = tried(parts(policy, held.levels, where[0], backend), request, spelling)
    _show(trial, output, "/".join(where), "/".join(policy.key) if policy else "")
    if not trial.taken:
        sys.exit(1)


def _from_files(files: tuple[str, ...], namespace: str) -> Held:
    objects = [checked(place, each, namespace) for name in files for place, each in documents(name)]
    return holding(objects, SYSTEM_NAMESPACE)


def _chosen(held: Held, namespace: str, service: str | None) -> TrafficPolicy:
    """The policy of a file that is meant.

    Raises:
        MeshctlError: there is none for the Service, or several and none was named.
    """
    if service is not None:
        found = held.policies.get((namespace, service))
        if found is not None:
            return found
        found_for = [name for _, name in held.policies]
        raise MeshctlError(f"the file has no policy for {namespace}/{service}{meant(service, found_for)}")
    if len(held.policies) == 1:
        return next(iter(held.policies.values()))
    names = listed(("/".join(key) for key in held.policies), "and") or "none"
    raise MeshctlError(f"expected one TrafficPolicy in the file, got {names}: name the Service")


def _caller(namespace: str, source: str | None, labels: tuple[str, ...]) -> Caller:
    space, slash, account = (source or f"{namespace}/default").partition("/")
    if not (space and slash and account):
        raise MeshctlError(f"--from {source}: expected NAMESPACE/ACCOUNT")
    return Caller(space, account, dict(_pair("--from-label", each, "=") for each in labels))


def _pair(option: str, text: str, separator: str) -> tuple[str, str]:
    name, found, value = text.partition(separator)
    if not name or not found:
        raise MeshctlError(f"{option} {text}: expected NAME{separator}VALUE")
    return name, value.strip()


def _request(
    method: str, path: str, headers: tuple[str, ...], queries: tuple[str, ...], caller: Caller
) -> Request:
    if not path.startswith("/"):
        raise MeshctlError(f"--path {path}: expected a path that begins with '/'")
    target = quote(path, safe="/%?&=:@!$'()*+,;~#[]")
    for each in queries:
        name, value = _pair("--query", each, "=")
        target += f"{'&' if '?' in target else '?'}{quote(name)}={quote(value)}"
    named = (_pair("--header", each, ":") for each in headers)
    return Request(method, target, {name.lower(): value for name, value in named}, caller)


def _show(trial: Trial, output: str, service: str, policy: str) -> None:
    if output != "table":
        data: dict[str, Any] = {
            "service": service,
            "policy": policy or None,
            "route": trial.taken or None,
            "outcome": list(trial.outcome),
            "routes": [each._asdict() for each in trial.verdicts],
        }
        click.echo(structured(data, output))
        return
    by = f" (TrafficPolicy {policy})" if policy else " (no policy)"
    click.echo(f"{service}{by}: route {trial.taken or 'none'}")
    for line in trial.outcome:
        click.echo(f"  {line}")
    if trial.verdicts:
        rows = [(each.route, "yes" if each.taken else "no", each.why) for each in trial.verdicts]
        click.echo("\n" + table(("ROUTE", "TAKEN", "WHY"), rows))
