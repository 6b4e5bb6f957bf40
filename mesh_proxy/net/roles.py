"""Who has to do with a connection besides those who read and write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mesh_proxy.base.errors import TransportError

if TYPE_CHECKING:
    from mesh_proxy.net.conn import Conn


class IdleOwner(Protocol):
    """Who keeps a connection that nobody waits on."""

    def drop_idle(self, conn: Conn) -> None:
        """The idle connection has had an event or reached its deadline: forget and close it."""


class Lease(Protocol):
    """Who counts the connections that are open."""

    def closed(self) -> None:
        """One of them has been closed."""


class Interruptible(Protocol):
    """What a task waits on that another connection's end may concern."""

    def interrupt(self, error: TransportError) -> None:
        """Resume whoever waits, with `error`."""
