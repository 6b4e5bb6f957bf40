"""One replica of the control plane: what starts in which order, what makes it ready, and how it ends.

Start: the CA is read (or made) first, for everything else proves itself with it; then the roles of this
process side by side. Ready means: own certificate, all caches synced, and what each role needs. What only one
replica may do is done by whoever holds the Lease.
End: on SIGTERM this replica is not ready from then on. It serves as before until Services have taken it out;
then the roles end what is under way (sidecars are sent elsewhere), then the process ends.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Collection, Mapping

import trio

from mesh_api.version import VERSION
from mesh_control.compile.content import Mesh
from mesh_control.index.objects import Kind
from mesh_control.kube.client import Client
from mesh_control.kube.events import Recorder
from mesh_control.kube.lease import Election
from mesh_control.roles.ca import CaRole
from mesh_control.roles.common import Common, Listen, Role
from mesh_control.roles.discovery import DiscoveryRole
from mesh_control.roles.injector import InjectorRole
from mesh_control.serve.ca_store import CaStore
from mesh_control.serve.metrics import Metrics
from mesh_control.serve.own_leaf import OwnLeaf
from mesh_control.serve.pages import routes
from mesh_control.serve.source import ClusterSource
from mesh_control.settings import HTTP_PORT, NAME, RoleName, Settings
from mesh_ops.heap import settle_heap
from mesh_ops.listeners import open_listeners
from mesh_ops.log_writer import LogWriter
from mesh_ops.pages import serve as serve_pages

WITHDRAW_S = 3.0
"""How long Services may still lead here after the replica is not ready any more."""
END_S = 10.0
BACKLOG = 512
_ROLES: Mapping[RoleName, type[CaRole] | type[DiscoveryRole] | type[InjectorRole]] = {
    "ca": CaRole,
    "discovery": DiscoveryRole,
    "injector": InjectorRole,
}
_FAILED = ("failed", "unusable", "unrepaired", "undecodable", "lost")


async def listen(port: int) -> list[trio.SocketListener]:
    """Listen in every family that the pod has. Raises OSError."""
    return open_listeners(port, loopback=False, backlog=BACKLOG)


class App:
    """One replica."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        log: LogWriter,
        rng: random.Random,
        listen: Listen = listen,
    ) -> None:
        self._settings = settings
        self._log = log
        self._listen = listen
        self._stop = trio.Event()
        domain, namespace, note = settings.trust_domain, settings.namespace, self._note
        self.store = CaStore(client, namespace, domain, rng, on_note=note)
        self.leaf = OwnLeaf(self.store, settings.identity, rng, on_event=note)
        self.source = ClusterSource(
            client,
            Mesh(domain, ""),
            rng,
            settings.cluster_networks,
            on_note=note,
            kinds=_kinds(settings),
            system_namespace=namespace,
        )
        self.recorder = Recorder(client, NAME, settings.pod_name, rng, on_note=note)
        self.election = Election(client, namespace, settings.lease, settings.pod_name, rng, on_note=note)
        common = Common(
            settings, client, rng, note, listen, self.store, self.leaf, self.source, self.recorder
        )
        self.roles: Mapping[RoleName, Role] = {name: _ROLES[name](common) for name in settings.roles}
        self.metrics = Metrics()
        self._declare()

    async def run(self) -> None:
        """Run until `stop`. Raises KubeError, CaStoreError or OSError where it cannot start."""
        await self.store.open()
        self._take_bundle()
        self.store.subscribe(self._take_bundle)
        async with trio.open_nursery() as nursery:
            for task in (self.store.follow, self.source.run, self.recorder.run):
                nursery.start_soon(task)
            await nursery.start(self.leaf.run)
            for role in self.roles.values():
                await nursery.start(role.run)
            nursery.start_soon(self.election.run, self._lead)
            pages = routes(self.not_ready, self.metrics)
            nursery.start_soon(serve_pages, await self._listen(HTTP_PORT), pages)
            self._log.log(
                "info",
                "started",
                version=VERSION,
                replica=self._settings.pod_name,
                roles=",".join(self._settings.roles),
            )
            await self._stop.wait()
            await trio.sleep(WITHDRAW_S)
            with trio.move_on_after(END_S):
                async with trio.open_nursery() as ending:
                    for role in self.roles.values():
                        ending.start_soon(role.close)
            nursery.cancel_scope.cancel()
        self._log.log("info", "stopped")

    def stop(self) -> None:
        """Begin the end: not ready from now on."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def not_ready(self) -> list[str]:
        """Why this replica is not ready, one reason a line."""
        reasons = []
        if self.leaf.holder.current is None:
            reasons.append("no certificate of its own yet")
        if not self.source.synced:
            reasons.append("the caches have not synced yet")
        for role in self.roles.values():
            reasons += role.not_ready()
        if self.stopping:
            reasons.append("stopping")
        return reasons

    async def _lead(self) -> None:
        async with trio.open_nursery() as nursery:
            for role in self.roles.values():
                nursery.start_soon(role.lead)

    def _declare(self) -> None:
        metrics, source = self.metrics, self.source
        metrics.gauges(
            "objects",
            "Objects known of the cluster.",
            ("kind",),
            lambda: {(kind,): source.index.count(kind) for kind in source.health},
        )
        metrics.counters(
            "watch_failures_total",
            "Watches that ended in an error.",
            ("kind",),
            lambda: {(kind,): health.failures for kind, health in source.health.items()},
        )
        metrics.gauges(
            "certificate_expiry_timestamp_seconds",
            "End of certificates, as Unix time: those of the CA, and `control`, this replica's own.",
            ("certificate",),
            self._expiries,
        )
        metrics.counter("events_dropped_total", "Events not written.", lambda: self.recorder.dropped)
        metrics.gauge("leader", "1 where this replica holds the Lease.", lambda: int(self.election.leading))
        for role in self.roles.values():
            role.declare(metrics)

    def _expiries(self) -> dict[tuple[str, ...], float]:
        found = self.store.expiries()
        if current := self.leaf.holder.current:
            found["control"] = current.not_after
        return {(name,): when for name, when in found.items()}

    def _take_bundle(self) -> None:
        self.source.replace_mesh(Mesh(self._settings.trust_domain, self.store.bundle_pem()))

    def _note(self, name: str, fields: Mapping[str, object]) -> None:
        self._log.log("error" if name.rpartition(".")[2] in _FAILED else "info", name, **fields)


def _kinds(settings: Settings) -> Collection[Kind] | None:
    """What has to be watched; None for everything."""
    if "discovery" in settings.roles:
        return None
    kinds: set[Kind] = set()
    if "ca" in settings.roles and settings.check_peer_address:
        kinds.add("Pod")
    if "injector" in settings.roles:
        kinds.add("Namespace")
    return kinds


async def run(settings: Settings, client: Client, log: LogWriter, rng: random.Random) -> None:
    """Run one replica until SIGTERM or SIGINT; a second signal ends it at once."""
    app = App(settings, client, log, rng)
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

            async def watch() -> None:
                async for _ in signals:
                    if app.stopping:
                        nursery.cancel_scope.cancel()
                        return
                    app.stop()

            async def settle() -> None:
                """Spare the garbage collector what stays, which is the whole cluster."""
                await app.source.wait_synced()
                settle_heap()

            nursery.start_soon(watch)
            nursery.start_soon(settle)
            await app.run()
            nursery.cancel_scope.cancel()
