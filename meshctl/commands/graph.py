"""`meshctl graph`: the mesh as a graph of workloads."""

import click

from mesh_api.stats import EdgeTable
from mesh_ops.printable import clean_lines
from meshctl.commands.edges import Line, lines_of, plain
from meshctl.render import structured
from meshctl.stats_options import namespace_options, output_option, scope, with_edges
from meshctl.stats_view import number, percent


@click.command("graph")
@with_edges
@namespace_options
@output_option("text", "dot", "json")
def graph(found: EdgeTable, namespace: str | None, all_namespaces: bool, output: str) -> None:
    """Who calls whom as text, as a graph for Graphviz (dot), or for programs (json)."""
    lines = lines_of(found.rows, scope(namespace, all_namespaces))
    if output == "json":
        nodes = sorted({end for line in lines for end in (line.source, line.destination)})
        data = {
            "windowSeconds": found.window_s,
            "nodes": [{"id": node} for node in nodes],
            "edges": [plain(line) for line in lines],
        }
        click.echo(structured(data, "json"))
    elif output == "dot":
        click.echo(clean_lines(dot(lines)))
    elif lines:
        click.echo(clean_lines(text(lines)))
    else:
        click.echo(f"no traffic was counted in the last {found.window_s:g} s", err=True)


def text(lines: list[Line]) -> str:
    """Each source with an arrow to whom it calls."""
    shown = []
    for source in sorted({line.source for line in lines}):
        own = [line for line in lines if line.source == source]
        shown.append(source)
        for line in own:
            branch = "└─" if line is own[-1] else "├─"
            arrow = _look(line, "=>", "->", "..")
            shown.append(f"{branch}{arrow} {line.destination}   {_label(line)}")
    return "\n".join([*shown, "", "=> all mTLS   -> plaintext, at least in part   .. nobody was reached"])


def dot(lines: list[Line]) -> str:
    """The graph in Graphviz' language; plaintext edges are dashed, dotted where nobody was reached."""
    shown = ["digraph mesh {", "  rankdir=LR;", "  node [shape=box];"]
    for line in lines:
        style = _look(line, "solid", "dashed", "dotted")
        attributes = f"label={_quoted(_label(line))}, style={style}"
        shown.append(f"  {_quoted(line.source)} -> {_quoted(line.destination)} [{attributes}];")
    return "\n".join([*shown, "}"])


def _look(line: Line, secure: str, plaintext: str, nobody: str) -> str:
    if line.figures.mtls is None:
        return nobody
    return secure if line.figures.mtls == 1 else plaintext


def _label(line: Line) -> str:
    seen = line.figures
    if seen.rps is not None:
        return f"{number(seen.rps)} rps, {percent(seen.success)} % success, p99 {number(seen.p99_ms)} ms"
    return f"tcp, {seen.tcp_open or 0} open"


def _quoted(words: str) -> str:
    # The DOT language: a quoted string ends at a quote that no backslash precedes.
    return '"' + words.replace("\\", "\\\\").replace('"', '\\"') + '"'
