"""`python -m bench.index`: the control plane's index with 1,000 Services of 5 pods each.

Build time from the API's JSON, memory, and what a change of one endpoint costs up to the encoded destination.
"""

from __future__ import annotations

import gc
import json
import time
import tracemalloc
from typing import Any

import click

from mesh_api.discovery import encode_content, version_of
from mesh_control.compile import Compiler, Mesh
from mesh_control.index import Index, decode
from mesh_control.index.objects import KINDS, Kind

_MIB = 1024 * 1024


def pod_object(service: int, number: int, deleting: bool = False) -> dict[str, Any]:
    name = f"app-{service:04}-7d4b9c6f58-{number:05}"
    ip = f"10.{service >> 8}.{service & 255}.{number + 1}"
    app = f"app-{service:04}"
    metadata = {
        "name": name,
        "namespace": f"ns-{service % 20:02}",
        "uid": f"00000000-0000-0000-{service:04}-{number:012}",
        "creationTimestamp": f"2026-01-01T00:{service % 60:02}:00Z",
        "labels": {"app": app, "version": "v1", "pod-template-hash": "7d4b9c6f58"},
        "annotations": {"triomesh.dev/injected": "0.1.0", "example.com/notes": "x" * 400},
        "ownerReferences": [
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": f"{app}-7d4b9c6f58",
                "controller": True,
                "uid": "u",
            }
        ],
    }
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    environment = [{"name": f"VARIABLE_{i}", "value": "value" * 4} for i in range(20)]
    return {
        "metadata": metadata,
        "spec": {
            "nodeName": f"node-{(service + number) % 50:02}",
            "serviceAccountName": app,
            "initContainers": [
                {"name": "triomesh-init", "image": "i", "env": []},
                {"name": "triomesh-proxy", "image": "i", "restartPolicy": "Always", "env": environment},
            ],
            "containers": [{"name": "app", "image": "i", "env": environment}],
        },
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    }


def service_object(service: int) -> dict[str, Any]:
    ip = f"10.96.{service >> 8}.{service & 255}"
    return {
        "metadata": {"name": f"app-{service:04}", "namespace": f"ns-{service % 20:02}"},
        "spec": {
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ipFamilies": ["IPv4"],
            "selector": {"app": f"app-{service:04}"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    }


def slice_object(service: int, pods: list[dict[str, Any]], unready: int = -1) -> dict[str, Any]:
    endpoints = [
        {
            "addresses": [pod["status"]["podIP"]],
            "conditions": {"ready": i != unready, "serving": i != unready, "terminating": False},
            "nodeName": pod["spec"]["nodeName"],
            "zone": "z1",
            "targetRef": {
                "kind": "Pod",
                "name": pod["metadata"]["name"],
                "namespace": pod["metadata"]["namespace"],
                "uid": pod["metadata"]["uid"],
            },
        }
        for i, pod in enumerate(pods)
    ]
    return {
        "metadata": {
            "name": f"app-{service:04}-x7k2p",
            "namespace": f"ns-{service % 20:02}",
            "labels": {"kubernetes.io/service-name": f"app-{service:04}"},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


def cluster_json(services: int, each: int) -> dict[Kind, list[bytes]]:
    """A cluster as the API server lists it; Service `n` is at 10.96.(n >> 8).(n & 255), port 80."""
    objects: dict[Kind, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for i in range(20):
        objects["Namespace"].append({"metadata": {"name": f"ns-{i:02}"}})
    for i in range(50):
        objects["Node"].append(
            {"metadata": {"name": f"node-{i:02}"}, "spec": {"podCIDRs": [f"10.{i}.0.0/16"]}}
        )
    for service in range(services):
        pods = [pod_object(service, number) for number in range(each)]
        objects["Pod"] += pods
        objects["Service"].append(service_object(service))
        objects["EndpointSlice"].append(slice_object(service, pods))
    return {kind: [json.dumps(one).encode() for one in found] for kind, found in objects.items()}


def filled(cluster: dict[Kind, list[bytes]], order: tuple[Kind, ...] = KINDS) -> Index:
    """An index of it."""
    index = Index("cluster.local", ("10.96.0.0/12",))
    for kind in order:
        index.replace(kind, (decode(kind, data) for data in cluster[kind]))
    return index


def _memory(cluster: dict[Kind, list[bytes]]) -> tuple[Index, float]:
    gc.collect()
    tracemalloc.start()
    try:
        index = filled(cluster, KINDS)
        gc.collect()
        return index, tracemalloc.get_traced_memory()[0] / _MIB
    finally:
        tracemalloc.stop()


def _change(index: Index, services: int, each: int) -> tuple[float, float, float]:
    """Milliseconds for an endpoint that is no longer ready: decode, index, compile with encoding."""
    compiler = Compiler(index, Mesh("cluster.local", "PEM"))
    decoding = indexing = compiling = 0.0
    rounds = min(services, 200)
    for service in range(rounds):
        pods = [pod_object(service, number) for number in range(each)]
        data = json.dumps(slice_object(service, pods, unready=0)).encode()
        start = time.perf_counter()
        obj = decode("EndpointSlice", data)
        decoded = time.perf_counter()
        changes = index.apply(obj)
        applied = time.perf_counter()
        for key in changes.keys:
            found = compiler.lookup(key, ("ns-00", "none"))
            if found is not None:
                version_of(encode_content(found))
        done = time.perf_counter()
        if len(changes.keys) != 1:
            raise click.ClickException(f"expected one key to change, got {sorted(changes.keys)}")
        decoding += decoded - start
        indexing += applied - decoded
        compiling += done - applied
    return decoding / rounds * 1000, indexing / rounds * 1000, compiling / rounds * 1000


@click.command()
@click.option("--services", type=click.IntRange(1, 5000), default=1000, show_default=True)
@click.option(
    "--endpoints", type=click.IntRange(1, 250), default=5, show_default=True, help="Of each Service."
)
def main(services: int, endpoints: int) -> None:
    """Print build time, memory and the cost of a change."""
    cluster = cluster_json(services, endpoints)
    size = sum(len(data) for found in cluster.values() for data in found) / _MIB
    click.echo(f"{services} Services, {services * endpoints} pods and endpoints, {size:.1f} MiB of JSON")
    start = time.perf_counter()
    filled(cluster, KINDS)
    click.echo(f"built in {time.perf_counter() - start:.2f} s")
    backwards = tuple(reversed(KINDS))
    start = time.perf_counter()
    filled(cluster, backwards)
    click.echo(f"built in {time.perf_counter() - start:.2f} s with the kinds in the other order")
    index, memory = _memory(cluster)
    click.echo(f"memory {memory:.1f} MiB")
    start = time.perf_counter()
    for kind, found in cluster.items():
        if index.replace(kind, (decode(kind, data) for data in found)):
            raise click.ClickException("expected no change by the same list")
    click.echo(f"listed again in {time.perf_counter() - start:.2f} s")
    costs = zip(("decode", "index", "compile"), _change(index, services, endpoints), strict=True)
    click.echo("one endpoint: " + ", ".join(f"{what} {cost:.3f} ms" for what, cost in costs))


if __name__ == "__main__":
    main()
