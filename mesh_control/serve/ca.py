"""The CA's endpoint of the control plane."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import trio

from certs.clock import WallClock, wall_clock
from certs.credentials import Credentials, CredentialsError, open_server
from certs.events import OnEvent, ignore_event
from certs.service import Service
from mesh_api.ca import ALPN_CA
from mesh_control.serve.ca_review import ReviewAuthenticator
from mesh_control.serve.ca_store import CaStore

MAX_CONNECTIONS = 1024
MAX_PER_ADDRESS = 16


class CaServer:
    """Runs the endpoint.

    Attributes:
        signed: certificates given out; `refused`: requests, by reason; `dropped`: connections without one.
        failed: requests that met a defect or a lack of resources here.
    """

    def __init__(
        self,
        store: CaStore,
        authenticator: ReviewAuthenticator,
        leaf: Callable[[], Credentials | None],
        *,
        lifetime_s: float,
        wall: WallClock = wall_clock,
        on_event: OnEvent = ignore_event,
    ) -> None:
        self.signed = 0
        self.refused: Counter[str] = Counter()
        self.dropped = 0
        self.failed = 0
        self.authenticator = authenticator
        self._leaf = leaf
        self._on_event = on_event
        self._context: tuple[Credentials, ssl.SSLContext] | None = None
        self._service = Service(
            store.authority,
            authenticator,
            lifetime_s=lifetime_s,
            max_connections=MAX_CONNECTIONS,
            max_per_address=MAX_PER_ADDRESS,
            wall=wall,
            on_event=self._count,
        )

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(self._service.listen, listener, self._secure)
            task_status.started()

    def _secure(self) -> ssl.SSLContext | None:
        """The context for a new connection, made once for each leaf."""
        current = self._leaf()
        if current is None:
            return None
        if self._context is None or self._context[0] is not current:
            try:
                self._context = current, open_server(current, ALPN_CA)
            except CredentialsError as exc:
                self._on_event("ca.failed", {"error": str(exc)})
                return None
        return self._context[1]

    def _count(self, name: str, fields: Mapping[str, object]) -> None:
        if name == "ca.signed":
            self.signed += 1
        elif name == "ca.refused":
            self.refused[str(fields["reason"])] += 1
        elif name == "ca.dropped":
            self.dropped += 1
        else:
            self.failed += 1
        self._on_event(name, fields)
