"""`python -m bench.policy_push`: how long a changed TrafficPolicy takes to the sidecars that it concerns.

From the object as the watch brings it, over index and compiler, to the sidecar's `Applied`; streams as in
`bench.discovery`. Every policy has subsets, ten routes and retries; a change moves the weights of a split.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

import click
import trio

from bench.discovery import run, show
from bench.index import cluster_json, filled
from mesh_api.discovery import Content, WorkloadConfig
from mesh_api.sidecar import Workload
from mesh_control.compile import Compiler, Mesh
from mesh_control.index import decode
from mesh_control.serve.subscriptions import PodRef

ENDPOINTS = 5
ROUTES = 10


def _policy(service: int, generation: int) -> bytes:
    """The policy of a Service of `cluster_json`."""
    split = [{"subset": "v1", "weight": generation}, {"subset": "v2", "weight": 100}]
    routes: list[dict[str, Any]] = [
        {"match": [{"path": {"prefix": f"/part-{n}"}}], "to": [{"subset": "v1"}], "timeout": "2s"}
        for n in range(ROUTES - 1)
    ]
    name = f"app-{service:04}"
    spec = {
        "target": {"service": name},
        "subsets": {version: {"labels": {"version": version}} for version in ("v1", "v2")},
        "routes": [*routes, {"to": split}],
        "retries": {"attempts": 2, "retryOn": ["connect-failure", "5xx"]},
        "circuitBreaker": {"maxRequests": 100},
    }
    metadata = {
        "name": name,
        "namespace": f"ns-{service % 20:02}",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "generation": generation,
    }
    return json.dumps({"metadata": metadata, "spec": spec}).encode()


class Policies:
    """A cluster in which every Service has a policy."""

    def __init__(self, services: int) -> None:
        self.moments: dict[str, float] = {}
        self._index = filled(cluster_json(services, ENDPOINTS))
        self._compiler = Compiler(self._index, Mesh("cluster.local", ""))
        self._own = WorkloadConfig(Workload(name="any", namespace="shop"), "cluster.local", "")
        self._callbacks: list[Callable[[Collection[str]], None]] = []
        self._generation = 1
        self._index.replace(
            "TrafficPolicy", [decode("TrafficPolicy", _policy(service, 1)) for service in range(services)]
        )

    async def wait_synced(self) -> None:
        await trio.lowlevel.checkpoint()

    def current(self) -> bool:
        return True

    def lookup(self, key: str, pod: PodRef) -> Content | None:
        return self._own if key == "workload" else self._compiler.lookup(key, (pod.namespace, pod.name))

    def subscribe(self, callback: Callable[[Collection[str]], None]) -> None:
        self._callbacks.append(callback)

    def change(self, n: int) -> None:
        """The policy of Service `n` is another."""
        self._generation += 1
        data = _policy(n, self._generation)
        self.moments[f"destination/ns-{n % 20:02}/app-{n:04}:80"] = trio.current_time()
        keys = self._index.apply(decode("TrafficPolicy", data)).keys
        if len(keys) != 1:
            raise click.ClickException(f"expected one key to change, got {sorted(keys)}")
        for callback in self._callbacks:
            callback(keys)


@click.command()
@click.option("--sidecars", default=500, show_default=True)
@click.option("--services", default=1000, show_default=True)
@click.option("--used", default=50, show_default=True, help="Services that each sidecar uses.")
@click.option("--changes", default=100, show_default=True)
def main(sidecars: int, services: int, used: int, changes: int) -> None:
    """Measure the way of a policy's change to the sidecars that it concerns."""
    show(trio.run(run, Policies(services), sidecars, services, used, changes))


if __name__ == "__main__":
    main()
