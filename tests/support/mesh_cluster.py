"""A mesh on a local cluster: the demo application, the control plane's processes, frames on the wire."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from examples.two_pods.netns import Capture
from mesh_local.kubelet.runtime import Runtime
from mesh_local.network.addressing import link_name, node_name, pod_name
from mesh_local.settings import Places
from tests.cluster import objects
from tests.cluster.agent import Agent
from tests.cluster.agent import pods as labelled
from tests.support.local_cluster import BIN, KUBECTL, Cluster, run, running

SYSTEM = "triomesh-system"
CONTROL = "triomesh-control"
IMAGE = "local"
SHOP, OUTSIDE = "shop", "outside"


def meshctl(cluster: Cluster, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
    return run(str(BIN / "meshctl"), *arguments, timeout=150, env=environment, check=check)


@contextmanager
def mesh_running(name: str, *options: str) -> Iterator[Cluster]:
    """A cluster with two control planes; `web` and `client` in the mesh, `client` and `web` outside it.

    `options` are those of `meshctl local up`.
    """
    with running(name, *options) as cluster:
        meshctl(cluster, "install", "--wait")
        cluster.apply(objects.namespace(SHOP), objects.namespace(OUTSIDE, meshed=False))
        made = [
            found
            for where, replicas in ((SHOP, 2), (OUTSIDE, 1))
            for found in (
                objects.deployment(where, "web", IMAGE, replicas=replicas),
                objects.service(where, "web"),
                objects.deployment(where, "client", IMAGE),
            )
        ]
        cluster.apply(*made)
        for where in (SHOP, OUTSIDE):
            rolled_out(cluster, where, "web", "client")
        yield cluster


def rolled_out(cluster: Cluster, where: str, *names: str) -> None:
    for name in names:
        cluster.kubectl("-n", where, "rollout", "status", f"deploy/{name}", "--timeout=90s", timeout=100)


def pods(cluster: Cluster, where: str, app: str) -> list[dict[str, Any]]:
    """The pods of an application, or of the control plane, that are to stay."""
    return labelled(cluster, where, f"{'app.kubernetes.io/name' if where == SYSTEM else 'app'}={app}")


def calling(cluster: Cluster, agent: Agent, url: str) -> "subprocess.Popen[str]":
    """A call that is under way; `answer` waits for its end."""
    path = agent.path_of_call(url)
    command = [str(KUBECTL), "--kubeconfig", str(cluster.kubeconfig), "get", "--raw", path]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(call: "subprocess.Popen[str]") -> Any:
    out, err = call.communicate(timeout=30)
    assert call.returncode == 0, err
    return json.loads(out)


def _processes(cluster: Cluster, pod: dict[str, Any]) -> tuple[Runtime, list[Any]]:
    runtime = Runtime(Places(cluster.name).pods)
    found = []
    for container in pod["spec"]["containers"]:
        uid, name = pod["metadata"]["uid"], container["name"]
        last = runtime.load(uid, name, max(runtime.attempts(uid, name)))
        assert last is not None
        found.append(last)
    return runtime, found


def send(cluster: Cluster, found: list[dict[str, Any]], number: signal.Signals) -> None:
    """A signal to the processes of pods' containers, by the kubelet's own records."""
    for pod in found:
        runtime, containers = _processes(cluster, pod)
        for container in containers:
            runtime.signal(container, number)


@contextmanager
def paused(cluster: Cluster) -> Iterator[Callable[[], None]]:
    """No replica of the control plane does anything until what is yielded is called."""
    replicas = pods(cluster, SYSTEM, CONTROL)
    assert replicas

    def go_on() -> None:
        send(cluster, replicas, signal.SIGCONT)

    send(cluster, replicas, signal.SIGSTOP)
    try:
        yield go_on
    finally:
        go_on()


@contextmanager
def without_api_server(cluster: Cluster, *, refuse: bool) -> Iterator[None]:
    """The control plane's replicas do not reach the API server: refused, or without any sign."""
    verdict = ("REJECT", "--reject-with", "tcp-reset") if refuse else ("DROP",)
    with dropping([netns_of(cluster, pod) for pod in pods(cluster, SYSTEM, CONTROL)], 443, verdict):
        yield


@contextmanager
def dropping(spaces: list[str], port: int, verdict: tuple[str, ...] = ("DROP",)) -> Iterator[None]:
    """What these network namespaces exchange with a TCP port of others does not arrive."""
    rules = [
        (
            "ip",
            "netns",
            "exec",
            space,
            tables,
            "-w",
            "{}",
            chain,
            "-p",
            "tcp",
            match,
            str(port),
            "-j",
            *verdict,
        )
        for space in spaces
        for tables in ("iptables", "ip6tables")
        for chain, match in (("OUTPUT", "--dport"), ("INPUT", "--sport"))
    ]
    for rule in rules:
        run(*(word.format("-I") for word in rule))
    try:
        yield
    finally:
        for rule in rules:
            run(*(word.format("-D") for word in rule))


def wire_of(cluster: Cluster, pod: dict[str, Any]) -> Capture:
    """Every frame between the node and a pod, seen from the node."""
    return Capture(node_name(cluster.name), link_name(pod["metadata"]["uid"]))


def netns_of(cluster: Cluster, pod: dict[str, Any]) -> str:
    return pod_name(cluster.name, pod["metadata"]["uid"])
