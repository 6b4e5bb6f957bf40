"""How a container is stopped: preStop hook, stop signal, SIGKILL at the end of the grace period."""

import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import trio

from mesh_local.kubelet import probes
from mesh_local.kubelet.records import Record
from mesh_local.kubelet.runtime import Container, Runtime
from mesh_local.machinery.objects import dig

logger = logging.getLogger(__name__)

# Between the stop signal and SIGKILL, however much of the grace period the hooks took.
MINIMUM_S = 2.0
# Between SIGKILL and giving up: a process that does not go then hangs in the kernel.
KILL_DEADLINE_S = 30.0

Event = Callable[[Record, Literal["Normal", "Warning"], str, str], None]


@dataclass(slots=True)
class Live:
    """A container that runs.

    Attributes:
        runs: set when it counts as running: its postStart hook is through.
        exited: set when it has ended and its record says so.
        stopping: somebody is about to stop it.
    """

    record: Record
    container: Container
    target: probes.Target
    runtime: Runtime
    runs: trio.Event = field(default_factory=trio.Event)
    exited: trio.Event = field(default_factory=trio.Event)
    stopping: bool = False


class Grace:
    """A grace period that begins now and may be shortened while it runs."""

    def __init__(self, seconds: float) -> None:
        self._deadline = trio.current_time() + seconds
        self._scopes: set[trio.CancelScope] = set()

    def shorten(self, seconds: float) -> None:
        """Let it end at the latest `seconds` from now."""
        self._deadline = min(self._deadline, trio.current_time() + seconds)
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, max(self._deadline, trio.current_time()))

    async def within(self, wait: Callable[[], Awaitable[object]], minimum_s: float = 0.0) -> bool:
        """Await `wait()` until the period ends, but at least `minimum_s`; whether it came to its end."""
        deadline = max(self._deadline, trio.current_time() + minimum_s)
        with trio.CancelScope(deadline=deadline) as scope:
            self._scopes.add(scope)
            try:
                await wait()
            finally:
                self._scopes.discard(scope)
        return not scope.cancelled_caught


async def stop(live: Live, grace: Grace, event: Event, before: Sequence[trio.Event] = ()) -> None:
    """Stop a container and wait until it is gone.

    A container that is being stopped already is only waited for, and killed at the end of this grace period.

    Args:
        before: what must have happened before it gets its signal, unless the grace period ends first.
    """
    if not live.stopping:
        live.stopping = True
        try:
            await _ask(live, grace, event, before)
        except trio.Cancelled:
            live.stopping = False
            raise
    if not await grace.within(live.exited.wait, MINIMUM_S):
        live.runtime.signal(live.container, signal.SIGKILL)
        with trio.move_on_after(KILL_DEADLINE_S) as scope:
            await live.exited.wait()
        if scope.cancelled_caught:
            logger.error("Container %s (pid %d) does not die", live.record.name, live.container.pid)


async def _ask(live: Live, grace: Grace, event: Event, before: Sequence[trio.Event]) -> None:
    """Everything up to the stop signal."""
    hook = dig(live.record.spec, "lifecycle", "preStop")

    async def pre_stop() -> None:
        try:
            await probes.run_handler(hook, live.target, 0)
        except probes.CheckFailed as exc:
            logger.info("preStop of %s failed: %s", live.record.name, exc)
            event(live.record, "Warning", "FailedPreStopHook", "PreStopHook failed")

    async def turn() -> None:
        for other in before:
            await other.wait()

    if hook and live.runs.is_set():
        await grace.within(pre_stop)
    await grace.within(turn)
    live.runtime.signal(live.container, stop_signal(live.record))


def stop_signal(record: Record) -> int:
    """The container's own choice (lifecycle.stopSignal, KEP-4960), or SIGTERM."""
    name = str(dig(record.spec, "lifecycle", "stopSignal", default="SIGTERM"))
    try:
        return signal.Signals[name].value
    except KeyError:
        logger.warning("Container %s: unknown stop signal %s; SIGTERM is used", record.name, name)
        return signal.SIGTERM
