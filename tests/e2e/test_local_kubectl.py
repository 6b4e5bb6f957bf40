"""Real kubectl against a local cluster: what a user does in the first hour, and what they get wrong."""

import json
import subprocess
from typing import Any

import pytest
import yaml

from tests.support.local_cluster import KUBECTL, Cluster, pod

pytestmark = pytest.mark.e2e

SLEEP = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]


def deployment(name: str, namespace: str, replicas: int = 2, **template: Any) -> dict[str, Any]:
    labels = {"app": name}
    container = {"name": "app", "image": "local", "command": SLEEP, **template}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
            },
        },
    }


def test_api_resources(cluster: Cluster) -> None:
    rows = cluster.kubectl("api-resources", "--no-headers").stdout.splitlines()
    kinds = {row.split()[-1] for row in rows}
    assert {
        "Namespace",
        "Pod",
        "Service",
        "EndpointSlice",
        "ConfigMap",
        "Secret",
        "ServiceAccount",
        "Deployment",
        "ReplicaSet",
        "Job",
        "Event",
        "Lease",
        "Role",
        "ClusterRole",
        "RoleBinding",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
        "Node",
    } <= kinds


@pytest.mark.parametrize(
    "arguments",
    [
        "configmap c --from-literal=a=1",
        "secret generic s --from-literal=k=v",
        "serviceaccount sa",
        "deployment d --image=local --replicas=0 -- sleep 1",
        "job j --image=local -- true",
        "role r --verb=get,list --resource=pods",
        "rolebinding b --role=r --serviceaccount=default:default",
        "clusterrole test-cr --verb=get --resource=nodes",
        "clusterrolebinding test-crb --clusterrole=view --user=alice",
        "service clusterip svc --tcp=80:8080",
    ],
)
def test_create_with_typed_clients(cluster: Cluster, namespace: str, arguments: str) -> None:
    kind, name = (
        arguments.split()[0],
        arguments.split()[2 if arguments.startswith(("secret", "service c")) else 1],
    )
    said = cluster.kubectl("-n", namespace, "create", *arguments.split()).stdout
    assert said.strip().endswith("created")
    try:
        assert cluster.json("-n", namespace, "get", kind, name)["metadata"]["name"] == name
        again = cluster.kubectl("-n", namespace, "create", *arguments.split(), check=False)
        assert again.returncode == 1
        assert "already exists" in again.stderr
    finally:
        if kind.startswith("cluster"):
            cluster.kubectl("delete", kind, name)


def test_create_token_and_auth_questions(cluster: Cluster, namespace: str) -> None:
    token = cluster.kubectl("-n", namespace, "create", "token", "default", "--duration=10m").stdout.strip()
    assert token.count(".") == 2
    assert cluster.kubectl("auth", "can-i", "create", "pods").stdout.strip() == "yes"
    denied = cluster.kubectl(
        "--as", f"system:serviceaccount:{namespace}:default", "auth", "can-i", "create", "pods", check=False
    )
    assert denied.returncode == 1
    assert denied.stdout.strip() == "no"
    assert "kubernetes-admin" in cluster.kubectl("auth", "whoami").stdout


def test_apply_first_unchanged_and_changed(cluster: Cluster, namespace: str) -> None:
    made = deployment("web", namespace, replicas=0)
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": namespace}}
    assert "created" in cluster.apply(made, {**config, "data": {"a": "1"}})
    before = cluster.json("-n", namespace, "get", "configmap", "c")["metadata"]["resourceVersion"]
    said = cluster.apply(made, {**config, "data": {"a": "1"}})
    assert said.count("unchanged") == 2
    assert cluster.json("-n", namespace, "get", "configmap", "c")["metadata"]["resourceVersion"] == before
    changed = deployment("web", namespace, replicas=0, env=[{"name": "A", "value": "b"}])
    said = cluster.apply(changed, {**config, "data": {"b": "2"}})
    assert said.count("configured") == 2
    assert cluster.json("-n", namespace, "get", "configmap", "c")["data"] == {"b": "2"}
    template = cluster.json("-n", namespace, "get", "deploy", "web")["spec"]["template"]
    assert template["spec"]["containers"][0]["env"] == [{"name": "A", "value": "b"}]


def test_apply_refuses_what_is_wrong(cluster: Cluster, namespace: str) -> None:
    wrong = deployment("web", namespace)
    wrong["spec"]["replicaz"] = 1
    said = cluster.kubectl("apply", "-f", "-", stdin=json.dumps(wrong), check=False)
    assert said.returncode == 1
    assert 'unknown field "spec.replicaz"' in said.stderr
    wrong = deployment("web", namespace)
    wrong["spec"]["selector"] = {"matchLabels": {"app": "other"}}
    said = cluster.kubectl("apply", "-f", "-", stdin=json.dumps(wrong), check=False)
    assert "`selector` does not match template `labels`" in said.stderr


def test_label_annotate_and_three_patches(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("-n", namespace, "create", "configmap", "c", "--from-literal=a=1")
    cluster.kubectl("-n", namespace, "label", "configmap", "c", "team=x")
    refused = cluster.kubectl("-n", namespace, "label", "configmap", "c", "team=y", check=False)
    assert "already has a value" in refused.stderr
    cluster.kubectl("-n", namespace, "label", "configmap", "c", "team=y", "--overwrite")
    cluster.kubectl("-n", namespace, "annotate", "configmap", "c", "note=hello")
    bad = cluster.kubectl("-n", namespace, "label", "configmap", "c", "x=not valid!", check=False)
    assert bad.returncode == 1
    patch = ["-n", namespace, "patch", "configmap", "c"]
    cluster.kubectl(*patch, "--type=strategic", "-p", '{"data":{"b":"2"}}')
    cluster.kubectl(*patch, "--type=merge", "-p", '{"data":{"a":null}}')
    cluster.kubectl(*patch, "--type=json", "-p", '[{"op":"add","path":"/data/c","value":"3"}]')
    failed = cluster.kubectl(
        *patch, "--type=json", "-p", '[{"op":"test","path":"/data/c","value":"9"}]', check=False
    )
    assert failed.returncode == 1
    found = cluster.json("-n", namespace, "get", "configmap", "c")
    assert found["data"] == {"b": "2", "c": "3"}
    assert found["metadata"]["labels"] == {"team": "y"}
    assert found["metadata"]["annotations"] == {"note": "hello"}


def test_get_in_every_form(cluster: Cluster, namespace: str) -> None:
    cluster.apply(pod("a", *SLEEP, namespace=namespace), pod("b", *SLEEP, namespace=namespace))
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=30s")
    table = cluster.kubectl("-n", namespace, "get", "pods").stdout.splitlines()
    assert table[0].split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert table[1].split()[:4] == ["a", "1/1", "Running", "0"]
    wide = cluster.kubectl("-n", namespace, "get", "pods", "-o", "wide").stdout
    assert "NODE" in wide.splitlines()[0]
    found = yaml.safe_load(cluster.kubectl("-n", namespace, "get", "pod", "a", "-o", "yaml").stdout)
    assert found["status"]["podIP"] in wide
    only = cluster.kubectl("-n", namespace, "get", "pods", "-l", "app=b", "-o", "name").stdout
    assert only.strip() == "pod/b"
    running = cluster.kubectl(
        "-n",
        namespace,
        "get",
        "pods",
        "--field-selector",
        "status.phase=Running,metadata.name=a",
        "-o",
        "name",
    ).stdout
    assert running.strip() == "pod/a"
    ip = cluster.kubectl("-n", namespace, "get", "pod", "a", "-o", "jsonpath={.status.podIP}").stdout
    assert ip == found["status"]["podIP"]
    nothing = cluster.kubectl("-n", namespace, "get", "deploy")
    assert "No resources found" in nothing.stderr
    missing = cluster.kubectl("-n", namespace, "get", "pod", "nope", check=False)
    assert missing.stderr.strip() == 'Error from server (NotFound): pods "nope" not found'


def test_describe_and_events(cluster: Cluster, namespace: str) -> None:
    cluster.apply(pod("a", *SLEEP, namespace=namespace))
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/a", "--timeout=30s")
    said = cluster.kubectl("-n", namespace, "describe", "pod", "a").stdout
    for expected in ("Successfully assigned", "Started", "Container ID", "QoS Class"):
        assert expected in said
    assert "Scheduled" in cluster.kubectl("-n", namespace, "get", "events").stdout
    assert "Ready" in cluster.kubectl("describe", "node").stdout
    assert "Active" in cluster.kubectl("describe", "namespace", namespace).stdout


def test_logs(cluster: Cluster, namespace: str) -> None:
    script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done"
    cluster.apply(pod("talk", "sh", "-c", script, namespace=namespace, restartPolicy="Never"))
    cluster.until(
        lambda: cluster.kubectl("-n", namespace, "logs", "talk", check=False).stdout != "",
        "first line of log",
    )
    followed = cluster.kubectl("-n", namespace, "logs", "-f", "talk").stdout
    assert followed.splitlines() == [f"line {i}" for i in range(1, 6)]
    assert cluster.kubectl("-n", namespace, "logs", "talk", "--tail=1").stdout == "line 5\n"
    wrong = cluster.kubectl("-n", namespace, "logs", "talk", "-c", "nope", check=False)
    assert "container nope is not valid for pod talk" in wrong.stderr


def test_rollout(cluster: Cluster, namespace: str) -> None:
    n = ["-n", namespace]
    cluster.apply(deployment("web", namespace))
    cluster.kubectl(*n, "rollout", "status", "deploy/web", "--timeout=40s")
    cluster.kubectl(*n, "wait", "--for=condition=Available", "deploy/web", "--timeout=20s")
    cluster.kubectl(*n, "scale", "deploy", "web", "--replicas=3")
    cluster.kubectl(*n, "rollout", "status", "deploy/web", "--timeout=40s")
    assert cluster.json(*n, "get", "deploy", "web")["status"]["readyReplicas"] == 3
    cluster.kubectl(*n, "set", "env", "deploy/web", "A=b")
    cluster.kubectl(*n, "rollout", "status", "deploy/web", "--timeout=40s")
    cluster.kubectl(*n, "rollout", "restart", "deploy/web")
    cluster.kubectl(*n, "rollout", "status", "deploy/web", "--timeout=40s")
    assert len(cluster.json(*n, "get", "rs")["items"]) == 3
    assert "REVISION" in cluster.kubectl(*n, "rollout", "history", "deploy/web").stdout
    cluster.kubectl(*n, "rollout", "undo", "deploy/web", "--to-revision=1")
    cluster.kubectl(*n, "rollout", "status", "deploy/web", "--timeout=40s")
    assert "env" not in cluster.json(*n, "get", "deploy", "web")["spec"]["template"]["spec"]["containers"][0]


def test_jobs(cluster: Cluster, namespace: str) -> None:
    n = ["-n", namespace]
    cluster.kubectl(*n, "create", "job", "good", "--image=local", "--", "sh", "-c", "echo done")
    cluster.kubectl(*n, "wait", "--for=condition=Complete", "job/good", "--timeout=30s")
    assert cluster.kubectl(*n, "logs", "job/good").stdout == "done\n"


def test_delete_with_grace(cluster: Cluster, namespace: str) -> None:
    n = ["-n", namespace]
    stubborn = ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]
    slow = pod("slow", *stubborn, namespace=namespace)
    slow["spec"]["terminationGracePeriodSeconds"] = 30
    cluster.apply(slow)
    cluster.kubectl(*n, "wait", "--for=condition=Ready", "pod/slow", "--timeout=30s")
    cluster.kubectl(*n, "delete", "pod", "slow", "--grace-period=2", "--wait=false")
    leaving = cluster.json(*n, "get", "pod", "slow")
    assert leaving["metadata"]["deletionGracePeriodSeconds"] == 2
    assert "Terminating" in cluster.kubectl(*n, "get", "pod", "slow").stdout
    cluster.kubectl(*n, "wait", "--for=delete", "pod/slow", "--timeout=30s")
    slow["spec"]["terminationGracePeriodSeconds"] = 60
    cluster.apply(slow)
    cluster.kubectl(*n, "wait", "--for=condition=Ready", "pod/slow", "--timeout=30s")
    cluster.kubectl(*n, "delete", "pod", "slow", "--grace-period=0", "--force")
    assert cluster.kubectl(*n, "get", "pod", "slow", check=False).returncode == 1


def test_delete_namespace(cluster: Cluster) -> None:
    cluster.kubectl("create", "namespace", "gone")
    cluster.apply(deployment("web", "gone"))
    cluster.kubectl("-n", "gone", "rollout", "status", "deploy/web", "--timeout=40s")
    cluster.kubectl("delete", "namespace", "gone", "--timeout=40s")
    assert cluster.kubectl("get", "namespace", "gone", check=False).returncode == 1
    assert cluster.json("get", "pods", "-n", "gone")["items"] == []


def test_wait_for_deletion_sees_it(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("-n", namespace, "create", "configmap", "c")
    command = [str(KUBECTL), "--kubeconfig", str(cluster.kubeconfig), "-n", namespace]
    waiter = subprocess.Popen([*command, "wait", "--for=delete", "configmap/c", "--timeout=30s"])
    try:
        cluster.kubectl("-n", namespace, "delete", "configmap", "c")
        assert waiter.wait(timeout=30) == 0
    finally:
        waiter.kill()
        waiter.wait()


def test_container_without_a_command_says_what_to_do(cluster: Cluster, namespace: str) -> None:
    n = ["-n", namespace]
    cluster.kubectl(*n, "run", "img", "--image=nginx")
    cluster.until(
        lambda: "ErrImageNeverPull" in cluster.kubectl(*n, "get", "pod", "img").stdout,
        "the reason in the table",
    )
    said = cluster.kubectl(*n, "describe", "pod", "img").stdout
    assert "command" in said
    assert "img" in said
