"""What a Service says about its callers, from `kubectl apply` to the pod that answers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cluster import objects
from tests.cluster.agent import Agent, name_of
from tests.cluster.app import ECHO_PORT
from tests.support.local_cluster import Cluster
from tests.support.mesh_cluster import OUTSIDE, SHOP, pods

pytestmark = pytest.mark.e2e

EXTERNAL, BALANCED, PROXIED = "192.0.2.10", "192.0.2.11", "192.0.2.12"


@contextmanager
def service(mesh: Cluster, name: str, **spec: Any) -> Iterator[None]:
    """A Service with `web` behind it, or with what somebody writes; endpoints take turns."""
    made = objects.service(SHOP, name, "web")
    made["spec"] |= spec
    turns = {
        "apiVersion": "triomesh.dev/v1alpha1",
        "kind": "TrafficPolicy",
        "metadata": {"name": name, "namespace": SHOP},
        "spec": {"target": {"service": name}, "loadBalancer": {"algorithm": "round-robin"}},
    }
    mesh.apply(made, turns)
    try:
        yield
    finally:
        mesh.kubectl("-n", SHOP, "delete", f"service/{name}", f"trafficpolicy/{name}")


def endpoints(name: str, *found: dict[str, Any]) -> dict[str, Any]:
    """An EndpointSlice that nobody but this test writes."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-by-hand",
            "namespace": SHOP,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": ECHO_PORT, "protocol": "TCP"}],
        "endpoints": list(found),
    }


def at(pod: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An endpoint that does not say which pod it is."""
    return {"addresses": [pod["status"]["podIP"]], "conditions": {"ready": True}, **more}


def who(agent: Agent, url: str) -> str:
    """The pod that answered; '' for an error."""
    found = agent.call(url)
    return str(json.loads(found["body"])["pod"]) if found.get("status") == 200 else ""


def test_a_pod_stays_with_one_endpoint(mesh: Cluster) -> None:
    client = Agent(mesh, SHOP, "client")
    with service(mesh, "sticky", sessionAffinity="ClientIP"):
        assert len({who(client, "http://sticky/") for _ in range(8)}) == 1


def test_hints_come_and_go(mesh: Cluster) -> None:
    client = Agent(mesh, SHOP, "client")
    first, second = pods(mesh, SHOP, "web")
    here = client.pod["spec"]["nodeName"]
    near = at(first, hints={"forNodes": [{"name": here}]})
    far = at(second, hints={"forNodes": [{"name": "elsewhere"}]})
    with service(mesh, "near", selector=None):
        mesh.apply(endpoints("near", near, far))
        mesh.until(lambda: who(client, "http://near/") == name_of(first), "the endpoint of this node")
        assert {who(client, "http://near/") for _ in range(6)} == {name_of(first)}
        mesh.apply(endpoints("near", near, at(second)))
        mesh.until(lambda: who(client, "http://near/") == name_of(second), "every endpoint")


def test_local_has_no_endpoint_where_the_node_has_none(mesh: Cluster) -> None:
    client = Agent(mesh, SHOP, "client")
    (pod, _), here = pods(mesh, SHOP, "web"), client.pod["spec"]["nodeName"]
    with service(mesh, "local", selector=None, internalTrafficPolicy="Local"):
        mesh.apply(endpoints("local", at(pod, nodeName="elsewhere")))
        mesh.until(lambda: client.call("http://local/").get("status") == 503, "no endpoint")
        error = client.call("http://local/")["mesh_error"]
        assert "no endpoint on this node (internalTrafficPolicy Local)" in error
        mesh.apply(endpoints("local", at(pod, nodeName=here)))
        mesh.until(lambda: who(client, "http://local/") == name_of(pod), "the endpoint of this node")


def test_external_and_load_balancer_addresses_of_what_is_outside(mesh: Cluster) -> None:
    client = Agent(mesh, SHOP, "client")
    (pod,) = pods(mesh, OUTSIDE, "web")
    status = {
        "status": {
            "loadBalancer": {
                "ingress": [{"ip": BALANCED, "ipMode": "VIP"}, {"ip": PROXIED, "ipMode": "Proxy"}]
            }
        }
    }
    with service(mesh, "out", selector=None, externalIPs=[EXTERNAL], type="LoadBalancer"):
        mesh.apply(endpoints("out", at(pod)))
        mesh.kubectl(
            *("-n", SHOP, "patch", "service", "out", "--subresource=status"),
            *("--type=merge", "-p", json.dumps(status)),
        )
        for ip in (EXTERNAL, BALANCED):
            mesh.until(lambda ip=ip: who(client, f"http://{ip}/") == name_of(pod), ip)  # type: ignore[misc]
        assert "status" not in client.call(f"http://{PROXIED}/", timeout=2)
