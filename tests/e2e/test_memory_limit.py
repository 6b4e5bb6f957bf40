"""A sidecar process within a memory limit that the kernel keeps, beside something that eats it up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from pathlib import Path

import msgspec
import pytest

from examples.two_pods.netns import connect, kill, path_of, remove, run, wait_for
from mesh_proxy.net.cgroup import Memory
from mesh_proxy.settings import HEALTH_PORT, INBOUND_PORT, METRICS_PORT

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
LIMIT = 600 * MIB
"""A tenth of it is room for the process that makes a key."""
SIDECAR = "from mesh_proxy import __main__ as m; m._check_uid = lambda settings: None; m.main()"
BALLAST = (
    "import sys; held = bytearray(b'x') * int(sys.argv[1]); print(len(held), flush=True); sys.stdin.read()"
)


@contextmanager
def memory_group(name: str) -> Iterator[Path]:
    """A control group of either version below this process's own or the root, with the limit."""
    top = Path("/sys/fs/cgroup")
    controllers = top / "cgroup.controllers"
    if controllers.exists():
        if "memory" not in (top / "cgroup.subtree_control").read_text().split():
            pytest.skip("control groups of version 2 give no memory controller to groups made here")
        place, limit = top / name, "memory.max"
    else:
        place, limit = top / "memory" / name, "memory.limit_in_bytes"
    try:
        place.mkdir()
    except OSError as exc:
        pytest.skip(f"no memory control group can be made here: {exc}")
    try:
        (place / limit).write_text(str(LIMIT))
        yield place
    finally:
        pids = (place / "cgroup.procs").read_text().split()
        kill([int(pid) for pid in pids])
        wait_for(lambda: not (place / "cgroup.procs").read_text(), "an empty control group")
        place.rmdir()


@contextmanager
def within(group: Path, *command: str, log: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that is in the group before it does anything else."""
    argv = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(group), *command]
    env = {
        **os.environ,
        "TRIOMESH_CONFIG_FILE": "/nonexistent/config.json",
        "TRIOMESH_CA_SOCKET": "/nonexistent/ca.sock",
        "TRIOMESH_DRAIN_SECONDS": "0",
    }
    with ExitStack() as stack:
        out = stack.enter_context(log.open("w")) if log else subprocess.PIPE
        process = stack.enter_context(
            subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=out, text=True)
        )
        try:
            yield process
        finally:
            process.kill()


def events(log: Path) -> list[str]:
    lines = [line for line in log.read_bytes().splitlines() if line.endswith(b"}")]
    return [str(msgspec.json.decode(line).get("event", "")) for line in lines]


def get(netns: str, port: int, path: str) -> tuple[int, str]:
    with connect(netns, "127.0.0.1", port) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        with HTTPResponse(sock) as response:
            response.begin()
            return response.status, response.read().decode()


def knock(netns: str) -> None:
    """Connect, and wait for the end: nothing says where such a connection was meant to go."""
    try:
        with connect(netns, "127.0.0.1", INBOUND_PORT) as sock:
            assert sock.recv(1) == b""
    except ConnectionResetError:
        pass


def refusals(netns: str) -> float:
    _, page = get(netns, METRICS_PORT, "/metrics")
    lines = [line for line in page.splitlines() if line.startswith("triomesh_refused_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'reason="memory"' in line)


@pytest.fixture
def netns() -> Iterator[str]:
    name = f"tm-{os.getpid()}-0-memory"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        remove(name)


def test_a_group_near_its_limit_takes_no_new_connections_and_answers_health(
    netns: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    # `ip netns exec` would hide the control groups.
    enter = ("nsenter", f"--net={path_of(netns)}", sys.executable, "-c", SIDECAR)
    with memory_group(f"tm-{os.getpid()}-memory") as group, within(group, *enter, log=log) as sidecar:
        wait_for(lambda: "started" in events(log) or sidecar.poll() is not None, "the sidecar")
        wait_for(lambda: "memory limit" in events(log), "the limit found")
        assert refusals(netns) == 0

        size = LIMIT * 93 // 100 - Memory(str(group)).read().used
        with within(group, sys.executable, "-c", BALLAST, str(size)) as ballast:
            assert ballast.stdout is not None
            ballast.stdout.readline()
            wait_for(lambda: "memory is short" in events(log), "the shortage noticed")
            for _ in range(3):
                knock(netns)
            assert refusals(netns) == 3
            assert get(netns, HEALTH_PORT, "/healthz/live")[0] == 200
        wait_for(lambda: "memory is free again" in events(log), "the end of the shortage noticed")
        knock(netns)
        assert refusals(netns) == 3
