"""What all roles of a process share, and what the process asks of each."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import trio

from certs.events import OnEvent
from mesh_control.kube.client import Client
from mesh_control.kube.events import Recorder
from mesh_control.serve.ca_store import CaStore
from mesh_control.serve.metrics import Metrics
from mesh_control.serve.own_leaf import OwnLeaf
from mesh_control.serve.source import ClusterSource
from mesh_control.settings import Settings

Listen = Callable[[int], Awaitable[list[trio.SocketListener]]]
"""Opens listeners on a port. Raises OSError."""


@dataclass(frozen=True)
class Common:
    """The parts that exist once in a process. Whoever builds it runs them."""

    settings: Settings
    client: Client
    rng: random.Random
    note: OnEvent
    listen: Listen
    store: CaStore
    leaf: OwnLeaf
    source: ClusterSource
    recorder: Recorder


class Role(Protocol):
    """One role of a replica."""

    def not_ready(self) -> Iterable[str]:
        """Why it is not ready, one reason a line."""
        ...

    def declare(self, metrics: Metrics) -> None:
        """Add its metrics."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled; started once it listens. Raises OSError where it cannot."""
        ...

    async def lead(self) -> None:
        """Do what only one replica may do, until cancelled; returns where there is nothing."""
        ...

    async def close(self) -> None:
        """End gently what is under way. It has a deadline."""
        ...
