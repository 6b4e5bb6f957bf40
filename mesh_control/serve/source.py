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
from mesh_control.index.changes import Changes, PolicyName
from mesh_control.index.objects import POLICY_KINDS, Kind, Namespace, Object, Refused
from mesh_control.index.state import Index
from mesh_control.index.views import identity_of
from mesh_control.index.wire import decode
from mesh_control.kube.client import Client
from mesh_control.kube.resources import (
    ENDPOINT_SLICES,
    MESH_POLICIES,
    NAMESPACES,
    NODES,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICE_CIDRS,
    SERVICES,
    TRAFFIC_POLICIES,
    Resource,
)
from mesh_control.kube.watch import Change, Health, Source, list_then_watch
from mesh_control.serve.subscriptions import PodRef

_WATCHED: dict[Kind, Resource] = {
    "Namespace": NAMESPACES,
    "Node": NODES,
    "ServiceCIDR": SERVICE_CIDRS,
    "ServiceAccount": SERVICE_ACCOUNTS,
    "Service": SERVICES,
    "Pod": PODS,
    "EndpointSlice": ENDPOINT_SLICES,
    "TrafficPolicy": TRAFFIC_POLICIES,
    "MeshPolicy": MESH_POLICIES,
}
# Ours may be installed later, or in another version; ServiceCIDR is new in Kubernetes 1.33.
_OPTIONAL: frozenset[Kind] = frozenset((*POLICY_KINDS, "ServiceCIDR"))

Told = Callable[[Collection[str]], None]
PoliciesTold = Callable[[Collection[PolicyName]], None]


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
        kinds: Collection[Kind] | None = None,
        system_namespace: str = "triomesh-system",
    ) -> None:
        """`kinds`: what to watch, everything where it is None."""
        self.index = Index(mesh.trust_domain, cluster_networks, system_namespace)
        self.health = {kind: Health() for kind in _WATCHED if kinds is None or kind in kinds}
        self._compiler = Compiler(self.index, mesh)
        self._client = client
        self._rng = rng
        self._on_note = on_note
        self._told: list[Told] = []
        self._policies_told: list[PoliciesTold] = []
        self._synced: set[Kind] = set()
        self._all_synced = trio.Event()
        self._check_synced()

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with trio.open_nursery() as nursery:
            for kind in self.health:
                nursery.start_soon(self._follow, kind, _WATCHED[kind])

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
            self._check_synced()

        await list_then_watch(
            self._client,
            Source(resource, parse, optional=kind in _OPTIONAL),
            on_replace=replaced,
            on_event=changed,
            on_synced=synced,
            rng=self._rng,
            on_note=self._on_note,
            health=self.health[kind],
        )

    def _check_synced(self) -> None:
        if len(self._synced) == len(self.health):
            self._all_synced.set()

    def _tell(self, changes: Changes) -> None:
        if changes:
            keys = {*changes.keys, "address/"} if changes.networks else changes.keys
            for told in self._told:
                told(keys)
        if changes.policies:
            for concerned in self._policies_told:
                concerned(changes.policies)

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
        """Whether every watch is up of what tells who owns an address."""
        return all(health.current() for kind, health in self.health.items() if kind not in POLICY_KINDS)

    def lookup(self, key: str, pod: PodRef) -> Content | None:
        """See `discovery.Source`."""
        return self._compiler.lookup(key, (pod.namespace, pod.name))

    def subscribe(self, callback: Told) -> None:
        """See `discovery.Source`."""
        self._told.append(callback)

    def subscribe_policies(self, callback: PoliciesTold) -> None:
        """Have `callback` told of policies of which something else may be true, in the event loop."""
        self._policies_told.append(callback)

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
