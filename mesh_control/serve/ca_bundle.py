"""The trust bundle as a ConfigMap in every namespace whose pods may mount it. One replica writes them."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import trio

from certs.events import OnEvent, ignore_event
from mesh_control.kube.client import Client
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import CONFIG_MAPS, NAMESPACES, PODS
from mesh_control.kube.watch import Change, Source, list_then_watch
from mesh_control.serve.ca_store import LABELS, CaStore

CONFIG_MAP = "triomesh-ca-bundle"
KEY = "bundle.pem"
NAMESPACE_LABEL = "triomesh.dev/injection=enabled"
POD_LABEL = "triomesh.dev/inject=true"
RETRY_S = 2.0


class _Meta(msgspec.Struct, rename="camel"):
    name: str
    namespace: str = ""
    deletion_timestamp: str = ""


class _Object(msgspec.Struct):
    metadata: _Meta
    data: dict[str, str] | None = None


_decode = msgspec.json.Decoder(_Object).decode


class BundlePublisher:
    """Keeps the ConfigMaps as they should be: in our namespace, labelled ones, those of labelled pods.

    Attributes:
        written: ConfigMaps made or repaired; `failed`: tries that failed.
    """

    def __init__(
        self,
        client: Client,
        namespace: str,
        store: CaStore,
        rng: random.Random,
        on_note: OnEvent = ignore_event,
    ) -> None:
        self.written = 0
        self.failed = 0
        self._client = client
        self._own = namespace
        self._store = store
        self._rng = rng
        self._on_note = on_note
        self._labelled: set[str] = set()
        self._pods: dict[tuple[str, str], str] = {}
        self._present: dict[str, str] = {}
        self._synced: set[str] = set()
        self._changed = trio.Event()
        store.subscribe(self._wake)

    def _wake(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        """Write what differs until cancelled; for the leader.

        Notes: `bundle.failed` (namespace, error), and those of the watches.
        """
        namespaces = Source(NAMESPACES, _decode, labels=NAMESPACE_LABEL)
        pods = Source(PODS, _decode, labels=POD_LABEL)
        maps = Source(CONFIG_MAPS, _decode, fields=f"metadata.name={CONFIG_MAP}")
        self._labelled, self._pods, self._present, self._synced = set(), {}, {}, set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, namespaces, self._namespaces, self._namespace)
            nursery.start_soon(self._watch, pods, self._all_pods, self._pod)
            nursery.start_soon(self._watch, maps, self._maps, self._map)
            while True:
                await self._changed.wait()
                self._changed = trio.Event()
                if len(self._synced) == 3 and not await self._reconcile():
                    await trio.sleep(RETRY_S * self._rng.uniform(0.5, 1.0))
                    self._wake()

    async def _watch(
        self,
        source: Source[_Object],
        replace: Callable[[list[_Object]], None],
        event: Callable[[Change, _Object], None],
    ) -> None:
        def replaced(found: list[_Object]) -> None:
            replace(found)
            self._synced.add(source.resource.plural)
            self._wake()

        def changed(change: Change, obj: _Object) -> None:
            event(change, obj)
            self._wake()

        await list_then_watch(
            self._client,
            source,
            on_replace=replaced,
            on_event=changed,
            on_synced=lambda: None,
            rng=self._rng,
            on_note=self._on_note,
        )

    def _namespaces(self, found: list[_Object]) -> None:
        self._labelled = {one.metadata.name for one in found if not one.metadata.deletion_timestamp}

    def _namespace(self, change: Change, obj: _Object) -> None:
        if change == "DELETED" or obj.metadata.deletion_timestamp:
            self._labelled.discard(obj.metadata.name)
        else:
            self._labelled.add(obj.metadata.name)

    def _all_pods(self, found: list[_Object]) -> None:
        self._pods = {(p.metadata.namespace, p.metadata.name): p.metadata.namespace for p in found}

    def _pod(self, change: Change, obj: _Object) -> None:
        key = (obj.metadata.namespace, obj.metadata.name)
        if change == "DELETED":
            self._pods.pop(key, None)
        else:
            self._pods[key] = obj.metadata.namespace

    def _maps(self, found: list[_Object]) -> None:
        self._present = {one.metadata.namespace: (one.data or {}).get(KEY, "") for one in found}

    def _map(self, change: Change, obj: _Object) -> None:
        if change == "DELETED":
            self._present.pop(obj.metadata.namespace, None)
        else:
            self._present[obj.metadata.namespace] = (obj.data or {}).get(KEY, "")

    async def _reconcile(self) -> bool:
        """Write where it differs; False when something failed and is to be tried again."""
        bundle = self._store.bundle_pem()
        good = True
        # Also where there is one already: a namespace that lost its label may still have sidecars.
        for namespace in sorted({self._own, *self._labelled, *self._pods.values(), *self._present}):
            present = self._present.get(namespace)
            if present == bundle:
                continue
            try:
                await self._write(namespace, bundle, present is None)
                self._present[namespace] = bundle
                self.written += 1
            except KubeError as exc:
                gone = exc.not_found or "being terminated" in exc.message
                if not gone:
                    good = False
                    self.failed += 1
                    self._on_note("bundle.failed", {"namespace": namespace, "error": exc.message})
        return good

    async def _write(self, namespace: str, bundle: str, absent: bool) -> None:
        if absent:
            metadata = {"name": CONFIG_MAP, "labels": LABELS}
            try:
                await self._client.create(
                    CONFIG_MAPS, {"metadata": metadata, "data": {KEY: bundle}}, namespace
                )
                return
            except KubeError as exc:
                if not exc.already_exists:
                    raise
        await self._client.patch(CONFIG_MAPS, CONFIG_MAP, namespace, {"data": {KEY: bundle}})
