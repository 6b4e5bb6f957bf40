"""The control plane's own leaf, by which sidecars know it."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import trio

from certs import workload
from certs.authority import AuthorityError
from certs.clock import WallClock, wall_clock
from certs.credentials import Credentials, Holder
from certs.events import OnEvent, ignore_event
from certs.identity import SpiffeId
from certs.workload import SignerError
from mesh_api.ca import SignResponse
from mesh_control.serve.ca_store import CaStore

LEAF_LIFETIME_S = 86_400.0


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


class OwnLeaf:
    """Keeps `holder` supplied; a change of the CA renews the leaf at once."""

    def __init__(
        self,
        store: CaStore,
        identity: SpiffeId,
        rng: random.Random,
        *,
        lifetime_s: float = LEAF_LIFETIME_S,
        wall: WallClock = wall_clock,
        on_event: OnEvent = ignore_event,
    ) -> None:
        self.holder = Holder()
        self._signer = OwnSigner(store, identity, lifetime_s, wall)
        self._domain = identity.trust_domain
        self._rng = rng
        self._wall = wall
        self._on_event = on_event
        store.subscribe(self.holder.renew)

    async def run(self, *, task_status: trio.TaskStatus[Credentials] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew until cancelled; started with the first leaf."""
        await workload.run(
            self.holder,
            self._signer,
            self._domain,
            self._rng,
            self._on_event,
            wall=self._wall,
            task_status=task_status,
        )
