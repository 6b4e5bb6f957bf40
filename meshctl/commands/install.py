"""`meshctl install`."""

from typing import Any

import click

from manifests.names import GROUP
from manifests.render import crds, render, to_yaml
from manifests.values import Values
from meshctl import apply as cluster
from meshctl.context import kube_options, read_tree, read_values, values_options
from meshctl.errors import MeshctlError
from meshctl.kube import Kube, connect
from meshctl.render import structured
from meshctl.wait import Duration, wait_control

Object = dict[str, Any]
ESTABLISHED_LIMIT_S = 30.0


def run_options(command: Any) -> Any:
    """What `install` and `upgrade` share."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Print the objects; ask and change nothing."),
        click.option("-o", "--output", type=click.Choice(("yaml", "json")), help="Of --dry-run."),
        click.option("--wait", is_flag=True, help="Wait until the control plane is ready."),
        click.option("--timeout", type=Duration(), default="2m", show_default=True, help="Of --wait."),
    ):
        command = option(command)
    return values_options(kube_options(command))


@click.command()
@run_options
def install(
    kubeconfig: str | None,
    context: str | None,
    files: tuple[str, ...],
    assignments: tuple[str, ...],
    dry_run: bool,
    output: str | None,
    wait: bool,
    timeout: float,
) -> None:
    """Put the control plane in a cluster; again, it brings it back to what it should be."""
    values = read_values(read_tree(files, assignments, {}))
    if dry_run:
        show(values, output)
        return
    if output:
        raise click.UsageError("-o goes with --dry-run")
    kube = connect(kubeconfig, context)
    put(kube, values)
    finish(kube, values, wait, timeout)


def show(values: Values, output: str | None) -> None:
    """Print what would be installed, without a cluster."""
    objects = render(values)
    if output == "json":
        click.echo(structured({"apiVersion": "v1", "kind": "List", "items": objects}, "json"))
    else:
        click.echo(to_yaml(objects), nl=False)


def put(kube: Kube, values: Values) -> None:
    """Bring a whole installation into a cluster, and take out what an earlier one had besides.

    Raises:
        MeshctlError: refused; where that is known beforehand, nothing was changed.
    """
    definitions = crds()
    objects = cluster.supported(kube, render(values), click.echo)
    cluster.require(kube, objects, ("get", "create", "update"))
    before = cluster.existing(kube)
    check_same(values, before)
    cluster.check_crds(kube, definitions)
    old = cluster.leftovers(kube, objects) if before else []
    cluster.require(kube, old, ("delete",))
    later = objects[len(definitions) :]
    for crd in definitions:
        click.echo(f"{cluster.title(crd)} {cluster.apply(kube, crd)}")
    cluster.wait_established(kube, definitions, ESTABLISHED_LIMIT_S)
    for obj in later:
        click.echo(f"{cluster.title(obj)} {cluster.apply(kube, obj)}")
    for obj in old:
        if kube.delete(obj):
            click.echo(f"{cluster.title(obj)} deleted: no longer part of the installation")


def check_same(values: Values, before: cluster.Existing | None) -> None:
    """Refuse what would need every pod to start anew.

    Raises:
        MeshctlError: another namespace or trust domain than the installation that is there.
    """
    if before is None:
        return
    if before.namespace != values.namespace:
        raise MeshctlError(
            f"nothing was changed: the mesh is installed in {before.namespace}, not {values.namespace}; "
            f"a cluster has one (--set namespace={before.namespace}, or `meshctl uninstall` first)"
        )
    domain = read_values(cluster.stored_values(before)).trust_domain
    if domain != values.trust_domain:
        raise MeshctlError(
            f"nothing was changed: the trust domain is {domain}, not {values.trust_domain}; "
            f"every certificate carries it (--set trustDomain={domain}, or `meshctl uninstall --purge` first)"
        )


def finish(kube: Kube, values: Values, wait: bool, timeout: float) -> None:
    if wait:
        wait_control(kube, values.namespace, timeout, click.echo)
        click.echo(f"next: kubectl label namespace NAME {GROUP}/injection=enabled")
