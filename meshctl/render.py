"""How results are shown: a table, JSON or YAML."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import yaml

from mesh_ops.printable import MAX_LINE_CHARS, clean

F = TypeVar("F", bound=Callable[..., Any])
FORMATS = ("table", "json", "yaml")


def output_option(command: F) -> F:
    """Add `-o table|json|yaml` to a command."""
    return click.option("-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True)(
        command
    )


Paint = Callable[[str, str], str | None]
"""The colour of a cell, by its heading and its text."""


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], paint: Paint | None = None) -> str:
    """Columns three spaces apart, as kubectl's."""
    lines = [headings, *([clean(str(cell), MAX_LINE_CHARS) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    written = []
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        cells[-1] = cells[-1].rstrip()
        if paint is not None and line is not headings:
            cells = [
                click.style(padded, fg=paint(heading, cell))
                for heading, cell, padded in zip(headings, line, cells, strict=True)
            ]
        written.append("   ".join(cells).rstrip())
    return "\n".join(written)


def structured(data: Any, output: str) -> str:
    if output == "json":
        return json.dumps(data, indent=2)
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=False).rstrip("\n")
