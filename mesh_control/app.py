"""One replica of the control plane: what starts in which order, what makes it ready, and how it ends.

Start: the CA is read (or made) first, for everything else proves itself with it; then CA endpoint, watches,
discovery stream and webhook side by side. Ready means: own certificate, all caches synced, webhook
certificate. What only one replica may do (publishing the trust bundle) is done by whoever holds the Lease.
End: on SIGTERM sidecars are sent elsewhere, then the process ends.
"""

from __future__ import annotations

import random
import signal
import socket
import ssl
from collections.abc import Iterator, Mapping

import msgspec
import trio

from injector import webhook
from injector.values import Values
from mesh_api.version import VERSION
from mesh_control.compile.content import Mesh
from mesh_control.kube.client import Client
from mesh_control.kube.events import Recorder
from mesh_control.kube.lease import Election
from mesh_control.kube.resources import MUTATING_WEBHOOKS
from mesh_control.kube.reviews import Reviewed, review_token
from mesh_control.serve.ca import CaServer
from mesh_control.serve.ca_bundle import BundlePublisher
from mesh_control.serve.ca_review import ReviewAuthenticator
from mesh_control.serve.ca_store import CaStore
from mesh_control.serve.discovery import PUSH_BUCKETS_S, DiscoveryServer
from mesh_control.serve.hook import InjectorHook
from mesh_control.serve.pages import Sample, routes
from mesh_control.serve.source import ClusterSource
from mesh_control.serve.webhook_bundle import WebhookBundle
from mesh_control.serve.webhook_tls import WebhookCertificate
from mesh_control.settings import CA_PORT, DISCOVERY_PORT, HTTP_PORT, NAME, WEBHOOK_PORT, Settings
from mesh_proxy.admin.server import serve as serve_pages
from mesh_proxy.telemetry.log_writer import LogWriter

INJECTOR_CONFIGURATION = "triomesh-injector"
END_S = 10.0
_FAILED = ("failed", "unusable", "unrepaired", "undecodable", "lost")


class App:
    """One replica."""

    def __init__(self, settings: Settings, client: Client, log: LogWriter, rng: random.Random) -> None:
        self._settings = settings
        self._client = client
        self._log = log
        self._rng = rng
        self._stop = trio.Event()
        domain, namespace = settings.trust_domain, settings.namespace
        self.store = CaStore(client, namespace, domain, rng, on_note=self._note)
        self.source = ClusterSource(
            client, Mesh(domain, ""), rng, settings.cluster_networks, on_note=self._note
        )
        reviewer = ReviewAuthenticator(domain, self._review, self.source.pod_addresses)
        self.ca = CaServer(self.store, reviewer, settings.identity, rng, on_event=self._note)
        self.discovery = DiscoveryServer(
            self.source,
            self.source.pod_identity,
            domain,
            rng,
            replica=settings.pod_name,
            version=VERSION,
            on_event=self._note,
        )
        self.certificate = WebhookCertificate(self.store, settings.webhook_names, rng, on_event=self._note)
        self.bundles = BundlePublisher(client, namespace, self.store, rng, self._note)
        self.webhook_bundle = WebhookBundle(
            client, MUTATING_WEBHOOKS, INJECTOR_CONFIGURATION, self.store, rng, self._note
        )
        self.recorder = Recorder(client, NAME, settings.pod_name, rng, on_note=self._note)
        self.hook = InjectorHook(
            client, self.recorder, self._values, self.source.labels_of, self._injection_failed
        )
        self.election = Election(client, namespace, NAME, settings.pod_name, rng, on_note=self._note)

    async def run(self) -> None:
        """Run until `stop`. Raises KubeError, CaStoreError or OSError where it cannot start."""
        await self.store.open()
        self._take_bundle()
        self.store.subscribe(self._take_bundle)
        async with trio.open_nursery() as nursery:
            for task in (
                self.store.follow,
                self.source.run,
                self.certificate.run,
                self.webhook_bundle.run,
                self.recorder.run,
            ):
                nursery.start_soon(task)
            nursery.start_soon(self.election.run, self.bundles.run)
            await nursery.start(self.ca.run, await _listen(CA_PORT))
            await nursery.start(self.discovery.serve, await _listen(DISCOVERY_PORT), self._discovery_context)
            await nursery.start(
                webhook.serve,
                await _listen(WEBHOOK_PORT),
                lambda: self.certificate.current,
                self.hook,
                self._stop,
            )
            pages = routes(self.not_ready, self.samples)
            nursery.start_soon(serve_pages, await _listen(HTTP_PORT), pages)
            self._log.log("info", "started", version=VERSION, replica=self._settings.pod_name)
            await self._stop.wait()
            with trio.move_on_after(END_S):
                await self.discovery.close(END_S / 2)
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
        if self.ca.holder.current is None:
            reasons.append("no certificate of its own yet")
        if not self.source.synced:
            reasons.append("the caches have not synced yet")
        if self.certificate.current is None:
            reasons.append("no certificate for the webhook yet")
        if self.stopping:
            reasons.append("stopping")
        return reasons

    def samples(self) -> Iterator[Sample]:
        """The metrics of now."""
        stats = self.discovery.stats
        for kind, health in self.source.health.items():
            yield "triomesh_control_objects", {"kind": kind}, self.source.index.count(kind)
            yield "triomesh_control_watch_failures_total", {"kind": kind}, health.failures
        yield "triomesh_control_sidecars_connected", {}, stats.connected
        yield "triomesh_control_updates_total", {}, stats.updates
        yield "triomesh_control_nacks_total", {}, stats.nacks
        yield "triomesh_control_queue_depth", {}, self.discovery.queue_depth
        total = 0
        for bound, count in zip((*PUSH_BUCKETS_S, float("inf")), stats.push_counts, strict=True):
            total += count
            shown = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield "triomesh_control_push_seconds_bucket", {"le": shown}, total
        yield "triomesh_control_push_seconds_sum", {}, stats.push_sum
        yield "triomesh_control_push_seconds_count", {}, total
        yield "triomesh_control_certificates_signed_total", {}, self.ca.signed
        for reason, count in self.ca.refused.items():
            yield "triomesh_control_requests_refused_total", {"reason": reason}, count
        yield "triomesh_control_token_reviews_total", {}, self.ca.authenticator.reviews
        for name, when in self.ca.expiries().items():
            yield "triomesh_control_certificate_expiry_seconds", {"certificate": name}, when
        for (result, reason), count in self.hook.decisions.items():
            yield "triomesh_control_injections_total", {"result": result, "reason": reason}, count
        yield "triomesh_control_injection_failures_total", {}, self.hook.failures
        yield "triomesh_control_leader", {}, float(self.election.leading)

    def _discovery_context(self) -> ssl.SSLContext | None:
        return self.ca.holder.current.discovery if self.ca.holder.current else None

    def _take_bundle(self) -> None:
        self.source.replace_mesh(Mesh(self._settings.trust_domain, self.store.bundle_pem()))

    def _values(self) -> Values:
        return msgspec.structs.replace(self._settings.injector, trust_bundle=self.store.bundle_pem())

    async def _review(self, token: str) -> Reviewed:
        return await review_token(self._client, token, self._settings.injector.token_audience)

    def _injection_failed(self, what: str) -> None:
        self._log.log("error", "injection failed", error=what)

    def _note(self, name: str, fields: Mapping[str, object]) -> None:
        self._log.log("error" if name.rpartition(".")[2] in _FAILED else "info", name, **fields)


async def _listen(port: int) -> list[trio.SocketListener]:
    """Listen in every family that the pod has."""
    listeners: list[trio.SocketListener] = []
    for family, host in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await sock.bind((host, port))
            sock.listen(512)
        except OSError:
            sock.close()
            if family == socket.AF_INET:
                raise
            continue  # no IPv6 here
        listeners.append(trio.SocketListener(sock))
    return listeners


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

            nursery.start_soon(watch)
            await app.run()
            nursery.cancel_scope.cancel()
