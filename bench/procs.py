"""Processes of the bench: started, looked at through /proc, and ended by their id only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import trio

Errors = tuple[type[Exception], ...]
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PR_SET_PDEATHSIG = 1
_STOP_S = 3.0
_PORTS = (16_000, 32_000)
"""Below the range from which the kernel takes ports of outgoing connections."""

_rng = random.Random(os.urandom(8))
_given: set[int] = set()
_libc = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """A part of the bench failed; the message says which and how."""


def interruptible() -> None:
    """Make SIGTERM the same as Ctrl-C, so that both clean up."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))


def messages(group: BaseExceptionGroup[BaseException]) -> str:
    """What the exceptions of a group and of those within say, on one line."""
    found = []
    for exc in group.exceptions:
        text = messages(exc) if isinstance(exc, BaseExceptionGroup) else str(exc) or type(exc).__name__
        found.append(text)
    return "; ".join(found)


def run_to_end(main: Callable[..., Awaitable[object]], *arguments: object, errors: Errors = ()) -> None:
    """Run a benchmark; where it fails in a way that is known or is interrupted, a line says so.

    Raises:
        ClickException: BenchError or one of `errors`, or Ctrl-C.
    """
    interruptible()
    known: Errors = (BenchError, *errors)
    problem = ""
    try:
        trio.run(main, *arguments)
    except* KeyboardInterrupt:
        problem = "interrupted"
    except* known as group:
        problem = messages(group)
    if problem:  # not from within, where it would become one of a group
        raise click.ClickException(problem)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses and that this process has not handed out before."""
    for _ in range(1000):
        port = _rng.randrange(*_PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise BenchError("no free TCP port found")


@dataclass(frozen=True)
class Proc:
    """One child process and what /proc says about it."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Raise BenchError with the end of its log if it has ended."""
        if self.process.poll() is None:
            return
        raise BenchError(f"{self.name} ended with code {self.process.returncode}: {self.tail()}")

    def tail(self) -> str:
        """The last lines of its output, on one line."""
        text = self.log.read_text(errors="replace").strip()
        return " / ".join(text.splitlines()[-3:])[-600:] or "no output"

    def cpu_s(self) -> float:
        """User and system time of all its threads so far."""
        self.check()
        fields = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S

    def rss_mb(self) -> float:
        """Resident memory in MB (10^6 bytes)."""
        self.check()
        return int(Path(f"/proc/{self.pid}/statm").read_bytes().split()[1]) * _PAGE / 1e6

    def descriptors(self) -> int:
        """Open file descriptors."""
        self.check()
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.asynccontextmanager
async def running(
    name: str, command: Sequence[str], directory: Path, env: dict[str, str] | None = None
) -> AsyncIterator[Proc]:
    """A server process for the length of the block; its output goes to a log file in `directory`.

    It has a session of its own, so that Ctrl-C reaches only the bench, and does not outlive the bench.
    """
    log = directory / f"{name}.log"
    # Not trio's: it starts processes from a thread, whose end would count as the parent's.
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    process = subprocess.Popen(  # noqa: ASYNC220 - see above, and it takes a millisecond
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        cwd=Path(__file__).parent.parent,
        env=os.environ | (env or {}),
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )
    os.close(out)
    try:
        yield Proc(name, process, log)
    finally:
        process.terminate()
        with trio.move_on_after(_STOP_S, shield=True):
            while process.poll() is None:  # noqa: ASYNC110 - the end of a child tells nobody
                await trio.sleep(0.01)
        process.kill()
        process.wait()


async def output(command: Sequence[str], within_s: float) -> str:
    """Standard output of a command that ends by itself. Raises BenchError if it fails or takes too long."""
    name = " ".join(command[:3])
    try:
        with trio.fail_after(within_s):
            done = await trio.run_process(
                list(command),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                cwd=Path(__file__).parent.parent,
                deliver_cancel=_kill,
            )
    except trio.TooSlowError:
        raise BenchError(f"{name}: not done within {within_s:g} s") from None
    if done.returncode:
        last = (done.stderr or done.stdout).decode(errors="replace").strip().rpartition("\n")[2]
        raise BenchError(f"{name}: exit code {done.returncode}: {last[:400]}")
    return done.stdout.decode()


async def _kill(process: trio.Process) -> None:
    process.kill()


async def until(
    what: str, proc: Proc, good: Callable[[], bool], within_s: float, step_s: float = 0.02
) -> float:
    """Ask `good` until it says yes; returns the seconds that it took. Raises BenchError."""
    start = trio.current_time()
    while not good():
        proc.check()
        if trio.current_time() - start > within_s:
            raise BenchError(f"{proc.name}: {what} not within {within_s:g} s: {proc.tail()}")
        await trio.sleep(step_s)
    return trio.current_time() - start
