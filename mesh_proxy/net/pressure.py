"""Whether one more client's connection may be accepted: connections, descriptors and memory.

What is near its end takes nothing new and goes on with what there is. Health, metrics and the control
plane's stream do not come by here, so they need no admission; descriptors are kept back for them.

Theory of operation: the kernel gives the lowest free descriptor, so the number of a new one tells how many
are open at least, without counting. Memory is read by a timer, never per connection.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping

import trio

from mesh_proxy.net.cgroup import Memory, Usage

HEADROOM = 512
"""Descriptors kept back for everything but clients' connections; at most a quarter of all."""
NO_BOUND = 1 << 30
HYSTERESIS = 5.0
"""Percentage points (at most half) below the limit at which new connections are taken again."""
CALM_S, BRISK_S = 1.0, 0.1
RELEASE_EVERY_S = 10.0
SAY_EVERY_S = 10.0

TOO_MANY, DESCRIPTORS, MEMORY, ACCEPT = "too-many-connections", "descriptors", "memory", "accept-failed"
"""Reasons; labels of the metric."""

OnEvent = Callable[[str, str, Mapping[str, object]], None]
"""Level, event and fields of a log line."""


def descriptor_limit() -> int:
    """Descriptors that this process may have open."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return NO_BOUND if soft == resource.RLIM_INFINITY else soft


class Pressure:
    """The state of one sidecar.

    Args:
        connections: most clients' connections at once.
        descriptors: most open descriptors of the process.
        memory_percent: of the memory limit, from which on new connections are refused; 0 for never.
        memory: what reads it.
        release: gives back what can be spared.
        on_event: log.
    """

    def __init__(
        self,
        connections: int,
        descriptors: int,
        memory_percent: float,
        memory: Memory,
        release: Callable[[], None],
        on_event: OnEvent,
    ) -> None:
        headroom = min(HEADROOM, descriptors // 4)
        self.connections = connections
        self.accept_below = descriptors - headroom
        """The first descriptor that a client's connection may not have ..."""
        self.dial_below = descriptors - headroom // 2
        """... and one to an endpoint: clients that were accepted are served."""
        self.short = False
        """Memory is: new connections are refused."""
        self._percent = memory_percent
        self._enough = memory_percent - min(HYSTERESIS, memory_percent / 2)
        self._near = memory_percent * 0.75
        self._memory = memory
        self._release = release
        self._on_event = on_event
        self._release_at = 0.0
        self._said: dict[str, tuple[float, int]] = {}
        """When a reason was logged last, and how often it came since."""

    def refusal(self, descriptor: int, connections: int) -> str:
        """Why a connection with this descriptor is refused while there are so many; empty if it is not."""
        if self.short:
            return MEMORY
        if connections >= self.connections:
            return TOO_MANY
        if descriptor >= self.accept_below:
            return DESCRIPTORS
        return ""

    def say(self, reason: str, now: float, **fields: object) -> None:
        """Log that connections were refused, at most once in a while for each reason."""
        said_at, count = self._said.get(reason, (-SAY_EVERY_S, 0))
        if now - said_at < SAY_EVERY_S:
            self._said[reason] = (said_at, count + 1)
            return
        self._said[reason] = (now, 0)
        since = {"unsaid_before": count} if count else {}
        self._on_event("error", "new connections refused", {"reason": reason, **fields, **since})

    async def watch(self) -> None:
        """Follow the memory until cancelled; returns at once where there is nothing to follow."""
        if self.accept_below < 2 * self.connections:  # one for the client, one for the endpoint
            self._on_event(
                "info",
                "descriptors allow fewer connections than the limit",
                {"descriptors": self.accept_below, "connections": self.connections},
            )
        usage = self._memory.read()
        if not self._percent or not usage.limit:
            return
        self._on_event(
            "info",
            "memory limit",
            {"limit": usage.limit, "used": usage.used, "refuse_above_percent": self._percent},
        )
        while True:
            percent = self.look(trio.current_time())
            await trio.sleep(CALM_S if percent < self._near else BRISK_S)

    def look(self, now: float) -> float:
        """Read the memory, act on it, and return the percentage in use."""
        usage = self._read()
        if usage.percent >= self._percent and now >= self._release_at:
            self._release_at = now + RELEASE_EVERY_S
            self._release()
            usage = self._read()
        if not self.short and usage.percent >= self._percent:
            self.short = True
            self._event("error", "memory is short", usage, "new connections are reset until it is not")
        elif self.short and usage.percent < self._enough:
            self.short = False
            self._event("info", "memory is free again", usage, "new connections are accepted")
        return usage.percent

    def _read(self) -> Usage:
        return self._memory.read(min(self._enough, self._near))

    def _event(self, level: str, event: str, usage: Usage, consequence: str) -> None:
        fields = {"used": usage.used, "limit": usage.limit, "consequence": consequence}
        self._on_event(level, event, fields)
