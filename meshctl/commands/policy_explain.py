"""`meshctl policy explain`: what holds for a Service, and who says so."""

from __future__ import annotations

from typing import Any

import click

from mesh_api.policy import SPECS
from meshctl import policy_find as find
from meshctl.context import with_kube
from meshctl.kube import Kube
from meshctl.policy_explain import Row, explained, inbound, notes
from meshctl.policy_held import Held, holding
from meshctl.render import output_option, structured, table

Object = dict[str, Any]


def in_force(kube: Kube, *namespaces: str) -> Held:
    """The policies that matter for the Services and workloads of namespaces."""
    system = find.system_namespace(kube)
    objects = [
        each
        for kind in SPECS
        for place in dict.fromkeys((system, *namespaces))
        for each in find.policies(kube, kind, place)
    ]
    return holding(objects, system)


@click.command()
@click.argument("service")
@click.option("-n", "--namespace", default="default", show_default=True)
@output_option
@with_kube
def explain(kube: Kube, service: str, namespace: str, output: str) -> None:
    """Show what holds for a Service: every field, its value, who says so, and which side enforces it."""
    target = find.service(kube, namespace, service)
    held = in_force(kube, namespace)
    policy = held.policies.get((namespace, service))
    rows = explained(policy, held.levels, namespace)
    rows += inbound(held.levels, namespace, find.workloads(find.pods_of(kube, target)))
    told = [note for note in held.notes if f" {namespace}/" in note]
    if output != "table":
        data = {
            "service": f"{namespace}/{service}",
            "policy": "/".join(policy.key) if policy else None,
            "fields": [row._asdict() for row in rows],
            "notes": [*notes(rows), *told],
        }
        click.echo(structured(data, output))
        return
    click.echo(table([name.upper() for name in Row._fields], [_short(row) for row in rows]))
    for note in (*notes(rows), *told):
        click.echo(f"note: {note}")


def _short(row: Row) -> tuple[str, ...]:
    return tuple(cell if len(cell) <= 72 else f"{cell[:69]}..." for cell in row)
