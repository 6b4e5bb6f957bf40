"""The run-time services of this sidecar, made when they are first used.

A destination of the configuration is one service as long as its key lives; a single address (a pod, the
application behind us, an address outside the mesh) is a service of one endpoint, kept in a bounded LRU.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

from mesh_api.names import NEVER_CAPTURED
from mesh_api.sidecar import Destination, Pod, TlsMode, Workload
from mesh_api.sidecar import Endpoint as EndpointSpec
from mesh_api.stats import PASSTHROUGH
from mesh_api.traffic import Breaker, Settings, Timeouts
from mesh_proxy.discovery.contents import DestinationKey, key_of
from mesh_proxy.discovery.store import ConfigStore
from mesh_proxy.net.addr import INBOUND_SOURCE, Addr
from mesh_proxy.pool.cluster import Cluster
from mesh_proxy.pool.dial import Dialer, Peer
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.pool.service import Service, peer_of
from mesh_proxy.telemetry.stats import ProxyStats

MAX_DIRECT = 4096
APPLICATION_IDLE_S = 1.0
"""Servers close idle connections after as little as two seconds; ours must be gone by then."""
_APPLICATION = Settings(
    timeouts=Timeouts(pool_idle_s=APPLICATION_IDLE_S), breaker=Breaker(max_pending=2**31 - 1)
)
_OUTSIDE = Settings(timeouts=Timeouts(connect_s=10))


class Services:
    """Gives the service for what a look-up found."""

    def __init__(
        self,
        dialer: Dialer,
        stats: ProxyStats,
        rng: random.Random,
        store: ConfigStore,
        on_problem: Callable[[str, str], None],
    ) -> None:
        """`store` tells who this sidecar is, and where routes lead; `on_problem` is told what is refused."""
        self._on_problem = on_problem
        self._dialer = dialer
        self._store = store
        self._stats = stats
        self._rng = rng
        self._by_key: dict[DestinationKey, Service] = {}
        self._direct: OrderedDict[tuple[Peer, str], Service] = OrderedDict()
        stats.registry.before_collect(self._count_ejected)

    def destination(self, dest: Destination) -> Service:
        """The service of a destination, brought up to its present description."""
        key = key_of(dest)
        service = self._by_key.get(key)
        if service is None:
            label = f"{dest.name}.{dest.namespace}:{dest.port}"
            rule = f"{dest.namespace}/{dest.name}:{dest.port}"
            service = Service(label, dest.namespace, rule, self._stats, self._rng)
            self._by_key[key] = service
        caller = self._workload()
        if service.spec is not dest or service.caller is not caller:
            problem = service.update(dest, caller, self._make, self._follow)
            if problem:
                self._on_problem(service.label, problem)
        return service

    def pod(self, pod: Pod, addr: Addr) -> Service:
        """One pod by its own address: mTLS with its identity, no Service's routes."""
        meshed = (
            pod.tls is TlsMode.MESH
            and addr.port not in (*pod.plaintext_ports, *NEVER_CAPTURED)
            and (not pod.captured_ports or addr.port in pod.captured_ports)
        )
        peer = Peer(addr, pod.identity if meshed else "")
        label = f"{pod.workload or pod.name}.{pod.namespace}"
        rule = f"pod {pod.namespace}/{pod.name}"
        return self._single(peer, label, pod.namespace, rule, pod.workload, pod.settings)

    def outside(self, addr: Addr) -> Service:
        """An address outside the mesh, passed through as it is."""
        return self._single(Peer(addr), PASSTHROUGH, "", "outside the mesh", "", _OUTSIDE)

    def application(self, addr: Addr, label: str) -> Service:
        """The application behind this sidecar, at the address that its client dialled."""
        source = INBOUND_SOURCE[6 if ":" in addr.ip else 4]
        namespace = label.rpartition(".")[2]
        return self._single(Peer(addr, source=source), label, namespace, "application", label, _APPLICATION)

    def prune(self, destinations: Iterable[Destination]) -> None:
        """Drop what the configuration no longer has; `destinations` is everything that it has."""
        live = {key_of(dest): dest for dest in destinations}
        self.change(live.values(), [key for key in self._by_key if key not in live])

    def change(self, changed: Iterable[Destination], gone: Iterable[DestinationKey]) -> None:
        """Take over what has changed; only services that are in use cost anything."""
        for key in gone:
            service = self._by_key.pop(key, None)
            if service is None:
                continue
            service.retire()
            if all(other.label != service.label for other in self._by_key.values()):
                self._stats.forget_destination(service.label)
        for dest in changed:
            if key_of(dest) in self._by_key:
                self.destination(dest)

    def close_idle(self) -> None:
        """Close the pooled connections that nobody uses."""
        for service in self.all():
            for endpoint in service.endpoints():
                for conn in list(endpoint.idle):
                    endpoint.drop_idle(conn)
                endpoint.sessions.close_idle()

    def all(self) -> Iterable[Service]:
        """Every service that is in use."""
        yield from self._by_key.values()
        yield from self._direct.values()

    def _single(
        self, peer: Peer, label: str, namespace: str, rule: str, workload: str, settings: Settings
    ) -> Service:
        key = (peer, label)
        service = self._direct.get(key)
        if service is None:
            stats = self._stats if settings is not _APPLICATION else None
            service = Service(label, namespace, rule, stats, self._rng)
            service.only(Endpoint(self._dialer, peer, workload=workload), settings)
            self._direct[key] = service
            if len(self._direct) > MAX_DIRECT:
                self._direct.popitem(last=False)[1].retire()
            return service
        self._direct.move_to_end(key)
        (cluster,) = service.clusters.values()
        if cluster.settings is not settings and cluster.settings != settings:
            service.only(cluster.endpoints[0], settings)
        return service

    def _make(self, spec: EndpointSpec) -> Endpoint:
        return Endpoint(
            self._dialer, peer_of(spec), weight=spec.weight, workload=spec.workload, labels=spec.labels
        )

    def _count_ejected(self) -> None:
        """Bring the metric up to date; destinations that never had an ejection have no series."""
        counts: Counter[str] = Counter()
        for service in self._by_key.values():
            counts[service.label] += sum(len(each.outliers.ejected) for each in service.clusters.values())
        family = self._stats.ejected
        for label, count in counts.items():
            if count or (label,) in family.children:
                family.child(label).set(count)

    def _workload(self) -> Workload | None:
        snapshot = self._store.snapshot
        return snapshot.workload if snapshot is not None else None

    def _follow(self, key: str) -> Cluster | None:
        """Where a route leads that names another destination."""
        dest = self._store.destination_by_key(key)
        return self.destination(dest).whole(self._make) if dest is not None else None
