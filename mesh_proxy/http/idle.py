"""The stream idle time-out: no byte of a request or its response, in either direction, for too long."""

from __future__ import annotations

from mesh_proxy.base.errors import DeadlineExceeded
from mesh_proxy.http.message import Down
from mesh_proxy.net.reactor import Reactor
from mesh_proxy.net.roles import Interruptible
from mesh_proxy.net.wheel import NEVER, Timed


class StreamIdle(Timed):
    """Watches one exchange at a time, from `start` to `stop`; `touch` it with every byte.

    It stays queued between exchanges, which costs nothing, until it is forgotten.
    """

    __slots__ = ("_down", "_reactor", "_up", "fired", "idle_s")

    def __init__(self, reactor: Reactor, down: Down) -> None:
        super().__init__()
        self._reactor = reactor
        self._down = down
        self._up: Interruptible | None = None
        self.idle_s = 0.0
        self.fired = False
        """It has ended the exchange."""

    def start(self, up: Interruptible, idle_s: float) -> None:
        """Watch an exchange with `up`."""
        self._up = up
        self.idle_s = idle_s
        self.fired = False
        self._reactor.set_deadline(self, self._reactor.now + idle_s)

    def touch(self) -> None:
        """A byte has come or gone."""
        self.deadline = self._reactor.now + self.idle_s

    def stop(self) -> None:
        """The exchange is over."""
        self.deadline = NEVER
        self._up = None

    def forget(self) -> None:
        """There will be no further exchange."""
        self._reactor.wheel.forget(self)

    def on_deadline(self) -> None:
        if self._up is None:
            return
        self.fired = True
        error = DeadlineExceeded(f"no byte for {self.idle_s:g} s")
        if self._down.sending:
            self._down.interrupt(error)  # it is the client that takes nothing
        else:
            self._up.interrupt(error)
