"""`meshctl`: manage the mesh.

Exit code 0 if done, 1 if what was asked about is not so, 2 if something stands in the way (it says what).
"""

import os
import sys

import click


@click.group()
@click.version_option(package_name="triomesh")
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


if __name__ == "__main__":
    main()
