"""The discovery stream's server: who may connect, and one sender and one reader for each sidecar.

A stream begins with mTLS and Hello; it is closed with a reason unless the pod named exists and the
certificate is its ServiceAccount's. Updates go out one at a time, each after the one before is in force or
refused, so a sidecar that is slow or stopped holds no memory here but its set of keys (see `subscriptions`).
"""

from __future__ import annotations

import random
import ssl
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import trio

from certs.clock import WallClock, wall_clock
from certs.events import OnEvent, ignore_event
from certs.framing import FrameError, read_frame
from certs.verify import PeerRejected, peer_identity
from mesh_api.admin import SidecarState
from mesh_api.discovery import (
    ALPN_DISCOVERY,
    MAX_HELLO_BYTES,
    PING_S,
    SILENT_S,
    Content,
    Hello,
    Page,
    Report,
    Welcome,
    decode_from_sidecar,
)
from mesh_control.serve.discovery_asks import AskFailed, Memory
from mesh_control.serve.discovery_stream import Ending, Speaker, Stream, farewell, send
from mesh_control.serve.subscriptions import SETTLE_S, PodRef, Session, Subscriptions
from mesh_ops.printable import clean

PUSH_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
HANDSHAKES = 8
"""Handshakes under way at once: each costs the loop some 2 ms, and live streams come between them."""


MAX_VERSION_CHARS = 64


class Source(Protocol):
    """What is known of the cluster."""

    async def wait_synced(self) -> None:
        """Return once the caches hold everything; from then on for good."""
        ...

    def current(self) -> bool:
        """Whether every watch is up: only then may it be said that nobody owns an address."""
        ...

    def lookup(self, key: str, pod: PodRef, /) -> Content | None:
        """The content of a key for the sidecar of `pod`; None if there is none.

        None for an address: it cannot be said (yet) who owns it. That nobody does is an empty answer.
        Quick where it gives the same object again while the content is the same.
        """
        ...

    def subscribe(self, callback: Callable[[Collection[str]], None], /) -> None:
        """Have `callback` told of the keys whose content changed, in the event loop.

        `pod/IP` stands for every `address/IP:PORT` too, and `address/` for every address. `workload` is
        everybody's, `workload/NAMESPACE/POD` that of one pod.
        """
        ...


OnReport = Callable[[PodRef, str, str, Report], None]
"""Takes a sidecar's report, with its pod, its SPIFFE id and the name of its workload."""
PodIdentity = Callable[[str, str], str | None]
"""The SPIFFE id of a pod by namespace and name; None if there is no such pod."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and deadlines of the server, in seconds."""

    max_connections: int = 4096
    max_strangers: int = 1024
    """Connections that have not been welcomed yet."""
    hello_s: float = 10.0
    """For the handshake, and again for Hello."""
    sync_s: float = 10.0
    coalesce_s: float = 0.004
    settle_s: float = SETTLE_S
    applied_s: float = 20.0
    """A sidecar that neither applies nor refuses an update for so long is given up."""
    ping_s: float = PING_S
    silent_s: float = SILENT_S
    recompare_s: float = 300.0
    max_age_s: float = 3600.0
    """A stream moves on after about so long: replicas stay balanced, and new certificates come into use."""


@dataclass(slots=True)
class DiscoveryStats:
    """What the server counts; whoever owns the metrics reads it."""

    connected: int = 0
    welcomed: int = 0
    updates: int = 0
    resources: int = 0
    nacks: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    """Streams that ended, by kind of reason."""
    push_counts: list[int] = field(default_factory=lambda: [0] * (len(PUSH_BUCKETS_S) + 1))
    """From a change to its being in force; the last bucket has no bound."""
    push_sum: float = 0.0

    def pushed(self, seconds: float) -> None:
        """Count one change that a sidecar has applied."""
        self.push_counts[bisect_left(PUSH_BUCKETS_S, seconds)] += 1
        self.push_sum += seconds


class _Refused(Exception):
    """The sidecar is not served; `kind` is a metric label, the text goes to the sidecar."""

    def __init__(self, kind: str, reason: str, *, moving: bool = False) -> None:
        super().__init__(reason)
        self.kind = kind
        self.moving = moving


class DiscoveryServer:
    """Serves every sidecar that this replica has."""

    def __init__(
        self,
        source: Source,
        pod_identity: PodIdentity,
        trust_domain: str,
        rng: random.Random,
        *,
        replica: str,
        version: str,
        limits: Limits = Limits(),
        on_event: OnEvent = ignore_event,
        wall: WallClock = wall_clock,
    ) -> None:
        self.stats = DiscoveryStats()
        self.limits = limits
        self.source = source
        self.on_event = on_event
        self.rng = rng
        self.memory = Memory()
        self._on_report: OnReport | None = None
        self.subscriptions = Subscriptions(source.lookup, self._too_large, limits.settle_s)
        self._pod_identity = pod_identity
        self._trust_domain = trust_domain
        self._replica = replica
        self._welcome = Welcome(replica=replica, version=version)
        self._wall = wall
        self._handshakes = trio.Semaphore(HANDSHAKES)
        self._open = 0
        self._strangers = 0
        self._streams: dict[PodRef, Stream] = {}
        self._closing = False
        source.subscribe(self._changed)

    @property
    def queue_depth(self) -> int:
        """Keys that wait to be looked at again, over all streams."""
        return sum(len(stream.session.dirty) for stream in self._streams.values())

    @property
    def sidecars(self) -> Collection[PodRef]:
        """The pods whose sidecars are connected here."""
        return self._streams.keys()

    def states(self) -> list[SidecarState]:
        """The sidecars that are connected here, without the roots that they trust (see `bundle_of`)."""
        now = trio.current_time()
        found = []
        for pod, stream in self._streams.items():
            state, error = stream.state()
            found.append(
                SidecarState(
                    namespace=pod.namespace,
                    pod=pod.name,
                    replica=self._replica,
                    version=stream.speaker.version,
                    identity=stream.speaker.identity,
                    state=state,
                    keys=len(stream.session.asked),
                    connected_s=round(now - stream.since, 3),
                    error=error,
                    http2=stream.speaker.http2,
                )
            )
        return found

    def bundle_of(self, pod: PodRef) -> str:
        """The trust bundle that a sidecar has in force; '' while that is not known, or for none."""
        stream = self._streams.get(pod)
        return stream.bundle() if stream is not None else ""

    async def ask(self, pod: PodRef, page: Page, arguments: Mapping[str, str]) -> bytes:
        """What a sidecar that is connected here answers, as JSON that is not looked into.

        Raises AskFailed (404 for no such sidecar), or ValueError for arguments of no sense.
        """
        stream = self._streams.get(pod)
        if stream is None:
            raise AskFailed(404, f"the sidecar of pod {pod.namespace}/{pod.name} is not connected here")
        if stream.questions.stuck(trio.current_time()):
            stream.end(Ending("unanswered", "questions were not answered"))
            raise AskFailed(503, "the sidecar does not answer; its stream is made anew, try again")
        return await stream.questions.ask(page, arguments)

    def subscribe_reports(self, callback: OnReport) -> None:
        """Have `callback` given every report of a sidecar; one only."""
        self._on_report = callback

    def on_report(self, pod: PodRef, identity: str, workload: str, report: Report) -> None:
        """Pass a report on."""
        if self._on_report is not None:
            self._on_report(pod, identity, workload, report)

    async def serve(
        self,
        listeners: list[trio.SocketListener],
        context: Callable[[], ssl.SSLContext | None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept until cancelled. `context` gives the TLS context of each new connection; None refuses it."""

        async def handle(transport: trio.SocketStream) -> None:
            await self._handle(transport, context())

        task_status.started()
        await trio.serve_listeners(handle, listeners)

    async def close(self, within_s: float) -> None:
        """Send every sidecar to another replica; returns when they have gone, or after `within_s` seconds."""
        self._closing = True
        for stream in list(self._streams.values()):
            stream.end(Ending("shutdown", "this replica is shutting down", moving=True))
        with trio.move_on_after(within_s):
            while self._streams:  # noqa: ASYNC110 - the end of many tasks, once in a life
                await trio.sleep(0.02)

    async def converse(self, stream: trio.abc.Stream, identity: str, not_after: float) -> None:
        """Serve one sidecar that has proved `identity` until `not_after` (Unix time), to its end.

        Raises what breaks the stream; what this side decides is told to the sidecar and counted.
        """
        try:
            pod, speaker = await self._greet(stream, identity)
        except _Refused as exc:
            self.stats.ended[exc.kind] += 1
            self.on_event("discovery.refused", {"reason": exc.kind, "identity": identity, "detail": str(exc)})
            await farewell(stream, Ending(exc.kind, str(exc), exc.moving))
            return
        known = self._streams.get(pod)
        if known is not None:
            known.end(Ending("replaced", "a newer stream of the same pod has come"))
        age = min(self.limits.max_age_s * self.rng.uniform(0.75, 1.0), not_after - self._wall())
        served = Stream(self, stream, Session(pod, lambda: None), speaker, trio.current_time() + age)
        self._streams[pod] = served
        self.stats.connected += 1
        self.stats.welcomed += 1
        try:
            ending = await served.run()
            self.stats.ended[ending.kind] += 1
            fields = {
                "pod": pod.name,
                "namespace": pod.namespace,
                "reason": ending.kind,
                "detail": ending.reason,
            }
            self.on_event("discovery.ended", fields)
        finally:
            self.stats.connected -= 1
            self.subscriptions.forget(served.session)
            if self._streams.get(pod) is served:
                del self._streams[pod]

    async def _handle(self, transport: trio.SocketStream, context: ssl.SSLContext | None) -> None:
        full = self._open >= self.limits.max_connections or self._strangers >= self.limits.max_strangers
        if full or context is None or self._closing:
            self.stats.ended["full" if full else "not-ready"] += 1
            await trio.aclose_forcefully(transport)
            return
        self._open += 1
        stream: trio.abc.Stream = transport
        try:
            transport.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_KEEPALIVE, 1)
            tls = stream = trio.SSLStream(transport, context, server_side=True)
            await self._authenticate_and_serve(tls)
        except (
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            FrameError,
            OSError,
            trio.TooSlowError,
        ) as exc:
            self.stats.ended["broken"] += 1
            self.on_event("discovery.broken", {"error": str(exc.__cause__ or exc)[:300]})
        except Exception as exc:  # one sidecar's stream must not end everybody's
            self.stats.ended["failed"] += 1
            self.on_event("discovery.failed", {"error": f"{type(exc).__name__}: {exc}"[:300]})
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)

    async def _authenticate_and_serve(self, tls: trio.SSLStream[trio.SocketStream]) -> None:
        self._strangers += 1
        try:
            with trio.fail_after(self.limits.hello_s):
                async with self._handshakes:
                    await tls.do_handshake()
        finally:
            self._strangers -= 1
        try:
            peer = peer_identity(tls.getpeercert(), self._trust_domain)
        except PeerRejected as exc:
            raise FrameError(f"the caller's certificate: {exc}") from None
        if tls.selected_alpn_protocol() != ALPN_DISCOVERY:
            raise FrameError(f"expected ALPN {ALPN_DISCOVERY}, got {tls.selected_alpn_protocol()}")
        await self.converse(tls, peer.identity, peer.not_after)

    async def _greet(self, stream: trio.abc.Stream, identity: str) -> tuple[PodRef, Speaker]:
        """Read Hello, check it, say Welcome. Raises _Refused."""
        self._strangers += 1
        try:
            with trio.fail_after(self.limits.hello_s):
                try:
                    hello = decode_from_sidecar(await read_frame(stream, MAX_HELLO_BYTES))
                except ValueError as exc:
                    raise _Refused("protocol", str(exc)) from None
            if not isinstance(hello, Hello):
                raise _Refused("protocol", f"expected hello first, got {type(hello).__name__.lower()}")
            name = f"{hello.namespace}/{hello.pod}"
            expected = self._pod_identity(hello.namespace, hello.pod)
            with trio.move_on_after(self.limits.sync_s) as waiting:
                await self.source.wait_synced()
                expected = self._pod_identity(hello.namespace, hello.pod)
            if waiting.cancelled_caught:
                raise _Refused("not-synced", "this replica does not know the cluster yet", moving=True)
            if expected is None:
                raise _Refused("no-pod", f"there is no pod {name}")
            if expected != identity:
                raise _Refused("identity", f"pod {name} is {expected}, the certificate says {identity}")
            await send(stream, self._welcome, self.limits.hello_s)
        finally:
            self._strangers -= 1
        version, http2 = (clean(said, MAX_VERSION_CHARS) for said in (hello.version, hello.http2))
        return PodRef(hello.namespace, hello.pod), Speaker(identity, version, http2)

    def _changed(self, keys: Collection[str]) -> None:
        self.subscriptions.changed(keys, trio.current_time())

    def _too_large(self, key: str, size: int) -> None:
        self.on_event("discovery.too-large", {"key": key, "bytes": size})
