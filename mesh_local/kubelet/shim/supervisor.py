"""The shim's life: start the container, pump its output, run further commands in it, record how it ended."""

import json
import os
import select
import signal
import socket
import time
from typing import Any, NoReturn

from mesh_local.kubelet.shim import container, syscalls
from mesh_local.kubelet.shim.pump import LogFile, Stream

REPORT_FD = 3
START_ERROR_CODE = 128
MAX_COMMANDS = 16
REQUEST_BYTES = 256 * 1024
# What the kubelet reads of the output of a probe or hook (its maxRespBodyLength).
OUTPUT_BYTES = 10 * 1024
EXEC_SOCKET = "exec.sock"


def run(directory: str) -> int:
    """Run the container that `directory`/spec.json describes; the answer is the shim's own exit code."""
    os.chdir(directory)
    os.closerange(REPORT_FD + 1, os.sysconf("SC_OPEN_MAX"))
    os.set_inheritable(REPORT_FD, False)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with open("spec.json") as file:
        spec = json.load(file)
    log = LogFile("log", spec["log_max_bytes"])
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(EXEC_SOCKET)
    listener.listen(MAX_COMMANDS)
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    syscalls.unshare(syscalls.CLONE_NEWPID)
    started_at = time.time_ns()
    pid, error = _spawn(lambda: container.become(spec, directory), out_write, err_write)
    os.close(out_write)
    os.close(err_write)
    if error:
        os.waitpid(pid, 0)
        _write(
            "exit.json",
            {"code": START_ERROR_CODE, "reason": "StartError", "message": error, "finished_ns": 0},
        )
        _report({"error": error})
        return 0
    state = {
        "pid": pid,
        "pid_start": start_time(pid),
        "shim_pid": os.getpid(),
        "shim_start": start_time(os.getpid()),
        "started_ns": started_at,
    }
    _write("state.json", state)
    if not _report({}):
        # Nobody knows of this container: the next runtime may start it again.
        os.kill(pid, signal.SIGKILL)
    streams = [Stream(out_read, b"stdout", log), Stream(err_read, b"stderr", log)]
    code = _Loop(spec, pid, streams, listener).run()
    _write_exit(code)
    return 0


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot (proc(5), field 22): with the pid, an identity."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def _write(name: str, value: dict[str, Any]) -> None:
    with open(name + ".new", "w") as file:
        json.dump(value, file)
    os.rename(name + ".new", name)


def _write_exit(code: int, reason: str = "", message: str = "") -> None:
    end = {"code": code, "reason": reason, "message": message, "finished_ns": time.time_ns()}
    _write("exit.json", end)


def _report(value: dict[str, str]) -> bool:
    """Tell the runtime; False if it has gone."""
    try:
        os.write(REPORT_FD, json.dumps(value).encode())
    except BrokenPipeError:
        return False
    os.close(REPORT_FD)
    return True


def _spawn(become: Any, out: int, err: int) -> tuple[int, str]:
    """Fork a child that runs `become`; its pid, and what kept it from its program ('' for nothing).

    Raises:
        OSError: there is no child.
    """
    error_read, error_write = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        os.close(error_read)
        os.close(error_write)
        raise
    if pid == 0:
        _child(become, out, err, error_write)
    os.close(error_write)
    with os.fdopen(error_read, "rb") as file:
        return pid, file.read().decode(errors="replace")


def _child(become: Any, out: int, err: int, error_write: int) -> NoReturn:
    try:
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        for fd, number in ((null, 0), (out, 1), (err, 2)):
            os.dup2(fd, number)
        os.setsid()
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        become()
    except container.StartError as exc:
        os.write(error_write, str(exc).encode())
    except OSError as exc:
        os.write(error_write, f"{exc.strerror}: {exc.filename or ''}{exc.filename2 or ''}".encode())
    except BaseException as exc:
        os.write(error_write, repr(exc).encode())
    finally:
        os._exit(START_ERROR_CODE)


def exit_code(status: int) -> int:
    """A wait status as a shell and Kubernetes tell it: 128 + the signal's number for a killed process."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


class _Command:
    """A further command in the container: a connection that asked for it, the process, its output so far."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.request = b""
        self.output = b""
        self.pid = 0
        self.pidfd = -1
        self.read_fd = -1

    def close(self) -> None:
        self.connection.close()
        for fd in (self.pidfd, self.read_fd):
            if fd >= 0:
                os.close(fd)


class _Loop:
    def __init__(
        self, spec: container.Spec, pid: int, streams: list[Stream], listener: socket.socket
    ) -> None:
        self._spec = spec
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._listener = listener
        self._streams = {stream.fd: stream for stream in streams}
        self._commands: dict[int, _Command] = {}
        self._poll = select.poll()
        for fd in (self._pidfd, listener.fileno(), *self._streams):
            self._poll.register(fd, select.POLLIN)

    def run(self) -> int:
        """Serve until the container's first process has ended and its output is read; its exit code."""
        code: int | None = None
        while code is None or self._streams:
            for fd, _ in self._poll.poll():
                if fd == self._pidfd:
                    code = exit_code(os.waitpid(self._pid, 0)[1])
                    self._poll.unregister(fd)
                elif fd in self._streams:
                    if not self._streams[fd].read():
                        del self._streams[fd]
                        self._poll.unregister(fd)
                else:
                    if fd == self._listener.fileno():
                        self._accept()
                    else:
                        self._serve(self._commands[fd], fd)
                    break  # descriptors were closed or opened: the other events may be of former ones
        return code

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        command = _Command(connection)
        if len({id(c) for c in self._commands.values()}) >= MAX_COMMANDS:
            self._answer(command, {"error": f"more than {MAX_COMMANDS} commands run in this container"})
        else:
            self._watch(connection.fileno(), command)

    def _watch(self, fd: int, command: _Command) -> None:
        self._commands[fd] = command
        self._poll.register(fd, select.POLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._commands.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _serve(self, command: _Command, fd: int) -> None:
        if fd == command.connection.fileno():
            self._receive(command)
        elif fd == command.read_fd:
            data = os.read(fd, 65536)
            command.output = (command.output + data)[:OUTPUT_BYTES]
            if not data:
                self._unwatch(fd)
        else:
            self._finish(command)

    def _receive(self, command: _Command) -> None:
        """Read the request; a caller that hangs up ends the command."""
        try:
            data = command.connection.recv(65536)
        except OSError:
            data = b""
        if not data or len(command.request) > REQUEST_BYTES:
            if command.pid:
                os.killpg(command.pid, signal.SIGKILL)
                os.waitpid(command.pid, 0)
            self._drop(command)
            return
        command.request += data
        if command.request.endswith(b"\n") and not command.pid:
            self._start(command)

    def _start(self, command: _Command) -> None:
        argv = json.loads(command.request)["argv"]
        command.read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        spec, pidfd = self._spec, self._pidfd
        try:
            pid, error = _spawn(lambda: container.enter(spec, pidfd, argv), write_fd, write_fd)
        except OSError as exc:
            # The container has just ended: its PID namespace takes no process any more.
            self._answer(command, {"error": f"the command cannot be started: {exc.strerror}"})
            return
        finally:
            os.close(write_fd)
        if error:
            os.waitpid(pid, 0)
            self._answer(command, {"error": error})
            return
        command.pid = pid
        command.pidfd = os.pidfd_open(pid)
        self._watch(command.pidfd, command)
        self._watch(command.read_fd, command)

    def _finish(self, command: _Command) -> None:
        code = exit_code(os.waitpid(command.pid, 0)[1])
        os.set_blocking(command.read_fd, False)
        try:
            while (data := os.read(command.read_fd, 65536)) and len(command.output) < OUTPUT_BYTES:
                command.output = (command.output + data)[:OUTPUT_BYTES]
        except BlockingIOError:
            pass  # a process that the command left behind holds the pipe open
        self._answer(command, {"code": code, "output": command.output.decode(errors="replace")})

    def _answer(self, command: _Command, answer: dict[str, Any]) -> None:
        try:
            command.connection.settimeout(1)
            command.connection.sendall(json.dumps(answer).encode())
        except OSError:
            pass  # the caller has hung up
        self._drop(command)

    def _drop(self, command: _Command) -> None:
        for fd in (command.connection.fileno(), command.pidfd, command.read_fd):
            self._unwatch(fd)
        command.close()
