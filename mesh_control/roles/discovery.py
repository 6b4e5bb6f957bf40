"""Discovery: tells sidecars what they need to know of the cluster, and operators what sidecars have."""

from __future__ import annotations

import ssl
from collections.abc import Collection, Iterable

import trio

from certs.credentials import Credentials
from mesh_api.admin import ADMIN_AUDIENCE, ControlVersion
from mesh_api.version import VERSION
from mesh_control.index.objects import Pod
from mesh_control.kube.reviews import Reviewed, review_token
from mesh_control.roles.common import Common
from mesh_control.serve.admin import AdminServer, Refused
from mesh_control.serve.admin_auth import AdminAuthenticator
from mesh_control.serve.admin_replicas import Fleet, others
from mesh_control.serve.admin_sidecars import SidecarPages
from mesh_control.serve.discovery import PUSH_BUCKETS_S, DiscoveryServer
from mesh_control.serve.metrics import Metrics
from mesh_control.serve.stats_pages import StatsPages
from mesh_control.serve.status import StatusWriter
from mesh_control.settings import ADMIN_PORT, DISCOVERY_PORT

END_S = 5.0


class DiscoveryRole:
    """See `Role`."""

    def __init__(self, common: Common) -> None:
        self._common = common
        settings, source = common.settings, common.source
        self.server = DiscoveryServer(
            source,
            source.pod_identity,
            settings.trust_domain,
            common.rng,
            replica=settings.pod_name,
            version=VERSION,
            on_event=common.note,
        )

        self.admin = AdminServer(
            AdminAuthenticator(settings.namespace, self._review),
            self._leaf,
            str(settings.identity),
            common.note,
        )
        self.fleet = Fleet(
            self._others, self.admin.client_context, str(settings.identity), ADMIN_PORT, common.note
        )
        version = ControlVersion(settings.pod_name, VERSION, settings.trust_domain, settings.roles)
        self.sidecars = SidecarPages(self.server, self.fleet, self._pods, version)
        self.sidecars.add_to(self.admin.pages)
        self.stats = StatsPages(self.server, self.fleet, self._pods)
        self.stats.add_to(self.admin.pages)
        self.status = StatusWriter(common.client, source, common.rng, common.note)

    def not_ready(self) -> Iterable[str]:
        """See `Role`."""
        return ()

    def declare(self, metrics: Metrics) -> None:
        """See `Role`."""
        server, stats = self.server, self.server.stats
        metrics.gauge("sidecars_connected", "Sidecars that this replica serves.", lambda: stats.connected)
        metrics.gauge("subscriptions", "Keys that some sidecar uses.", lambda: len(server.subscriptions))
        metrics.gauge("queue_depth", "Keys to be looked at again.", lambda: server.queue_depth)
        metrics.counter("updates_total", "Updates sent to sidecars.", lambda: stats.updates)
        metrics.counter("resources_total", "Contents in these updates.", lambda: stats.resources)
        metrics.counter("nacks_total", "Updates that a sidecar refused.", lambda: stats.nacks)
        metrics.counters(
            "streams_ended_total",
            "Sidecars' streams that ended.",
            ("reason",),
            lambda: {(reason,): count for reason, count in stats.ended.items()},
        )
        metrics.histogram(
            "push_seconds",
            "From a change to its being in force in a sidecar.",
            PUSH_BUCKETS_S,
            lambda: (stats.push_counts, stats.push_sum),
        )

        metrics.counters(
            "admin_requests_total",
            "Requests to the admin port, by HTTP status.",
            ("status",),
            lambda: {(str(status),): count for status, count in self.admin.requests.items()},
        )
        self.stats.declare(metrics)
        self.status.declare(metrics)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `Role`."""
        listeners = await self._common.listen(DISCOVERY_PORT)
        admin = await self._common.listen(ADMIN_PORT)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.server.serve, listeners, self._context)
            await nursery.start(self.admin.run, admin)
            task_status.started()

    async def lead(self) -> None:
        """See `Role`."""
        await self.status.run()

    async def close(self) -> None:
        """See `Role`; sidecars are sent elsewhere."""
        await self.server.close(END_S)

    async def _review(self, token: str) -> Reviewed:
        return await review_token(self._common.client, token, ADMIN_AUDIENCE)

    def _leaf(self) -> Credentials | None:
        return self._common.leaf.holder.current

    def _pods(self) -> Collection[Pod]:
        if not self._common.source.synced:
            raise Refused(503, "this replica does not know the cluster yet; try again")
        return self._common.source.index.tables.pods()

    def _others(self) -> list[Pod]:
        settings = self._common.settings
        return others(self._pods(), (settings.namespace, settings.pod_name))

    def _context(self) -> ssl.SSLContext | None:
        current = self._leaf()
        return current.discovery if current else None
