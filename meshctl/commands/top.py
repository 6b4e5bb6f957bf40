"""`meshctl top`: what is requested just now."""

import sys

import click
import msgspec

from mesh_api.stats import TappedRequest, Top
from meshctl.admin import ask, home
from meshctl.context import with_kube
from meshctl.kube import READ_S, Kube
from meshctl.render import structured, table
from meshctl.stats_options import namespace_options, output_option, scope, watched
from meshctl.stats_view import number, paint, percent
from meshctl.wait import Duration

_HEADINGS = (
    *("SOURCE", "DESTINATION", "METHOD", "PATH", "COUNT"),
    *("BEST ms", "WORST ms", "LAST ms", "SUCCESS %"),
)
MAX_SECONDS = 30.0
MAX_SHOWN_PATH = 60


@click.command("top")
@with_kube
@watched
@namespace_options
@click.option(
    "--seconds", "for_s", type=Duration(), default="3s", show_default=True, help="How long to watch."
)
@click.option(
    "--max", "most", type=click.IntRange(1, 1000), default=20, show_default=True, help="Lines shown."
)
@output_option("table", "json", "yaml")
@click.argument("workload", required=False)
def top(
    kube: Kube,
    namespace: str | None,
    all_namespaces: bool,
    for_s: float,
    most: int,
    output: str,
    workload: str | None,
) -> None:
    """Live requests of a WORKLOAD's sidecars, or of all in a namespace: ends, method, path, count, times.

    Inbound requests are shown, and those outbound ones that leave what is watched.
    """
    if not 1 <= for_s <= MAX_SECONDS:
        raise click.BadParameter("expected 1s to 30s", param_hint="--seconds")
    query = {"seconds": f"{for_s:g}"}
    if namespace := scope(namespace, all_namespaces):
        query["namespace"] = namespace
    if workload:
        query["workload"] = workload
    found = ask(kube, home(kube), "/top", Top, query=query, read_s=for_s + READ_S)
    for text in notes(found):
        click.echo(text, err=True)
    if output != "table":
        click.echo(structured(msgspec.to_builtins(found), output))
    elif found.requests:
        rows = [_cells(each) for each in found.requests[:most]]
        click.echo(table(_HEADINGS, rows, paint if sys.stdout.isatty() else None))
        if len(found.requests) > most:
            click.echo(f"{len(found.requests) - most} more lines; --max shows them", err=True)
    elif found.sidecars:
        click.echo(f"no request ended within {found.seconds:g} s at {found.sidecars} sidecars", err=True)


def notes(found: Top) -> list[str]:
    """What the reader should know about the answer."""
    said = []
    if found.answered < found.replicas:
        said.append(f"only {found.answered} of {found.replicas} replicas of the control plane answered")
    if found.failed:
        said.append(f"{found.failed} of {found.sidecars} sidecars did not answer")
    if found.dropped:
        said.append(f"{found.dropped} requests found no room")
    return said


def _cells(each: TappedRequest) -> tuple[str, ...]:
    path = each.path if len(each.path) <= MAX_SHOWN_PATH else each.path[: MAX_SHOWN_PATH - 3] + "..."
    return (
        each.source,
        each.destination,
        each.method,
        path,
        str(each.count),
        number(each.best_ms),
        number(each.worst_ms),
        number(each.last_ms),
        percent((each.count - each.failures) / each.count if each.count else None),
    )
