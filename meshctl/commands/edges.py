"""`meshctl edges`: who calls whom, and whether it is secured."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import click
import msgspec

from mesh_api.stats import EdgeKind, EdgeRow, EdgeTable
from meshctl.render import structured, table
from meshctl.stats_options import FORMATS, namespace_options, output_option, scope, with_edges
from meshctl.stats_view import (
    NONE,
    Figures,
    count,
    ends,
    figures,
    grouped,
    kilo,
    number,
    paint,
    percent,
    short_identity,
)

_HEADINGS = (
    "SOURCE",
    "DESTINATION",
    "KIND",
    "mTLS %",
    "IDENTITY",
    "EFFECTIVE %",
    "ACTUAL %",
    "RPS",
    "P50 ms",
)
_REST = ("P99 ms", "TCP OPEN", "SENT kB/s", "RECEIVED kB/s")
_WIDE = ("P95 ms", "RETRIES/s", "OVERFLOWS", "EJECTIONS", "TCP NEW/s", "SERVICES")


class Line(NamedTuple):
    """One pair of workloads, and one kind of traffic."""

    source: str
    destination: str
    kind: EdgeKind
    identities: tuple[str, ...]
    """What the destination proved."""
    services: tuple[str, ...]
    """By which Services it was reached."""
    figures: Figures


@click.command("edges")
@with_edges
@namespace_options
@output_option(*FORMATS)
def edges(found: EdgeTable, namespace: str | None, all_namespaces: bool, output: str) -> None:
    """Who calls whom: security, identity of the destination, success, latency, bytes.

    With -n: the edges that begin or end in that namespace. EFFECTIVE is success as the client saw it,
    ACTUAL that of all attempts.
    """
    lines = lines_of(found.rows, scope(namespace, all_namespaces))
    if output in ("json", "yaml"):
        rows = [plain(line) for line in lines]
        click.echo(structured({"windowSeconds": found.window_s, "edges": rows}, output))
        return
    if not lines:
        click.echo(f"no traffic was counted in the last {found.window_s:g} s", err=True)
        return
    wide = output == "wide"
    headings = (*_HEADINGS, *_REST, *(_WIDE if wide else ()))
    click.echo(
        table(headings, [_cells(line, wide) for line in lines], paint if sys.stdout.isatty() else None)
    )


def lines_of(rows: Sequence[EdgeRow], namespace: str | None) -> list[Line]:
    """The edges that begin or end in a namespace (None: all), sorted."""

    def key(row: EdgeRow) -> tuple[str, str, str] | None:
        found = ends(row)
        if found is None or not (
            row.edge.requests
            or row.edge.opened
            or row.edge.open
            or row.edge.closed
            or row.edge.overflows
            or row.edge.attempts
        ):
            return None
        if namespace is not None and namespace not in (row.namespace, row.edge.namespace):
            return None
        return (*found, row.edge.kind.value)

    return [
        Line(
            source,
            destination,
            EdgeKind(kind),
            tuple(sorted({row.edge.identity for row in of if row.edge.identity})),
            tuple(sorted({row.edge.service for row in of if row.edge.service})),
            figures(of),
        )
        for (source, destination, kind), of in grouped(rows, key).items()
    ]


def plain(line: Line) -> dict[str, object]:
    """The line for programs."""
    return {
        "source": line.source,
        "destination": line.destination,
        "kind": line.kind.value,
        "identities": list(line.identities),
        "services": list(line.services),
        **msgspec.to_builtins(line.figures),
    }


def _cells(line: Line, wide: bool) -> tuple[str, ...]:
    seen = line.figures
    tcp = line.kind is EdgeKind.TCP
    identities = line.identities if wide else tuple(short_identity(each) for each in line.identities)
    cells = (
        line.source,
        line.destination,
        line.kind.value,
        percent(seen.mtls),
        ",".join(identities) or NONE,
        percent(seen.tcp_success if tcp else seen.success),
        percent(seen.actual_success),
        number(seen.rps),
        number(seen.p50_ms),
        number(seen.p99_ms),
        count(seen.tcp_open),
        kilo(seen.sent_bytes_per_s),
        kilo(seen.received_bytes_per_s),
    )
    if not wide:
        return cells
    return (
        *cells,
        number(seen.p95_ms),
        number(seen.retries_per_s or None),
        count(seen.overflows),
        count(seen.ejections),
        number(seen.tcp_opened_per_s or None),
        ",".join(line.services) or NONE,
    )
