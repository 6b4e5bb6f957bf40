"""`meshctl stat`: how workloads, Services and namespaces do."""

import difflib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click
import msgspec

from mesh_api.stats import EdgeRow, EdgeTable
from meshctl.errors import MeshctlError
from meshctl.render import structured, table
from meshctl.stats_options import (
    FORMATS,
    namespace_options,
    nothing_about,
    output_option,
    scope,
    with_edges,
)
from meshctl.stats_view import (
    Figures,
    count,
    figures,
    grouped,
    inbound_of,
    kilo,
    number,
    outbound_of,
    paint,
    percent,
    service_of,
)

KINDS = ("deploy", "svc", "ns")
_WORDS = {
    **dict.fromkeys(("deploy", "deployment", "deployments", "workload", "workloads"), "deploy"),
    **dict.fromkeys(("svc", "service", "services"), "svc"),
    **dict.fromkeys(("ns", "namespace", "namespaces"), "ns"),
}
_HEADINGS = {
    "deploy": ("NAMESPACE", "WORKLOAD", "PODS", "SUCCESS %"),
    "svc": ("NAMESPACE", "SERVICE", "PORT", "EFFECTIVE %", "ACTUAL %"),
    "ns": ("NAMESPACE", "PODS", "SUCCESS %"),
}
_COMMON = ("RPS", "P50 ms", "P95 ms", "P99 ms", "TCP OPEN", "IN kB/s", "OUT kB/s", "mTLS %")
_WIDE = ("RETRIES/s", "OVERFLOWS", "EJECTIONS", "TCP NEW/s", "TCP SUCCESS %")
_CALLERS = ("EFFECTIVE %", "ACTUAL %")


class Line(NamedTuple):
    """One thing and how it does."""

    namespace: str
    name: str
    port: str
    pods: int | None
    own: Figures
    """As its own sidecars counted; of a Service, as its callers' did."""
    callers: Figures
    """As its callers' sidecars counted."""


class _Kind(click.ParamType[str]):
    name = "kind"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        found = _WORDS.get(str(value))
        if found is None:
            close = difflib.get_close_matches(str(value), _WORDS, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise MeshctlError(f"expected deploy, svc or ns, got {value!r}{hint}")
        return found


@click.command("stat")
@with_edges
@namespace_options
@output_option(*FORMATS)
@click.argument("kind", type=_Kind(), default="deploy", metavar="[deploy|svc|ns]")
@click.argument("name", required=False)
def stat(
    found: EdgeTable, kind: str, name: str | None, namespace: str | None, all_namespaces: bool, output: str
) -> None:
    """How workloads (deploy), Services (svc) or namespaces (ns) do: requests, success, latency, bytes, mTLS.

    Of workloads and namespaces: what arrived there. Of Services: what callers in the mesh saw.
    """
    lines = of_kind(found.rows, kind, scope(namespace, all_namespaces))
    if name is not None:
        known = sorted({line.name for line in lines})
        lines = [line for line in lines if line.name == name]
        if not lines:
            raise nothing_about(f"{kind} {name}", name, known, found.window_s)
    if output in ("json", "yaml"):
        rows = [_plain(line, kind) for line in lines]
        click.echo(structured({"windowSeconds": found.window_s, "kind": kind, "rows": rows}, output))
        return
    if not lines:
        click.echo(f"no traffic was counted in the last {found.window_s:g} s", err=True)
        return
    wide = output == "wide"
    headings = (*_HEADINGS[kind], *_COMMON)
    if wide:
        headings += _WIDE if kind == "svc" else (*_CALLERS, *_WIDE)
    rows_shown = [_cells(line, kind, wide) for line in lines]
    click.echo(table(headings, rows_shown, paint if sys.stdout.isatty() else None))


def of_kind(rows: Sequence[EdgeRow], kind: str, namespace: str | None) -> list[Line]:
    """The lines of a kind, sorted."""
    if kind == "svc":
        found = [
            Line(*key, None, (seen := figures(of)), seen)
            for key, of in grouped(outbound_of(rows), service_of).items()
        ]
        return [line for line in found if namespace in (None, line.namespace)]
    whole = kind == "ns"
    arrived = grouped(inbound_of(rows), lambda row: (row.namespace, "" if whole else row.workload))
    called = grouped(
        outbound_of(rows),
        lambda row: (row.edge.namespace, "" if whole else row.edge.workload) if row.edge.workload else None,
    )
    pods: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        key = (row.namespace, "" if whole else row.workload)
        pods.setdefault(key, {})[row.workload] = row.pods
    return [
        Line(
            *key,
            "",
            sum(pods[key].values()) if key in pods else None,
            figures(arrived.get(key, ())),
            figures(called.get(key, ())),
        )
        for key in sorted({*arrived, *called, *pods})
        if namespace in (None, key[0])
    ]


def _cells(line: Line, kind: str, wide: bool) -> tuple[str, ...]:
    own, callers = line.own, line.callers
    if kind == "svc":
        head = (line.namespace, line.name, line.port, percent(own.success), percent(own.actual_success))
    else:
        names = (line.namespace,) if kind == "ns" else (line.namespace, line.name)
        head = (*names, count(line.pods), percent(own.success))
    cells: tuple[str, ...] = (
        *head,
        number(own.rps),
        number(own.p50_ms),
        number(own.p95_ms),
        number(own.p99_ms),
        count(own.tcp_open),
        kilo(own.sent_bytes_per_s),
        kilo(own.received_bytes_per_s),
        percent(own.mtls),
    )
    if not wide:
        return cells
    if kind != "svc":
        cells += (percent(callers.success), percent(callers.actual_success))
    return (
        *cells,
        number(callers.retries_per_s or None),
        count(callers.overflows),
        count(callers.ejections),
        number(own.tcp_opened_per_s or None),
        percent(own.tcp_success),
    )


def _plain(line: Line, kind: str) -> dict[str, object]:
    plain: dict[str, object] = {"namespace": line.namespace}
    if kind != "ns":
        plain["name"] = line.name
    if kind == "svc":
        plain["port"] = int(line.port)
        return {**plain, "callers": msgspec.to_builtins(line.callers)}
    plain["pods"] = line.pods or 0
    return {**plain, "own": msgspec.to_builtins(line.own), "callers": msgspec.to_builtins(line.callers)}
