"""The sidecar as a whole: what starts in which order, what makes it ready, and how it ends.

Start: listeners are bound first, so that a port in use is told before anything else; then identity and
configuration are fetched side by side; connections are accepted at once and held where they need either.
Ready means: listening, a certificate, and a first configuration. End: on SIGTERM inbound callers are asked to
close while outbound goes on; the process ends when no connection is left or the grace period is over.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
from collections.abc import Callable, Mapping

import trio

from certs import workload
from certs.clock import wall_clock
from certs.credentials import CredentialsError, Holder
from certs.remote import BundleSource, TlsSigner
from mesh_api.discovery import Hello, Page
from mesh_api.sidecar import Snapshot
from mesh_api.version import VERSION
from mesh_ops.exposition import chunks
from mesh_ops.heap import settle_heap
from mesh_ops.log_writer import LogWriter
from mesh_ops.pages import LOCAL_HOSTS, Routes
from mesh_ops.pages import serve as serve_pages
from mesh_ops.registry import Registry
from mesh_proxy.admin.probes import Application, ApplicationError
from mesh_proxy.admin.routes import admin_routes, health_routes, metrics_routes
from mesh_proxy.discovery.answers import Handler
from mesh_proxy.discovery.contents import Changes
from mesh_proxy.discovery.dial import Resolve
from mesh_proxy.discovery.file import watch_file
from mesh_proxy.discovery.store import ConfigStore, StreamStore
from mesh_proxy.discovery.stream import DiscoveryStream
from mesh_proxy.inbound.server import Inbound
from mesh_proxy.introspect import Introspection
from mesh_proxy.net.addr import Addr, original_dst
from mesh_proxy.net.listen import accept_loop, listen
from mesh_proxy.outbound.server import Outbound
from mesh_proxy.runtime import OriginalDst, Runtime
from mesh_proxy.settings import Settings


class StartError(Exception):
    """The sidecar cannot start; the message says what and what to do."""


class App:
    """One sidecar process."""

    def __init__(
        self,
        settings: Settings,
        log: LogWriter,
        original_dst: OriginalDst = original_dst,
        resolve: Resolve | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        """`resolve` finds the control plane's addresses; by default the system's resolver does.

        `settle` is called when there is much that will live long, as `settle_heap` wants it.
        """
        self.settings = settings
        self.log = log
        self.holder = Holder()
        self.stream: DiscoveryStream | None = None
        self.asked: dict[Page, Handler] = {}
        """What the control plane can ask."""
        self._bundle_pem = ""
        self._no_certificate = ""
        """Why there is none yet."""
        self._bundle_news = trio.Event()
        streamed = StreamStore(settings.trust_domain, self._on_changes) if settings.control else None
        self.store: ConfigStore = streamed or ConfigStore()
        self.runtime = Runtime(settings, self.store, self.holder, log, Registry(), original_dst, wall_clock)
        if streamed is not None:
            self.stream = self._make_stream(streamed, resolve)
        self.inbound = Inbound(self.runtime)
        self.outbound = Outbound(self.runtime)
        self.ports: dict[str, int] = {}
        """The ports in use, by listener name; differs from the settings where those say 0."""
        self.stop = trio.Event()
        """Set to drain and end."""
        self.settle = settle
        self._settled = 0
        """How much configuration there was when the heap was last settled."""

    async def run(self, *, task_status: trio.TaskStatus[App] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until `stop` is set and the drain is over. Raises StartError."""
        settings, runtime = self.settings, self.runtime
        with contextlib.ExitStack() as stack:
            outbound = self._listen(stack, "outbound", settings.outbound_hosts, settings.outbound_port)
            inbound = self._listen(stack, "inbound", settings.inbound_hosts, settings.inbound_port)
            admin = self._listen(stack, "admin", settings.admin_hosts, settings.admin_port)
            metrics = self._listen(stack, "metrics", settings.public_hosts, settings.metrics_port)
            health = self._listen(stack, "health", settings.public_hosts, settings.health_port)
            runtime.own_ports = settings.own_ports | frozenset(self.ports.values())
            state = Introspection(runtime, self.stop.set, self.not_ready, self.ports, self.stream)
            self.asked.update(state.asked())
            async with trio.open_nursery() as nursery:
                runtime.dialer.tasks = nursery
                await nursery.start(runtime.reactor.run)
                nursery.start_soon(runtime.pressure.watch)
                nursery.start_soon(self._serve_pages, admin, admin_routes(state), LOCAL_HOSTS)
                nursery.start_soon(self._serve_pages, metrics, self._metrics_pages(state), None)
                nursery.start_soon(self._serve_pages, health, health_routes(state), None)
                if settings.config_file:
                    nursery.start_soon(
                        watch_file, settings.config_file, self.on_snapshot, self._on_bad_config
                    )
                if self.stream is not None:
                    nursery.start_soon(self.stream.run)
                    nursery.start_soon(self._follow_bundle)
                if settings.ca_socket or settings.ca:
                    nursery.start_soon(self._renew)
                for sockets, handle in ((outbound, self.outbound.handle), (inbound, self.inbound.handle)):
                    for sock in sockets:
                        nursery.start_soon(
                            accept_loop, sock, handle, nursery, runtime.admit, runtime.exhausted
                        )
                engine = runtime.engine
                self.log.log("info", "started", **self.ports, http2=str(engine), http2_why=engine.why)
                self.settle()
                task_status.started(self)
                await self.stop.wait()
                await self._drain()
                if self.stream is not None:
                    await self.stream.last_report()
                nursery.cancel_scope.cancel()
        self.log.log("info", "stopped", connections=runtime.connections)

    def _metrics_pages(self, state: Introspection) -> Routes:
        def on_change(path: str, outcome: str) -> None:
            self.log.log("info" if outcome == "ok" else "warning", "check", path=path, outcome=outcome)

        settings = self.settings
        try:
            application = Application(settings.pod_ip, settings.app_checks, settings.app_metrics, on_change)
        except ApplicationError as exc:
            raise StartError(str(exc)) from None
        return {**metrics_routes(state), **application.routes(lambda: chunks(self.runtime.registry))}

    def not_ready(self) -> list[str]:
        """Why the sidecar is not ready, one reason a line; empty when it is."""
        reasons = []
        current = self.holder.current
        if self.store.snapshot is None:
            problem = self.stream.problem if self.stream is not None and current is not None else ""
            reasons.append(f"no configuration yet: {problem}" if problem else "no configuration yet")
        if current is None:
            if self.settings.ca_socket or self.settings.ca:
                reasons.append(
                    "no certificate yet" + (f": {self._no_certificate}" * bool(self._no_certificate))
                )
        elif current.not_after <= wall_clock():
            reasons.append("the certificate has expired")
        if self.stop.is_set():
            reasons.append("draining")
        return reasons

    def on_snapshot(self, snapshot: Snapshot) -> None:
        """Put a file's configuration in force. No live connection is closed but by an access decision."""
        self.store.swap(snapshot)
        self.runtime.services.prune(snapshot.destinations)
        self.runtime.stats.config_updates.child("accepted").value += 1
        self._in_force(snapshot)

    def _on_changes(self, changes: Changes) -> None:
        """The control plane's stream has changed the store: take over what that touches, and no more."""
        runtime = self.runtime
        runtime.services.change(changes.destinations, changes.gone)
        if changes.own is not None and self.store.snapshot is not None:
            if changes.own.bundle_pem not in {"", self._bundle_pem}:
                self._bundle_pem = changes.own.bundle_pem
                self._bundle_news.set()
            self._in_force(self.store.snapshot)
        runtime.stats.discovery_subscriptions.set(self.store.subscriptions)

    def _in_force(self, snapshot: Snapshot) -> None:
        runtime = self.runtime
        runtime.log_all = snapshot.access_log
        runtime.normalise_paths(snapshot.path_normalization)
        runtime.taps.own = f"{snapshot.workload.name}.{snapshot.workload.namespace}"
        runtime.drain(snapshot.draining or self.stop.is_set())
        self.inbound.recheck()
        self.log.log(
            "info",
            "configuration in force",
            generation=self.store.generation,
            destinations=len(snapshot.destinations),
            pods=len(snapshot.pods),
        )
        self._grown(len(snapshot.destinations) + len(snapshot.pods))

    def _grown(self, size: int) -> None:
        """Settle the heap with a configuration that has doubled.

        Not with each: connections that are open now would be kept out too, and never be found once over.
        """
        if size >= 2 * self._settled:
            self._settled = max(size, 1)
            self.settle()

    def _on_bad_config(self, path: str, expected: str) -> None:
        self.runtime.stats.config_updates.child("rejected").value += 1
        kept = "the last good one stays in force" if self.store.snapshot else "there is none yet"
        self.log.log("error", "configuration refused", path=path, expected=expected, consequence=kept)

    async def _renew(self) -> None:
        runtime = self.runtime

        def on_event(name: str, fields: Mapping[str, object]) -> None:
            ok = name == "certs.renewed"
            runtime.stats.certificate_renewals.child("ok" if ok else "failed").value += 1
            self._no_certificate = "" if ok else str(fields.get("error", ""))
            if self.holder.current is not None:
                runtime.stats.certificate_expiry.set(self.holder.current.not_after)
            self.log.log("info" if ok else "error", name, **fields)

        await workload.run(self.holder, self._signer(), self.settings.trust_domain, runtime.rng, on_event)

    def _signer(self) -> workload.Signer:
        settings = self.settings
        if settings.ca is None:
            return workload.UnixSigner(settings.ca_socket)
        bundles = BundleSource(settings.bundle_pem, settings.bundle_file, lambda: self._bundle_pem)
        return TlsSigner(
            str(settings.ca), settings.control_identity, settings.token_file, bundles, settings.trust_domain
        )

    async def _follow_bundle(self) -> None:
        """Trust what the stream says, from the moment that it says so."""
        while True:
            await self._bundle_news.wait()
            self._bundle_news = trio.Event()
            try:
                await workload.take_bundle(self.holder, self._bundle_pem)
            except CredentialsError as exc:
                self.log.log("error", "trust bundle refused", error=str(exc), consequence="the old one stays")
            else:
                self.log.log("info", "trust bundle in force")

    def _make_stream(self, store: StreamStore, resolve: Resolve | None) -> DiscoveryStream:
        settings, runtime = self.settings, self.runtime
        assert settings.control is not None

        def on_event(level: str, name: str, fields: Mapping[str, object]) -> None:
            self.log.log(level, name, **fields)

        return DiscoveryStream(
            settings.control,
            settings.control_identity,
            settings.trust_domain,
            Hello(
                pod=settings.pod_name,
                namespace=settings.pod_namespace,
                version=VERSION,
                http2=str(runtime.engine),
            ),
            self.holder,
            store,
            runtime.stats,
            runtime.rng,
            on_event,
            resolve,
            self.asked,
            runtime.stats.edges.report,
        )

    async def _serve_pages(
        self, sockets: list[socket.socket], routes: Routes, hosts: frozenset[str] | None
    ) -> None:
        def on_error(exc: Exception) -> None:
            self.log.log("error", "a page failed", error=repr(exc))

        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
        await serve_pages(listeners, routes, hosts=hosts, on_error=on_error)

    async def _drain(self) -> None:
        runtime = self.runtime
        runtime.drain(True)
        runtime.close_idle()
        self.log.log("info", "draining", connections=runtime.connections, grace_s=self.settings.drain_s)
        with trio.move_on_after(self.settings.drain_s):
            while runtime.connections:  # noqa: ASYNC110 - counted in a hot path that signals nobody
                await trio.sleep(0.05)

    def _listen(
        self, stack: contextlib.ExitStack, name: str, hosts: tuple[str, ...], port: int
    ) -> list[socket.socket]:
        sockets: list[socket.socket] = []
        for host in hosts:
            try:
                sock = listen(Addr(host, port))
            except OSError as exc:
                if ":" in host and sockets:
                    self.log.log("warning", "no IPv6 listener", name=name, reason=exc.strerror)
                    continue
                raise StartError(
                    f"cannot listen on {Addr(host, port)} ({name}): {exc.strerror}; "
                    "is another sidecar running in this pod?"
                ) from exc
            stack.callback(sock.close)
            sockets.append(sock)
            port = port or sock.getsockname()[1]
        self.ports[name] = port
        return sockets


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns it."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


async def run(
    settings: Settings,
    *,
    original_dst: OriginalDst = original_dst,
    log_fd: int = 1,
    handle_signals: bool = True,
) -> None:
    """Run one sidecar until SIGTERM or SIGINT; a second signal ends it at once. Raises StartError."""
    log = LogWriter(log_fd, level=settings.log_level)
    failure: BaseException | None = None
    try:
        app = App(settings, log, original_dst, settle=settle_heap)
        async with trio.open_nursery() as nursery:
            if handle_signals:
                await nursery.start(_watch_signals, app, nursery.cancel_scope)
            await app.run()
            nursery.cancel_scope.cancel()
    except* StartError as group:
        # Raised here it would be wrapped in a group again.
        failure = group
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(log.close, 1.0)
    if failure is not None:
        raise failure


async def _watch_signals(
    app: App, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            if app.stop.is_set():
                scope.cancel()
                return
            app.stop.set()
