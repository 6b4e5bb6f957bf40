"""Containers as processes: start, adopt, wait, signal, run a command in, remove.

Each container has a directory `PODS/UID/containers/NAME/ATTEMPT`, where its shim keeps what is true of it, so
that another runtime can go on with it.
"""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import trio

from mesh_local.kubelet import mounts, trees
from mesh_local.kubelet.shim import main as shim_main
from mesh_local.kubelet.shim.supervisor import EXEC_SOCKET, REPORT_FD, start_time
from mesh_local.kubelet.types import DEFAULT_PATH

START_DEADLINE_S = 30.0
KILL_DEADLINE_S = 10.0
EXEC_OUTPUT_BYTES = 256 * 1024
KILLED = 128 + signal.SIGKILL


class StartFailed(Exception):
    """The container's program could not be started; the text is for its status."""


class CommandFailed(Exception):
    """A command could not be run in the container."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended."""

    code: int
    finished_at: datetime
    reason: str = ""
    message: str = ""


class _State(msgspec.Struct, frozen=True):
    pid: int
    pid_start: int
    shim_pid: int
    shim_start: int
    started_ns: int


class _ExitFile(msgspec.Struct, frozen=True):
    code: int
    reason: str
    message: str
    finished_ns: int


@dataclass(frozen=True, slots=True)
class Container:
    """A container that was started: its directory and processes."""

    directory: Path
    pid: int
    pid_start: int
    shim_pid: int
    shim_start: int
    started_at: datetime

    @property
    def attempt(self) -> int:
        return int(self.directory.name)

    @property
    def log(self) -> Path:
        return self.directory / "log"


def _moment(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)


def _is_process(pid: int, started: int) -> bool:
    """Whether `pid` still names the process that started then; pids are used again."""
    try:
        return start_time(pid) == started
    except (FileNotFoundError, ProcessLookupError):
        return False


def _open_process(pid: int, started: int) -> int | None:
    """A pidfd of exactly this process, or None when it has gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if _is_process(pid, started):
        return pidfd
    os.close(pidfd)
    return None


class Runtime:
    """The containers below one directory.

    Args:
        pods: directory for pods, on a file system that allows Unix sockets.
        parallel_starts: how many containers may be starting at once.
    """

    def __init__(self, pods: Path, *, parallel_starts: int = 4) -> None:
        self.pods = pods
        self._starting = trio.CapacityLimiter(parallel_starts)
        pods.mkdir(parents=True, exist_ok=True, mode=0o700)

    def pod_directory(self, uid: str) -> Path:
        return self.pods / uid

    def close(self) -> None:
        """Remove the directory for pods, which must be empty, and what is mounted there."""
        mounts.unmount_under(self.pods)
        self.pods.rmdir()

    def directory(self, uid: str, name: str, attempt: int) -> Path:
        return self.pods / uid / "containers" / name / str(attempt)

    def uids(self) -> list[str]:
        """Every pod of which something is left."""
        return sorted(p.name for p in self.pods.iterdir() if p.is_dir())

    def attempts(self, uid: str, name: str) -> list[int]:
        """The attempts of a container that are kept, oldest first."""
        parent = self.pods / uid / "containers" / name
        return sorted(int(p.name) for p in parent.iterdir()) if parent.is_dir() else []

    def load(self, uid: str, name: str, attempt: int) -> Container | None:
        """A container as its files tell; None for one whose program never ran."""
        directory = self.directory(uid, name, attempt)
        try:
            state = msgspec.json.decode((directory / "state.json").read_bytes(), type=_State)
        except FileNotFoundError:
            return None
        started = _moment(state.started_ns)
        return Container(directory, state.pid, state.pid_start, state.shim_pid, state.shim_start, started)

    def exit_of(self, uid: str, name: str, attempt: int) -> Exit | None:
        """How a container ended, if that is on record."""
        return _read_exit(self.directory(uid, name, attempt))

    async def start(self, uid: str, name: str, attempt: int, spec: dict[str, Any]) -> Container:
        """Start a container and return when its program runs. Keeps the previous attempt, removes older ones.

        Raises:
            StartFailed: the program could not be run.
        """
        directory = self.directory(uid, name, attempt)
        try:
            self._prepare(uid, name, attempt, spec)
        except OSError as exc:
            raise StartFailed(f"cannot prepare {directory}: {exc.strerror}") from exc
        async with self._starting:
            # A start is seen through, so that no process is left that nobody knows.
            with trio.CancelScope(deadline=trio.current_time() + START_DEADLINE_S, shield=True) as scope:
                error = await _launch(directory)
        if scope.cancelled_caught:
            error = f"the container did not start within {START_DEADLINE_S:.0f} s"
        if error:
            raise StartFailed(error)
        container = self.load(uid, name, attempt)
        if container is None:
            raise StartFailed(f"the shim ended without a word; see {directory / 'shim.err'}")
        return container

    def _prepare(self, uid: str, name: str, attempt: int, spec: dict[str, Any]) -> None:
        """Make the directory of an attempt; the one before it is kept, older ones go."""
        for old in self.attempts(uid, name):
            if old < attempt - 1 or old == attempt:
                shutil.rmtree(self.directory(uid, name, old))
        directory = self.directory(uid, name, attempt)
        directory.mkdir(parents=True, mode=0o700)
        (directory / "termination-log").touch(mode=0o666)
        (directory / "termination-log").chmod(0o666)
        (directory / "spec.json").write_bytes(msgspec.json.encode(spec))

    async def wait(self, container: Container) -> Exit:
        """Wait until the container has ended, and its output is on file."""
        pidfd = _open_process(container.shim_pid, container.shim_start)
        if pidfd is not None:
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
            _reap(container.shim_pid)
        found = _read_exit(container.directory)
        if found is not None:
            return found
        self.signal(container, signal.SIGKILL)
        return Exit(
            KILLED,
            datetime.now(UTC),
            "ContainerStatusUnknown",
            "The container could not be located when the pod was terminated",
        )

    def signal(self, container: Container, number: int) -> None:
        """Send a signal to the container's first process, if it still runs; SIGKILL ends all processes."""
        pidfd = _open_process(container.pid, container.pid_start)
        if pidfd is None:
            return
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            pass  # it has just ended
        finally:
            os.close(pidfd)

    async def exec_sync(self, container: Container, argv: Sequence[str]) -> tuple[int, str]:
        """Run a command in the container; its exit code and output. The caller's scope is the deadline.

        Raises:
            CommandFailed: the command could not be run.
        """
        try:
            stream = await _connect(container.directory)
        except OSError as exc:
            raise CommandFailed("the container is not running") from exc
        async with stream:
            try:
                await stream.send_all(msgspec.json.encode({"argv": list(argv)}) + b"\n")
                answer = b""
                async for chunk in stream:
                    answer += chunk
                    if len(answer) > EXEC_OUTPUT_BYTES:
                        raise CommandFailed("the answer of the container's shim is too long")
            except trio.BrokenResourceError as exc:
                raise CommandFailed("the container ended while the command ran") from exc
        if not answer:
            raise CommandFailed("the container ended while the command ran")
        result = msgspec.json.decode(answer)
        if "error" in result:
            raise CommandFailed(result["error"])
        return int(result["code"]), str(result["output"])

    async def remove_pod(self, uid: str) -> None:
        """Kill what still runs of a pod, and remove its mounts and files."""
        directory = self.pod_directory(uid)
        parent = directory / "containers"
        names = [p.name for p in parent.iterdir()] if parent.is_dir() else []
        for name in names:
            for attempt in self.attempts(uid, name):
                container = self.load(uid, name, attempt)
                if container is None:
                    continue
                self.signal(container, signal.SIGKILL)
                with trio.move_on_after(KILL_DEADLINE_S):
                    await self.wait(container)
        mounts.unmount_under(directory)
        await trio.to_thread.run_sync(trees.remove, directory)


def _read_exit(directory: Path) -> Exit | None:
    try:
        found = msgspec.json.decode((directory / "exit.json").read_bytes(), type=_ExitFile)
    except FileNotFoundError:
        return None
    return Exit(found.code, _moment(found.finished_ns), found.reason, found.message)


async def _connect(directory: Path) -> trio.SocketStream:
    """Through a descriptor of the directory: a socket's path may not be longer than 107 bytes."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        await sock.connect(f"/proc/self/fd/{fd}/{EXEC_SOCKET}")
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(fd)
    return trio.SocketStream(sock)


def _reap(pid: int) -> None:
    """Take note of a shim's end, if it is a child of this runtime and not of a former one."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _spawn(directory: Path, report: int) -> int:
    """Start a shim that reports to the descriptor; its pid."""
    errors = str(directory / "shim.err")
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", str(Path(shim_main.__file__)), str(directory)],
        {"PATH": DEFAULT_PATH},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, report, REPORT_FD),
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
    )


async def _launch(directory: Path) -> str:
    """Start the shim and return what it reports: '' for a running program."""
    read, write = os.pipe2(os.O_CLOEXEC)
    async with trio.lowlevel.FdStream(read) as report:
        try:
            pid = _spawn(directory, write)
        finally:
            os.close(write)
        data = b""
        try:
            async for chunk in report:
                data += chunk
        except trio.Cancelled:
            os.kill(pid, signal.SIGKILL)
            _reap(pid)
            raise
    error = str(msgspec.json.decode(data).get("error", "")) if data else _last_words(directory)
    if error:
        _reap(pid)
    return error


def _last_words(directory: Path) -> str:
    try:
        lines = (directory / "shim.err").read_text(errors="replace").strip().splitlines()
    except OSError as exc:
        return f"the container's shim failed: {exc.strerror}"
    return f"the container's shim failed: {lines[-1] if lines else 'no reason given'}"
