"""The whole on the local cluster: install, label a namespace, deploy unmodified programs."""

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.local_cluster import BIN, Cluster, run, running

pytestmark = pytest.mark.e2e

SERVER = ["python3", "-m", "http.server", "8080", "--bind", "::"]
CALL = "curl -sS -m 5 -o /dev/null -w '%{http_code}\\n' http://web/"
SYSTEM = "triomesh-system"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Cluster]:
    """A cluster with the control plane and a labelled namespace `shop`."""
    with running(f"mesh-{os.getpid()}") as cluster:
        meshctl(cluster, "install", "--set", "replicas=1", "--wait")
        cluster.kubectl("create", "namespace", "shop")
        cluster.kubectl("label", "namespace", "shop", "triomesh.dev/injection=enabled")
        cluster.apply(deployment("web", SERVER, replicas=2), service("web"), deployment("client", loop()))
        for name in ("web", "client"):
            cluster.kubectl("-n", "shop", "rollout", "status", f"deploy/{name}", "--timeout=60s", timeout=90)
        yield cluster


def meshctl(cluster: Cluster, *arguments: str) -> str:
    return run(
        str(BIN / "meshctl"),
        *arguments,
        timeout=120,
        env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
    ).stdout


def loop() -> list[str]:
    return ["sh", "-c", f"while :; do {CALL} 2>&1; sleep 0.1; done"]


def pod_template(name: str, command: list[str], **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "app", "image": "local", "command": command}],
            **spec,
        },
    }


def deployment(name: str, command: list[str], replicas: int = 1) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": pod_template(name, command),
        },
    }


def service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
    }


def pods(cluster: Cluster, app: str, namespace: str = "shop") -> list[str]:
    found = cluster.json("-n", namespace, "get", "pods", "-l", f"app={app}")["items"]
    return [p["metadata"]["name"] for p in found if "deletionTimestamp" not in p["metadata"]]


def metrics(cluster: Cluster, pod: str) -> str:
    return cluster.kubectl("get", "--raw", f"/api/v1/namespaces/shop/pods/{pod}:15020/proxy/metrics").stdout


def answers(cluster: Cluster) -> list[str]:
    (client,) = pods(cluster, "client")
    return cluster.kubectl("-n", "shop", "logs", client, "-c", "app").stdout.split()


def test_pods_of_a_labelled_namespace_talk_mtls(mesh: Cluster) -> None:
    mesh.until(lambda: answers(mesh).count("200") >= 10, "ten answers")
    pattern = re.compile(
        r'triomesh_requests_total\{direction="inbound",source="spiffe://cluster.local/ns/shop/sa/default",'
        r'destination="web.shop".*code="200",flag="",mtls="true"\} (\d+)'
    )
    counted = [pattern.search(metrics(mesh, pod)) for pod in pods(mesh, "web")]
    assert sum(int(found[1]) for found in counted if found) >= 10
    for pod in pods(mesh, "web"):
        assert 'mtls="false"' not in metrics(mesh, pod)


def test_a_pod_outside_the_mesh_is_served_in_permissive_mode(mesh: Cluster) -> None:
    call = CALL.replace("http://web/", "http://web.shop/")
    mesh.kubectl("run", "outside", "--image=local", "--restart=Never", "--command", "--", "sh", "-c", call)
    mesh.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/outside", "--timeout=30s")
    assert mesh.kubectl("logs", "outside").stdout.strip() == "200"
    assert any('mtls="false"' in metrics(mesh, pod) for pod in pods(mesh, "web"))


def test_a_job_completes_and_its_init_container_reaches_the_network(mesh: Cluster) -> None:
    template = pod_template(
        "once",
        ["sh", "-c", CALL],
        restartPolicy="Never",
        initContainers=[{"name": "early", "image": "local", "command": ["sh", "-c", CALL]}],
    )
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "once", "namespace": "shop"},
        "spec": {"template": template, "backoffLimit": 0},
    }
    mesh.apply(job)
    mesh.kubectl("-n", "shop", "wait", "--for=condition=Complete", "job/once", "--timeout=60s", timeout=90)
    for container in ("early", "app"):
        assert mesh.kubectl("-n", "shop", "logs", "job/once", "-c", container).stdout.strip() == "200"


def test_traffic_goes_on_without_a_control_plane(mesh: Cluster) -> None:
    before = len(answers(mesh))
    for pod in control_pods(mesh):
        mesh.kubectl("-n", SYSTEM, "delete", "pod", pod, "--grace-period=0", "--force")
    mesh.until(lambda: len(answers(mesh)) >= before + 20, "twenty more answers")
    mesh.kubectl("-n", SYSTEM, "rollout", "status", "deploy/triomesh-control", "--timeout=60s", timeout=90)
    assert set(answers(mesh)[before:]) == {"200"}
    # What comes afterwards is known again: a Service that did not exist when the sidecars connected.
    mesh.apply(deployment("late", SERVER), service("late"))
    mesh.kubectl("-n", "shop", "rollout", "status", "deploy/late", "--timeout=60s", timeout=90)
    call = CALL.replace("http://web/", "http://late/")
    mesh.kubectl(
        "-n", "shop", "run", "caller", "--image=local", "--restart=Never", "--command", "--", "sh", "-c", call
    )
    mesh.kubectl(
        "-n", "shop", "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/caller", "--timeout=60s"
    )
    assert mesh.kubectl("-n", "shop", "logs", "caller", "-c", "caller").stdout.strip() == "200"


def control_pods(cluster: Cluster) -> list[str]:
    return [p["metadata"]["name"] for p in cluster.json("-n", SYSTEM, "get", "pods")["items"]]


def test_uninstall_leaves_what_is_not_ours(mesh: Cluster) -> None:
    refused = run(
        str(BIN / "meshctl"),
        "uninstall",
        env={**os.environ, "KUBECONFIG": str(mesh.kubeconfig)},
        check=False,
        timeout=120,
    )
    assert refused.returncode != 0
    assert "sidecar" in refused.stderr
    meshctl(mesh, "uninstall", "--force", "--purge")
    mesh.until(
        lambda: mesh.kubectl("get", "namespace", SYSTEM, check=False).returncode == 1, "the namespace gone"
    )
    assert mesh.json("-n", "shop", "get", "deploy", "web")["spec"]["replicas"] == 2
