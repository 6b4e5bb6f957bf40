"""`meshctl routes`: how the routes of a Service do, and where their requests went."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import click
import msgspec

from mesh_api.stats import EdgeRow, EdgeTable
from meshctl.render import structured, table
from meshctl.stats_options import FORMATS, nothing_about, output_option, with_edges
from meshctl.stats_view import (
    NONE,
    Figures,
    count,
    figures,
    grouped,
    number,
    outbound_of,
    paint,
    percent,
    service_of,
)

_HEADINGS = ("SERVICE", "ROUTE", "SUBSET", "WORKLOAD", "SHARE %", "EFFECTIVE %", "ACTUAL %", "RPS")
_REST = ("P50 ms", "P95 ms", "P99 ms")
_WIDE = ("RETRIES/s", "OVERFLOWS", "EJECTIONS", "REQUESTS")


class Line(NamedTuple):
    """One way that requests to a Service took."""

    service: str
    route: str
    subset: str
    workload: str
    """NAME.NAMESPACE; '' where nobody was reached."""
    share: float | None
    """Of the Service's requests."""
    figures: Figures


@click.command("routes")
@with_edges
@click.option("-n", "--namespace", default="default", show_default=True)
@output_option(*FORMATS)
@click.argument("service")
def routes(found: EdgeTable, namespace: str, output: str, service: str) -> None:
    """How the routes of a Service do, and where their requests went; SERVICE is NAME or NAME.NAMESPACE."""
    name, _, given = service.partition(".")
    namespace = given or namespace
    lines = lines_of(found.rows, namespace, name)
    if not lines:
        known = {of[1] for row in outbound_of(found.rows) if (of := service_of(row)) and of[0] == namespace}
        what = f"Service {name} of namespace {namespace}"
        raise nothing_about(what, name, sorted(known), found.window_s)
    if output in ("json", "yaml"):
        rows = [{**line._asdict(), "figures": msgspec.to_builtins(line.figures)} for line in lines]
        click.echo(structured({"windowSeconds": found.window_s, "routes": rows}, output))
        return
    wide = output == "wide"
    headings = (*_HEADINGS, *_REST, *(_WIDE if wide else ()))
    click.echo(
        table(headings, [_cells(line, wide) for line in lines], paint if sys.stdout.isatty() else None)
    )


def lines_of(rows: Sequence[EdgeRow], namespace: str, name: str) -> list[Line]:
    """The ways that requests to a Service took, sorted."""
    mine = [row for row in outbound_of(rows) if (service_of(row) or ())[:2] == (namespace, name)]
    whole: dict[str, int] = {}
    for row in mine:
        whole[row.edge.service] = whole.get(row.edge.service, 0) + row.edge.requests

    def key(row: EdgeRow) -> tuple[str, str, str, str]:
        edge = row.edge
        workload = f"{edge.workload}.{edge.namespace}" if edge.workload else ""
        return edge.service, edge.route, edge.subset, workload

    found = []
    for (service, route, subset, workload), of in grouped(mine, key).items():
        seen = figures(of)
        share = seen.requests / whole[service] if whole[service] else None
        found.append(Line(service, route, subset, workload, share, seen))
    return found


def _cells(line: Line, wide: bool) -> tuple[str, ...]:
    seen = line.figures
    cells = (
        line.service,
        line.route or NONE,
        line.subset or NONE,
        line.workload or NONE,
        percent(line.share),
        percent(seen.success),
        percent(seen.actual_success),
        number(seen.rps),
        number(seen.p50_ms),
        number(seen.p95_ms),
        number(seen.p99_ms),
    )
    if not wide:
        return cells
    return (
        *cells,
        number(seen.retries_per_s or None),
        count(seen.overflows),
        count(seen.ejections),
        count(seen.requests),
    )
