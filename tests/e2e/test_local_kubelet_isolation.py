"""What containers cannot do to the node: through volumes, mount points, symlinks and commands."""

import os
import signal
from pathlib import Path

import pytest
import trio

from mesh_local.kubelet import runtime
from mesh_local.kubelet.container_spec import held
from mesh_local.kubelet.shim import container as shim
from mesh_local.lifecycle.process import start_ticks
from mesh_local.machinery.objects import Object, dig, uid_of
from tests.support.local_kubelet import NodeUnderTest, container, state_of, with_node

pytestmark = pytest.mark.e2e


async def output(
    node: NodeUnderTest, name: str, script: str, container_: Object, **spec: object
) -> list[str]:
    await node.create(name, container(script, **container_), restartPolicy="Never", **spec)
    await node.until(name, lambda p: dig(state_of(p), "state", "terminated"), "ended")
    return (await node.log(name, container="c")).splitlines()


def test_who_may_write_where(tmp_path: Path) -> None:
    """What is made from API objects is nobody's to write; a volume at /tmp is, with a read-only root, too."""
    volumes = [
        {"name": "cm", "configMap": {"name": "cm"}},
        {"name": "all", "projected": {"sources": [{"configMap": {"name": "cm"}}]}},
        {"name": "mine", "emptyDir": {}},
    ]
    mounts = [
        {"name": "cm", "mountPath": "/cm"},
        {"name": "cm", "mountPath": "/key", "subPath": "key"},
        {"name": "all", "mountPath": "/all"},
        {"name": "mine", "mountPath": "/tmp"},
        {"name": "mine", "mountPath": "/sub", "subPath": "deep/er"},
    ]
    script = (
        "for f in /cm/new /cm/..data_tmp /key /all/new /tmp/new /sub/new /new /run/new /var/tmp/new;"
        " do (echo x > $f) 2>/dev/null && echo $f; done"
    )

    async def body(node: NodeUnderTest) -> None:
        cm = {"metadata": {"name": "cm", "namespace": "t"}, "data": {"key": "1"}}
        await node.client.create("configmaps", cm, "t")
        for name, user in (("root", 0), ("other", 1337)):
            security = {"readOnlyRootFilesystem": True, "runAsUser": user}
            more = {"volumeMounts": mounts, "securityContext": security}
            assert await output(node, name, script, more, volumes=volumes) == ["/tmp/new", "/sub/new"]

    with_node(tmp_path, body)


def test_a_privileged_container_starts_with_what_there_is_to_give(tmp_path: Path) -> None:
    script = "grep CapEff /proc/self/status; mount -t tmpfs x /mnt && echo mounted"

    async def body(node: NodeUnderTest) -> None:
        for name, security in (("p", {"privileged": True}), ("a", {"capabilities": {"add": ["ALL"]}})):
            effective, mounted = await output(node, name, script, {"securityContext": security})
            assert [n for n in range(64) if int(effective.split()[1], 16) >> n & 1] == held()
            assert mounted == "mounted"

    with_node(tmp_path, body)


def test_no_mount_point_leads_to_the_host(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    prepare = f"mkdir /v/d; ln -s /.old{tmp_path}/host /v/d/link"
    v = {"name": "v", "mountPath": "/v"}
    mounts = [
        v,
        {"name": "w", "mountPath": f"/.old{tmp_path}/host/a"},
        {"name": "w", "mountPath": "/v/d/link/b"},
    ]
    volumes: list[Object] = [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}]
    first = container(prepare, "i", volumeMounts=[v])

    async def body(node: NodeUnderTest) -> None:
        more = {"volumeMounts": mounts}
        seen = await output(node, "p", "ls -A /.old", more, volumes=volumes, initContainers=[first])
        assert seen == [tmp_path.parts[1]]  # directories of the container's own
        assert os.listdir(tmp_path / "host") == []

    with_node(tmp_path, body)


def test_a_source_that_became_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "file").touch()
    os.close(shim._opened(f"{tmp_path}/real/file"))
    for path in ("link", "link/file"):
        with pytest.raises(shim.StartError, match="leads elsewhere"):
            shim._opened(f"{tmp_path}/{path}")


def test_a_volume_that_is_deep_goes_with_its_pod(tmp_path: Path) -> None:
    script = "import os\nos.chdir('/v')\nfor _ in range(5000):\n  os.mkdir('d')\n  os.chdir('d')"
    deep = {"name": "c", "image": "none", "command": ["python3", "-c", script]}
    mounts = [{"name": "v", "mountPath": "/v"}]

    async def body(node: NodeUnderTest) -> None:
        pod = await node.create(
            "p",
            {**deep, "volumeMounts": mounts},
            volumes=[{"name": "v", "emptyDir": {}}],
            restartPolicy="Never",
        )
        await node.phase("p", "Succeeded")
        await node.client.delete("pods", "p", "t", grace_s=0)
        await node.gone("p")
        with trio.fail_after(10):
            while uid_of(pod) in node.runtime.uids():
                await trio.sleep(0.02)

    with_node(tmp_path, body)


def test_a_command_for_a_container_that_has_just_ended_costs_not_its_exit_code(tmp_path: Path) -> None:
    script = "until [ -e /v/go ]; do sleep 0.02; done; echo bye; exit 3"
    mounts = [{"name": "v", "mountPath": "/v"}]

    async def body(node: NodeUnderTest) -> None:
        pod = await node.create(
            "p",
            container(script, volumeMounts=mounts),
            volumes=[{"name": "v", "emptyDir": {}}],
            restartPolicy="Never",
        )
        await node.until("p", lambda p: dig(state_of(p), "state", "running"), "running")
        running = node.runtime.load(uid_of(pod), "c", 0)
        assert running is not None
        async with await runtime._connect(running.directory) as stream:
            assert await node.runtime.exec_sync(running, ["true"]) == (0, "")  # so the shim has this, too
            os.kill(running.shim_pid, signal.SIGSTOP)
            try:
                (node.runtime.pod_directory(uid_of(pod)) / "volumes/v/go").touch()
                with trio.fail_after(10):
                    while start_ticks(running.pid) is not None:  # until it is a zombie
                        await trio.sleep(0.02)
                await stream.send_all(b'{"argv": ["true"]}\n')
            finally:
                os.kill(running.shim_pid, signal.SIGCONT)
            assert b"cannot be started" in await stream.receive_some()
        ended = await node.until("p", lambda p: dig(state_of(p), "state", "terminated"), "ended")
        assert state_of(ended)["state"]["terminated"]["exitCode"] == 3
        assert await node.log("p") == "bye\n"

    with_node(tmp_path, body)
