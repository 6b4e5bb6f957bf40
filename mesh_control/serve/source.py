"""The cluster as the discovery stream sees it: watches feed the index, the compiler answers from it."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

import msgspec
import trio

from certs.events import OnEvent, ignore_event
from mesh_api.discovery import Content
from mesh_control.compile.cache import Compiler
from mesh_control.compile.content import Mesh
from mesh_control.index.changes import Changes
from mesh_control.index.objects import Kind, Namespace, Object, Refused
from mesh_control.index.state import Index
from mesh_control.index.views import identity_of
from mesh_control.index.wire import decode
from mesh_control.kube.client import Client
from mesh_control.kube.resources import (
    ENDPOINT_SLICES,
    NAMESPACES,
    NODES,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Resource,
)
from mesh_control.kube.watch import Change, Health, Source, list_then_watch
from mesh_control.serve.subscriptions import PodRef

_WATCHED: dict[Kind, Resource] = {
    "Namespace": NAMESPACES,
    "Node": NODES,
    "ServiceAccount": SERVICE_ACCOUNTS,
    "Service": SERVICES,
    "Pod": PODS,
    "EndpointSlice": ENDPOINT_SLICES,
}

Told = Callable[[Collection[str]], None]


class ClusterSource:
    """Implements `discovery.Source`; keep `run` running.

    Attributes:
        index: what is known; `health` by kind says how well.
    """

    def __init__(
        self,
        client: Client,
        mesh: Mesh,
        rng: random.Random,
        cluster_networks: Collection[str] = (),
        on_note: OnEvent = ignore_event,
    ) -> None:
        self.index = Index(mesh.trust_domain, cluster_networks)
        self.health = {kind: Health() for kind in _WATCHED}
        self._compiler = Compiler(self.index, mesh)
        self._client = client
        self._rng = rng
        self._on_note = on_note
        self._told: list[Told] = []
        self._synced: set[Kind] = set()
        self._all_synced = trio.Event()

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with trio.open_nursery() as nursery:
            for kind, resource in _WATCHED.items():
                nursery.start_soon(self._follow, kind, resource)

    async def _follow(self, kind: Kind, resource: Resource) -> None:
        def parse(raw: msgspec.Raw) -> Object | Refused:
            return decode(kind, raw)

        def replaced(found: list[Object | Refused]) -> None:
            self._tell(self.index.replace(kind, found))

        def changed(change: Change, obj: Object | Refused) -> None:
            if change == "DELETED":
                namespace, name = obj.key
                self._tell(self.index.delete(kind, namespace, name))
            else:
                self._tell(self.index.apply(obj))

        def synced() -> None:
            self._synced.add(kind)
            if len(self._synced) == len(_WATCHED):
                self._all_synced.set()

        await list_then_watch(
            self._client,
            Source(resource, parse),
            on_replace=replaced,
            on_event=changed,
            on_synced=synced,
            rng=self._rng,
            on_note=self._on_note,
            health=self.health[kind],
        )

    def _tell(self, changes: Changes) -> None:
        if changes:
            keys = {*changes.keys, "address/"} if changes.networks else changes.keys
            for told in self._told:
                told(keys)

    def replace_mesh(self, mesh: Mesh) -> None:
        """What holds for every sidecar is another now (a new trust bundle)."""
        self._compiler.mesh = mesh
        for told in self._told:
            told({"workload"})

    # -- discovery.Source -----------------------------------------------------------------------------------

    async def wait_synced(self) -> None:
        """Return once every kind was listed."""
        await self._all_synced.wait()

    @property
    def synced(self) -> bool:
        return self._all_synced.is_set()

    def current(self) -> bool:
        """Whether every watch is up."""
        return all(health.current() for health in self.health.values())

    def lookup(self, key: str, pod: PodRef) -> Content | None:
        """See `discovery.Source`."""
        return self._compiler.lookup(key, (pod.namespace, pod.name))

    def subscribe(self, callback: Told) -> None:
        """See `discovery.Source`."""
        self._told.append(callback)

    # -- what others ask ------------------------------------------------------------------------------------

    def pod_identity(self, namespace: str, name: str) -> str | None:
        """The SPIFFE id of a pod that exists."""
        pod = self.index.tables.pod((namespace, name))
        return None if pod is None or pod.finished else identity_of(self.index.tables, pod)

    def pod_addresses(self, namespace: str, name: str, _uid: str) -> Collection[str] | None:
        """A pod's addresses; None while it is unknown or has none."""
        pod = self.index.tables.pod((namespace, name))
        return pod.ips or None if pod is not None else None

    def labels_of(self, namespace: str) -> dict[str, str] | None:
        """A namespace's labels; None for one that is not known (yet)."""
        found = self.index.tables.all("Namespace").get(("", namespace))
        return dict(found.labels) if isinstance(found, Namespace) else None
