"""`python -m mesh_local`: what `meshctl local` runs, and the runtime itself (`serve`).

Exit code 0 if done, 1 if a cluster asked about is not ready, 2 if something stands in the way (it says what).
"""

import os
import sys
from typing import cast

import click

from mesh_local.network.types import NetworkError
from mesh_local.settings import DEFAULT_NAME, IpFamily, Places, SettingsError

NAME = click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the cluster.")


@click.group(name="local")
def cli() -> None:
    """A one-host cluster for trying and testing the mesh: real kubectl, pods as network namespaces."""


@cli.command()
@NAME
@click.option(
    "--api-port", type=int, help="Port of the API server on 127.0.0.1.  [default: first free from 6443]"
)
@click.option(
    "--ip-family", type=click.Choice(["ipv4", "ipv6", "dual"]), help="Addresses of pods.  [default: dual]"
)
def up(name: str, api_port: int | None, ip_family: str | None) -> None:
    """Start a cluster; run again, it goes on with the one that is there."""
    from mesh_local.lifecycle import commands

    commands.up(name, api_port, cast("IpFamily | None", ip_family))


@cli.command()
@click.option("--name", help="Name of the cluster.  [default: all]")
def status(name: str | None) -> None:
    """Show whether clusters are running and ready."""
    from mesh_local.lifecycle import commands

    sys.exit(0 if commands.status(name) else 1)


@cli.command()
@NAME
@click.option(
    "--purge", is_flag=True, help="Also remove the objects, certificates and logs that `up` would go on with."
)
def down(name: str, purge: bool) -> None:
    """Stop a cluster and remove everything it made on this machine."""
    from mesh_local.lifecycle import commands

    commands.down(name, purge)


@cli.command(hidden=True)
@NAME
@click.option("--progress-fd", type=int, default=1, help="Where to write one line for each step.")
def serve(name: str, progress_fd: int) -> None:
    """Run the cluster in the foreground."""
    from mesh_local import cluster

    with os.fdopen(progress_fd, "w", buffering=1) as progress:
        sys.exit(cluster.run(Places(name), progress))


def main(argv: list[str] | None = None, prog_name: str = "meshctl local") -> int:
    """Run a command; a problem is one line on stderr and exit code 2."""
    try:
        cli.main(args=argv, prog_name=prog_name)
    except (SettingsError, NetworkError, OSError) as exc:
        click.echo(f"error: {exc}", err=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
