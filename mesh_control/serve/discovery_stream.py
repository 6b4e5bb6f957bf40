"""One sidecar's stream after Welcome: a reader, and one sender with at most one update under way.

Questions go out between updates; reports come in at their own pace.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from certs.framing import FrameError, read_frame, write_frame
from mesh_api.admin import SyncState
from mesh_api.discovery import (
    MAX_EDGES,
    MAX_FRAME_BYTES,
    REPORT_S,
    WORKLOAD_KEY,
    Applied,
    FromControl,
    FromSidecar,
    Goodbye,
    Ping,
    Pong,
    Reply,
    Report,
    Subscribe,
    Unsubscribe,
    Update,
    WorkloadConfig,
    decode_from_sidecar,
    encode_message,
)
from mesh_api.sidecar import Workload
from mesh_control.serve.discovery_asks import Memory, Questions
from mesh_control.serve.subscriptions import Group, PodRef, Session, Subscriptions, TooManyKeys, pack
from mesh_ops.printable import clean

if TYPE_CHECKING:
    import random

    from mesh_control.serve.discovery import DiscoveryStats, Limits, Source

NO_CONFIG = WorkloadConfig(Workload(name="-", namespace="-"), "-", "")
"""Of a pod that is gone."""
UPDATE_BYTES = 1024 * 1024
"""An update is cut near this size; one group alone may be larger."""
FAREWELL_S = 2.0
REPORTS_AT_ONCE = 10
"""Reports that may come one upon the other after a pause; besides, one in half of REPORT_S."""
HEAVY_S = 0.005
REST = 4.0
"""What takes the event loop HEAVY_S or more is followed by a pause of so many times that, in which the other
sidecars are served: one that asks without end slows down nobody but itself."""
MAX_REJECTED = 64
"""Refused keys that are remembered of a sidecar."""


class Ending(NamedTuple):
    """Why a stream ends: `kind` is a metric label, `reason` is told to the sidecar."""

    kind: str
    reason: str
    moving: bool = False


class Speaker(NamedTuple):
    """Who is at the other end."""

    identity: str
    version: str
    """Of its program."""
    http2: str
    """Its HTTP/2 engine."""


class Owner(Protocol):
    """What a stream needs of its server."""

    subscriptions: Subscriptions
    source: Source
    stats: DiscoveryStats
    limits: Limits
    rng: random.Random
    memory: Memory

    def on_report(self, pod: PodRef, identity: str, workload: str, report: Report, /) -> None:
        """Take what a sidecar has counted."""
        ...

    def on_event(self, name: str, fields: Mapping[str, object], /) -> None:
        """Report."""
        ...


async def send(stream: trio.abc.SendStream, message: FromControl, within_s: float) -> None:
    """Send one message. Raises trio.TooSlowError and what breaks the stream."""
    with trio.fail_after(within_s):
        await write_frame(stream, encode_message(message), MAX_FRAME_BYTES)


async def farewell(stream: trio.abc.Stream, ending: Ending) -> None:
    """Say why, and close; what fails here fails unheard, the sidecar sees the end anyway."""
    with trio.move_on_after(FAREWELL_S):
        try:
            await send(stream, Goodbye(ending.reason, ending.moving), FAREWELL_S)
            await stream.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass


class Stream:
    """Serves one welcomed sidecar."""

    def __init__(
        self, owner: Owner, stream: trio.abc.Stream, session: Session, speaker: Speaker, until: float
    ) -> None:
        """`until`: when the stream moves on, on trio's clock."""
        self.session = session
        session.wake = self._wake
        self.speaker = speaker
        self.since = trio.current_time()
        self.questions = Questions(owner.memory, self._wake)
        self.rejected: dict[str, str] = {}
        """Keys whose present content the sidecar has refused, and why."""
        self._bundle: str | None = None
        """The trust bundle that it has applied on this stream."""
        self._bundle_sent = ""
        self._reports = 0
        self._owner = owner
        self._stream = stream
        self._until = until
        self._news = trio.Event()
        self._ending: Ending | None = None
        self._batches: deque[list[Group]] = deque()
        self._since: float | None = None
        """When the oldest change in the batches happened."""
        self._nonce = 0
        self._sent: list[str] | None = None
        """Groups of the update that is not answered yet."""
        self._asked = False

    def end(self, ending: Ending) -> None:
        """End the stream; the first reason counts."""
        self._ending = self._ending or ending
        self._wake()

    async def run(self) -> Ending:
        """Serve to the end; returns why."""
        ending = Ending("gone", "the sidecar has gone")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read)
            try:
                ending = await self._send()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            except trio.TooSlowError:
                ending = Ending("slow", f"nothing was read for {self._owner.limits.applied_s:g} s")
            except Exception as exc:  # a defect, which must not end the other sidecars' streams
                ending = Ending("failed", "a defect of the control plane; its log says more")
                self._owner.on_event("discovery.failed", {"error": f"{type(exc).__name__}: {exc}"[:300]})
            nursery.cancel_scope.cancel()
        self.questions.end(f"the sidecar's stream has ended: {ending.reason}")
        if ending.kind != "gone":
            await farewell(self._stream, ending)
        return ending

    def state(self) -> tuple[SyncState, str]:
        """Whether the sidecar has what it should have; if it refused something, why."""
        if self.rejected:
            return SyncState.REJECTED, next(iter(self.rejected.values()))
        if self._sent is not None or self._batches or self.session.dirty:
            return SyncState.PENDING, ""
        return SyncState.SYNCED, ""

    def bundle(self) -> str:
        """The trust bundle that the sidecar was told and has in force, as PEM; '' while that is not known."""
        waiting = WORKLOAD_KEY in self.session.dirty or WORKLOAD_KEY in (self._sent or ())
        if self._bundle is None and WORKLOAD_KEY in self.session.told and not waiting:
            return self._own().bundle_pem  # it had it before this stream
        return self._bundle or ""

    def _own(self) -> WorkloadConfig:
        found = self._owner.source.lookup(WORKLOAD_KEY, self.session.pod)
        return found if isinstance(found, WorkloadConfig) else NO_CONFIG

    def _wake(self) -> None:
        self._news.set()

    # -- from the sidecar ----------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while True:
                with trio.fail_after(self._owner.limits.silent_s):
                    frame = await read_frame(self._stream, MAX_FRAME_BYTES)
                began = trio.current_time()
                self._take(decode_from_sidecar(frame))
                await _rest(trio.current_time() - began)
        except trio.TooSlowError:
            self.end(Ending("silent", f"nothing heard for {self._owner.limits.silent_s:g} s"))
        except (FrameError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.end(Ending("gone", "the sidecar has gone"))
        except TooManyKeys as exc:
            self.end(Ending("too-many-keys", str(exc)))
        except ValueError as exc:
            self.end(Ending("protocol", str(exc)))
        except Exception as exc:  # as in `run`
            self.end(Ending("failed", "a defect of the control plane; its log says more"))
            self._owner.on_event("discovery.failed", {"error": f"{type(exc).__name__}: {exc}"[:300]})

    def _take(self, message: FromSidecar) -> None:
        subscriptions = self._owner.subscriptions
        if isinstance(message, Subscribe):
            self._asked = True
            subscriptions.subscribe(self.session, message.keys, message.holds)
        elif isinstance(message, Unsubscribe):
            subscriptions.unsubscribe(self.session, message.keys)
            for key in message.keys:
                self.rejected.pop(key, None)
        elif isinstance(message, Applied):
            self._applied(message)
        elif isinstance(message, Reply):
            self.questions.take(message)
        elif isinstance(message, Report):
            self._reported(message)
        elif not isinstance(message, Pong):
            raise ValueError("expected one hello, at the beginning")

    def _applied(self, message: Applied) -> None:
        if self._sent is None or message.nonce != self._nonce:
            raise ValueError(f"nothing was to be applied with nonce {message.nonce}")
        keys, self._sent = self._sent, None
        if message.error:
            self._owner.stats.nacks += 1
            pod = self.session.pod
            fields = {"pod": pod.name, "namespace": pod.namespace, "error": message.error[:500]}
            self._owner.on_event("discovery.nack", fields)
            self._owner.subscriptions.refused(self.session, keys)
            if len(keys) == 1 and len(self.rejected) < MAX_REJECTED:  # of several, each is tried alone
                self.rejected[keys[0]] = clean(message.error, 500)
            self._wake()
            return
        for key in keys:
            self.rejected.pop(key, None)
        if WORKLOAD_KEY in keys:
            self._bundle = self._bundle_sent
        if not self._batches and self._since is not None:
            self._owner.stats.pushed(trio.current_time() - self._since)
            self._since = None
        self._wake()

    def _reported(self, report: Report) -> None:
        """Raises ValueError for a report that is too large, or comes too soon."""
        self._reports += 1
        if self._reports > REPORTS_AT_ONCE + (trio.current_time() - self.since) / (REPORT_S / 2):
            raise ValueError(f"expected a report every {REPORT_S:g} s")
        if len(report.edges) > MAX_EDGES:
            raise ValueError(f"expected at most {MAX_EDGES} edges in a report, got {len(report.edges)}")
        self._owner.on_report(self.session.pod, self.speaker.identity, self._own().workload.name, report)

    # -- to the sidecar ------------------------------------------------------------------------------------

    async def _send(self) -> Ending:
        owner, limits = self._owner, self._owner.limits
        now = trio.current_time()
        ping = now + limits.ping_s
        recompare = now + limits.recompare_s * owner.rng.uniform(0.5, 1.0)
        answered_by = 0.0
        while True:
            self._news = trio.Event()
            while self.questions.outgoing:
                await send(self._stream, self.questions.outgoing.popleft(), limits.applied_s)
            now = trio.current_time()
            if self._ending is not None:
                return self._ending
            if now >= self._until:
                return Ending("age", "this stream is old; a new one takes over", moving=True)
            if now >= recompare:
                recompare = now + limits.recompare_s
                owner.subscriptions.recompare(self.session)
            if self._sent is not None:
                if now >= answered_by:
                    return Ending("slow", f"an update was not answered within {limits.applied_s:g} s")
                await self._wait(min(answered_by, self._until))
                continue
            took = 0.0
            if not self._batches:
                took = await self._gather(now)
            if self._batches:
                await self._push(self._batches.popleft())
                await _rest(took)
                ping = (now := trio.current_time()) + limits.ping_s
                answered_by = now + limits.applied_s
                continue
            await _rest(took)
            if now >= ping:
                await send(self._stream, Ping(), limits.applied_s)
                ping = now + limits.ping_s
            due = owner.subscriptions.due(self.session, now)
            if due is not None:
                due = max(due, now + (limits.coalesce_s if owner.source.current() else limits.settle_s))
            await self._wait(min(ping, recompare, self._until, due or ping))

    async def _wait(self, until: float) -> None:
        with trio.move_on_at(until):
            await self._news.wait()

    async def _gather(self, now: float) -> float:
        """Look at what has changed; what changes within a few milliseconds goes out together.

        Returns how long the event loop was busy with it.
        """
        owner = self._owner
        due = owner.subscriptions.due(self.session, now)
        if due is None or due > now:
            return 0.0
        if self.session.dirty and not self._asked:
            await trio.sleep(owner.limits.coalesce_s)
        self._asked = False
        since, self.session.changed_at = self.session.changed_at, None
        began = trio.current_time()
        groups = owner.subscriptions.collect(self.session, began, owner.source.current())
        if groups:
            self._since = since
        self._batches.extend(pack(groups, self.session.alone, UPDATE_BYTES))
        return trio.current_time() - began

    async def _push(self, groups: list[Group]) -> None:
        self._nonce += 1
        self._sent = [group.key for group in groups]
        if WORKLOAD_KEY in self._sent:
            self._bundle_sent = self._own().bundle_pem
        update = Update(
            self._nonce,
            tuple(resource for group in groups for resource in group.resources),
            tuple(key for group in groups for key in group.removed),
        )
        stats = self._owner.stats
        stats.updates += 1
        stats.resources += len(update.resources) + len(update.removed)
        await send(self._stream, update, self._owner.limits.applied_s)


async def _rest(took: float) -> None:
    if took >= HEAVY_S:
        await trio.sleep(REST * took)
