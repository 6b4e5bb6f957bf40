"""Requests to destinations in use, while the control plane or the API server is away: not one fails."""

import signal

import pytest
import trio

from tests.cluster import objects
from tests.cluster.agent import Agent
from tests.support.local_cluster import Cluster
from tests.support.mesh_cluster import (
    CONTROL,
    SHOP,
    SYSTEM,
    pods,
    rolled_out,
    send,
    without_api_server,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

URL = "http://web/"
OUTAGE_S = 30.0


def ready_replicas(mesh: Cluster) -> int:
    return int(mesh.json("-n", SYSTEM, "get", "deploy", CONTROL)["status"].get("readyReplicas", 0))


def first_dial_works(mesh: Cluster, client: Agent, name: str) -> None:
    """A destination that this sidecar has never asked about."""
    mesh.apply(objects.service(SHOP, name, app="web"))
    found = client.call(f"http://{name}/")
    mesh.kubectl("-n", SHOP, "delete", "service", name)
    assert found.get("status") == 200, found


def test_the_control_plane_is_rolled(mesh: Cluster) -> None:
    client = Agent(mesh, SHOP, "client")
    before = {pod["metadata"]["uid"] for pod in pods(mesh, SYSTEM, CONTROL)}
    with client.load(URL) as load:
        mesh.kubectl("-n", SYSTEM, "rollout", "restart", f"deploy/{CONTROL}")
        first_dial_works(mesh, client, "while-rolled")
        rolled_out(mesh, SYSTEM, CONTROL)
        mesh.until(lambda: len(pods(mesh, SYSTEM, CONTROL)) == 2, "the old replicas gone")
        load.goes_on()
    assert not before & {pod["metadata"]["uid"] for pod in pods(mesh, SYSTEM, CONTROL)}
    first_dial_works(mesh, client, "after-the-roll")


def test_the_control_plane_is_killed(mesh: Cluster) -> None:
    client = Agent(mesh, SHOP, "client")
    with client.load(URL) as load:
        send(mesh, pods(mesh, SYSTEM, CONTROL), signal.SIGKILL)
        load.goes_on()
        # A new destination: held for 2 s and refused while nobody answers, then it works.
        mesh.apply(objects.service(SHOP, "while-killed", app="web"))
        mesh.until(lambda: client.call("http://while-killed/").get("status") == 200, "an answer")
        mesh.until(lambda: ready_replicas(mesh) == 2, "both replicas ready again", limit_s=60)
        load.goes_on()
    mesh.kubectl("-n", SHOP, "delete", "service", "while-killed")


def test_the_api_server_is_away_for_30_s(mesh: Cluster) -> None:
    client = Agent(mesh, SHOP, "client")
    mesh.apply(objects.service(SHOP, "known", app="web"))
    assert client.call("http://known/")["status"] == 200
    with client.load(URL, "http://known/") as load:
        with without_api_server(mesh, refuse=True):
            mesh.apply(objects.service(SHOP, "unknown", app="web"))
            assert "status" not in client.call("http://unknown/")
            # The control plane answers for what it knew before; its readiness stays.
            assert Agent(mesh, SHOP, "client").call("http://web.outside/").get("status") == 200
            trio.run(trio.sleep, OUTAGE_S)
            load.goes_on()
            assert ready_replicas(mesh) == 2
        mesh.until(lambda: client.call("http://unknown/").get("status") == 200, "the new Service is known")
        load.goes_on()
    mesh.kubectl("-n", SHOP, "delete", "service", "known", "unknown")
