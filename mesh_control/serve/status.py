"""Writes the status of policies. One replica does: whoever holds the Lease.

What is to be said is computed from the index (`compile.conditions`); what an object says now is learnt from
watches of its own, so that replicas which do not lead pay nothing for it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
import trio

from certs.clock import WallClock, wall_clock
from certs.events import OnEvent, ignore_event
from mesh_control.compile.conditions import Status, merged, status
from mesh_control.index.changes import PolicyName
from mesh_control.index.objects import POLICY_KINDS, PolicyKind
from mesh_control.kube.client import Client
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import MESH_POLICIES, TRAFFIC_POLICIES, Resource
from mesh_control.kube.watch import Change, Source, list_then_watch
from mesh_control.serve.metrics import Metrics
from mesh_control.serve.source import ClusterSource

_RESOURCES: dict[PolicyKind, Resource] = {"TrafficPolicy": TRAFFIC_POLICIES, "MeshPolicy": MESH_POLICIES}
GATHER_S = 0.1
"""What changes within this time is looked at once."""
PER_SECOND = 20
"""Writes at most."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0


class _Meta(msgspec.Struct, rename="camel"):
    name: str
    namespace: str = ""
    resource_version: str = ""


class _Object(msgspec.Struct):
    metadata: _Meta
    status: Status = Status()


_decode = msgspec.json.Decoder(_Object).decode


class StatusWriter:
    """Keeps the status of every policy true; run it as the leader.

    Attributes:
        written: statuses written; `failed`: writes that failed.
    """

    def __init__(
        self,
        client: Client,
        source: ClusterSource,
        rng: random.Random,
        on_note: OnEvent = ignore_event,
        wall: WallClock = wall_clock,
    ) -> None:
        self.written = 0
        self.failed = 0
        self._client = client
        self._source = source
        self._rng = rng
        self._on_note = on_note
        self._wall = wall
        self._present: dict[PolicyName, _Object] = {}
        self._dirty: set[PolicyName] = set()
        self._waits: dict[PolicyName, tuple[int, float]] = {}
        """Failures in a row, and when to try again."""
        self._news = trio.Event()
        source.subscribe_policies(self._concerned)

    def _concerned(self, names: Iterable[PolicyName]) -> None:
        # What is not present (yet) is looked at when its watch tells of it.
        self._dirty.update(name for name in names if name in self._present)
        self._news.set()

    def declare(self, metrics: Metrics) -> None:
        """Add what is counted here, and how many policies do not hold."""
        index = self._source.index
        metrics.gauges(
            "policies_not_accepted",
            "Policies that cannot be used as they are; what they said before stays in force.",
            ("kind",),
            lambda: {(kind,): len(index.refused(kind)) for kind in POLICY_KINDS},
        )
        metrics.gauges(
            "policies_conflicted",
            "Policies that do not hold because an older one has the same target.",
            ("kind",),
            lambda: {(kind,): index.conflicted(kind) for kind in POLICY_KINDS},
        )
        metrics.counter("statuses_written_total", "Statuses of policies, written.", lambda: self.written)
        metrics.counter("status_failures_total", "Statuses of policies, not written.", lambda: self.failed)

    async def run(self) -> None:
        """Write what differs until cancelled.

        Notes: `status.failed` (kind, namespace, name, error, retry_in_s), and those of the watches.
        """
        self._present, self._dirty, self._waits = {}, set(), {}
        await self._source.wait_synced()
        try:
            async with trio.open_nursery() as nursery:
                for kind, resource in _RESOURCES.items():
                    nursery.start_soon(self._watch, kind, resource)
                while True:
                    with trio.move_on_at(self._next_try()):
                        await self._news.wait()
                    await trio.sleep(GATHER_S)
                    self._news = trio.Event()
                    await self._reconcile()
        finally:
            self._present.clear()

    def _next_try(self) -> float:
        return min((when for _, when in self._waits.values()), default=math.inf)

    async def _watch(self, kind: PolicyKind, resource: Resource) -> None:
        def name(obj: _Object) -> PolicyName:
            return kind, (obj.metadata.namespace, obj.metadata.name)

        def replaced(found: list[_Object]) -> None:
            for gone in [one for one in self._present if one[0] == kind]:
                self._forget(gone)
            for obj in found:
                changed("MODIFIED", obj)

        def changed(change: Change, obj: _Object) -> None:
            if change == "DELETED":
                self._forget(name(obj))
            else:
                self._present[name(obj)] = obj
                self._dirty.add(name(obj))
                self._news.set()

        await list_then_watch(
            self._client,
            Source(resource, _decode, optional=True),
            on_replace=replaced,
            on_event=changed,
            on_synced=lambda: None,
            rng=self._rng,
            on_note=self._on_note,
        )

    def _forget(self, name: PolicyName) -> None:
        self._present.pop(name, None)
        self._dirty.discard(name)
        self._waits.pop(name, None)

    async def _reconcile(self) -> None:
        now = trio.current_time()
        for name, (_, when) in self._waits.items():
            if when <= now:
                self._dirty.add(name)
        due, self._dirty = self._dirty, set()
        for name in sorted(due):
            _, when = self._waits.get(name, (0, 0.0))
            if when <= trio.current_time():
                await self._write(name)

    async def _write(self, name: PolicyName) -> None:
        """Write one status where it differs; what fails is tried again later."""
        kind, (namespace, own) = name
        present = self._present.get(name)
        try:
            wanted = status(self._source.index, name)
            new = merged(wanted, present.status, self._now()) if present and wanted else None
        except Exception as exc:  # a defect about one policy must not end one leader after the other
            self._put_off(name, KubeError(0, "Defect", f"{type(exc).__name__}: {exc}"[:300]))
            return
        if present is None or new is None:
            self._waits.pop(name, None)
            return
        # An object that was changed meanwhile refuses the patch, and its watch brings the change.
        patch = {"metadata": {"resourceVersion": present.metadata.resource_version}, "status": new}
        try:
            written = await self._client.patch(_RESOURCES[kind], own, namespace, patch, subresource="status")
        except KubeError as exc:
            self._put_off(name, exc)
            return
        self.written += 1
        self._waits.pop(name, None)
        if name in self._present:
            version = written["metadata"]["resourceVersion"]
            self._present[name] = _Object(_Meta(own, namespace, version), new)
        await trio.sleep(1 / PER_SECOND)

    def _put_off(self, name: PolicyName, exc: KubeError) -> None:
        if exc.not_found:
            self._waits.pop(name, None)  # its watch says so too
            return
        tries, _ = self._waits.get(name, (0, 0.0))
        wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(tries, 16)) * self._rng.uniform(0.5, 1.0)
        wait = max(wait, exc.retry_after_s)
        self._waits[name] = tries + 1, trio.current_time() + wait
        if exc.conflict:
            return
        self.failed += 1
        kind, (namespace, own) = name
        self._on_note(
            "status.failed",
            {
                "kind": kind,
                "namespace": namespace,
                "name": own,
                "error": exc.message,
                "retry_in_s": round(wait, 3),
            },
        )

    def _now(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
