"""What the statistics' commands share: options, asking the control plane, watching, and suggestions."""

import difflib
import functools
import sys
import threading
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click

from mesh_api.stats import EdgeTable
from meshctl.admin import ask, home
from meshctl.context import with_kube
from meshctl.errors import MeshctlError
from meshctl.kube import Kube
from meshctl.stats_view import note
from meshctl.wait import Duration

F = TypeVar("F", bound=Callable[..., Any])
FORMATS = ("table", "wide", "json", "yaml")
MIN_WINDOW_S, MAX_WINDOW_S = 10.0, 600.0
WATCH_S = 2.0
_CLEAR = "\x1b[H\x1b[2J"


def output_option(*formats: str) -> Callable[[F], F]:
    """Add `-o`."""
    return click.option("-o", "--output", type=click.Choice(formats), default=formats[0], show_default=True)


def namespace_options(command: F) -> F:
    """Add -n and -A."""
    command = click.option("-A", "--all-namespaces", is_flag=True, help="All namespaces.")(command)
    return click.option("-n", "--namespace", help="Only this one.")(command)


def window_option(command: F) -> F:
    """Add --window."""
    return click.option(
        "--window", type=Duration(), default="60s", show_default=True, help="How far back, 10s to 10m."
    )(command)


def watched(command: Callable[..., None]) -> Callable[..., None]:
    """Add --watch, which shows the same again and again."""

    @functools.wraps(command)
    def repeated(*args: Any, watch: bool, **kwargs: Any) -> None:
        if not watch:
            command(*args, **kwargs)
            return
        pause = threading.Event()
        try:
            while True:
                if sys.stdout.isatty():
                    click.echo(_CLEAR, nl=False)
                command(*args, **kwargs)
                pause.wait(WATCH_S)
        except KeyboardInterrupt:
            return

    return click.option(
        "-w", "--watch", is_flag=True, help=f"Show it again every {WATCH_S:g} s, until interrupted."
    )(repeated)


def with_edges(command: Callable[..., None]) -> Callable[..., None]:
    """Add --kubeconfig, --context, --window and --watch, and hand the edges to the command as `found`."""

    @functools.wraps(command)
    def given(kube: Kube, *args: Any, window: float, **kwargs: Any) -> None:
        if not MIN_WINDOW_S <= window <= MAX_WINDOW_S:
            raise click.BadParameter("expected 10s to 10m", param_hint="--window")
        found = ask(kube, home(kube), "/stats", EdgeTable, query={"window": f"{window:g}"})
        if text := note(found):
            click.echo(text, err=True)
        command(*args, found=found, **kwargs)

    return with_kube(watched(window_option(given)))


def scope(namespace: str | None, all_namespaces: bool) -> str | None:
    """The namespace to show; None for all. Raises UsageError for both options."""
    if namespace and all_namespaces:
        raise click.UsageError("expected -n or -A, got both")
    return namespace


def nothing_about(what: str, name: str, known: Collection[str], window_s: float) -> MeshctlError:
    """The error for a name that no traffic was counted for; `known` are the names that there are."""
    close = difflib.get_close_matches(name, known, 3, 0.6)
    close += sorted(each for each in known if each not in close and each.startswith(name))
    text = f"no traffic of {what} was counted in the last {window_s:g} s"
    if close:
        return MeshctlError(f"{text}; did you mean {' or '.join(close[:3])}?")
    shown = ", ".join(sorted(known)[:10]) or "none"
    return MeshctlError(f"{text}; there is of: {shown}{', ...' if len(known) > 10 else ''}")
