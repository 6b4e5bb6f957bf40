"""Pods on a real node: order, probes, restarts, termination, adoption after the runtime's death."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh_local.kubelet import kubelet, worker
from mesh_local.kubelet.lifecycle import Backoff
from mesh_local.machinery.objects import Object, dig
from mesh_local.network.types import Attachment, NetworkError
from tests.support.local_kubelet import (
    OBEDIENT,
    NodeUnderTest,
    container,
    is_ready,
    processes,
    state_of,
    with_node,
)

pytestmark = pytest.mark.e2e
FAST = Backoff(first_s=0.3, max_s=1.0, reset_s=60.0)


def test_a_pod_runs_and_goes(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        marker = f"marker-{os.getpid()}-a"
        await node.create("a", container(f"echo $1; echo $$$$; {OBEDIENT}", args=["sh", marker]))
        pod = await node.ready("a")
        assert dig(pod, "status", "phase") == "Running"
        assert processes(marker)
        assert (await node.log_has("a", f"{marker}\n1\n")).splitlines() == [marker, "1"]
        await node.client.delete("pods", "a", "t")
        await node.gone("a")
        assert not processes(marker)
        assert not node.runtime.uids()
        assert node.events.reasons("a") == ["Pulled", "Created", "Started", "Killing"]

    with_node(tmp_path, body)


def test_native_sidecars_start_in_order_and_stop_last(tmp_path: Path) -> None:
    """KEP-753: a sidecar must have started before what follows, and outlives the ordinary containers."""
    stamp = 'trap "echo $1 stops >> /e/order; exit 0" TERM; echo $1 starts >> /e/order; '
    wait = "while true; do sleep 0.05; done"
    shared = [{"name": "e", "mountPath": "/e"}]
    host = tmp_path / "shared"

    def one(name: str, script: str, **more: Any) -> Object:
        return container(stamp + script, name, args=["sh", name], volumeMounts=shared, **more)

    async def body(node: NodeUnderTest) -> None:
        probe = {"exec": {"command": ["test", "-e", "/e/go"]}, "periodSeconds": 1, "failureThreshold": 30}
        await node.create(
            "p",
            one("app1", wait),
            one("app2", wait),
            initContainers=[
                one("setup", "true"),
                one("mesh", "sleep 0.3; touch /e/go; " + wait, restartPolicy="Always", startupProbe=probe),
                one("second", wait, restartPolicy="Always"),
                one("late", "true"),
            ],
            volumes=[{"name": "e", "hostPath": {"path": str(host), "type": "DirectoryOrCreate"}}],
            terminationGracePeriodSeconds=20,
        )
        pod = await node.until("p", lambda p: dig(state_of(p, "mesh"), "state", "running"), "mesh runs")
        assert state_of(pod, "mesh")["started"] is False
        assert dig(pod, "status", "phase") == "Pending"
        assert "PodInitializing" in str(state_of(pod, "app1"))
        await node.ready("p")
        started = [
            "setup starts",
            "mesh starts",
            "second starts",
            "late starts",
            "app1 starts",
            "app2 starts",
        ]
        with trio.fail_after(10):
            while len((host / "order").read_text().splitlines()) < len(started):
                await trio.sleep(0.02)
        assert (host / "order").read_text().splitlines() == started
        await node.client.delete("pods", "p", "t")
        await node.gone("p")
        stopped = (host / "order").read_text().splitlines()[6:]
        assert sorted(stopped[:2]) == ["app1 stops", "app2 stops"]
        assert stopped[2:] == ["second stops", "mesh stops"]

    with_node(tmp_path, body)


def test_a_pod_that_completes_takes_its_sidecar_along(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        await node.create(
            "job",
            container("exit 0"),
            initContainers=[container(OBEDIENT, "mesh", restartPolicy="Always")],
            restartPolicy="Never",
        )
        pod = await node.phase("job", "Succeeded")
        assert state_of(pod, "mesh")["state"]["terminated"]["exitCode"] == 0
        assert [c.get("reason") for c in pod["status"]["conditions"]] == [
            None,
            "PodCompleted",
            "PodCompleted",
            "PodCompleted",
            None,
        ]
        await node.create("bad", container("echo words; exit 4"), restartPolicy="Never")
        pod = await node.phase("bad", "Failed")
        assert state_of(pod)["state"]["terminated"]["exitCode"] == 4
        assert await node.log("bad") == "words\n"

    with_node(tmp_path, body)


def test_failing_containers_are_restarted_with_growing_delays(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        await node.create("crash", container("echo dying; exit 3"))
        pod = await node.until(
            "crash",
            lambda p: dig(state_of(p), "state", "waiting", "reason") == "CrashLoopBackOff",
            "back-off",
        )
        found = state_of(pod)
        assert found["restartCount"] >= 1
        assert "restarting failed container=c pod=crash_t(" in found["state"]["waiting"]["message"]
        assert found["lastState"]["terminated"]["exitCode"] == 3
        assert dig(pod, "status", "phase") == "Running"
        await node.until("crash", lambda p: state_of(p).get("restartCount", 0) >= 3, "three restarts")
        assert "BackOff" in node.events.reasons("crash")
        assert await node.log("crash", previous=True) == "dying\n"
        # Restarts leave only the present and the previous attempt on file.
        assert len(node.runtime.attempts(node.runtime.uids()[0], "c")) <= 2

    with_node(tmp_path, body, backoff=FAST)


def test_probes_decide_on_readiness_and_restarts(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        serve = (
            "cd /tmp; mkdir -p w; cd w; touch live; trap 'exit 0' TERM; python3 -m http.server 8080 & wait"
        )
        await node.create(
            "web",
            container(
                serve,
                ports=[{"containerPort": 8080, "name": "http"}],
                startupProbe={"tcpSocket": {"port": "http"}, "periodSeconds": 1, "failureThreshold": 30},
                readinessProbe={"exec": {"command": ["test", "-e", "/tmp/w/ready"]}, "periodSeconds": 1},
                livenessProbe={
                    "httpGet": {"path": "/live", "port": "http"},
                    "periodSeconds": 1,
                    "failureThreshold": 1,
                    "terminationGracePeriodSeconds": 1,
                },
            ),
        )
        pod = await node.until("web", lambda p: state_of(p).get("started"), "started")
        assert not is_ready(pod)
        uid = node.runtime.uids()[0]
        running = node.runtime.load(uid, "c", 0)
        assert running is not None
        assert await node.runtime.exec_sync(running, ["touch", "/tmp/w/ready"]) == (0, "")
        await node.ready("web")
        await node.runtime.exec_sync(running, ["rm", "/tmp/w/ready"])
        await node.until("web", lambda p: not is_ready(p), "not ready")
        await node.runtime.exec_sync(running, ["rm", "/tmp/w/live"])
        await node.until("web", lambda p: state_of(p).get("restartCount") == 1, "restarted")
        assert "HTTP probe failed with statuscode: 404" in str(node.events.messages("web", "Unhealthy"))
        assert "Container c failed liveness probe, will be restarted" in node.events.messages(
            "web", "Killing"
        )

    with_node(tmp_path, body)


def test_grace_hooks_and_the_end_of_patience(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        host = tmp_path / "shared"
        volumes = [{"name": "e", "hostPath": {"path": str(host), "type": "DirectoryOrCreate"}}]
        mounts = [{"name": "e", "mountPath": "/e"}]
        hooks = {
            "postStart": {"exec": {"command": ["sh", "-c", "echo post >> /e/order"]}},
            "preStop": {"exec": {"command": ["sh", "-c", "echo pre >> /e/order"]}},
        }
        script = 'trap "echo term >> /e/order; exit 0" TERM; while true; do sleep 0.05; done'
        await node.create("polite", container(script, lifecycle=hooks, volumeMounts=mounts), volumes=volumes)
        await node.ready("polite")
        await node.client.delete("pods", "polite", "t")
        await node.gone("polite")
        assert (host / "order").read_text().split() == ["post", "pre", "term"]
        # As on Kubernetes the first process ignores what it does not handle, hence 137.
        await node.create("deaf", container("sleep 100"), terminationGracePeriodSeconds=100)
        await node.ready("deaf")
        async with node.client.watch("pods", "t", fields="metadata.name=deaf") as events:
            await node.client.delete("pods", "deaf", "t", grace_s=1)
            with trio.fail_after(20):
                last: Object = {}
                async for event in events:
                    if event.type == "DELETED":
                        break
                    last = event.object
        assert dig(last, "status", "phase") == "Failed"
        assert state_of(last)["state"]["terminated"]["exitCode"] == 137

    with_node(tmp_path, body)


def test_a_defect_of_one_pod_is_not_the_end_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that fails is tried again; a worker that breaks begins anew."""
    monkeypatch.setattr(kubelet, "WORKER_RETRY_S", 0.05)
    monkeypatch.setattr(worker, "RETRY_S", 0.05)

    async def body(node: NodeUnderTest) -> None:
        attach, failures = node.network.attach, [ValueError("a defect"), NetworkError("no more addresses")]

        async def failing(uid: str) -> Attachment:
            if failures:
                raise failures.pop()
            return await attach(uid)

        monkeypatch.setattr(node.network, "attach", failing)
        await node.create("p", container(OBEDIENT))
        await node.ready("p")
        assert not failures
        assert node.events.messages("p", "FailedCreatePodSandBox") == [
            "Failed to create pod sandbox: no more addresses"
        ]

    with_node(tmp_path, body)


def test_a_finalizer_keeps_the_pod_in_the_api_only(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        await node.create("f", container(OBEDIENT))
        await node.ready("f")
        await node.client.patch("pods", "f", "t", {"metadata": {"finalizers": ["example.com/f"]}})
        await node.client.delete("pods", "f", "t")
        await node.until("f", lambda p: dig(p, "metadata", "deletionGracePeriodSeconds") == 0, "done")
        before = await node.client.patch("pods", "f", "t", {"metadata": {"labels": {"a": "b"}}})
        assert dig(before, "status", "phase") == "Succeeded"
        assert not node.runtime.uids()
        # Still the kubelet's last word, also for one that starts now.
        node.stop_kubelet()
        await node.start_kubelet()
        await node.create("after", container(OBEDIENT))
        await node.ready("after")
        after = await node.client.get("pods", "f", "t")
        assert after["status"] == before["status"]
        await node.client.patch("pods", "f", "t", {"metadata": {"finalizers": None}})
        await node.gone("f")

    with_node(tmp_path, body)


def test_a_changed_image_makes_the_container_anew(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        await node.create("i", container(OBEDIENT))
        await node.ready("i")
        change = {"spec": {"containers": [{"name": "c", "image": "other"}]}}
        await node.client.patch("pods", "i", "t", change, type="strategic")
        pod = await node.until(
            "i", lambda p: state_of(p).get("restartCount") == 1 and is_ready(p), "restarted"
        )
        assert state_of(pod)["image"] == "other"
        assert node.events.messages("i", "Killing") == ["Container c definition changed, will be restarted"]

    with_node(tmp_path, body)


def test_a_deadline_ends_a_pod(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        await node.create("d", container(OBEDIENT), activeDeadlineSeconds=1, restartPolicy="Never")
        pod = await node.phase("d", "Failed")
        assert pod["status"]["reason"] == "DeadlineExceeded"

    with_node(tmp_path, body)


def test_a_new_kubelet_goes_on_with_the_containers_of_a_dead_one(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        probe = {"exec": {"command": ["true"]}, "periodSeconds": 1}
        await node.create("kept", container(OBEDIENT, readinessProbe=probe))
        await node.create("died", container("echo begun; " + OBEDIENT))
        await node.create("removed", container(f"echo {tmp_path}/removed; " + OBEDIENT))
        before = await node.ready("kept")
        await node.ready("died")
        pod = await node.ready("removed")
        node.stop_kubelet()
        died = node.runtime.load(str((await node.client.get("pods", "died", "t"))["metadata"]["uid"]), "c", 0)
        assert died is not None
        node.runtime.signal(died, signal.SIGKILL)
        await node.runtime.wait(died)
        await node.client.delete("pods", "removed", "t", grace_s=0)

        seen_ready: list[bool] = []

        async def watch(task_status: trio.TaskStatus[None]) -> None:
            async with node.client.watch("pods", "t", fields="metadata.name=kept") as events:
                task_status.started()
                async for event in events:
                    note(event.object)

        def note(pod: Object) -> None:
            seen_ready.append(is_ready(pod))

        await node.background(watch)
        await node.start_kubelet()
        after = await node.until(
            "died", lambda p: is_ready(p) and state_of(p)["restartCount"] == 1, "restarted"
        )
        assert state_of(after)["lastState"]["terminated"]["exitCode"] == 137
        kept = await node.ready("kept")
        assert state_of(kept) == state_of(before)
        assert all(seen_ready)
        with trio.fail_after(10):
            while pod["metadata"]["uid"] in node.runtime.uids():
                await trio.sleep(0.02)
        # The adopted container is still watched.
        running = node.runtime.load(kept["metadata"]["uid"], "c", 0)
        assert running is not None
        node.runtime.signal(running, signal.SIGKILL)
        await node.until("kept", lambda p: state_of(p)["restartCount"] == 1, "restarted")
        await node.client.delete("pods", "kept", "t")
        await node.gone("kept")

    with_node(tmp_path, body)


def test_a_pod_ends_although_its_volume_cannot_be_made_again(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        await node.client.create("configmaps", {"metadata": {"name": "cfg"}, "data": {"a": "1"}}, "t")
        wait = container("while [ ! -e /tmp/go ]; do sleep 0.02; done")
        volumes = [{"name": "v", "configMap": {"name": "cfg"}}]
        await node.create("p", wait, volumes=volumes, restartPolicy="Never")
        await node.ready("p")
        node.stop_kubelet()
        await node.client.delete("configmaps", "cfg", "t")
        await node.inside("p", "touch /tmp/go")
        await node.start_kubelet()
        await node.phase("p", "Succeeded")

    with_node(tmp_path, body)


def test_a_shim_that_is_killed_takes_its_container_along(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        pod = await node.create("s", container(OBEDIENT), restartPolicy="Never")
        await node.ready("s")
        running = node.runtime.load(pod["metadata"]["uid"], "c", 0)
        assert running is not None
        os.kill(running.shim_pid, signal.SIGKILL)
        pod = await node.phase("s", "Failed")
        assert state_of(pod)["state"]["terminated"]["reason"] == "ContainerStatusUnknown"
        with trio.fail_after(10):
            while os.access(f"/proc/{running.pid}/stat", os.F_OK):
                await trio.sleep(0.02)

    with_node(tmp_path, body)


def test_fifty_pods_become_ready(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(partial(node.create, f"p{number}", container("sleep 1000")))
        for number in range(50):
            await node.ready(f"p{number}")

    with_node(tmp_path, body)
