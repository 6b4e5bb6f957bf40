"""Who owns an address: pods and Services."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple, TypeVar

from mesh_control.index.objects import Key, Phase, Pod, Service

_K = TypeVar("_K")
Vip = tuple[str, int]


class PodAddresses:
    """Pod IP to pod. Pods on the host's network have no address of their own, finished ones none any more.

    A re-used address belongs to the newest running pod that claims it.
    """

    def __init__(self) -> None:
        self._claims: dict[str, tuple[Pod, ...]] = {}

    def add(self, pod: Pod) -> None:
        """A pod claims its addresses."""
        for ip in own_ips(pod):
            claims = (*self._claims.get(ip, ()), pod)
            self._claims[ip] = claims if len(claims) == 1 else tuple(sorted(claims, key=_rank, reverse=True))

    def remove(self, pod: Pod) -> None:
        """A pod, exactly as it was added, gives its addresses up."""
        for ip in own_ips(pod):
            left = tuple(claim for claim in self._claims.get(ip, ()) if claim.key != pod.key)
            if left:
                self._claims[ip] = left
            else:
                self._claims.pop(ip, None)

    def owner(self, ip: str) -> Pod | None:
        """The pod that has the address."""
        claims = self._claims.get(ip)
        return claims[0] if claims else None

    def claimants(self, ip: str) -> tuple[Pod, ...]:
        """Every pod that claims the address, its owner first."""
        return self._claims.get(ip, ())

    def contested(self, pod: Pod) -> Iterable[tuple[str, Pod]]:
        """The addresses that a pod claims and another pod has."""
        for ip in own_ips(pod):
            owner = self.owner(ip)
            if owner is not None and owner.key != pod.key:
                yield ip, owner


def own_ips(pod: Pod) -> tuple[str, ...]:
    """The addresses that nobody shares with a pod."""
    return () if pod.host_network or pod.finished else pod.ips


def _rank(pod: Pod) -> tuple[bool, str, Key]:
    return pod.phase is Phase.RUNNING, pod.created, pod.key


class Claim(IntEnum):
    """How a Service has an address; a lower one goes before a higher one."""

    CLUSTER = 0
    LOAD_BALANCER = 1
    EXTERNAL = 2


class VipOwner(NamedTuple):
    """One Service's claim on an address; they sort by who wins: claim, age, name."""

    claim: Claim
    created: str
    service: Key


def vips_of(service: Service) -> Iterable[tuple[str, Claim]]:
    """The addresses at which a Service is reached. Node ports are not: they belong to the node."""
    seen: set[str] = set()
    for claim, ips in (
        (Claim.CLUSTER, service.cluster_ips),
        (Claim.LOAD_BALANCER, service.load_balancer_ips),
        (Claim.EXTERNAL, service.external_ips),
    ):
        for ip in ips:
            if ip not in seen:
                seen.add(ip)
                yield ip, claim


class ServiceAddresses:
    """Address and port to Service. Where several claim one, a cluster IP wins, then the older Service."""

    def __init__(self) -> None:
        self._claims: dict[Vip, tuple[VipOwner, ...]] = {}
        self._by_ip: dict[str, tuple[VipOwner, ...]] = {}

    def add(self, service: Service) -> None:
        """A Service claims its addresses."""
        for ip, claim in vips_of(service):
            mine = VipOwner(claim, service.created, service.key)
            self._by_ip[ip] = tuple(sorted((*self._by_ip.get(ip, ()), mine)))
            for port in service.ports:
                self._claims[ip, port.port] = tuple(sorted((*self._claims.get((ip, port.port), ()), mine)))

    def remove(self, service: Service) -> None:
        """A Service gives its addresses up."""
        for ip, _ in vips_of(service):
            _give_up(self._by_ip, ip, service.key)
            for port in service.ports:
                _give_up(self._claims, (ip, port.port), service.key)

    def owner(self, ip: str, port: int) -> VipOwner | None:
        """The claim that holds."""
        claims = self._claims.get((ip, port))
        return claims[0] if claims else None

    def rivals(self, service: Service) -> set[Key]:
        """Every Service that claims an address and port of this one, itself included."""
        return {
            claim.service
            for ip, _ in vips_of(service)
            for port in service.ports
            for claim in self._claims.get((ip, port.port), ())
        } | {service.key}

    def is_cluster_ip(self, ip: str) -> bool:
        """Whether the address is some Service's cluster IP."""
        claims = self._by_ip.get(ip)
        return claims is not None and claims[0].claim is Claim.CLUSTER

    def claimants(self, ip: str) -> set[Key]:
        """Every Service that claims an address, whatever the port."""
        return {claim.service for claim in self._by_ip.get(ip, ())}


def _give_up(table: dict[_K, tuple[VipOwner, ...]], at: _K, service: Key) -> None:
    left = tuple(claim for claim in table.get(at, ()) if claim.service != service)
    if left:
        table[at] = left
    else:
        table.pop(at, None)
