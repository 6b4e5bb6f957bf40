"""Each role of the control plane as a Deployment of its own, on the local cluster."""

import os
from collections.abc import Iterator

import pytest

from tests.cluster import objects
from tests.support.local_cluster import Cluster, running
from tests.support.mesh_cluster import IMAGE, SHOP, SYSTEM, Agent, meshctl, rolled_out

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def separate() -> Iterator[Cluster]:
    with running(f"separate{os.getpid()}") as cluster:
        meshctl(cluster, "install", "--set", "topology=separate", "--set", "replicas=1", "--wait")
        yield cluster


def deployments(cluster: Cluster) -> set[str]:
    return {each["metadata"]["name"] for each in cluster.json("get", "deployments", "-n", SYSTEM)["items"]}


def served(cluster: Cluster) -> dict[str, object]:
    answer = Agent(cluster, SHOP, "client").call("http://web/")
    assert "status" in answer, answer
    return answer


def test_a_pod_is_injected_and_served_and_outlives_a_change_of_topology(separate: Cluster) -> None:
    assert deployments(separate) == {"triomesh-control", "triomesh-ca", "triomesh-injector"}
    separate.apply(objects.namespace(SHOP))
    separate.apply(
        objects.deployment(SHOP, "web", IMAGE),
        objects.service(SHOP, "web"),
        objects.deployment(SHOP, "client", IMAGE),
    )
    rolled_out(separate, SHOP, "web", "client")
    assert served(separate)["status"] == 200
    meshctl(separate, "upgrade", "--set", "topology=combined", "--wait")
    assert deployments(separate) == {"triomesh-control"}
    # Pods from before have the addresses of the Services; a new one asks the same for its first certificate.
    separate.kubectl("-n", SHOP, "rollout", "restart", "deployment/web")
    rolled_out(separate, SHOP, "web")
    assert served(separate)["status"] == 200
