"""What the node's network offers to the kubelet and the API server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from mesh_local.machinery.objects import Object


@dataclass(frozen=True, slots=True)
class Attachment:
    """A pod's place in the network.

    Args:
        netns: path of its network namespace (for setns).
        ips: its addresses, one per family, in the order of the cluster's families (status.podIPs).
    """

    netns: str
    ips: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PacketFaults:
    """What happens to packets on their way to a pod.

    Args:
        loss_percent: 0 to 100.
        delay_ms, jitter_ms: need a kernel with the netem queueing discipline.
    """

    loss_percent: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0


class NetworkError(Exception):
    """The network could not be set up as asked; the text says what and where."""


class PodNetwork(Protocol):
    """All methods are idempotent and raise NetworkError."""

    async def attach(self, uid: str) -> Attachment:
        """Give the pod with this uid a namespace and addresses, or return those it has."""
        ...

    async def set_faults(self, uid: str, wanted: PacketFaults) -> None:
        """Lose or delay packets on their way to an attached pod; `PacketFaults()` ends it."""
        ...

    async def detach(self, uid: str) -> None:
        """Remove the pod's namespace and free its addresses."""
        ...


class Dialer(Protocol):
    """Opens TCP connections from a network namespace: the host's, or the node's."""

    async def dial(self, host: str, port: int) -> trio.SocketStream:
        """Raises OSError. `host` is an IP address; the caller's cancel scope is the deadline."""
        ...


class ObjectSource(Protocol):
    """A live copy of one kind, as an informer keeps it. What it hands out must not be changed.

    Args:
        synced: set once the copy is complete for the first time.
    """

    synced: trio.Event

    def list(self) -> Sequence[Object]: ...

    def on_change(self, callback: Callable[[Object | None, Object | None], None]) -> None:
        """Call back with `(old, new)` on every change."""
        ...
