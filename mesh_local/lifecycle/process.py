"""The runtime as a process: found by its pid file, started detached, stopped by signal."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mesh_local.settings import Places, SettingsError


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


@contextmanager
def recorded(places: Places) -> Iterator[None]:
    """Be the runtime of this cluster, with a pid file.

    An abstract socket, gone with the process, keeps a second one out: an `up` that was killed may have left
    one that is still starting.

    Raises:
        SettingsError: another process is.
    """
    started = start_ticks(os.getpid())
    assert started is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(f"\0triomesh/local/{places.name}/runtime")
        except OSError as exc:
            raise SettingsError(
                f"another runtime of cluster {places.name!r} is still starting or ending; try again"
            ) from exc
        new = places.pid_file.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(_Record(os.getpid(), started)))
        new.replace(places.pid_file)
        try:
            yield
        finally:
            places.pid_file.unlink(missing_ok=True)


def find(places: Places) -> Runtime | None:
    """The runtime of this cluster, if it is alive."""
    try:
        found = msgspec.json.decode(places.pid_file.read_bytes(), type=_Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    runtime = Runtime(found.pid, found.started)
    return runtime if runtime.alive() else None


def search_path() -> str:
    """Where programs are looked for: also where root's are, which `su` leaves out."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


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
            env={**os.environ, "PATH": search_path()},
            umask=0o022,  # what containers see of the runtime's making must not depend on the user's shell
            pass_fds=(progress_fd,),
            start_new_session=True,
        )
