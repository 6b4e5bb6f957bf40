"""`meshctl upgrade`."""

import click

from meshctl import apply as cluster
from meshctl.commands.install import finish, put, run_options, show
from meshctl.context import read_tree, read_values
from meshctl.errors import MeshctlError
from meshctl.kube import connect


@click.command()
@run_options
@click.option("--reset-values", is_flag=True, help="Start from the defaults, not from the values in force.")
def upgrade(
    kubeconfig: str | None,
    context: str | None,
    files: tuple[str, ...],
    assignments: tuple[str, ...],
    dry_run: bool,
    output: str | None,
    wait: bool,
    timeout: float,
    reset_values: bool,
) -> None:
    """Bring an installation to this version; values that are not given stay as they are."""
    if output and not dry_run:
        raise click.UsageError("-o goes with --dry-run")
    kube = connect(kubeconfig, context)
    before = cluster.existing(kube)
    if before is None:
        raise MeshctlError(f"the mesh is not installed in the cluster at {kube.host}; use `meshctl install`")
    base = {"namespace": before.namespace} if reset_values else cluster.stored_values(before)
    values = read_values(read_tree(files, assignments, base))
    if dry_run:
        show(values, output)
        return
    put(kube, values)
    finish(kube, values, wait, timeout)
    click.echo("sidecars keep their version until their pods start anew; `meshctl version` lists them")
