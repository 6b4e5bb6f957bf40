"""Policies from `kubectl apply` to what sidecars do, and what their status says."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import objects
from tests.cluster.agent import Agent, name_of
from tests.support.local_cluster import Cluster
from tests.support.mesh_cluster import IMAGE, meshctl, rolled_out

pytestmark = pytest.mark.e2e

RULED = "ruled"


@pytest.fixture(scope="module")
def ruled(mesh: Cluster) -> Iterator[Cluster]:
    """`web` with versions v1 and v2, `api`, and a client."""
    versions = []
    for version in ("v1", "v2"):
        made = objects.deployment(RULED, f"web-{version}", IMAGE)
        made["spec"]["template"]["metadata"]["labels"] |= {"part": "web", "version": version}
        versions.append(made)
    web = objects.service(RULED, "web")
    web["spec"]["selector"] = {"part": "web"}
    api = (objects.deployment(RULED, "api", IMAGE), objects.service(RULED, "api"))
    mesh.apply(objects.namespace(RULED), web, *versions, *api, objects.deployment(RULED, "client", IMAGE))
    rolled_out(mesh, RULED, "web-v1", "web-v2", "api", "client")
    yield mesh
    mesh.kubectl("delete", "namespace", RULED, "--wait=false")


def policy(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "triomesh.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"name": name, "namespace": RULED},
        "spec": {"target": {"service": "web"}, **spec},
    }


def conditions(cluster: Cluster, name: str) -> dict[str, tuple[str, str]]:
    found = cluster.json("-n", RULED, "get", "trafficpolicy", name).get("status", {}).get("conditions", [])
    return {one["type"]: (one["status"], one["message"]) for one in found}


def test_routes_lead_where_the_policy_says(ruled: Cluster) -> None:
    routes = [
        {"match": [{"path": {"prefix": "/api"}}], "to": [{"service": "api"}]},
        {"match": [{"path": {"prefix": "/none"}}], "to": [{"service": "none"}]},
        {"match": [{"path": {"prefix": "/third"}}], "to": [{"subset": "v3"}]},
        {"to": [{"subset": "v1", "weight": 1}, {"subset": "v2", "weight": 0}]},
    ]
    subsets = {version: {"labels": {"version": version}} for version in ("v1", "v2", "v3")}
    client = Agent(ruled, RULED, "client")
    client.call("http://web/")
    ruled.apply(policy("web", subsets=subsets, routes=routes))
    pod = f"{RULED}/{name_of(client.pod)}"

    def applied() -> bool:
        found = json.loads(meshctl(ruled, "proxy-config", pod, "routes", "-o", "json").stdout)
        return any(one.get("policy") == f"{RULED}/web" for one in found["destinations"])

    ruled.until(applied, "the policy at the sidecar")
    answers = Counter(json.loads(client.call("http://web/")["body"])["pod"][:6] for _ in range(10))
    assert answers == {"web-v1": 10}
    assert json.loads(client.call("http://web/api/x")["body"])["pod"].startswith("api-")
    assert client.call("http://web/none")["status"] == 503
    assert client.call("http://web/third")["status"] == 503
    ruled.until(lambda: "Programmed" in conditions(ruled, "web"), "its status")
    found = conditions(ruled, "web")
    assert (found["Accepted"][0], found["Conflicted"][0], found["Programmed"][0]) == ("True", "False", "True")
    assert f"There is no Service {RULED}/none" in found["ResolvedRefs"][1]
    assert "No endpoint has the labels of subset v3" in found["Programmed"][1]


def test_of_two_the_older_holds_until_it_goes(ruled: Cluster) -> None:
    client = Agent(ruled, RULED, "client")

    def answered(body: str) -> bool:
        return bool(client.call("http://api/")["body"] == body)

    # The API server's times have whole seconds, and of the same age the name decides.
    for name in ("a-early", "b-later"):
        answer = [{"respond": {"status": 200, "body": name}}]
        ruled.apply(policy(name, target={"service": "api"}, routes=answer))
        ruled.until(lambda name=name: "Accepted" in conditions(ruled, name), "its status")  # type: ignore[misc]
        ruled.until(lambda: answered("a-early"), "the first is in force")
    assert "a-early is older" in conditions(ruled, "b-later")["Conflicted"][1]
    ruled.kubectl("-n", RULED, "delete", "trafficpolicy", "a-early")
    ruled.until(lambda: answered("b-later"), "the other has taken over")
    ruled.until(lambda: conditions(ruled, "b-later")["Conflicted"][0] == "False", "its status")
