"""The webhook in front of a real cluster: what `kubectl` stores, and what it is told."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from injector import webhook
from injector.decision import ENFORCE, INJECTION, Inject, Namespace
from injector.patch import decide
from injector.review import Decided
from injector.values import Values
from manifests import webhooks
from manifests.values import parse
from tests.support.inject import values
from tests.support.local_cluster import Cluster, running
from tests.support.local_webhook import Authority

pytestmark = pytest.mark.e2e

LABELS = {
    "shop": {INJECTION: "enabled"},
    "locked": {INJECTION: "enabled", ENFORCE: "baseline"},
}


class Hook:
    """A process around the server that knows the test's namespaces."""

    def __init__(self) -> None:
        self.events: list[Decided] = []
        self.failures: list[str] = []

    def values(self) -> Values:
        # The local cluster pulls no image: what the containers run is the host's.
        return values(image="triomesh", trustBundle="")

    async def namespace(self, name: str) -> Namespace:
        return Namespace(name, LABELS.get(name, {}))

    def decided(self, decided: Decided) -> None:
        return

    def failed(self, what: str) -> None:
        self.failures.append(what)

    async def event(self, decided: Decided) -> None:
        self.events.append(decided)


@contextmanager
def serving(authority: Authority) -> Iterator[tuple[Hook, int]]:
    """The webhook in a thread of its own, as kubectl blocks this one."""
    hook, tls = Hook(), authority.tls("127.0.0.1")
    started = threading.Event()
    told: dict[str, Any] = {}

    async def main() -> None:
        stop = trio.Event()
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        told.update(
            port=listeners[0].socket.getsockname()[1], token=trio.lowlevel.current_trio_token(), stop=stop
        )
        started.set()
        await webhook.serve(listeners, lambda: tls, hook, stop)

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        assert started.wait(10)
        yield hook, told["port"]
    finally:
        told["token"].run_sync_soon(told["stop"].set)
        thread.join(30)


def configuration(authority: Authority, port: int) -> dict[str, Any]:
    """The one of the installation, with this server in place of the Service."""
    found = webhooks.injector(parse({}))
    for entry in found["webhooks"]:
        entry["clientConfig"] = {
            "url": f"https://127.0.0.1:{port}/inject",
            "caBundle": authority.bundle,
        }
    return found


def pod(name: str, namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    container = {
        "name": "web",
        "image": "none",
        "command": ["sleep", "1000"],
        "readinessProbe": {"tcpSocket": {"port": 8080}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 1, **spec},
    }


def init_names(found: dict[str, Any]) -> list[str]:
    return [container["name"] for container in found["spec"].get("initContainers", [])]


def status(cluster: Cluster, name: str) -> dict[str, dict[str, Any]]:
    found = cluster.json("-n", "shop", "get", "pod", name)["status"]
    return {one["name"]: one for one in found.get("initContainerStatuses", [])}


def test_pods_of_a_labelled_namespace_get_a_sidecar(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with running(f"inject{os.getpid()}") as cluster, serving(authority) as (hook, port):
        cluster.apply(
            *(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
                for name, labels in {**LABELS, "other": {}}.items()
            ),
            configuration(authority, port),
        )
        _injected(cluster, hook)
        _of_a_deployment(cluster, hook)
        _left_alone(cluster, hook)
        _refused(cluster)
        _checks_pass_where_strangers_do_not(cluster)
        assert hook.failures == []


def _injected(cluster: Cluster, hook: Hook) -> None:
    cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod("web")))
    assert hook.events == []
    cluster.apply(pod("web", initContainers=[{"name": "first", "image": "none", "command": ["true"]}]))
    stored = cluster.json("-n", "shop", "get", "pod", "web")
    assert stored["metadata"]["annotations"]["triomesh.dev/injected"] == "1.2.3"
    assert init_names(stored) == ["triomesh-init", "triomesh-proxy", "first"]
    probe = stored["spec"]["containers"][0]["readinessProbe"]
    assert probe["httpGet"] == {"path": "/app-health/web/readyz", "port": 15020, "scheme": "HTTP"}
    cluster.until(lambda: len(hook.events) == 1, "the Event")
    assert (hook.events[0].involved.kind, hook.events[0].involved.name) == ("Pod", "web")
    # The rules are written; the sidecar runs, with its own token, and waits for a control plane.
    cluster.until(
        lambda: (status(cluster, "web").get("triomesh-init") or {}).get("ready", False), "the network init"
    )
    cluster.until(
        lambda: "running" in (status(cluster, "web").get("triomesh-proxy") or {}).get("state", {}),
        "the sidecar",
    )
    assert status(cluster, "web")["triomesh-proxy"]["started"] is False
    assert "ready" not in status(cluster, "web")["first"].get("state", {})
    cluster.kubectl("-n", "shop", "delete", "pod", "web", "--now")


def _of_a_deployment(cluster: Cluster, hook: Hook) -> None:
    cluster.kubectl("-n", "shop", "create", "deployment", "api", "--image=none", "--", "sleep", "1000")

    def pods() -> list[Any]:
        found: list[Any] = cluster.json("-n", "shop", "get", "pods", "-l", "app=api")["items"]
        return found

    cluster.until(lambda: len(pods()) == 1, "the Deployment's pod")
    assert init_names(pods()[0]) == ["triomesh-init", "triomesh-proxy"]
    cluster.until(lambda: hook.events[-1].involved.kind == "ReplicaSet", "the Event about the ReplicaSet")
    cluster.kubectl("-n", "shop", "delete", "deployment", "api")


def _left_alone(cluster: Cluster, hook: Hook) -> None:
    seen = len(hook.events)
    labelled = pod("in")
    labelled["metadata"].update(namespace="other", labels={"triomesh.dev/inject": "true"})
    opted_out = pod("out")
    opted_out["metadata"]["labels"] = {"triomesh.dev/inject": "false"}
    cluster.apply(labelled, opted_out, pod("none", "other"), pod("locked", "locked"))
    for name, namespace, inits in (
        ("in", "other", ["triomesh-init", "triomesh-proxy"]),
        ("out", "shop", []),
        ("none", "other", []),
        ("locked", "locked", []),
    ):
        assert init_names(cluster.json("-n", namespace, "get", "pod", name)) == inits
    cluster.until(lambda: len(hook.events) == seen + 2, "two Events")
    # Of the others the selectors know already.
    assert [event.reason for event in hook.events[seen:]] == ["Injected", "PodSecurityForbidsNetInit"]


def _refused(cluster: Cluster) -> None:
    bad = pod("bad")
    bad["metadata"]["annotations"] = {"triomesh.dev/exclude-outbound-ports": "http"}
    result = cluster.kubectl("create", "-f", "-", stdin=json.dumps(bad), check=False)
    assert result.returncode == 1
    assert (
        'admission webhook "namespace.injector.triomesh.dev" denied the request: InvalidAnnotation: '
        "annotation triomesh.dev/exclude-outbound-ports: expected ports such as 80,8000-8010: 'http' is not"
    ) in result.stderr


def _checks_pass_where_strangers_do_not(cluster: Cluster) -> None:
    """Without a configuration the sidecar is STRICT: the kubelet gets through by the sidecar alone."""
    web = pod("checked", "other")
    container = web["spec"]["containers"][0]
    container["command"] = ["python3", "-m", "http.server", "8080", "--bind", "::"]
    container["ports"] = [{"name": "http", "containerPort": 8080}]
    container["readinessProbe"] = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1}
    container["livenessProbe"] = {"tcpSocket": {"port": "http"}, "periodSeconds": 1}
    wrong = {
        "name": "wrong",
        "image": "none",
        "command": ["sleep", "1000"],
        "readinessProbe": {"tcpSocket": {"port": 9999}, "periodSeconds": 1},
    }
    web["spec"]["containers"].append(wrong)
    decision = decide(
        web, Namespace("other", {INJECTION: "enabled"}), values(image="triomesh", trustBundle="")
    )
    assert isinstance(decision, Inject)
    # There is no control plane here: the application shall start although the sidecar is not ready.
    del decision.pod["spec"]["initContainers"][1]["startupProbe"]
    cluster.apply(decision.pod)

    def ready() -> dict[str, bool]:
        found = cluster.json("-n", "other", "get", "pod", "checked")["status"]
        return {one["name"]: one["ready"] for one in found.get("containerStatuses", [])}

    cluster.until(lambda: ready().get("web", False), "the check of web")
    assert ready() == {"web": True, "wrong": False}
    address = cluster.json("-n", "other", "get", "pod", "checked")["status"]["podIP"]
    call = ("curl", "-sS", "--max-time", "5", f"http://{address}:8080/")
    other = ("-n", "other")
    cluster.kubectl(*other, "run", "stranger", "--image=none", "--restart=Never", "--command", "--", *call)
    ended = "--for=jsonpath={.status.phase}=Failed"
    cluster.kubectl(*other, "wait", ended, "pod/stranger", "--timeout=30s")
    assert "Connection reset by peer" in cluster.kubectl(*other, "logs", "stranger").stdout
    log = cluster.kubectl("-n", "other", "logs", "checked", "-c", "triomesh-proxy").stdout
    assert (
        f'"path":"/app-health/wrong/readyz","outcome":"connect to {address}:9999: Connection refused"' in log
    )
