"""`python -m bench.on_cluster`: from a change at the API server to the sidecar that it concerns.

Brings up a local cluster of its own with the mesh installed (root), and takes it down again. A client in the
mesh uses a Service of two pods. Its EndpointSlice, and then its TrafficPolicy, are changed again and again.

A wait is from just before the PATCH is sent until the admin page of the client's sidecar shows the change in
force: the API server's write and watch, the control plane's index, compilation and push, the sidecar's
decoding and applying, and reading the page, which is asked for again a millisecond after each answer.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

import click
import msgspec
import trio

from bench.load import percentile
from bench.net import read_response
from bench.procs import BenchError, output, run_to_end
from examples.two_pods.netns import connect
from manifests.names import INJECTION_LABEL
from mesh_control.kube.access import from_kubeconfig
from mesh_control.kube.client import Client
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import ENDPOINT_SLICES, PODS, TRAFFIC_POLICIES, Resource
from mesh_local.network.addressing import pod_name
from mesh_local.settings import Places
from mesh_proxy.settings import ADMIN_PORT

Object = dict[str, Any]
BIN = Path(sys.executable).parent
NAMESPACE, SERVICE = "bench", "web"
PORT, TARGET_PORT = 80, 8080
_COMMAND_S = 60.0
_IN_FORCE_S = 10.0
_POLL_S = 0.001
_PAUSE_S = (0.05, 0.1)
"""Between changes; drawn, so that they do not fall in step with anything."""
_SERVE = ["python3", "-m", "http.server", str(TARGET_PORT)]
_USE = f"""
import time, urllib.request
while True:
    try:
        urllib.request.urlopen("http://{SERVICE}/", timeout=2).read()
    except OSError as exc:
        print(exc, flush=True)
    time.sleep(0.2)
"""
_ASK = b"GET /config_dump HTTP/1.1\r\nHost: localhost\r\n\r\n"
_decode = msgspec.json.Decoder()


# -- the cluster --------------------------------------------------------------------------------------------


@asynccontextmanager
async def cluster(name: str) -> AsyncIterator[Places]:
    """A local cluster with the mesh installed, gone afterwards. Raises BenchError."""
    meshctl = str(BIN / "meshctl")
    places = Places(name)
    try:
        await output([meshctl, "local", "up", "--name", name], _COMMAND_S)
        kubeconfig = str(places.kubeconfig)
        install = ["install", "--kubeconfig", kubeconfig, "--set", "replicas=1", "--wait"]
        await output([meshctl, *install], _COMMAND_S)
        yield places
    finally:
        with trio.CancelScope(shield=True):
            await output([meshctl, "local", "down", "--purge", "--name", name], _COMMAND_S)


def _pod(name: str, command: list[str], **labels: str) -> Object:
    container = {
        "name": "app",
        "image": "local",
        "command": command,
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
    }


def workloads() -> list[Object]:
    """The namespace, the client and the Service with its pods; who they are only the EndpointSlice says."""
    namespace = {"name": NAMESPACE, "labels": {INJECTION_LABEL: "enabled"}}
    service = {"ports": [{"name": "http", "port": PORT, "targetPort": TARGET_PORT}]}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": namespace},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": SERVICE, "namespace": NAMESPACE},
            "spec": service,
        },
        *(_pod(f"web-{version}", _SERVE, app="web", version=version) for version in ("v1", "v2")),
        _pod("client", ["python3", "-c", _USE], app="client"),
    ]


def endpoint_slice(endpoints: list[Object]) -> Object:
    return {
        "metadata": {"name": SERVICE, "labels": {"kubernetes.io/service-name": SERVICE}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": TARGET_PORT, "protocol": "TCP"}],
        "endpoints": endpoints,
    }


def endpoint(pod: Object) -> Object:
    """How an EndpointSlice names a pod."""
    metadata = pod["metadata"]
    reference = {"kind": "Pod", **{key: metadata[key] for key in ("name", "namespace", "uid")}}
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": True},
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": reference,
    }


def policy(weight: int) -> Object:
    """Two subsets, a split, a route with a match, and retries."""
    split = [{"subset": "v1", "weight": weight}, {"subset": "v2", "weight": 100}]
    special = {"match": [{"path": {"prefix": "/special"}}], "to": [{"subset": "v1"}], "timeout": "2s"}
    return {
        "metadata": {"name": SERVICE},
        "spec": {
            "target": {"service": SERVICE},
            "subsets": {version: {"labels": {"version": version}} for version in ("v1", "v2")},
            "routes": [special, {"to": split}],
            "retries": {"attempts": 2, "retryOn": ["connect-failure", "5xx"]},
            "circuitBreaker": {"maxRequests": 100},
        },
    }


# -- what is in force ---------------------------------------------------------------------------------------


def destination(dump: Object) -> Object | None:
    """The Service in a sidecar's dump, if the sidecar has it."""
    for found in (dump["snapshot"] or {}).get("destinations", ()):
        if (found["namespace"], found["name"], found["port"]) == (NAMESPACE, SERVICE, PORT):
            return dict(found)
    return None


def addresses(dump: Object) -> list[str]:
    """Where the sidecar sends what is for the Service."""
    found = destination(dump)
    return sorted(one["address"] for one in found.get("endpoints", ())) if found else []


def first_weight(dump: Object) -> int | None:
    """The weight of the first arm of the split, as the sidecar has it; None without a split."""
    found = destination(dump)
    routes = found.get("routes", ()) if found else ()
    return next((route["to"][0].get("weight", 1) for route in routes if len(route["to"]) > 1), None)


def wait_in_force(netns: str, shown: Callable[[Object], object], expected: object) -> float:
    """Ask the sidecar in a namespace until it shows what is expected; when that was. Raises BenchError."""
    until = perf_counter() + _IN_FORCE_S
    pause = Event()
    while True:
        with connect(netns, "127.0.0.1", ADMIN_PORT, _IN_FORCE_S) as sock:
            sock.sendall(_ASK)
            status, body = read_response(sock)
        now = perf_counter()
        if status != 200:
            raise BenchError(f"the sidecar's /config_dump: expected 200, got {status}")
        found = shown(_decode.decode(body))
        if found == expected:
            return now
        if now > until:
            raise BenchError(f"not in force within {_IN_FORCE_S:g} s: expected {expected}, it has {found}")
        pause.wait(_POLL_S)


# -- measuring ----------------------------------------------------------------------------------------------


class Changes:
    """Changes of one object; milliseconds of each."""

    def __init__(self, client: Client, netns: str, resource: Resource) -> None:
        self.answered: list[float] = []
        """Until the API server had answered the PATCH."""
        self.in_force: list[float] = []
        self._client = client
        self._netns = netns
        self._resource = resource

    async def make(self, patch: Object, shown: Callable[[Object], object], expected: object) -> None:
        """Make one change and note how long it took. Raises BenchError, KubeError."""
        began = perf_counter()

        async def ask() -> None:
            await self._client.patch(self._resource, SERVICE, NAMESPACE, patch)
            self.answered.append((perf_counter() - began) * 1e3)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            seen = await trio.to_thread.run_sync(wait_in_force, self._netns, shown, expected)
        self.in_force.append((seen - began) * 1e3)

    def show(self, what: str) -> None:
        """Print a line for the whole wait, and one for what is left once the API server has answered."""
        after = [max(0.0, seen - told) for seen, told in zip(self.in_force, self.answered, strict=True)]
        for name, values in ((what, self.in_force), ("  after the answer", after)):
            p50, p99 = percentile(values, 50), percentile(values, 99)
            click.echo(f"{name:20} p50 {p50:6.1f} ms  p99 {p99:6.1f} ms  max {max(values):6.1f} ms")


async def prepare(client: Client, places: Places) -> tuple[list[Object], str]:
    """Make the workloads; the Service's endpoints, and the client's network namespace once it uses them."""
    kubectl = [str(BIN / "kubectl"), "--kubeconfig", str(places.kubeconfig)]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"apiVersion": "v1", "kind": "List", "items": workloads()}, file)
        file.flush()
        await output([*kubectl, "apply", "-f", file.name], _COMMAND_S)
    ready = ["wait", "--for=condition=Ready", "pod", "--all", f"--timeout={_COMMAND_S:g}s"]
    await output([*kubectl, "-n", NAMESPACE, *ready], _COMMAND_S)
    found = {pod["metadata"]["name"]: pod for pod in await client.list(PODS, NAMESPACE)}
    endpoints = [endpoint(found[f"web-{version}"]) for version in ("v1", "v2")]
    netns = pod_name(places.name, found["client"]["metadata"]["uid"])
    await client.create(ENDPOINT_SLICES, endpoint_slice(endpoints), NAMESPACE)
    both = sorted(one["addresses"][0] for one in endpoints)
    await trio.to_thread.run_sync(wait_in_force, netns, addresses, both)
    return endpoints, netns


async def measure(changes: int) -> None:
    """Print the figures. Raises BenchError, KubeError."""
    rng = random.Random(7)
    name = f"bench-{os.getpid()}"
    began = trio.current_time()
    async with cluster(name) as places, Client(from_kubeconfig(str(places.kubeconfig))) as client:
        endpoints, netns = await prepare(client, places)
        ready_s = trio.current_time() - began
        click.echo(
            f"{name}: ready after {ready_s:.0f} s; {changes} changes each, load {os.getloadavg()[0]:.1f}"
        )
        of_slice = Changes(client, netns, ENDPOINT_SLICES)
        for n in range(changes):
            held = endpoints[: 1 + n % 2]
            expected = sorted(one["addresses"][0] for one in held)
            await of_slice.make({"endpoints": held}, addresses, expected)
            await trio.sleep(rng.uniform(*_PAUSE_S))
        of_slice.show("an EndpointSlice")
        await client.create(TRAFFIC_POLICIES, policy(1), NAMESPACE)
        await trio.to_thread.run_sync(wait_in_force, netns, first_weight, 1)
        of_policy = Changes(client, netns, TRAFFIC_POLICIES)
        for weight in range(2, changes + 2):
            spec = {"routes": policy(weight)["spec"]["routes"]}
            await of_policy.make({"spec": spec}, first_weight, weight)
            await trio.sleep(rng.uniform(*_PAUSE_S))
        of_policy.show("a TrafficPolicy")


@click.command()
@click.option(
    "--changes", type=click.IntRange(2, 1000), default=100, show_default=True, help="Of each object."
)
def main(changes: int) -> None:
    """Measure the way of changes to a sidecar on a local cluster; needs root."""
    run_to_end(measure, changes, errors=(KubeError, OSError))


if __name__ == "__main__":
    main()
