"""Keeps the webhook configuration's caBundle ours: without it the API server cannot call the injector."""

from __future__ import annotations

import base64
import random

import msgspec
import trio

from certs.events import OnEvent, ignore_event
from mesh_control.kube.client import Client
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import Resource
from mesh_control.kube.watch import Change, Source, list_then_watch
from mesh_control.serve.ca_store import CaStore

RETRY_S = 2.0


class _ClientConfig(msgspec.Struct, rename="camel"):
    ca_bundle: str = ""


class _Webhook(msgspec.Struct, rename="camel"):
    name: str
    client_config: _ClientConfig


class _Meta(msgspec.Struct):
    name: str


class _Configuration(msgspec.Struct):
    metadata: _Meta
    webhooks: list[_Webhook] | None = None


_decode = msgspec.json.Decoder(_Configuration).decode


class WebhookBundle:
    """Watches one configuration and repairs it. All replicas may run this: they write the same.

    Args:
        resource: MUTATING_WEBHOOKS or VALIDATING_WEBHOOKS.

    Attributes:
        right: whether every webhook in it had our bundle when last seen; False while it does not exist.
        repaired: how often it was written.
    """

    def __init__(
        self,
        client: Client,
        resource: Resource,
        name: str,
        store: CaStore,
        rng: random.Random,
        on_note: OnEvent = ignore_event,
    ) -> None:
        self.right = False
        self.repaired = 0
        self._client = client
        self._resource = resource
        self._name = name
        self._store = store
        self._rng = rng
        self._on_note = on_note
        self._seen: _Configuration | None = None
        self._changed = trio.Event()
        store.subscribe(self._wake)

    def _wake(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Repair until cancelled. Notes: `webhook.repaired` (name), `webhook.unrepaired` (name, error)."""
        source = Source(self._resource, _decode, fields=f"metadata.name={self._name}")

        async def watch() -> None:
            await list_then_watch(
                self._client,
                source,
                on_replace=lambda found: self._see(found[0] if found else None),
                on_event=self._event,
                on_synced=lambda: None,
                rng=self._rng,
                on_note=self._on_note,
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            while True:
                await self._changed.wait()
                self._changed = trio.Event()
                await self._repair()

    def _event(self, change: Change, obj: _Configuration) -> None:
        self._see(None if change == "DELETED" else obj)

    def _see(self, obj: _Configuration | None) -> None:
        self._seen = obj
        self._wake()

    async def _repair(self) -> None:
        wanted = base64.b64encode(self._store.bundle_pem().encode()).decode()
        webhooks = (self._seen.webhooks or []) if self._seen else []
        wrong = [i for i, webhook in enumerate(webhooks) if webhook.client_config.ca_bundle != wanted]
        self.right = bool(webhooks) and not wrong
        if not wrong:
            return
        patch: list[dict[str, object]] = []
        for index in wrong:  # the test makes sure that the list was not reordered meanwhile
            patch += [
                {"op": "test", "path": f"/webhooks/{index}/name", "value": webhooks[index].name},
                {"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": wanted},
            ]
        try:
            await self._client.patch(self._resource, self._name, "", patch, type="json")
        except KubeError as exc:
            self._on_note("webhook.unrepaired", {"name": self._name, "error": exc.message})
            if not exc.not_found:
                await trio.sleep(max(exc.retry_after_s, RETRY_S * self._rng.uniform(0.5, 1.0)))
                self._wake()
            return
        self.repaired += 1  # the watch brings what was written
        self._on_note("webhook.repaired", {"name": self._name})
