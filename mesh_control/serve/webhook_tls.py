"""The certificate that the webhook serves with: a DNS name, from the mesh's CA, each replica its own."""

from __future__ import annotations

import random
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import trio

from certs.authority import AuthorityError
from certs.clock import WallClock, wall_clock
from certs.events import OnEvent, ignore_event
from certs.rotation import renew_at, retry_in
from certs.serving import issue, server_context
from mesh_control.serve.ca_store import CaStore

LIFETIME_S = 7 * 86_400.0
_LONGEST_SLEEP_S = 30.0


class WebhookCertificate:
    """Keeps a server context in force.

    Attributes:
        current: for new connections; None before the first.
        not_after: when its certificate ends, in unix seconds; 0 before the first.
    """

    def __init__(
        self,
        store: CaStore,
        names: Sequence[str],
        rng: random.Random,
        *,
        lifetime_s: float = LIFETIME_S,
        wall: WallClock = wall_clock,
        on_event: OnEvent = ignore_event,
    ) -> None:
        self.current: ssl.SSLContext | None = None
        self.not_after = 0.0
        self._store = store
        self._names = tuple(names)
        self._rng = rng
        self._lifetime_s = lifetime_s
        self._wall = wall
        self._on_event = on_event
        self._changed = trio.Event()
        store.subscribe(self._wake)

    def _wake(self) -> None:
        self._changed.set()

    def renew(self) -> None:
        """Issue and take over a new certificate. Raises AuthorityError, ssl.SSLError or OSError."""
        now = datetime.fromtimestamp(self._wall(), UTC)
        left = (self._store.authority().not_after - now).total_seconds()
        lifetime = timedelta(seconds=int(min(self._lifetime_s, left)))
        key, chain = issue(self._store.authority(), self._names, now, lifetime)
        self.current = server_context(key, chain, ["http/1.1"])
        self.not_after = (now + lifetime).timestamp()

    async def run(self) -> None:
        """Renew at half life, and at once when the CA changes, until cancelled.

        Events: `webhook.renewed` (not_after), `webhook.failed` (error, retry_in_s).
        """
        attempt = 0
        while True:
            self._changed = trio.Event()
            try:
                self.renew()
            except (AuthorityError, ssl.SSLError, OSError) as exc:
                wait = retry_in(attempt, self.not_after - self._wall(), self._rng)
                self._on_event("webhook.failed", {"error": str(exc), "retry_in_s": round(wait, 3)})
                attempt += 1
                await trio.sleep(wait)
                continue
            attempt = 0
            self._on_event("webhook.renewed", {"not_after": self.not_after})
            due = renew_at(self._wall(), self.not_after, self._rng)
            # In steps: the wall clock may be set, or run on while the machine is suspended.
            while (left := due - self._wall()) > 0 and not self._changed.is_set():
                with trio.move_on_after(min(left, _LONGEST_SLEEP_S)):
                    await self._changed.wait()
