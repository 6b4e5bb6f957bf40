"""`meshctl local`: up, status, down, again, after a crash, with wrong input; what is left behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.support.local_cluster import BIN, Cluster, pod, run

pytestmark = pytest.mark.e2e

SLEEP = ["sleep", "1000"]


def host() -> dict[str, list[str]]:
    """What a cluster could leave in the host's own namespaces, but for what other clusters have there."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    others = ("/run/netns/tm-", "/run/triomesh/local/")
    return {
        "links": sorted(os.listdir("/sys/class/net")),
        "rules": [line for line in run("iptables-save").stdout.splitlines() if line.startswith("-")],
        "mounts": sorted(m for m in mounts if m != "/run/netns" and not m.startswith(others)),
    }


def traces(cluster: Cluster) -> dict[str, list[str]]:
    """What there is of one cluster on this machine."""
    place = f"/triomesh/local/{cluster.name}"
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                known = (entry / "cmdline").read_bytes() + (entry / "mountinfo").read_bytes()
            except OSError:
                continue
            if f"{place}/".encode() in known or f"serve\0--name\0{cluster.name}\0".encode() in known:
                processes.append(entry.name)
    netns = Path("/run/netns")
    return {
        "namespaces": [n for n in os.listdir(netns) if n.startswith(f"tm-{cluster.name}-")]
        if netns.exists()
        else [],
        "processes": processes,
        "files": [root + place for root in ("/run", "/var/lib") if Path(root + place).exists()],
    }


@pytest.fixture
def fresh() -> Iterator[Cluster]:
    """A cluster that is not up yet."""
    made = Cluster(f"l{os.getpid()}")
    yield made
    made.local("down", "--purge")


def runtime_pid(cluster: Cluster) -> int:
    record = Path("/run/triomesh/local") / cluster.name / "runtime.pid"
    return int(msgspec.json.decode(record.read_bytes())["pid"])


def wait_gone(pid: int) -> None:
    with os.fdopen(os.pidfd_open(pid), "rb") as handle:
        import select

        assert select.select([handle], [], [], 20)[0]


def test_up_is_idempotent_and_down_leaves_nothing(fresh: Cluster) -> None:
    before = host()
    first = fresh.local("up").stdout
    assert f"export KUBECONFIG={fresh.kubeconfig}" in first
    again = fresh.local("up").stdout
    assert "already running" in again
    assert "ready" in fresh.local("status").stdout
    fresh.apply(pod("a", *SLEEP))
    fresh.kubectl("wait", "--for=condition=Ready", "pod/a", "--timeout=30s")
    assert all(traces(fresh).values())
    for place in traces(fresh)["files"]:
        assert Path(place).stat().st_mode & 0o077 == 0  # Secrets and tokens are in there
    fresh.local("down", "--purge")
    assert not any(traces(fresh).values())
    assert host() == before
    status = fresh.local("status", check=False)
    assert status.returncode == 1
    assert "no such cluster" in status.stdout


def test_objects_survive_down_and_up(fresh: Cluster) -> None:
    fresh.local("up")
    fresh.apply(pod("a", *SLEEP))
    fresh.kubectl("create", "configmap", "kept", "--from-literal=a=1")
    uid = fresh.json("get", "configmap", "kept")["metadata"]["uid"]
    fresh.local("down")
    assert "stopped" in fresh.local("status", check=False).stdout
    fresh.local("up")
    assert fresh.json("get", "configmap", "kept")["metadata"]["uid"] == uid
    fresh.kubectl("wait", "--for=condition=Ready", "pod/a", "--timeout=30s")


def test_a_killed_runtime_is_continued_by_up(fresh: Cluster) -> None:
    fresh.local("up")
    fresh.apply(pod("a", *SLEEP))
    fresh.kubectl("wait", "--for=condition=Ready", "pod/a", "--timeout=30s")
    before = fresh.json("get", "pod", "a")["status"]
    pid = runtime_pid(fresh)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    assert "crashed" in fresh.local("status", check=False).stdout
    fresh.local("up")
    fresh.kubectl("wait", "--for=condition=Ready", "pod/a", "--timeout=30s")
    after = fresh.json("get", "pod", "a")["status"]
    # The container went on running meanwhile.
    assert after["containerStatuses"][0]["containerID"] == before["containerStatuses"][0]["containerID"]
    assert after["containerStatuses"][0]["restartCount"] == 0
    assert after["podIPs"] == before["podIPs"]


def test_a_killed_runtime_is_removed_by_down(fresh: Cluster) -> None:
    before = host()
    fresh.local("up")
    fresh.apply(pod("a", *SLEEP))
    fresh.kubectl("wait", "--for=condition=Ready", "pod/a", "--timeout=30s")
    pid = runtime_pid(fresh)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    fresh.local("down", "--purge")
    assert not any(traces(fresh).values())
    assert host() == before


def test_two_clusters_side_by_side(cluster: Cluster, fresh: Cluster) -> None:
    fresh.local("up", "--ip-family", "ipv4")
    for each in (cluster, fresh):
        each.apply(pod("same", *SLEEP))
        each.kubectl("wait", "--for=condition=Ready", "pod/same", "--timeout=30s")
    fresh.local("down", "--purge")
    assert cluster.json("get", "pod", "same")["status"]["phase"] == "Running"
    cluster.kubectl("delete", "pod", "same")


def test_port_taken(fresh: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = fresh.local("up", "--api-port", str(port), check=False)
    assert said.returncode == 2
    assert f"port {port} on 127.0.0.1 is taken; choose another with --api-port" in said.stderr


def started(cluster: Cluster, line: str) -> subprocess.Popen[str]:
    """`up` that has said `line`."""
    # What a shell starts in the background inherits that SIGINT is ignored, and so do all from there on.
    command = ["env", "--default-signal=INT", str(BIN / "meshctl"), "local", "up", "--name", cluster.name]
    up = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert up.stdout is not None
    while line not in (said := up.stdout.readline()):
        assert said, up.communicate()
    return up


def test_a_port_that_is_taken_at_the_last_moment(fresh: Cluster) -> None:
    up = started(fresh, "installing")
    port = msgspec.json.decode(Path(f"/var/lib/triomesh/local/{fresh.name}/cluster.json").read_bytes())[
        "api_port"
    ]
    with socket.create_server(("127.0.0.1", port)):
        _, said = up.communicate(timeout=60)
    assert up.returncode == 2
    assert said == f"error: the API server cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_an_interrupted_up_leaves_no_process(fresh: Cluster) -> None:
    for line in ("installing", "starting the API server"):
        up = started(fresh, line)
        os.killpg(up.pid, signal.SIGINT)
        said = up.communicate(timeout=60)
        assert up.returncode == 1, (line, said)
        assert traces(fresh)["processes"] == []
    fresh.local("up")


def test_a_second_runtime_leaves_the_first_one_alone(fresh: Cluster) -> None:
    fresh.local("up")
    serve = [sys.executable, "-m", "mesh_local", "serve", "--name", fresh.name]
    second = run(*serve, check=False)
    assert second.returncode == 2
    assert "another runtime of cluster" in second.stdout
    assert "ready" in fresh.local("status").stdout
    fresh.local("down")  # which finds the first by its pid file
    assert traces(fresh)["processes"] == []


def test_the_users_shell_does_not_matter(fresh: Cluster) -> None:
    run("sh", "-c", f"umask 077; PATH=/usr/bin:/bin {BIN}/meshctl local up --name {fresh.name}")
    script = "cat /var/run/secrets/kubernetes.io/serviceaccount/token && exec triomesh-netinit --help"
    fresh.apply(pod("a", "sh", "-c", script, securityContext={"runAsUser": 1337}, restartPolicy="Never"))
    fresh.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/a", "--timeout=30s")


def test_a_purge_that_fails_says_so(fresh: Cluster) -> None:
    state = Path("/var/lib/triomesh/local") / fresh.name
    state.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "none", str(state))
    try:
        said = fresh.local("down", "--purge", check=False)
    finally:
        run("umount", str(state))
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == f"error: rm: cannot remove '{state}': Device or resource busy\n"


def test_not_root() -> None:
    # The interpreter of a clone under root's home is not readable by others: take the one it came from.
    said = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(BIN / "meshctl"), "local", "up"],
        capture_output=True,
        text=True,
        cwd="/",
    )
    if "Permission denied" in said.stderr:
        pytest.skip("this checkout cannot be read by another user")
    assert said.returncode == 2
    assert "needs root" in said.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["up", "--name", "Not_Valid"], "the cluster name 'Not_Valid' is not valid"),
        (["up", "--name", "x", "--api-port", "99999"], "99999 is not a port number"),
        (["up", "--name", "x", "--ip-family", "ipx"], "'ipx' is not one of"),
        (["down", "--nope"], "No such option"),
    ],
)
def test_wrong_input(arguments: list[str], expected: str) -> None:
    said = run(str(BIN / "meshctl"), "local", *arguments, check=False)
    assert said.returncode == 2
    assert expected in said.stderr
    assert "Traceback" not in said.stderr


def test_fifty_pods(fresh: Cluster) -> None:
    fresh.local("up")
    labels = {"app": "many"}
    fresh.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "many", "namespace": "default"},
            "spec": {
                "replicas": 50,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "terminationGracePeriodSeconds": 0,
                        "containers": [{"name": "app", "image": "local", "command": SLEEP}],
                    },
                },
            },
        }
    )
    fresh.kubectl("rollout", "status", "deploy/many", "--timeout=60s", timeout=90)
    assert fresh.json("get", "deploy", "many")["status"]["readyReplicas"] == 50
