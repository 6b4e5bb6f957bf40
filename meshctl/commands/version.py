"""`meshctl version`."""

from collections import Counter
from typing import Any

import click

from manifests.names import CONTROL
from mesh_api.admin import ControlVersion
from mesh_api.names import INJECTED
from mesh_api.version import VERSION
from mesh_ops.printable import clean_lines
from meshctl import apply as cluster
from meshctl.admin import AdminUnavailable, ask
from meshctl.context import kube_options
from meshctl.kube import Kube, connect
from meshctl.pods import has_sidecar
from meshctl.render import output_option, structured


@click.command()
@kube_options
@output_option
@click.option("--client", is_flag=True, help="Ask no cluster.")
def version(kubeconfig: str | None, context: str | None, output: str, client: bool) -> None:
    """Show versions of client, control plane and sidecars."""
    found: dict[str, Any] = {"client": VERSION}
    if not client:
        found |= _cluster(connect(kubeconfig, context))
    if output != "table":
        click.echo(structured(found, output))
        return
    click.echo(f"client: {VERSION}")
    if client:
        return
    click.echo(f"kubernetes: {found['kubernetes']}")
    click.echo(clean_lines(f"control plane: {_control_line(found['controlPlane'])}"))
    counts = found["sidecars"]
    listed = ", ".join(f"{number} of {name}" for name, number in counts.items())
    click.echo(clean_lines(f"sidecars: {listed or 'none'}"))


def _cluster(kube: Kube) -> dict[str, Any]:
    found: dict[str, Any] = {"kubernetes": kube.request("GET", "/version")["gitVersion"]}
    there = cluster.existing(kube)
    control: dict[str, Any] | None = None
    if there:
        containers = there.deployment["spec"]["template"]["spec"]["containers"]
        control = {"namespace": there.namespace, "image": containers[0]["image"]}
        try:
            control["version"] = ask(kube, there.namespace, "/version", ControlVersion).version
        except AdminUnavailable as exc:
            control["error"] = str(exc)
    pods = [pod for pod in kube.items("v1", "Pod") if has_sidecar(pod)]
    versions = [(p["metadata"].get("annotations") or {}).get(INJECTED, "unknown") for p in pods]
    return {**found, "controlPlane": control, "sidecars": dict(sorted(Counter(versions).items()))}


def _control_line(control: dict[str, Any] | None) -> str:
    if control is None:
        return f"not installed (no deployment {CONTROL})"
    said = control.get("version") or f"did not answer: {control['error']}"
    return f"{said} (image {control['image']}, namespace {control['namespace']})"
