"""The runtime as a process: found by its pid file, started detached, stopped by signal."""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mesh_local.settings import Places, SettingsError

_SERVE = (sys.executable, "-m", "mesh_local", "serve")


class _Record(msgspec.Struct, frozen=True):
    pid: int
    started: int  # clock ticks since boot: tells a re-used pid from the one recorded


@dataclass(frozen=True, slots=True)
class Runtime:
    """A running runtime process."""

    pid: int
    started: int

    def alive(self) -> bool:
        return start_ticks(self.pid) == self.started

    def stop(self, within_s: float) -> bool:
        """SIGTERM, then SIGKILL after `within_s` seconds. True when SIGTERM was enough.

        Raises:
            SettingsError: the process does not even end after SIGKILL.
        """
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if not self.alive():
                return True
            for number, limit_s in ((signal.SIGTERM, within_s), (signal.SIGKILL, 10.0)):
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
                if select.select([handle], [], [], limit_s)[0]:
                    return number == signal.SIGTERM
        finally:
            os.close(handle)
        raise SettingsError(f"the runtime (process {self.pid}) does not end, not even after SIGKILL")


def start_ticks(pid: int) -> int | None:
    """When a process started (ticks since boot, proc(5) field 22); None if it is not there or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def record(places: Places) -> None:
    """Write this process's pid file."""
    started = start_ticks(os.getpid())
    assert started is not None
    new = places.pid_file.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(_Record(os.getpid(), started)))
    new.replace(places.pid_file)


def find(places: Places) -> Runtime | None:
    """The runtime of this cluster, if it is alive."""
    try:
        found = msgspec.json.decode(places.pid_file.read_bytes(), type=_Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    runtime = Runtime(found.pid, found.started)
    return runtime if runtime.alive() else None


def start(places: Places, progress_fd: int) -> subprocess.Popen[bytes]:
    """Start the runtime in a session of its own; what it prints goes to the state directory."""
    said = (places.state / "runtime.stderr").open("wb")
    with said:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mesh_local",
                "serve",
                "--name",
                places.name,
                "--progress-fd",
                str(progress_fd),
            ],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd="/",
            pass_fds=(progress_fd,),
            start_new_session=True,
        )
