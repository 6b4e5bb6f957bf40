"""The probes of one running container, over time (startup, then liveness and readiness)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import trio

from mesh_local.kubelet.probes import CheckFailed
from mesh_local.machinery.objects import Object

Kind = Literal["Startup", "Liveness", "Readiness"]


@dataclass(frozen=True, slots=True)
class Listener:
    """What happens on results.

    Args:
        failed: `(kind, message)` for every failed check.
        changed: `(kind, good)` when a threshold is reached; at most one call for each change.
    """

    failed: Callable[[Kind, str], None]
    changed: Callable[[Kind, bool], None]


Check = Callable[[Object], Awaitable[None]]


async def run_probes(
    spec: Object, since: float, check: Check, listener: Listener, *, ready: bool = False
) -> None:
    """Run a container's probes until cancelled, or until there is nothing more to find out.

    Args:
        spec: the container.
        since: when it was started, by the clock of the event loop.
        check: runs one probe once. Raises CheckFailed.
        ready: what the readiness probe has said so far.
    """
    startup, liveness, readiness = (spec.get(f"{k}Probe") for k in ("startup", "liveness", "readiness"))
    if startup and not await _until_known(startup, since, check, listener):
        return
    listener.changed("Startup", True)
    if not readiness:
        listener.changed("Readiness", True)
    async with trio.open_nursery() as nursery:
        if liveness:
            nursery.start_soon(_watch, "Liveness", liveness, since, check, listener, True)
        if readiness:
            nursery.start_soon(_watch, "Readiness", readiness, since, check, listener, ready)


async def _until_known(probe: Object, since: float, check: Check, listener: Listener) -> bool:
    """The startup probe's verdict."""
    results = _Results(probe, initial=None)
    await trio.sleep_until(since + probe.get("initialDelaySeconds", 0))
    while True:
        good = results.add(await _once("Startup", probe, check, listener))
        if good is not None:
            if not good:
                listener.changed("Startup", False)
            return good
        await trio.sleep(probe.get("periodSeconds", 10))


async def _watch(
    kind: Kind, probe: Object, since: float, check: Check, listener: Listener, initial: bool
) -> None:
    results = _Results(probe, initial)
    await trio.sleep_until(since + probe.get("initialDelaySeconds", 0))
    while True:
        good = results.add(await _once(kind, probe, check, listener))
        if good is not None:
            listener.changed(kind, good)
            if kind == "Liveness" and not good:
                return
        await trio.sleep(probe.get("periodSeconds", 10))


async def _once(kind: Kind, probe: Object, check: Check, listener: Listener) -> bool:
    try:
        await check(probe)
    except CheckFailed as exc:
        listener.failed(kind, str(exc))
        return False
    return True


class _Results:
    """Counts results in a row against the thresholds."""

    def __init__(self, probe: Object, initial: bool | None) -> None:
        self._needed = {True: probe.get("successThreshold", 1), False: probe.get("failureThreshold", 3)}
        self._state = initial
        self._last: bool | None = None
        self._row = 0

    def add(self, good: bool) -> bool | None:
        """The new verdict, where this result changes it."""
        self._row = self._row + 1 if good == self._last else 1
        self._last = good
        if self._row < self._needed[good] or good == self._state:
            return None
        self._state = good
        return good
