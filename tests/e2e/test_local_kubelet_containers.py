"""Containers on a real node: users, capabilities, volumes, logs, files, and what keeps them from starting."""

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, dig
from tests.support.local_kubelet import OBEDIENT, NodeUnderTest, container, processes, state_of, with_node

pytestmark = pytest.mark.e2e


def test_users_groups_and_capabilities(tmp_path: Path) -> None:
    show = 'id -u; id -g; id -G; grep -E "CapEff|CapBnd|NoNewPrivs" /proc/self/status; touch /x && echo wrote'

    def seen(log: str) -> dict[str, Any]:
        uid, gid, groups, eff, bnd, nnp, *rest = log.splitlines()
        numbers = {
            name: int(line.split()[1], 16) for name, line in (("eff", eff), ("bnd", bnd), ("nnp", nnp))
        }
        return {"ids": (uid, gid, groups), "wrote": rest[-1:] == ["wrote"], **numbers}

    async def body(node: NodeUnderTest) -> None:
        async def run(name: str, security: Object, pod: Object | None = None) -> dict[str, Any]:
            await node.create(
                name,
                container(show, securityContext=security),
                restartPolicy="Never",
                securityContext=pod or {},
            )
            await node.until(name, lambda p: dig(state_of(p), "state", "terminated"), "ended")
            return seen(await node.log(name))

        root = await run("root", {})
        assert (root["ids"], root["eff"], root["wrote"]) == (("0", "0", "0"), 0xA80425FB, True)
        user = await run(
            "user",
            {"runAsUser": 1337, "runAsGroup": 1338, "allowPrivilegeEscalation": False},
            {"fsGroup": 2000, "supplementalGroups": [3000]},
        )
        assert user["ids"] == ("1337", "1338", "1338 2000 3000")
        assert (user["eff"], user["nnp"], user["wrote"]) == (0, 1, False)
        net = await run("net", {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}})
        assert net["eff"] == net["bnd"] == (1 << 12) | (1 << 13)
        fixed = await run("fixed", {"readOnlyRootFilesystem": True})
        assert not fixed["wrote"]
        await node.create("no", container("true", securityContext={"runAsNonRoot": True}))
        pod = await node.until("no", lambda p: dig(state_of(p), "state", "waiting", "message"), "refused")
        assert state_of(pod)["state"]["waiting"]["reason"] == "CreateContainerConfigError"

    with_node(tmp_path, body)


def test_device_files_work_in_dev_only(tmp_path: Path) -> None:
    volumes = [{"name": "e", "emptyDir": {}}]
    mounts = [{"name": "e", "mountPath": "/e"}]
    script = (
        "for d in / /e /tmp /dev; do mknod $d/own c 1 3; (echo x > $d/own) 2>/dev/null && echo works; done;"
        "echo x > /dev/null && head -c 1 /dev/zero | wc -c; ls /dev/pts;"
        "echo y > /sys/z 2>/dev/null || echo ro;"
        "echo 1 > /proc/sys/net/ipv4/ip_forward || echo ro"
    )

    async def body(node: NodeUnderTest) -> None:
        await node.create("d", container(script, volumeMounts=mounts), volumes=volumes, restartPolicy="Never")
        await node.until("d", lambda p: dig(state_of(p), "state", "terminated"), "ended")
        lines = [line for line in (await node.log("d")).splitlines() if "Read-only" not in line]
        assert lines == ["1", "ptmx", "ro", "ro"]

    with_node(tmp_path, body)


def test_volumes_hold_what_the_api_says_and_follow_it(tmp_path: Path) -> None:
    sources = [
        {"configMap": {"name": "cfg", "items": [{"key": "b", "path": "deep/b"}]}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]
    volumes = [
        {"name": "cfg", "configMap": {"name": "cfg"}},
        {"name": "all", "projected": {"sources": sources}},
    ]
    mounts = [
        {"name": "cfg", "mountPath": "/cfg"},
        {"name": "all", "mountPath": "/all", "readOnly": True},
        {"name": "cfg", "mountPath": "/etc/one", "subPath": "a"},
    ]

    async def body(node: NodeUnderTest) -> None:
        await node.create("v", container(OBEDIENT, volumeMounts=mounts), volumes=volumes)
        with trio.fail_after(20):
            while "FailedMount" not in node.events.reasons("v"):
                await trio.sleep(0.02)
        assert 'volume "cfg" : configmap "cfg" not found' in node.events.messages("v", "FailedMount")[0]
        config: Object = {"metadata": {"name": "cfg"}, "data": {"a": "one", "b": "two"}}
        await node.client.create("configmaps", config, "t")
        await node.ready("v")
        assert await node.inside("v", "cat /cfg/a /all/deep/b /etc/one") == "onetwoone"
        assert await node.inside("v", "touch /all/y 2>/dev/null || echo read-only") == "read-only\n"
        await node.client.patch("configmaps", "cfg", "t", {"data": {"a": "1", "b": "2", "c": "3"}})
        await node.client.patch("pods", "v", "t", {"metadata": {"labels": {"x": "y"}}})
        with trio.fail_after(20):
            while await node.inside("v", "cat /cfg/a /all/labels") != '1x="y"':
                await trio.sleep(0.02)
        assert (await node.inside("v", "ls /cfg")).split() == ["a", "b", "c"]
        # As on Kubernetes, a subPath is not updated.
        assert await node.inside("v", "cat /all/deep/b /etc/one") == "2one"

    with_node(tmp_path, body)


def test_tokens_are_renewed_at_four_fifths_of_their_life(tmp_path: Path) -> None:
    token = {"serviceAccountToken": {"path": "token", "audience": "mesh", "expirationSeconds": 600}}
    volumes = [{"name": "t", "projected": {"sources": [token]}}]

    async def body(node: NodeUnderTest) -> None:
        node.answers.life_s = 3.0
        user = {"runAsUser": 1337}
        mounts = [{"name": "t", "mountPath": "/t"}]
        await node.create(
            "v", container(OBEDIENT, volumeMounts=mounts, securityContext=user), volumes=volumes
        )
        await node.ready("v")
        assert await node.inside("v", "cat /t/token") == "token-1-mesh-v"
        assert await node.inside("v", "stat -L -c '%u %a' /t/token") == "1337 600\n"
        with trio.fail_after(20):
            while await node.inside("v", "cat /t/token") == "token-1-mesh-v":
                await trio.sleep(0.05)

    with_node(tmp_path, body)


def test_variables_and_memory(tmp_path: Path) -> None:
    env = [
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cfg", "key": "a"}}},
        {"name": "B", "value": "$(A)-$(NONE)"},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    volumes = [{"name": "e", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]
    mounts = [{"name": "e", "mountPath": "/e"}]

    async def body(node: NodeUnderTest) -> None:
        await node.client.create("configmaps", {"metadata": {"name": "cfg"}, "data": {"a": "one"}}, "t")
        user = {"runAsUser": 1337}
        one = container(OBEDIENT, "one", env=env, volumeMounts=mounts, securityContext=user)
        await node.create("v", one, container(OBEDIENT, "two", volumeMounts=mounts), volumes=volumes)
        pod = await node.ready("v")
        shown = await node.inside("v", "echo $A $B $IP; echo hi > /e/x; stat -f -c %T /e", "one")
        assert shown.splitlines() == [f"one one-$(NONE) {pod['status']['podIP']}", "tmpfs"]
        assert await node.inside("v", "cat /e/x; df -k --output=size /e | tail -1 | tr -d ' '", "two") == (
            "hi\n1024\n"
        )

    with_node(tmp_path, body)


def test_containers_that_cannot_start_say_why(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        await node.create("image", {"name": "c", "image": "nginx:1"})
        pod = await node.until("image", lambda p: dig(state_of(p), "state", "waiting", "message"), "refused")
        waiting = state_of(pod)["state"]["waiting"]
        assert waiting["reason"] == "ErrImageNeverPull"
        assert "set `command`" in waiting["message"]
        assert node.events.messages("image", "Failed") == ["Error: ErrImageNeverPull"]
        with pytest.raises(
            ApiError, match='container "c" in pod "image" is waiting to start: ErrImageNeverPull'
        ):
            await node.log("image")
        await node.create("absent", {**container(""), "command": ["nope"]}, restartPolicy="Never")
        pod = await node.phase("absent", "Failed")
        ended = state_of(pod)["state"]["terminated"]
        assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
        assert ended["message"].endswith('exec: "nope": executable file not found in $PATH')
        await node.create(
            "key",
            container(
                OBEDIENT,
                env=[{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            ),
        )
        pod = await node.until("key", lambda p: dig(state_of(p), "state", "waiting", "message"), "refused")
        assert state_of(pod)["state"]["waiting"] == {
            "reason": "CreateContainerConfigError",
            "message": 'secret "s" not found',
        }
        await node.client.create("secrets", {"metadata": {"name": "s"}, "stringData": {"k": "v"}}, "t")
        await node.ready("key")

    with_node(tmp_path, body)


def test_last_words(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        await node.create(
            "w",
            container("echo bye > /dev/termination-log; exit 1", "a"),
            container("echo oops; exit 1", "b", terminationMessagePolicy="FallbackToLogsOnError"),
            restartPolicy="Never",
        )
        pod = await node.phase("w", "Failed")
        ends = [state_of(pod, name)["state"]["terminated"]["message"] for name in ("a", "b")]
        assert ends == ["bye\n", "oops\n"]

    with_node(tmp_path, body)


def test_logs_are_followed_to_the_end(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        script = (
            "echo one; echo two >&2; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo three; printf four"
        )
        await node.create("l", container(script, "a"), container(OBEDIENT, "b"), restartPolicy="Never")
        await node.log_has("l", "two", container="a")
        await node.until("l", lambda p: dig(state_of(p, "a"), "state", "running"), "runs")
        with pytest.raises(ApiError, match="a container name must be specified for pod l, choose one of: "):
            await node.log("l")
        assert await node.log("l", container="a", limit_bytes=5) == "one\nt"
        found: list[str] = []
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                found.append(await node.log("l", container="a", follow=True, tail_lines=1))

            nursery.start_soon(follow)
            running = node.runtime.load(node.runtime.uids()[0], "a", 0)
            assert running is not None
            await node.runtime.exec_sync(running, ["touch", "/tmp/go"])
        assert found == ["two\nthree\nfour"]
        stamped = await node.log("l", container="a", timestamps=True, tail_lines=2)
        assert stamped.splitlines()[0].endswith("Z three")

    with_node(tmp_path, body)


def test_a_pod_on_the_nodes_network(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        show = "readlink /proc/self/ns/net; hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start"
        await node.create("own", container(show), restartPolicy="Never")
        await node.create("host", container(show), restartPolicy="Never", hostNetwork=True)
        await node.phase("own", "Succeeded")
        pod = await node.phase("host", "Succeeded")
        assert pod["status"]["podIP"] == node.options.node_ips[0]
        own, host = [(await node.log(name)).splitlines() for name in ("own", "host")]
        assert own[0] != host[0]
        assert host[0] == f"net:[{os.stat(node.options.netns).st_ino}]"
        assert (own[1:], host[1:]) == (["own", "0"], ["node1", "1024"])

    with_node(tmp_path, body)


def test_containers_see_the_projects_code_and_not_the_hosts_state(tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/hello").write_text("#!/bin/sh\necho hello\n")
    (prefix / "bin/hello").chmod(0o755)

    async def body(node: NodeUnderTest) -> None:
        script = "hello; touch /opt/triomesh/x 2>/dev/null || echo fixed; ls -A /root /run /tmp"
        await node.create("h", container(script), restartPolicy="Never")
        await node.until("h", lambda p: dig(state_of(p), "state", "terminated"), "ended")
        lines = (await node.log("h")).splitlines()
        assert lines[:2] == ["hello", "fixed"]
        assert [line for line in lines[2:] if line and not line.endswith(":")] == []

    with_node(tmp_path, body, prefix=prefix, hidden=(Path("/root"),))


def test_cancelled_work_leaves_no_process(tmp_path: Path) -> None:
    async def body(node: NodeUnderTest) -> None:
        pod = await node.create("x", container(OBEDIENT))
        await node.ready("x")
        running = node.runtime.load(pod["metadata"]["uid"], "c", 0)
        assert running is not None
        marker = f"marker-{os.getpid()}-x"
        async with trio.open_nursery() as nursery:
            command = ["sh", "-c", "sh -c 'sleep 100; true' $0; true", marker]
            nursery.start_soon(node.runtime.exec_sync, running, command)
            with trio.fail_after(10):
                while len(processes(marker)) < 2:
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            while processes(marker):
                await trio.sleep(0.02)
        # A pod that is deleted while it starts: a hook that never ends, an image that does not exist.
        hook = {"postStart": {"exec": {"command": ["sleep", "1000"]}}}
        await node.create("hook", container(OBEDIENT, lifecycle=hook))
        with trio.fail_after(10):
            while "Started" not in node.events.reasons("hook"):
                await trio.sleep(0.02)
        await node.client.delete("pods", "hook", "t")
        await node.gone("hook")

    with_node(tmp_path, body)
