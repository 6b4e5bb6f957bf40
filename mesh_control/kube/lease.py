"""One leader among replicas, by a Lease of coordination.k8s.io (the protocol of client-go's leaderelection).

Clocks of other machines are not trusted: a lease counts as held for its duration after *we* saw it change.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import trio

from certs.clock import WallClock, wall_clock
from certs.events import OnEvent, ignore_event
from mesh_control.kube.client import Client, Object
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import LEASES

LEASE_S = 15.0
RENEW_DEADLINE_S = 10.0
RETRY_S = 2.0
RELEASE_S = 3.0
JITTER = 1.2
_MAX_LEASE_S = 3600.0


class Election:
    """Stands for election and leads when elected, until cancelled.

    Args:
        identity: unique among replicas, such as the Pod's name and uid.

    Attributes:
        leader: who holds the lease as far as is known; '' for nobody.
        leading: whether that is us.
    """

    def __init__(
        self,
        client: Client,
        namespace: str,
        name: str,
        identity: str,
        rng: random.Random,
        *,
        lease_s: float = LEASE_S,
        renew_deadline_s: float = RENEW_DEADLINE_S,
        retry_s: float = RETRY_S,
        wall: WallClock = wall_clock,
        on_note: OnEvent = ignore_event,
    ) -> None:
        if not lease_s > renew_deadline_s > retry_s * JITTER > 0:
            raise ValueError("expected lease_s > renew_deadline_s > 1.2 x retry_s")
        self.leader = ""
        self.leading = False
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._rng = rng
        self._lease_s = lease_s
        self._renew_deadline_s = renew_deadline_s
        self._retry_s = retry_s
        self._wall = wall
        self._on_note = on_note
        self._observed: Object | None = None
        self._observed_at = 0.0

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Lead whenever elected: `lead` runs then, and is cancelled when the lease is lost.

        If `lead` returns, the lease is kept idle. At the end `lead` has ended first, and only then the lease
        is given up, so that no two lead at once. Notes: `lease.leading` (name), `lease.lost` (name, error),
        `lease.failed` (name, error, reason).
        """
        while True:
            while not await self._try():  # noqa: ASYNC110 - nothing here tells when it is free
                await trio.sleep(self._retry_s * self._rng.uniform(1.0, JITTER))
            self.leading = True
            self._on_note("lease.leading", {"name": self._name})
            error = ""
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lead)
                    error = await self._renew()
                    nursery.cancel_scope.cancel()
            finally:
                self.leading = False
                if not error:
                    await self._release()
            self._on_note("lease.lost", {"name": self._name, "error": error})

    async def _renew(self) -> str:
        """Renew until that has failed for too long; says why."""
        while True:
            await trio.sleep(self._retry_s)
            with trio.move_on_after(self._renew_deadline_s) as scope:
                while not await self._try():
                    if self.leader != self._identity:
                        return f"{self.leader or 'nobody'} holds it"
                    await trio.sleep(self._retry_s * self._rng.uniform(0.5, 1.0))
            if scope.cancelled_caught:
                return f"not renewed within {self._renew_deadline_s:g} s"

    async def _try(self) -> bool:
        """Take or renew the lease; True when it is ours."""
        try:
            return await self._take()
        except KubeError as exc:
            if not (exc.conflict or exc.already_exists):
                self._on_note(
                    "lease.failed", {"name": self._name, "error": exc.message, "reason": exc.reason}
                )
            return False

    async def _take(self) -> bool:
        try:
            lease = await self._client.get(LEASES, self._name, self._namespace)
        except KubeError as exc:
            if not exc.not_found:
                raise
            body = {"metadata": {"name": self._name}, "spec": self._spec({}, self._identity)}
            self._observe(await self._client.create(LEASES, body, self._namespace))
            return True
        if lease != self._observed:
            self._observe(lease)
        spec = lease.get("spec") or {}
        held = bool(self.leader) and trio.current_time() < self._observed_at + _duration(spec, self._lease_s)
        if held and self.leader != self._identity:
            return False
        lease = {**lease, "spec": self._spec(spec, self._identity)}
        self._observe(await self._client.update(LEASES, lease))
        return True

    def _observe(self, lease: Object) -> None:
        self._observed = lease
        self._observed_at = trio.current_time()
        self.leader = str((lease.get("spec") or {}).get("holderIdentity") or "")

    def _spec(self, old: Object, holder: str, duration_s: float | None = None) -> Object:
        now = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = old.get("holderIdentity") or ""
        same = before == holder
        return {
            **old,
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(self._lease_s if duration_s is None else duration_s)),
            "renewTime": now,
            "acquireTime": old.get("acquireTime", now) if same else now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if same or not old else 1),
        }

    async def _release(self) -> None:
        """Let the next one lead at once rather than after the lease's duration."""
        with trio.move_on_after(RELEASE_S, shield=True):
            try:
                lease = await self._client.get(LEASES, self._name, self._namespace)
                spec = lease.get("spec") or {}
                if spec.get("holderIdentity") == self._identity:
                    await self._client.update(LEASES, {**lease, "spec": self._spec(spec, "", 1)})
            except KubeError as exc:
                self._on_note(
                    "lease.failed", {"name": self._name, "error": exc.message, "reason": exc.reason}
                )


def _duration(spec: Object, default: float) -> float:
    value = spec.get("leaseDurationSeconds")
    return min(float(value), _MAX_LEASE_S) if isinstance(value, int | float) else default
