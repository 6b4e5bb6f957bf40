"""The CA: signs certificates for ServiceAccounts, and publishes the trust bundle."""

from __future__ import annotations

from collections.abc import Iterable

import trio

from mesh_control.kube.reviews import Reviewed, review_token
from mesh_control.roles.common import Common
from mesh_control.serve.ca import CaServer
from mesh_control.serve.ca_bundle import BundlePublisher
from mesh_control.serve.ca_review import ReviewAuthenticator
from mesh_control.serve.metrics import Metrics
from mesh_control.settings import CA_PORT


class CaRole:
    """See `Role`."""

    def __init__(self, common: Common) -> None:
        self._common = common
        settings = common.settings
        addresses = common.source.pod_addresses if settings.check_peer_address else _unknown
        reviewer = ReviewAuthenticator(settings.trust_domain, self._review, addresses)
        self.server = CaServer(
            common.store,
            reviewer,
            lambda: common.leaf.holder.current,
            lifetime_s=settings.leaf_lifetime_s,
            on_event=common.note,
        )
        self.bundles = BundlePublisher(
            common.client, settings.namespace, common.store, common.rng, common.note
        )

    def not_ready(self) -> Iterable[str]:
        """See `Role`."""
        return ()

    def declare(self, metrics: Metrics) -> None:
        """See `Role`."""
        server, bundles = self.server, self.bundles
        metrics.counter("certificates_signed_total", "Certificates given out.", lambda: server.signed)
        metrics.counters(
            "requests_refused_total",
            "Requests for a certificate that were refused.",
            ("reason",),
            lambda: {(reason,): count for reason, count in server.refused.items()},
        )
        metrics.counter(
            "ca_failures_total", "Requests for a certificate that failed here.", lambda: server.failed
        )
        metrics.counter(
            "token_reviews_total",
            "Tokens that the API server was asked about.",
            lambda: server.authenticator.reviews,
        )
        metrics.counter(
            "bundles_written_total", "ConfigMaps of the trust bundle, written.", lambda: bundles.written
        )
        metrics.counter(
            "bundle_failures_total", "ConfigMaps of the trust bundle, not written.", lambda: bundles.failed
        )

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `Role`."""
        await self.server.run(await self._common.listen(CA_PORT), task_status=task_status)

    async def lead(self) -> None:
        """See `Role`."""
        await self.bundles.run()

    async def close(self) -> None:
        """See `Role`; who is asking asks another replica again."""
        await trio.lowlevel.checkpoint()

    async def _review(self, token: str) -> Reviewed:
        common = self._common
        return await review_token(common.client, token, common.settings.injector.token_audience)


def _unknown(_namespace: str, _pod: str, _uid: str) -> None:
    """Addresses of a pod where callers' addresses say nothing: the cluster masquerades them."""
