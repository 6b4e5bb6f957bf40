"""`meshctl policy apply` and `meshctl policy delete`."""

from __future__ import annotations

import sys
from typing import Any

import click

from mesh_api.policy import KINDS, read_policy
from mesh_api.policy_types import API_VERSION
from mesh_api.policy_values import listed, meant, show
from meshctl import apply as cluster
from meshctl import policy_find as find
from meshctl.commands.policy import refused
from meshctl.context import with_kube
from meshctl.errors import MeshctlError
from meshctl.kube import Kube
from meshctl.manifests_io import ManifestError, changed

Object = dict[str, Any]


def documents(name: str) -> list[tuple[str, Object]]:
    """The documents of a file (`-` is standard input), each with the place where it is.

    Raises:
        MeshctlError: the file cannot be read, or is not YAML.
    """
    found: list[tuple[str, Object]] = []

    def keep(document: Any, number: int) -> Any:
        if document is not None:
            found.append((f"{name}: document {number}", document))
        return document

    try:
        if name == "-":
            changed(sys.stdin.read(), keep)
        else:
            with open(name, encoding="utf-8") as file:
                changed(file.read(), keep)
    except (OSError, UnicodeDecodeError, ManifestError) as exc:
        raise MeshctlError(f"{name}: {exc}") from None
    return found


def checked(where: str, document: object, namespace: str) -> Object:
    """A document as a policy in its namespace.

    Raises:
        MeshctlError: it is none, or is not legal.
    """
    if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
        raise MeshctlError(f"{where}: expected an object with kind, metadata and spec, got {show(document)}")
    kind, version = document.get("kind"), document.get("apiVersion")
    if version != API_VERSION or kind not in KINDS:
        near = meant(kind, KINDS) if isinstance(kind, str) else ""
        raise MeshctlError(
            f"{where}: expected {listed(KINDS)} of {API_VERSION}, got {show(kind)} of {show(version)}{near}"
        )
    meta = {**document["metadata"]}
    meta.setdefault("namespace", namespace)
    if not isinstance(meta.get("name"), str) or not meta["name"]:
        raise MeshctlError(f"{where}: metadata.name: expected a name, got {show(meta.get('name'))}")
    whole = {**document, "metadata": meta}
    found = read_policy(kind, whole)
    if isinstance(found, list):
        raise refused(f"{where}: {kind} {meta['namespace']}/{meta['name']}", found)
    return whole


@click.command()
@click.option("-f", "--filename", "files", multiple=True, required=True, help="File with policies, or -.")
@click.option("-n", "--namespace", default="default", show_default=True, help="Of policies that name none.")
@click.option("--dry-run", is_flag=True, help="Only check.")
@with_kube
def apply(kube: Kube, files: tuple[str, ...], namespace: str, dry_run: bool) -> None:
    """Check policies from files, all of them, then bring them in; exit code 2 where one is refused."""
    good: list[Object] = []
    bad = 0
    for name in files:
        for where, document in documents(name):
            try:
                good.append(checked(where, document, namespace))
            except MeshctlError as exc:
                bad += 1
                click.echo(f"error: {exc}", err=True)
    if bad:
        raise MeshctlError(f"nothing was changed: {bad} of {bad + len(good)} policies are not legal")
    if not good:
        raise MeshctlError(f"{listed(files, 'and')}: no policies there")
    for policy in good:
        if dry_run:
            click.echo(f"{cluster.title(policy)} is legal")
            continue
        try:
            click.echo(f"{cluster.title(policy)} {cluster.apply(kube, policy)}")
        except MeshctlError as exc:
            bad += 1
            click.echo(f"error: {exc}", err=True)
    if bad:
        raise MeshctlError(f"{bad} of {len(good)} policies were not applied")


@click.command()
@click.argument("name")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("--kind", type=click.Choice(KINDS), default="TrafficPolicy", show_default=True)
@with_kube
def delete(kube: Kube, name: str, namespace: str, kind: str) -> None:
    """Remove a policy; NAME is its own, or that of its Service."""
    there = find.policies(kube, kind, namespace)
    found = [each for each in there if each["metadata"]["name"] == name] or find.for_service(there, name)
    if not found:
        known = {each["metadata"]["name"] for each in there} | {find.target(each) for each in there}
        raise MeshctlError(
            f"there is no {kind} {name!r} in namespace {namespace}, nor one for a Service of that name"
            f"{meant(name, known - {''})}"
        )
    if len(found) > 1:
        names = listed((each["metadata"]["name"] for each in found), "and")
        raise MeshctlError(f"{names} are for the Service {name!r}: name the one to delete")
    kube.delete(found[0])
    click.echo(f"{cluster.title(found[0])} deleted")
