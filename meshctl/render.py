"""How results are shown: a table, JSON or YAML."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import yaml

F = TypeVar("F", bound=Callable[..., Any])
FORMATS = ("table", "json", "yaml")


def output_option(command: F) -> F:
    """Add `-o table|json|yaml` to a command."""
    return click.option("-o", "--output", type=click.Choice(FORMATS), default="table", show_default=True)(
        command
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns three spaces apart, as kubectl's."""
    lines = [headings, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def structured(data: Any, output: str) -> str:
    if output == "json":
        return json.dumps(data, indent=2)
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=False).rstrip("\n")
