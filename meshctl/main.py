"""The commands of `meshctl`. A module is loaded when its command is used: `local` needs no Kubernetes client.

Exit code 0 if done, 1 if what was asked about is not so, 2 if something stands in the way (it says what).
"""

import importlib
import os
import sys
from collections.abc import Mapping

import click

from mesh_api.version import VERSION
from mesh_ops.printable import clean_lines
from meshctl.errors import MeshctlError

LOADED = {
    "bug-report": ("meshctl.commands.bug_report:bug_report", "Collect what a report needs; no secrets."),
    "ca": ("meshctl.commands.ca:ca", "Show, rotate or import the mesh's CA."),
    "check": ("meshctl.commands.check:check", "Check a cluster, before or after an installation."),
    "completion": ("meshctl.commands.completion:completion", "Print a shell's completion script."),
    "edges": ("meshctl.commands.edges:edges", "Show who calls whom, and whether it is secured."),
    "graph": ("meshctl.commands.graph:graph", "Show the mesh as a graph: text, dot or json."),
    "inject": ("meshctl.commands.inject:inject", "Add sidecars to manifests, offline."),
    "install": ("meshctl.commands.install:install", "Put the control plane in a cluster."),
    "logs": ("meshctl.commands.logs:logs", "Show logs of the control plane or of a sidecar."),
    "policy": ("meshctl.commands.policy:policy", "Manage traffic policies: set, get, apply, explain, test."),
    "proxy-config": ("meshctl.commands.proxy:proxy_config", "Show what a sidecar has in force."),
    "proxy-status": ("meshctl.commands.proxy:proxy_status", "List sidecars and whether they are in sync."),
    "routes": ("meshctl.commands.routes:routes", "Show how the routes of a Service do."),
    "stat": ("meshctl.commands.stat:stat", "Show how workloads, Services or namespaces do."),
    "top": ("meshctl.commands.top:top", "Show live requests."),
    "uninject": ("meshctl.commands.inject:uninject", "Take sidecars out of manifests, offline."),
    "uninstall": ("meshctl.commands.uninstall:uninstall", "Take the control plane out of a cluster."),
    "upgrade": ("meshctl.commands.upgrade:upgrade", "Bring an installation to this version."),
    "version": ("meshctl.commands.version:version", "Show versions of client, control plane and sidecars."),
}


class _OneLine(click.ClickException):
    """An error as one line; what was asked for could not be done."""

    exit_code = 2

    def show(self, file: object = None) -> None:
        click.echo(f"error: {clean_lines(self.message)}", err=True)


class Commands(click.Group):
    """A group whose commands are loaded by name."""

    def __init__(self, *args: object, loaded: Mapping[str, tuple[str, str]], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._loaded = loaded

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self._loaded])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._loaded:
            return super().get_command(ctx, cmd_name)
        module, _, name = self._loaded[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = {name: command.get_short_help_str(80) for name, command in self.commands.items()}
        texts = {**own, **{name: text for name, (_, text) in self._loaded.items()}}
        with formatter.section("Commands"):
            formatter.write_dl([(name, texts[name]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MeshctlError as exc:
            raise _OneLine(str(exc)) from None


@click.group(cls=Commands, loaded=LOADED, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="meshctl")
def cli() -> None:
    """Manage the mesh."""


@cli.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def local(arguments: tuple[str, ...]) -> None:
    """A one-host cluster for trying and testing the mesh (up, status, down)."""
    # A program of its own: what manages a mesh must not depend on the equipment for trying it.
    os.execv(sys.executable, [sys.executable, "-m", "mesh_local", *(arguments or ("--help",))])


def main() -> None:
    cli(prog_name="meshctl")
