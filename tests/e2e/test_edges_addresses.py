"""Destinations as Kubernetes has them: of both families, headless, by pod, by alias, and unknown ones."""

from __future__ import annotations

import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from examples.two_pods import netns
from mesh_local.network.addressing import IPV4, IPV6, node_name
from tests.cluster import objects
from tests.cluster.agent import Agent, metrics, name_of, pods
from tests.support.local_cluster import Cluster
from tests.support.mesh_cluster import IMAGE, OUTSIDE, SHOP, mesh_running, rolled_out

pytestmark = pytest.mark.e2e

EDGES = "edges"
PORTS: dict[int, dict[str, Any]] = {
    80: {"name": "http", "targetPort": "web-port"},
    81: {"name": "tcp-raw", "targetPort": objects.ECHO_PORT},
    82: {"name": "odd", "targetPort": objects.ECHO_PORT, "appProtocol": "TCP"},
    83: {"name": "tcp-misnamed", "targetPort": "web-port", "appProtocol": "http"},
    84: {"name": "undeclared", "targetPort": objects.ECHO_PORT},
    85: {"name": "https-inside", "targetPort": objects.ECHO_PORT},
}
OPAQUE = (81, 82, 85)


def _service(name: str, app: str = "web", **spec: Any) -> dict[str, Any]:
    made = objects.service(EDGES, name, app)
    made["spec"] |= spec
    return made


def _member(number: int) -> dict[str, Any]:
    """A pod as a StatefulSet makes it: with a host name within a headless Service."""
    name = f"db-{number}"
    template = objects.template("db", [objects.container(IMAGE)], hostname=name, subdomain="db")
    template["metadata"] |= {"name": name, "namespace": EDGES}
    return {"apiVersion": "v1", "kind": "Pod", **template}


@pytest.fixture(scope="module")
def edges(mesh: Cluster) -> Iterator[Cluster]:
    """Services of every kind, in a cluster of two families."""
    web = objects.deployment(EDGES, "web", IMAGE)
    (container,) = web["spec"]["template"]["spec"]["containers"]
    container["ports"] = [{"name": "web-port", "containerPort": objects.ECHO_PORT}]
    ports = [{"port": port, **rest} for port, rest in PORTS.items()]
    mesh.apply(
        objects.namespace(EDGES),
        web,
        _service("web", ports=ports, ipFamilyPolicy="RequireDualStack"),
        _service("four", ipFamilyPolicy="SingleStack", ipFamilies=["IPv4"]),
        _service("six", ipFamilyPolicy="SingleStack", ipFamilies=["IPv6"]),
        _service("db", "db", clusterIP="None", ipFamilyPolicy="RequireDualStack"),
        {
            **_service("alias"),
            "spec": {"type": "ExternalName", "externalName": f"web.{SHOP}.svc.cluster.local"},
        },
        {
            **_service("outside"),
            "spec": {"type": "ExternalName", "externalName": f"web.{OUTSIDE}.svc.cluster.local"},
        },
        _member(0),
        _member(1),
        objects.deployment(EDGES, "client", IMAGE),
    )
    rolled_out(mesh, EDGES, "web", "client")
    mesh.kubectl("-n", EDGES, "wait", "--for=condition=Ready", "pod/db-0", "pod/db-1", "--timeout=60s")
    yield mesh
    mesh.kubectl("delete", "namespace", EDGES, "--wait=false")


@pytest.fixture(scope="module")
def six() -> Iterator[Cluster]:
    """A mesh on a cluster that has IPv6 only."""
    with mesh_running(f"six-{os.getpid()}", "--ip-family", "ipv6") as found:
        yield found


def answer(agent: Agent, url: str) -> dict[str, Any]:
    """What the application said, which tells the address that its sidecar came from."""
    found = agent.call(url)
    assert found.get("status") == 200, (url, found)
    body: dict[str, Any] = json.loads(found["body"])
    return body


def bracketed(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def vips(cluster: Cluster, name: str) -> list[str]:
    found: list[str] = cluster.json("-n", EDGES, "get", "service", name)["spec"]["clusterIPs"]
    return found


def ips_of(pod: dict[str, Any]) -> list[str]:
    return [str(entry["ip"]) for entry in pod["status"]["podIPs"]]


def counted(cluster: Cluster, agent: Agent, name: str, **labels: str) -> float:
    """The sum of a metric of the agent's sidecar."""
    page = metrics(cluster, agent.pod["metadata"]["namespace"], name_of(agent.pod))
    total = 0.0
    for found in re.finditer(rf"^{name}\{{(.*)\}} (\S+)$", page, re.M):
        if labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found[1])).items():
            total += float(found[2])
    return total


# -- families ------------------------------------------------------------------------------------------------


def test_a_service_of_two_families_is_served_over_each(edges: Cluster) -> None:
    client = Agent(edges, EDGES, "client")
    four, six = vips(edges, "web")
    for ip, source in ((four, "127.0.0.6"), (six, "::6")):
        peer = answer(client, f"http://{bracketed(ip)}/")["peer"]
        assert peer.removeprefix("::ffff:") == source, f"{ip} was served from {peer}"


@pytest.mark.parametrize(("name", "source"), [("four", "127.0.0.6"), ("six", "::6")])
def test_a_service_of_one_family(edges: Cluster, name: str, source: str) -> None:
    (ip,) = vips(edges, name)
    assert (":" in ip) == (name == "six")
    client = Agent(edges, EDGES, "client")
    for host in (name, bracketed(ip)):
        assert answer(client, f"http://{host}/")["peer"].removeprefix("::ffff:") == source
    seen = counted(edges, client, "triomesh_requests_total", destination=f"{name}.{EDGES}:80", mtls="true")
    assert seen == 2


def test_a_mesh_without_ipv4(six: Cluster) -> None:
    client = Agent(six, SHOP, "client")
    (web, *_) = pods(six, SHOP, "app=web")
    assert ips_of(web) == [web["status"]["podIP"]]
    assert ":" in web["status"]["podIP"]
    for host in ("web", f"web.{OUTSIDE}", bracketed(web["status"]["podIP"]) + ":8080"):
        answer(client, f"http://{host}/")
    assert answer(Agent(six, OUTSIDE, "client"), f"http://web.{SHOP}/")["peer"] == "::6"
    seen = counted(six, client, "triomesh_requests_total", direction="outbound", mtls="true", code="200")
    assert seen == 2


# -- ports ---------------------------------------------------------------------------------------------------


def test_each_port_of_a_service_speaks_what_is_declared(edges: Cluster) -> None:
    """By appProtocol, which goes before the port's name; by the name; or found out."""
    client = Agent(edges, EDGES, "client")
    for port in PORTS:
        answer(client, f"http://web:{port}/")
        labels = {"direction": "outbound", "destination": f"web.{EDGES}:{port}", "mtls": "true"}
        opaque = counted(edges, client, "triomesh_tcp_connections_opened_total", **labels)
        requests = counted(edges, client, "triomesh_requests_total", code="200", **labels)
        assert bool(opaque) == (port in OPAQUE), port
        assert bool(requests) == (port not in OPAQUE), port


def test_a_port_that_a_service_does_not_have(edges: Cluster) -> None:
    """As without a mesh: nobody answers there."""
    found = Agent(edges, EDGES, "client").call(f"http://web:{max(PORTS) + 1}/", timeout=5)
    assert found.get("status") in (None, 503), found


# -- headless, and pods by their own names and addresses -----------------------------------------------------


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("domain", ["db", f"db.{EDGES}.svc.cluster.local"], ids=["short", "full"])
def test_a_pod_by_its_dns_name(edges: Cluster, number: int, domain: str) -> None:
    client = Agent(edges, EDGES, "client")
    found = answer(client, f"http://db-{number}.{domain}:8080/")
    assert found["pod"] == f"db-{number}"
    assert found["peer"].removeprefix("::ffff:") in ("127.0.0.6", "::6"), "it came by the pod's sidecar"


def test_a_headless_service_leads_to_its_pods(edges: Cluster) -> None:
    client = Agent(edges, EDGES, "client")
    assert {answer(client, "http://db:8080/")["pod"] for _ in range(5)} <= {"db-0", "db-1"}
    labels = {"direction": "outbound", "destination": f"db.{EDGES}", "mtls": "false"}
    assert counted(edges, client, "triomesh_requests_total", **labels) == 0


def test_a_pod_by_each_of_its_addresses(edges: Cluster) -> None:
    client = Agent(edges, EDGES, "client")
    (web,) = pods(edges, EDGES, "app=web")
    assert len(ips_of(web)) == 2
    labels = {"direction": "outbound", "mtls": "true", "code": "200"}
    for ip in ips_of(web):
        before = counted(edges, client, "triomesh_requests_total", **labels)
        peer = answer(client, f"http://{bracketed(ip)}:8080/")["peer"].removeprefix("::ffff:")
        assert peer == ("::6" if ":" in ip else "127.0.0.6")
        assert counted(edges, client, "triomesh_requests_total", **labels) == before + 1
    assert answer(
        client, f"http://{web['status']['podIP'].replace('.', '-')}.{EDGES}.pod.cluster.local:8080/"
    )


# -- other names, and addresses outside the mesh -------------------------------------------------------------


def test_an_external_name_is_its_target(edges: Cluster) -> None:
    """The name is an alias, so what counts is whom it stands for."""
    client = Agent(edges, EDGES, "client")
    for name, target, mtls in (("alias", SHOP, "true"), ("outside", OUTSIDE, "false")):
        answer(client, f"http://{name}/")
        labels = {"direction": "outbound", "destination": f"web.{target}:80", "mtls": mtls, "code": "200"}
        assert counted(edges, client, "triomesh_requests_total", **labels) == 1


@contextmanager
def stranger(cluster: Cluster) -> Iterator[tuple[str, ...]]:
    """A web server that the mesh does not know, on the node; its hosts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = netns.listen(node_name(cluster.name), "::", 7777)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"{IPV4.node}:7777", f"[{IPV6.node}]:7777"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_unknown_destinations_pass_or_are_refused_by_egress_mode(edges: Cluster) -> None:
    client = Agent(edges, EDGES, "client")
    refuse = {
        "apiVersion": "triomesh.dev/v1alpha1",
        "kind": "MeshPolicy",
        "metadata": {"name": "egress", "namespace": EDGES},
        "spec": {"defaults": {"egress": {"mode": "refuse"}}},
    }
    with stranger(edges) as hosts:
        for host in hosts:
            answer(client, f"http://{host}/")
        passed = counted(
            edges, client, "triomesh_tcp_connections_opened_total", destination="passthrough", mtls="false"
        )
        assert passed == len(hosts)
        edges.apply(refuse)
        try:
            for host in hosts:
                edges.until(lambda host=host: "error" in client.call(f"http://{host}/"), f"{host} refused")
            answer(client, "http://web/")
            answer(client, f"http://web.{OUTSIDE}/")
            assert (
                counted(edges, client, "triomesh_refused_total", direction="outbound", reason="egress") >= 2
            )
        finally:
            edges.kubectl("-n", EDGES, "delete", "meshpolicy", "egress")
        for host in hosts:
            edges.until(
                lambda host=host: client.call(f"http://{host}/").get("status") == 200, f"{host} let through"
            )
