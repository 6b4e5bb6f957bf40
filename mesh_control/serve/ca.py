"""The CA's endpoint of the control plane, and the control plane's own leaf."""

from __future__ import annotations

import random
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import trio

from certs import workload
from certs.authority import AuthorityError
from certs.clock import WallClock, wall_clock
from certs.credentials import Credentials, CredentialsError, Holder, open_server
from certs.events import OnEvent, ignore_event
from certs.identity import SpiffeId
from certs.service import Service
from certs.workload import SignerError
from mesh_api.ca import ALPN_CA, SignResponse
from mesh_control.serve.ca_review import ReviewAuthenticator
from mesh_control.serve.ca_store import CaStore

LEAF_LIFETIME_S = 86_400.0
MAX_CONNECTIONS = 1024
MAX_PER_ADDRESS = 16


class OwnSigner:
    """Signs the control plane's own leaf: this process holds the CA's key, so nobody has to be asked."""

    def __init__(self, store: CaStore, identity: SpiffeId, lifetime_s: float, wall: WallClock) -> None:
        self._store = store
        self._identity = identity
        self._lifetime = timedelta(seconds=lifetime_s)
        self._wall = wall

    async def sign(self, csr_pem: str) -> SignResponse:
        """See `workload.Signer`."""
        await trio.lowlevel.checkpoint()
        now = datetime.fromtimestamp(self._wall(), UTC)
        try:
            chain = self._store.authority().sign(csr_pem.encode(), self._identity, now, self._lifetime)
        except AuthorityError as exc:
            raise SignerError(str(exc)) from None
        return SignResponse(chain_pem=chain.decode(), bundle_pem=self._store.bundle_pem())


class CaServer:
    """Runs the endpoint, and keeps `holder` supplied with the control plane's own credentials.

    Attributes:
        holder: also what the discovery stream is served with.
        signed: certificates given out; `refused`: requests, by reason; `dropped`: connections without one.
        failed: requests that met a defect or a lack of resources here.
    """

    def __init__(
        self,
        store: CaStore,
        authenticator: ReviewAuthenticator,
        identity: SpiffeId,
        rng: random.Random,
        *,
        lifetime_s: float = LEAF_LIFETIME_S,
        wall: WallClock = wall_clock,
        on_event: OnEvent = ignore_event,
    ) -> None:
        self.holder = Holder()
        self.signed = 0
        self.refused: Counter[str] = Counter()
        self.dropped = 0
        self.failed = 0
        self.authenticator = authenticator
        self._store = store
        self._identity = identity
        self._rng = rng
        self._lifetime_s = lifetime_s
        self._wall = wall
        self._on_event = on_event
        self._context: tuple[Credentials, ssl.SSLContext] | None = None
        store.subscribe(self.holder.renew)
        self._service = Service(
            store.authority,
            authenticator,
            lifetime_s=lifetime_s,
            max_connections=MAX_CONNECTIONS,
            max_per_address=MAX_PER_ADDRESS,
            wall=wall,
            on_event=self._count,
        )

    def expiries(self) -> dict[str, float]:
        """When certificates end, in unix seconds: those of the CA, and `control`, our own leaf."""
        own = {"control": self.holder.current.not_after} if self.holder.current else {}
        return {**self._store.expiries(), **own}

    async def run(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; started with the first own leaf. A change of the CA renews that at once."""
        signer = OwnSigner(self._store, self._identity, self._lifetime_s, self._wall)
        domain = self._identity.trust_domain
        async with trio.open_nursery() as nursery:

            async def own(*, task_status: trio.TaskStatus[Credentials]) -> None:
                await workload.run(
                    self.holder,
                    signer,
                    domain,
                    self._rng,
                    self._on_event,
                    wall=self._wall,
                    task_status=task_status,
                )

            await nursery.start(own)
            for listener in listeners:
                nursery.start_soon(self._service.listen, listener, self._secure)
            task_status.started()

    def _secure(self) -> ssl.SSLContext | None:
        """The context for a new connection, made once for each leaf."""
        current = self.holder.current
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
