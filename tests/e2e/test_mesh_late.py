"""Sidecars while nobody can tell them the news: they wait, they refuse, they never fall back to plaintext."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec
import pytest

from mesh_local.lifecycle import process
from mesh_local.settings import Places
from tests.cluster import objects
from tests.cluster.agent import Agent
from tests.support.local_cluster import Cluster
from tests.support.mesh_cluster import (
    CONTROL,
    IMAGE,
    SHOP,
    SYSTEM,
    answer,
    calling,
    dropping,
    netns_of,
    paused,
    pods,
    rolled_out,
    wire_of,
    without_api_server,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

MARKER = "marker-0815"
DISCOVERY, HTTP_PORT = 15010, 15014


@contextmanager
def alias(mesh: Cluster, name: str) -> Iterator[str]:
    """A new Service of the pods of `web`; its URL by address, so that nobody waits for the name."""
    mesh.apply(objects.service(SHOP, name, app="web"))
    try:
        yield f"http://{mesh.json('-n', SHOP, 'get', 'service', name)['spec']['clusterIP']}/{MARKER}"
    finally:
        mesh.kubectl("-n", SHOP, "delete", "service", name)


@contextmanager
def no_plaintext(mesh: Cluster) -> Iterator[None]:
    """The marker does not arrive at any pod of `web`."""
    first, second = pods(mesh, SHOP, "web")
    with wire_of(mesh, first) as one, wire_of(mesh, second) as two:
        yield
    assert not [frame for frame in one.frames + two.frames if MARKER.encode() in frame]


def test_a_new_service_is_waited_for_while_the_control_plane_is_paused(mesh: Cluster) -> None:
    client = Agent(mesh, SHOP, "client")
    with no_plaintext(mesh), paused(mesh) as go_on, alias(mesh, "while-paused") as url:
        with wire_of(mesh, client.pod) as own:
            call = calling(mesh, client, url)
            # The control plane says nothing that its sidecar could answer: this is the question.
            mesh.until(lambda: bool(own.payloads(DISCOVERY)), "the sidecar's question")
        assert call.poll() is None
        go_on()
        found = answer(call)
        assert found.get("status") == 200, found


@contextmanager
def said_by_service_cidrs(_mesh: Cluster) -> Iterator[None]:
    """The range of Services as Kubernetes 1.33 and later say it."""
    yield


@contextmanager
def concluded(mesh: Cluster) -> Iterator[None]:
    """Nobody says the range of Services, as before; replicas know so when this begins."""
    found = mesh.json("get", "servicecidr", "kubernetes")
    mesh.kubectl("delete", "servicecidr", "kubernetes")
    try:
        mesh.until(lambda: not any(ranges_known(mesh)), "no range of Services")
        yield
    finally:
        mesh.apply({**found, "metadata": {"name": "kubernetes"}})
        mesh.until(lambda: all(ranges_known(mesh)), "the range of Services")


def ranges_known(mesh: Cluster) -> list[bool]:
    """Whether each replica of the control plane knows a ServiceCIDR, by its metrics."""
    names = [pod["metadata"]["name"] for pod in pods(mesh, SYSTEM, CONTROL)]
    paths = [f"/api/v1/namespaces/{SYSTEM}/pods/{name}:{HTTP_PORT}/proxy/metrics" for name in names]
    found = [mesh.kubectl("get", "--raw", path).stdout for path in paths]
    return ['objects{kind="ServiceCIDR"} 0' not in one for one in found]


@pytest.mark.parametrize("known", [said_by_service_cidrs, concluded])
def test_a_new_service_is_refused_while_the_watch_is_silent(
    mesh: Cluster, known: Callable[[Cluster], AbstractContextManager[None]]
) -> None:
    client = Agent(mesh, SHOP, "client")
    with known(mesh), no_plaintext(mesh):
        with without_api_server(mesh, refuse=False), alias(mesh, "unheard-of") as url:
            found = client.call(url)
            assert "status" not in found, found
            assert found["seconds"] > 1  # it was held for an answer first
        with alias(mesh, "heard-of") as url:
            mesh.until(lambda: client.call(url).get("status") == 200, "the watch goes on")


def test_a_pod_address_that_another_identity_took_is_refused_then_learnt_again(mesh: Cluster) -> None:
    client = Agent(mesh, SHOP, "client")
    make(mesh, "before")
    (first,) = pods(mesh, SHOP, "before")
    address = first["status"]["podIP"]
    url = f"http://{address}:8080/{MARKER}"
    assert client.call(url)["status"] == 200
    with dropping([netns_of(mesh, client.pod)], DISCOVERY):
        mesh.kubectl("-n", SHOP, "delete", "deployment", "before")
        gone(mesh, first)
        next_pod_gets(mesh, first)
        make(mesh, "after")
        (second,) = pods(mesh, SHOP, "after")
        assert second["status"]["podIP"] == address
        with wire_of(mesh, second) as wire:
            found = client.call(url)
        assert found.get("status") == 503, found
        assert "flag=UF" in found["mesh_error"], found
        assert "sa/after" in found["mesh_error"], found
        assert not [frame for frame in wire.frames if MARKER.encode() in frame]
    mesh.until(lambda: client.call(url).get("status") == 200, "the new identity is known")
    mesh.kubectl("-n", SHOP, "delete", "deployment", "after")


def make(mesh: Cluster, name: str) -> None:
    """A Deployment with an identity of its own."""
    mesh.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": SHOP}},
        objects.deployment(SHOP, name, IMAGE, serviceAccountName=name),
    )
    rolled_out(mesh, SHOP, name)


def gone(mesh: Cluster, pod: dict[str, Any]) -> None:
    uid = pod["metadata"]["uid"]
    records = Places(mesh.name).network / "network.json"
    mesh.until(lambda: uid not in msgspec.json.decode(records.read_bytes())["pods"], "the address is free")


def next_pod_gets(mesh: Cluster, pod: dict[str, Any]) -> None:
    """Addresses come back after all others only: the node is told that it is that far.

    Its records are read at its start, so it ends hard and is started again; containers do not notice.
    """
    places = Places(mesh.name)
    runtime = process.find(places)
    assert runtime is not None
    os.kill(runtime.pid, signal.SIGKILL)
    mesh.until(lambda: not runtime.alive(), "the runtime's end")
    records = places.network / "network.json"
    content = msgspec.json.decode(records.read_bytes())
    content["last_index"] = int(pod["status"]["podIP"].rpartition(".")[2]) - 1
    records.write_bytes(msgspec.json.encode(content))
    mesh.local("up")
