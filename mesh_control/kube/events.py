"""Events about objects, for `kubectl describe`: best effort, never in the way of what they report."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import trio

from certs.clock import WallClock, wall_clock
from certs.events import OnEvent, ignore_event
from mesh_control.kube.client import Client, Object
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import EVENTS

QUEUE = 256
REMEMBERED = 1024
MAX_MESSAGE_CHARS = 1024
DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class About:
    """The object that an Event is about; `namespace` '' puts the Event of a cluster object in `default`."""

    api_version: str
    kind: str
    name: str
    namespace: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True)
class _Note:
    about: About
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


class Recorder:
    """Takes Events at once and writes them later; repetitions count up one Event.

    Attributes:
        dropped: Events lost to a full queue or a failed request.
    """

    def __init__(
        self,
        client: Client,
        component: str,
        instance: str,
        rng: random.Random,
        wall: WallClock = wall_clock,
        on_note: OnEvent = ignore_event,
    ) -> None:
        self.dropped = 0
        self._client = client
        self._component = component
        self._instance = instance
        self._rng = rng
        self._wall = wall
        self._on_note = on_note
        self._send, self._receive = trio.open_memory_channel[_Note](QUEUE)
        self._written: dict[_Note, tuple[str, int]] = {}

    def record(self, about: About, type: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Queue an Event; returns at once. `reason` is one CamelCase word."""
        try:
            self._send.send_nowait(_Note(about, type, reason, message[:MAX_MESSAGE_CHARS]))
        except trio.WouldBlock:
            self.dropped += 1

    async def run(self) -> None:
        """Write what is queued until cancelled. Notes: `kube.event.failed` (reason, error)."""
        async for note in self._receive:
            try:
                with trio.fail_after(DEADLINE_S):
                    await self._write(note)
            except KubeError as exc:
                self._lost(note, exc.message)
            except trio.TooSlowError:
                self._lost(note, f"no answer within {DEADLINE_S:g} s")

    def _lost(self, note: _Note, error: str) -> None:
        self.dropped += 1
        self._on_note("kube.event.failed", {"reason": note.reason, "error": error})

    async def _write(self, note: _Note) -> None:
        now = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        namespace = note.about.namespace or "default"
        written = self._written.pop(note, None)
        if written is not None:
            name, count = written
            try:
                change = {"count": count + 1, "lastTimestamp": now}
                await self._client.patch(EVENTS, name, namespace, change)
                self._remember(note, name, count + 1)
                return
            except KubeError as exc:
                if not exc.not_found:  # they are kept for an hour only
                    raise
        created = await self._client.create(EVENTS, self._event(note, namespace, now), namespace)
        self._remember(note, created["metadata"]["name"], 1)

    def _remember(self, note: _Note, name: str, count: int) -> None:
        self._written[note] = (name, count)
        if len(self._written) > REMEMBERED:
            del self._written[next(iter(self._written))]

    def _event(self, note: _Note, namespace: str, now: str) -> Object:
        about = note.about
        involved = {"apiVersion": about.api_version, "kind": about.kind, "name": about.name}
        involved |= {k: v for k, v in (("namespace", about.namespace), ("uid", about.uid)) if v}
        return {
            "metadata": {
                "name": f"{about.name[:230]}.{self._rng.getrandbits(64):016x}",
                "namespace": namespace,
            },
            "involvedObject": involved,
            "type": note.type,
            "reason": note.reason,
            "message": note.message,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
