"""The injector: the webhooks that give pods their sidecar, and that refuse bad policies."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import trio

from injector import webhook
from injector.values import Values
from mesh_control.kube.resources import MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS
from mesh_control.roles.common import Common
from mesh_control.serve import validate
from mesh_control.serve.hook import InjectorHook
from mesh_control.serve.metrics import Metrics
from mesh_control.serve.webhook_bundle import WebhookBundle
from mesh_control.serve.webhook_tls import WebhookCertificate
from mesh_control.settings import WEBHOOK_PORT

CONFIGURATION = "triomesh-injector"


class InjectorRole:
    """See `Role`."""

    def __init__(self, common: Common) -> None:
        self._common = common
        store, rng, note = common.store, common.rng, common.note
        self.certificate = WebhookCertificate(store, common.settings.webhook_names, rng, on_event=note)
        self.bundle = WebhookBundle(common.client, MUTATING_WEBHOOKS, CONFIGURATION, store, rng, note)
        self.validator = validate.Validator()
        self.validator_bundle = WebhookBundle(
            common.client, VALIDATING_WEBHOOKS, validate.CONFIGURATION, store, rng, note
        )
        self.proof = validate.Proof(common.client, common.settings.namespace, rng, note)
        self.hook = InjectorHook(
            common.client,
            common.recorder,
            self._values,
            common.source.labels_of,
            lambda what: note("injection.failed", {"error": what}),
        )
        self._stop = trio.Event()
        self._ended = trio.Event()

    def not_ready(self) -> Iterable[str]:
        """See `Role`."""
        return () if self.certificate.current else ("no certificate for the webhook yet",)

    def declare(self, metrics: Metrics) -> None:
        """See `Role`."""
        hook = self.hook
        metrics.counters(
            "injections_total",
            "Decisions about pods.",
            ("result", "reason"),
            lambda: {(result, reason): count for (result, reason), count in hook.decisions.items()},
        )
        metrics.counter(
            "injection_failures_total",
            "Requests without a decision, and what else failed.",
            lambda: hook.failures,
        )
        metrics.counter(
            "injection_events_dropped_total",
            "Events about pods that were too many.",
            lambda: hook.events_dropped,
        )
        metrics.counters(
            "validations_total",
            "Decisions about policies.",
            ("kind", "result"),
            lambda: {(kind, result): count for (kind, result), count in self.validator.decisions.items()},
        )
        metrics.counter(
            "webhook_repairs_total",
            "CA bundles of the webhooks, written.",
            lambda: self.bundle.repaired + self.validator_bundle.repaired,
        )
        metrics.gauge(
            "webhook_certificate_expiry_timestamp_seconds",
            "End of the webhook's certificate, as Unix time.",
            lambda: self.certificate.not_after,
        )

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """See `Role`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.certificate.run)
            nursery.start_soon(self.bundle.run)
            nursery.start_soon(self.validator_bundle.run)
            listeners = await self._common.listen(WEBHOOK_PORT)
            await webhook.serve(
                listeners,
                lambda: self.certificate.current,
                self.hook,
                self._stop,
                others={validate.PATH: self.validator.answer},
                task_status=task_status,
            )
            self._ended.set()

    async def lead(self) -> None:
        """See `Role`."""
        await self.proof.run()

    async def close(self) -> None:
        """See `Role`; requests that have come are answered."""
        self._stop.set()
        with trio.move_on_after(webhook.DRAIN_S + webhook.EVENT_S):
            await self._ended.wait()

    def _values(self) -> Values:
        bundle = self._common.store.bundle_pem()
        return msgspec.structs.replace(self._common.settings.injector, trust_bundle=bundle)
