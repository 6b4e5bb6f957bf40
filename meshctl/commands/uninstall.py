"""`meshctl uninstall`."""

from typing import Any

import click

from manifests.names import CA_BUNDLE, CA_SECRET, GROUP, LEASE, SYSTEM_NAMESPACE
from meshctl import apply as cluster
from meshctl.context import with_kube
from meshctl.errors import MeshctlError
from meshctl.kube import Kube
from meshctl.pods import has_sidecar, named
from meshctl.wait import Duration, poll

Object = dict[str, Any]
_SHOWN = 10


@click.command()
@with_kube
@click.option("--purge", is_flag=True, help="Also the CRDs with all policies, the CA's key, the namespace.")
@click.option("--force", is_flag=True, help="Even where pods have sidecars.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted.")
@click.option("--timeout", type=Duration(), default="2m", show_default=True, help="For all to be gone.")
def uninstall(kube: Kube, purge: bool, force: bool, dry_run: bool, timeout: float) -> None:
    """Take the control plane out of a cluster; policies and the CA's key stay unless --purge."""
    there = cluster.existing(kube)
    namespace = there.namespace if there else SYSTEM_NAMESPACE
    if not force and not dry_run:
        _refuse_sidecars(kube)
    todo = _objects(kube, namespace, purge)
    if dry_run:
        for obj in todo:
            click.echo(f"{_title(obj)} would be deleted")
        return
    if not todo:
        click.echo("nothing is installed")
        return
    cluster.require(kube, todo, ("delete",))
    for obj in todo:
        if kube.delete(obj):
            click.echo(f"{_title(obj)} deleted")
    _wait_gone(kube, todo, timeout)
    if not purge:
        click.echo(f"kept: the CRDs with all policies, and Secret {CA_SECRET} in {namespace} (--purge)")


def _refuse_sidecars(kube: Kube) -> None:
    pods = [pod for pod in kube.items("v1", "Pod") if has_sidecar(pod)]
    if not pods:
        return
    shown = "".join(f"\n  {named(pod)}" for pod in pods[:_SHOWN])
    more = f"\n  and {len(pods) - _SHOWN} more" if len(pods) > _SHOWN else ""
    raise MeshctlError(
        f"nothing was changed: {len(pods)} pods have a sidecar, which would get no new certificate:"
        f"{shown}{more}\n"
        f"remove the label {GROUP}/injection from their namespaces and restart them, or use --force"
    )


def _objects(kube: Kube, namespace: str, purge: bool) -> list[Object]:
    """What goes, in this order: webhooks, the control plane, what it wrote, with `purge` all else."""
    todo = cluster.installed(kube)
    todo += kube.items("v1", "ConfigMap", fields=f"metadata.name={CA_BUNDLE}")
    lease = kube.find("coordination.k8s.io/v1", "Lease", LEASE, namespace)
    todo += [{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **lease}] if lease else []
    if not purge:
        return todo
    secret = kube.find("v1", "Secret", CA_SECRET, namespace)
    todo += [{"apiVersion": "v1", "kind": "Secret", **secret}] if secret else []
    todo += cluster.installed_crds(kube)
    todo += kube.items("v1", "Namespace", labels=cluster.INSTALLED)
    return todo


def _title(obj: Object) -> str:
    namespace = obj["metadata"].get("namespace")
    return cluster.title(obj) + (f" in {namespace}" if namespace else "")


def _wait_gone(kube: Kube, objects: list[Object], limit_s: float) -> None:
    """Wait until all are gone, finalizers and the namespace's contents included."""
    left = list(objects)
    for _ in poll(limit_s):
        left = [obj for obj in left if _is_there(kube, obj)]
        if not left:
            return
    names = ", ".join(_title(obj) for obj in left[:_SHOWN])
    raise MeshctlError(f"not gone within {limit_s:.0f} s: {names}")


def _is_there(kube: Kube, obj: Object) -> bool:
    metadata = obj["metadata"]
    found = kube.find(obj["apiVersion"], obj["kind"], metadata["name"], metadata.get("namespace"))
    return found is not None and found["metadata"]["uid"] == metadata["uid"]
