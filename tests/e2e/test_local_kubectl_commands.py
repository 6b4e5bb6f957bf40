"""Real kubectl against a local cluster: the commands beyond the first hour."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.local_cluster import KUBECTL, Cluster, pod

pytestmark = pytest.mark.e2e

SLEEP = ["sh", "-c", "trap 'exit 0' TERM; echo started; while :; do sleep 0.1; done"]


def deployment(namespace: str, name: str = "web", **spec: Any) -> dict[str, Any]:
    labels = {"app": name}
    container = {"name": "app", "image": "one", "command": SLEEP, "ports": [{"containerPort": 8080}]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
            },
            **spec,
        },
    }


def config_map(namespace: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c", "namespace": namespace},
        "data": data,
    }


def manifest(path: Path, *objects: dict[str, Any]) -> str:
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
    return str(path)


def rolled_out(cluster: Cluster, namespace: str, name: str = "web") -> None:
    said = cluster.kubectl("-n", namespace, "rollout", "status", f"deploy/{name}", "--timeout=30s").stdout
    assert said.endswith("successfully rolled out\n")


@contextlib.contextmanager
def following(cluster: Cluster, *args: str) -> Iterator[Path]:
    """A kubectl in the background that writes to a file."""
    path = Path(f"/tmp/kubectl-{os.getpid()}.out")
    command = [str(KUBECTL), "--kubeconfig", str(cluster.kubeconfig), *args]
    with open(path, "w") as file:
        process = subprocess.Popen(command, stdout=file)
    try:
        yield path
    finally:
        process.terminate()
        process.wait(10)
        path.unlink()


def test_a_list_is_applied_compared_and_replaced(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    first = manifest(tmp_path / "first.json", deployment(namespace, replicas=0), config_map(namespace, a="1"))
    said = cluster.kubectl("apply", "-f", first).stdout
    assert said == "deployment.apps/web created\nconfigmap/c created\n"
    assert cluster.kubectl("diff", "-f", first).stdout == ""
    second = manifest(
        tmp_path / "second.json", deployment(namespace, replicas=0), config_map(namespace, a="2")
    )
    changed = cluster.kubectl("diff", "-f", second, check=False)
    assert changed.returncode == 1
    assert '-  a: "1"\n+  a: "2"\n' in changed.stdout
    said = cluster.kubectl("replace", "-f", second).stdout
    assert said == "deployment.apps/web replaced\nconfigmap/c replaced\n"
    assert cluster.json("-n", namespace, "get", "cm", "c")["data"] == {"a": "2"}
    said = cluster.kubectl("delete", "-f", second).stdout
    assert f'configmap "c" deleted from {namespace} namespace' in said


def test_edit(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    cluster.apply(config_map(namespace, colour="red"))
    command = [str(KUBECTL), "--kubeconfig", str(cluster.kubeconfig), "-n", namespace, "edit", "cm", "c"]
    edit = {**os.environ, "KUBE_EDITOR": "sed -i s/red/blue/", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=edit, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "configmap/c edited\n"
    assert cluster.json("-n", namespace, "get", "cm", "c")["data"] == {"colour": "blue"}
    edit["KUBE_EDITOR"] = "sed -i s/colour:/co_lo*r:/"
    done = subprocess.run(command, env=edit, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert 'configmaps "c" is invalid' in done.stderr
    kept = "".join(path.read_text() for path in tmp_path.glob("kubectl-edit-*"))
    assert "a valid config key must consist of alphanumeric characters" in kept


def test_a_new_image_and_back_again(cluster: Cluster, namespace: str) -> None:
    cluster.apply(deployment(namespace))
    rolled_out(cluster, namespace)
    said = cluster.kubectl("-n", namespace, "set", "image", "deploy/web", "app=two").stdout
    assert said == "deployment.apps/web image updated\n"
    rolled_out(cluster, namespace)
    history = cluster.kubectl("-n", namespace, "rollout", "history", "deploy/web").stdout
    assert [line.split()[0] for line in history.splitlines()[2:] if line] == ["1", "2"]
    cluster.kubectl("-n", namespace, "rollout", "undo", "deploy/web")
    rolled_out(cluster, namespace)
    found = cluster.json("-n", namespace, "get", "deploy", "web")
    assert found["spec"]["template"]["spec"]["containers"][0]["image"] == "one"
    assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"


def test_cascade(cluster: Cluster, namespace: str) -> None:
    cluster.apply(deployment(namespace))
    rolled_out(cluster, namespace)
    cluster.kubectl("-n", namespace, "delete", "deploy", "web", "--cascade=orphan")
    sets = cluster.json("-n", namespace, "get", "rs")["items"]
    assert [r["metadata"].get("ownerReferences") for r in sets] == [None]
    pods = cluster.json("-n", namespace, "get", "pods")["items"]
    assert all(p["status"]["phase"] == "Running" for p in pods)
    assert len(pods) == 2
    # The set of the same template is taken over.
    cluster.apply(deployment(namespace))
    rolled_out(cluster, namespace)
    assert len(cluster.json("-n", namespace, "get", "rs")["items"]) == 1
    cluster.kubectl("-n", namespace, "delete", "deploy", "web", "--cascade=foreground")
    assert cluster.kubectl("-n", namespace, "get", "rs,pods", "-o", "name").stdout == ""


def test_get_and_watch(cluster: Cluster, namespace: str) -> None:
    cluster.apply(config_map(namespace, a="1"))
    with following(cluster, "-n", namespace, "get", "cm", "c", "--watch") as path:
        cluster.until(lambda: "c      1" in path.read_text(), "the first row")
        cluster.kubectl("-n", namespace, "patch", "cm", "c", "-p", '{"data":{"b":"2"}}')
        cluster.until(lambda: "c      2" in path.read_text(), "the change")
        assert path.read_text().count("NAME") == 1


def documents(text: str) -> list[Any]:
    """The JSON documents in a row that are complete."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        try:
            document, at = decoder.raw_decode(text, at)
        except ValueError:
            return found
        found.append(document)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


def test_the_states_of_a_pod_from_start_to_end(cluster: Cluster, namespace: str) -> None:
    watch = ("-n", namespace, "get", "pods", "--watch", "--output-watch-events", "-o", "json")
    with following(cluster, *watch) as path:
        cluster.apply(pod("p", *SLEEP, namespace=namespace))
        cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/p", "--timeout=30s")
        cluster.kubectl("-n", namespace, "delete", "pod", "p")
        cluster.until(lambda: "DELETED" in [e["type"] for e in documents(path.read_text())], "the deletion")
        events = documents(path.read_text())
    states = []
    for event in events:
        status = event["object"]["status"]
        for container in status.get("containerStatuses") or [{"state": {"none": {}}, "ready": False}]:
            state = (status["phase"], next(iter(container["state"])), container["ready"])
            if state not in states:
                states.append(state)
    assert states == [
        ("Pending", "none", False),
        ("Pending", "waiting", False),
        ("Running", "running", True),
        ("Succeeded", "terminated", False),
    ]


def test_logs_of_the_former_container(cluster: Cluster, namespace: str) -> None:
    once = ["sh", "-c", "test -e /scratch/again && exec sleep 1000; touch /scratch/again; echo dying; exit 3"]
    volume = {"volumeMounts": [{"name": "work", "mountPath": "/scratch"}]}
    spec = {"container": volume, "volumes": [{"name": "work", "emptyDir": {}}]}
    cluster.apply(pod("p", *once, namespace=namespace, **spec))

    def restarted() -> bool:
        found = cluster.json("-n", namespace, "get", "pod", "p")["status"].get("containerStatuses")
        return bool(found) and found[0]["restartCount"] == 1 and "running" in found[0]["state"]

    cluster.until(restarted, "a restart")
    assert cluster.kubectl("-n", namespace, "logs", "p", "--previous").stdout == "dying\n"
    assert cluster.kubectl("-n", namespace, "logs", "p").stdout == ""
    described = cluster.kubectl("-n", namespace, "describe", "pod", "p").stdout
    assert "Last State:     Terminated\n      Reason:       Error\n      Exit Code:    3\n" in described


def test_describe_every_kind(cluster: Cluster, namespace: str) -> None:
    cluster.apply(deployment(namespace), config_map(namespace, a="1"))
    for made in (
        "secret generic s --from-literal=a=b",
        "job j --image=local -- true",
        "role r --verb=get --resource=pods",
        "rolebinding b --role=r --serviceaccount=default:default",
    ):
        cluster.kubectl("-n", namespace, "create", *made.split())
    cluster.kubectl("-n", namespace, "expose", "deploy", "web", "--port=80", "--target-port=8080")
    rolled_out(cluster, namespace)
    for kind, text in {
        "deploy": "2 desired | 2 updated | 2 total | 2 available | 0 unavailable",
        "rs": "Controlled By:  Deployment/web",
        "pods": "Controlled By:  ReplicaSet/web-",
        "job": "Completions:      1",
        "svc": "TargetPort:               8080/TCP",
        "endpointslices": "TargetRef:  Pod/web-",
        "endpoints": "8080  TCP",
        "cm": "a:\n----\n1\n",
        "secret": "a:  1 bytes",
        "sa": "Image pull secrets:  <none>",
        "role": "pods       []                 []              [get]",
        "rolebinding": "ServiceAccount  default  default",
        "events": "Reason:                  ScalingReplicaSet",
    }.items():
        said = cluster.kubectl("-n", namespace, "describe", kind).stdout
        assert " ".join(text.split()) in " ".join(said.split()), kind
    for kind, text in {
        "node": "Ready            True",
        f"ns/{namespace}": "Status:       Active",
        "clusterrole/view": "PolicyRule:",
        "clusterrolebinding/cluster-admin": "system:masters",
    }.items():
        said = cluster.kubectl("describe", kind).stdout
        assert " ".join(text.split()) in " ".join(said.split()), kind


def test_expose_run_and_events(cluster: Cluster, namespace: str) -> None:
    said = cluster.kubectl(
        "-n", namespace, "run", "p", "--image=local", "--labels=a=b", "--command", "--", *SLEEP
    )
    assert said.stdout == "pod/p created\n"
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/p", "--timeout=30s")
    said = cluster.kubectl("-n", namespace, "expose", "pod", "p", "--port=80", "--name=svc")
    assert said.stdout == "service/svc exposed\n"
    assert cluster.json("-n", namespace, "get", "svc", "svc")["spec"]["selector"] == {"a": "b"}
    cluster.until(
        lambda: "Started" in cluster.kubectl("-n", namespace, "events", "--for", "pod/p").stdout, "events"
    )
    rows = cluster.kubectl("-n", namespace, "events", "--for", "pod/p", "--no-headers").stdout.splitlines()
    assert {row.split()[2] for row in rows} == {"Scheduled", "Pulled", "Created", "Started"}
    cluster.kubectl("-n", namespace, "delete", "pod", "p", "--now")


def test_a_cordoned_node_gets_no_pods(cluster: Cluster, namespace: str) -> None:
    assert cluster.kubectl("cordon", "node1").stdout == "node/node1 cordoned\n"
    try:
        assert "Ready,SchedulingDisabled" in cluster.kubectl("get", "nodes").stdout
        cluster.apply(pod("p", *SLEEP, namespace=namespace))
        reason = "jsonpath={.status.conditions[?(@.type=='PodScheduled')].reason}"
        cluster.kubectl("-n", namespace, "wait", f"--for={reason}=Unschedulable", "pod/p", "--timeout=10s")
    finally:
        cluster.kubectl("uncordon", "node1")
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/p", "--timeout=30s")


def test_what_may_be_done_and_what_there_is(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("-n", namespace, "create", "role", "r", "--verb=get,list", "--resource=pods")
    cluster.kubectl(
        "-n", namespace, "create", "rolebinding", "b", "--role=r", f"--serviceaccount={namespace}:default"
    )
    account = f"--as=system:serviceaccount:{namespace}:default"
    rows = cluster.kubectl("-n", namespace, "auth", "can-i", "--list", account, "--no-headers").stdout
    assert "pods [] [] [get list]" in [" ".join(row.split()) for row in rows.splitlines()]
    assert cluster.kubectl("-n", namespace, "auth", "can-i", "list", "pods", account).stdout == "yes\n"
    refused = cluster.kubectl("-n", namespace, "auth", "can-i", "delete", "pods", account, check=False)
    assert (refused.returncode, refused.stdout) == (1, "no\n")
    versions = cluster.kubectl("api-versions").stdout.split()
    assert {"v1", "apps/v1", "batch/v1", "discovery.k8s.io/v1", "rbac.authorization.k8s.io/v1"} <= set(
        versions
    )


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pods.spec.containers.livenessProbe", "FIELD: livenessProbe <Probe>"),
        ("deployments.spec.strategy", "FIELD: strategy <DeploymentStrategy>"),
        ("endpointslices", "GROUP:      discovery.k8s.io"),
    ],
)
def test_explain(cluster: Cluster, path: str, text: str) -> None:
    assert text in cluster.kubectl("explain", path).stdout


def test_a_deprecated_kind_warns(cluster: Cluster, namespace: str) -> None:
    done = cluster.kubectl("-n", namespace, "get", "endpoints")
    assert done.stderr.splitlines() == [
        "Warning: v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
        f"No resources found in {namespace} namespace.",
    ]
