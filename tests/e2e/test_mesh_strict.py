"""STRICT by policy: who is refused, and what goes on working (the kubelet's probes, Jobs)."""

from collections.abc import Iterator

import pytest

from tests.cluster import objects
from tests.cluster.agent import Agent, metrics, name_of
from tests.support.local_cluster import Cluster
from tests.support.mesh_cluster import IMAGE, OUTSIDE, SHOP, pods, rolled_out

pytestmark = pytest.mark.e2e

CLOSED = "closed"


@pytest.fixture(scope="module")
def closed(mesh: Cluster) -> Iterator[Cluster]:
    """A STRICT namespace with an application for each kind of probe; none is ready unless it passes."""
    mesh.apply(objects.namespace(CLOSED))
    mesh.apply(objects.strict(CLOSED))
    for probe in objects.PROBES:
        mesh.apply(objects.deployment(CLOSED, probe, IMAGE, probe=probe), objects.service(CLOSED, probe))
    rolled_out(mesh, CLOSED, *objects.PROBES)
    yield mesh
    mesh.kubectl("delete", "namespace", CLOSED, "--wait=false")


def test_a_pod_outside_the_mesh_is_refused(closed: Cluster) -> None:
    found = Agent(closed, OUTSIDE, "client").call(f"http://http.{CLOSED}/")
    assert "status" not in found, found
    (pod,) = pods(closed, CLOSED, "http")
    assert 'triomesh_refused_total{direction="inbound",reason="plaintext"}' in metrics(
        closed, CLOSED, name_of(pod)
    )


@pytest.mark.parametrize("probe", objects.PROBES)
def test_probes_pass_and_pods_of_the_mesh_are_served(closed: Cluster, probe: str) -> None:
    assert Agent(closed, SHOP, "client").call(f"http://{probe}.{CLOSED}/")["status"] == 200
    (pod,) = pods(closed, CLOSED, probe)
    states = [*pod["status"]["containerStatuses"], *pod["status"].get("initContainerStatuses", [])]
    assert sum(state["restartCount"] for state in states) == 0


def test_a_probe_that_is_not_led_through_the_sidecar_is_refused(closed: Cluster) -> None:
    """What the probes of the others are spared, and so that those tests could fail."""
    made = objects.deployment(CLOSED, "direct", IMAGE)
    made["spec"]["template"]["metadata"]["annotations"]["triomesh.dev/rewrite-probes"] = "false"
    made["spec"]["template"]["spec"]["containers"][0].pop("livenessProbe")
    closed.apply(made)

    closed.until(lambda: bool(pods(closed, CLOSED, "direct")), "the pod")
    name = name_of(pods(closed, CLOSED, "direct")[0])
    path = f"/api/v1/namespaces/{CLOSED}/pods/{name}:15020/proxy/metrics"

    def refused() -> bool:
        return 'reason="plaintext"' in closed.kubectl("get", "--raw", path, check=False).stdout

    closed.until(refused, "the kubelet's own probe is refused")
    (pod,) = pods(closed, CLOSED, "direct")
    ready = {condition["type"]: condition["status"] for condition in pod["status"]["conditions"]}
    assert ready["Ready"] == "False"
