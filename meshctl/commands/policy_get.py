"""`meshctl policy get`: policies, and whether they are in force."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from mesh_api.policy import KINDS
from mesh_api.policy_values import meant
from meshctl import policy_find as find
from meshctl.context import with_kube
from meshctl.errors import MeshctlError
from meshctl.kube import Kube
from meshctl.render import structured, table

Object = dict[str, Any]
_HEADINGS = ("NAMESPACE", "KIND", "NAME", "FOR", "ACCEPTED", "PROGRAMMED", "AGE")
_WIDE = ("SUBSETS", "ROUTES", "MESSAGE")


@click.command()
@click.argument("name", required=False)
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("-A", "--all-namespaces", is_flag=True, help="Of every namespace.")
@click.option("--kind", type=click.Choice(KINDS), help="Only this one.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(("table", "wide", "json", "yaml")),
    default="table",
    show_default=True,
)
@with_kube
def get(
    kube: Kube, name: str | None, namespace: str, all_namespaces: bool, kind: str | None, output: str
) -> None:
    """List policies and whether they are in force; NAME is a policy's or its Service's."""
    kinds = [kind] if kind else list(KINDS)
    where = None if all_namespaces else namespace
    found = [each for one in kinds for each in find.policies(kube, one, where)]
    if name is not None:
        known = {each["metadata"]["name"] for each in found} | {find.target(each) for each in found} - {""}
        found = [each for each in found if name in (each["metadata"]["name"], find.target(each))]
        if not found:
            place = f" in namespace {namespace}" if where else ""
            raise MeshctlError(f"there is no policy {name!r}{place}, nor one for it{meant(name, known)}")
    if output in ("json", "yaml"):
        click.echo(structured(found, output))
    elif found:
        wide = output == "wide"
        now = datetime.now(UTC)
        click.echo(table(_HEADINGS + (_WIDE if wide else ()), [_row(each, wide, now) for each in found]))
    else:
        click.echo(f"no policies{f' in namespace {namespace}' if where else ''}", err=True)


def _row(policy: Object, wide: bool, now: datetime) -> tuple[object, ...]:
    meta, spec = policy["metadata"], policy.get("spec") or {}
    stands = conditions(policy)
    row = (
        meta["namespace"],
        policy["kind"],
        meta["name"],
        _for(policy),
        _state(stands, "Accepted"),
        _state(stands, "Programmed"),
        _age(meta.get("creationTimestamp"), now),
    )
    if not wide:
        return row
    subsets = ",".join(spec.get("subsets") or {}) or "-"
    return (*row, subsets, len(spec.get("routes") or ()) or "-", message(stands) or "-")


def conditions(policy: Object) -> dict[str, Object]:
    """What the control plane says, by type; only what it says about the policy as it is now."""
    status = policy.get("status") or {}
    generation = policy["metadata"].get("generation", 0)
    return {
        each["type"]: each
        for each in status.get("conditions") or ()
        if each.get("observedGeneration", generation) >= generation
    }


def message(stands: Mapping[str, Object]) -> str:
    """What stands in a policy's way, or is remarked."""
    texts = dict.fromkeys(str(each.get("message") or "") for each in stands.values())
    return "; ".join(filter(None, texts))


def _state(stands: Mapping[str, Object], kind: str) -> str:
    if kind not in stands:
        return "not yet"
    state = str(stands[kind].get("status", "Unknown"))
    return state if state == "True" else f"{state} ({stands[kind].get('reason', '')})"


def _for(policy: Object) -> str:
    if policy["kind"] == "TrafficPolicy":
        return f"service/{find.target(policy) or '?'}"
    refs = (policy.get("spec") or {}).get("targetRefs")
    if refs:
        return ",".join(f"{str(ref.get('kind', '?')).lower()}/{ref.get('name', '?')}" for ref in refs)
    return f"namespace/{policy['metadata']['namespace']}"


def _age(created: str | None, now: datetime) -> str:
    if not created:
        return "-"
    seconds = max(0, int((now - datetime.fromisoformat(created)).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
