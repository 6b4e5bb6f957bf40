"""`meshctl check`."""

import sys
from datetime import UTC, datetime
from typing import Any

import click

from mesh_ops.printable import clean_lines
from meshctl import apply as cluster
from meshctl.checks.lists import BEFORE, INSTALLED
from meshctl.checks.model import Check, Outcome, Result, Target, run_all
from meshctl.context import kube_options, read_tree, read_values, values_options
from meshctl.errors import MeshctlError
from meshctl.kube import Kube, connect
from meshctl.render import output_option, structured

_MARKS = {Outcome.PASSED: "ok", Outcome.WARNING: "!!", Outcome.FAILED: "NO", Outcome.SKIPPED: "--"}


@click.command()
@values_options
@kube_options
@output_option
@click.option("--pre", is_flag=True, help="Before an installation.")
def check(
    kubeconfig: str | None,
    context: str | None,
    output: str,
    pre: bool,
    files: tuple[str, ...],
    assignments: tuple[str, ...],
) -> None:
    """Check a cluster; exit code 1 where a check failed."""
    kube = connect(kubeconfig, context)
    values = read_values(read_tree(files, assignments, {} if pre else _stored(kube)))
    target = Target(kube, values, lambda: datetime.now(UTC))
    results: list[tuple[Check, Result]] = []
    for each, result in run_all(BEFORE if pre else INSTALLED, target):
        results.append((each, result))
        if output == "table":
            click.echo(clean_lines(_line(each, result)))
    if output != "table":
        click.echo(structured([_plain(*pair) for pair in results], output))
    else:
        click.echo(_summary(results))
    if any(result.outcome is Outcome.FAILED for _, result in results):
        sys.exit(1)


def _stored(kube: Kube) -> dict[str, Any]:
    """The installation's values; the defaults where it cannot be found, which a check will say."""
    try:
        there = cluster.existing(kube)
        return cluster.stored_values(there) if there else {}
    except MeshctlError:
        return {}


def _line(check: Check, result: Result) -> str:
    detail = f": {result.detail}" if result.detail else ""
    lines = [f"{_MARKS[result.outcome]}  {check.title}{detail}", *(f"      {text}" for text in result.lines)]
    if result.outcome in (Outcome.FAILED, Outcome.WARNING):
        lines.append(f"    hint: {check.hint}")
    return "\n".join(lines)


def _summary(results: list[tuple[Check, Result]]) -> str:
    count = {o: sum(result.outcome is o for _, result in results) for o in Outcome}
    return ", ".join(f"{number} {outcome.value}" for outcome, number in count.items() if number)


def _plain(check: Check, result: Result) -> dict[str, Any]:
    plain = {
        "id": check.id,
        "title": check.title,
        "outcome": result.outcome.value,
        "detail": result.detail,
        "lines": list(result.lines),
    }
    if result.outcome in (Outcome.FAILED, Outcome.WARNING):
        plain["hint"] = check.hint
    return plain
