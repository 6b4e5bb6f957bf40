"""The run-time services of this sidecar, made when they are first used.

A destination of the configuration is one service as long as its key lives; a single address (a pod, the
application behind us, an address outside the mesh) is a service of one endpoint, kept in a bounded LRU.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable

from mesh_api.names import NEVER_CAPTURED
from mesh_api.sidecar import Destination, Pod, Retries, Timeouts, TlsMode
from mesh_api.sidecar import Endpoint as EndpointSpec
from mesh_proxy.discovery.contents import DestinationKey, key_of
from mesh_proxy.net.addr import INBOUND_SOURCE, Addr
from mesh_proxy.pool.dial import Dialer, Peer
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.pool.service import Service, peer_of
from mesh_proxy.telemetry.stats import ProxyStats

MAX_DIRECT = 4096
APPLICATION_IDLE_S = 1.0
"""Servers close idle connections after as little as two seconds; ours must be gone by then."""
_ONE_RETRY = Retries(attempts=1)


class Services:
    """Gives the service for what a look-up found."""

    def __init__(self, dialer: Dialer, stats: ProxyStats, rng: random.Random) -> None:
        self._dialer = dialer
        self._stats = stats
        self._rng = rng
        self._by_key: dict[DestinationKey, Service] = {}
        self._direct: OrderedDict[tuple[Peer, str], Service] = OrderedDict()

    def destination(self, dest: Destination) -> Service:
        """The service of a destination, brought up to its present description."""
        key = key_of(dest)
        service = self._by_key.get(key)
        if service is None:
            label = f"{dest.name}.{dest.namespace}:{dest.port}"
            rule = f"{dest.namespace}/{dest.name}:{dest.port}"
            service = Service(label, rule, dest.timeouts, dest.retries, self._rng)
            self._by_key[key] = service
            service.update(dest, self._make)
        elif service.spec is not dest:
            if service.spec == dest:
                service.spec = dest
            else:
                service.update(dest, self._make)
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
        return self._single(
            peer, label, f"pod {pod.namespace}/{pod.name}", pod.workload, Timeouts(), "outbound"
        )

    def outside(self, addr: Addr) -> Service:
        """An address outside the mesh, passed through as it is."""
        return self._single(
            Peer(addr), "passthrough", "outside the mesh", "", Timeouts(connect_s=10), "outbound"
        )

    def application(self, addr: Addr, label: str) -> Service:
        """The application behind this sidecar, at the address that its client dialled."""
        source = INBOUND_SOURCE[6 if ":" in addr.ip else 4]
        timeouts = Timeouts(pool_idle_s=APPLICATION_IDLE_S)
        return self._single(Peer(addr, source=source), label, "application", label, timeouts, "inbound")

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

    def all(self) -> Iterable[Service]:
        """Every service that is in use."""
        yield from self._by_key.values()
        yield from self._direct.values()

    def _single(
        self, peer: Peer, label: str, rule: str, workload: str, timeouts: Timeouts, direction: str
    ) -> Service:
        key = (peer, label)
        service = self._direct.get(key)
        if service is not None:
            self._direct.move_to_end(key)
            return service
        service = Service(label, rule, timeouts, _ONE_RETRY, self._rng)
        stats = self._stats.request_stats(direction, label, workload, bool(peer.identity))
        service.only(Endpoint(self._dialer, peer, stats, idle_s=timeouts.pool_idle_s, workload=workload))
        self._direct[key] = service
        if len(self._direct) > MAX_DIRECT:
            self._direct.popitem(last=False)[1].retire()
        return service

    def _make(self, spec: EndpointSpec, service: Service) -> Endpoint:
        peer = peer_of(spec)
        stats = self._stats.request_stats("outbound", service.label, spec.workload, bool(peer.identity))
        return Endpoint(
            self._dialer,
            peer,
            stats,
            idle_s=service.timeouts.pool_idle_s,
            weight=spec.weight,
            workload=spec.workload,
            labels=spec.labels,
        )
