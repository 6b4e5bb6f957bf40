"""`meshctl logs`."""

import queue
import sys
import threading
from collections.abc import Iterator

import click

from manifests.names import CONTROL
from mesh_api.names import PROXY_CONTAINER
from mesh_ops.printable import clean_lines
from meshctl import apply as cluster
from meshctl.context import with_kube
from meshctl.errors import MeshctlError
from meshctl.kube import Kube

Source = tuple[str, str, str]
"""Namespace, pod, container."""
_QUEUE = 1000


@click.command()
@with_kube
@click.option("-n", "--namespace", default="default", show_default=True, help="Of POD.")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows.")
@click.option("--tail", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Last lines.")
@click.option("--previous", is_flag=True, help="Of the container before the last restart.")
@click.option("--init", is_flag=True, help="Of the network init instead of the sidecar.")
@click.argument("pod", required=False)
def logs(
    kube: Kube, namespace: str, follow: bool, tail: int, previous: bool, init: bool, pod: str | None
) -> None:
    """Show logs of the control plane, or of the sidecar of POD (NAME or NAMESPACE/NAME)."""
    if pod:
        namespace, _, name = pod.rpartition("/") if "/" in pod else (namespace, "", pod)
        sources = [(namespace, name, "triomesh-init" if init else PROXY_CONTAINER)]
    else:
        sources = control_sources(kube)
    streams = {
        source: kube.log_lines(*source, tail=tail, follow=follow, previous=previous) for source in sources
    }
    if len(streams) == 1 or not follow:
        for source, lines in streams.items():
            for line in lines:
                click.echo(_prefixed(source, line, len(streams)))
    else:
        for source, line in _together(streams):
            click.echo(_prefixed(source, line, len(streams)))


def control_sources(kube: Kube) -> list[Source]:
    """The control plane's containers. Raises MeshctlError if there is none."""
    there = cluster.existing(kube)
    if there is None:
        raise MeshctlError(f"the mesh is not installed in the cluster at {kube.host}")
    pods = kube.items("v1", "Pod", there.namespace, labels=f"app.kubernetes.io/name={CONTROL}")
    if not pods:
        raise MeshctlError(f"deployment {CONTROL} in {there.namespace} has no pods; see `meshctl check`")
    return [(there.namespace, pod["metadata"]["name"], CONTROL) for pod in pods]


def _prefixed(source: Source, line: str, count: int) -> str:
    # A terminal must not obey what a container writes; a file gets it as it is.
    line = clean_lines(line.expandtabs()) if sys.stdout.isatty() else line
    return f"{source[1]} {line}" if count > 1 else line


def _together(streams: dict[Source, Iterator[str]]) -> Iterator[tuple[Source, str]]:
    """Lines of several logs as they come; ends when all have ended."""
    lines: queue.Queue[tuple[Source, str | MeshctlError | None]] = queue.Queue(_QUEUE)

    def read(source: Source, stream: Iterator[str]) -> None:
        try:
            for line in stream:
                lines.put((source, line))
            lines.put((source, None))
        except MeshctlError as exc:
            lines.put((source, exc))

    for source, stream in streams.items():
        # Daemons: at an interrupt nothing is left to save.
        threading.Thread(target=read, args=(source, stream), daemon=True).start()
    left = len(streams)
    while left:
        source, line = lines.get()
        if isinstance(line, str):
            yield source, line
            continue
        left -= 1
        if line is not None:
            yield source, f"error: {line}"
