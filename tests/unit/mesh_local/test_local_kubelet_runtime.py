"""Processes by pid and start time; files of attempts; the parts of mountinfo."""

import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from mesh_local.kubelet.runtime import Container, Runtime, StartFailed
from mesh_local.kubelet.shim.supervisor import exit_code, start_time
from tests.support.local_kubelet import MOMENT

SLEEP = [sys.executable, "-c", "import signal; signal.pause()"]


def test_a_pid_that_was_used_again_is_left_alone(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path / "pods")
    with subprocess.Popen(SLEEP) as process:
        started = start_time(process.pid)
        other = Container(tmp_path, process.pid, started - 1, process.pid, started - 1, MOMENT)
        runtime.signal(other, signal.SIGKILL)
        # Nor is it waited for: the container that had the pid is gone.
        end = trio.run(runtime.wait, other)
        assert (end.code, end.reason) == (137, "ContainerStatusUnknown")
        assert process.poll() is None
        same = Container(tmp_path, process.pid, started, process.pid, started, MOMENT)
        runtime.signal(same, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        runtime.signal(same, signal.SIGKILL)  # gone: nothing happens


def test_what_is_on_file(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path / "pods")
    directory = runtime.directory("u", "c", 3)
    directory.mkdir(parents=True)
    assert runtime.uids() == ["u"]
    assert runtime.attempts("u", "c") == [3]
    assert runtime.load("u", "c", 3) is None
    assert runtime.exit_of("u", "c", 3) is None
    (directory / "exit.json").write_text(
        '{"code": 4, "reason": "", "message": "", "finished_ns": 1767323045000000000}'
    )
    found = runtime.exit_of("u", "c", 3)
    assert found is not None
    assert (found.code, found.finished_at) == (4, MOMENT)
    assert found.finished_at <= datetime.now(UTC)
    trio.run(runtime.remove_pod, "u")
    assert runtime.uids() == []
    runtime.close()
    assert not runtime.pods.exists()


def test_a_container_whose_files_cannot_be_written_does_not_start(tmp_path: Path) -> None:
    runtime = Runtime(tmp_path / "pods")
    directory = runtime.directory("u", "c", 0)
    directory.parent.parent.mkdir(parents=True)
    directory.parent.touch()  # a file in the place of the directory
    with pytest.raises(StartFailed, match=f"cannot prepare {directory}: Not a directory"):
        trio.run(runtime.start, "u", "c", 0, {})


@pytest.mark.parametrize(
    ("status", "code"), [(3 << 8, 3), (signal.SIGKILL, 137), (signal.SIGTERM, 143), (0, 0)]
)
def test_exit_codes(status: int, code: int) -> None:
    assert exit_code(status) == code
