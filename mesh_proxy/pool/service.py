"""A destination at run time: its endpoints, its split and its settings.

A configuration change builds the arms anew; endpoints whose peer is the same keep their connections and
what the balancer has learned of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

from mesh_api.sidecar import Algorithm, Destination, Retries, Timeouts, TlsMode
from mesh_api.sidecar import Endpoint as EndpointSpec
from mesh_proxy.net.addr import Addr
from mesh_proxy.policy.balance import LeastLatency, RoundRobin, Weights, split
from mesh_proxy.policy.retry import Budget
from mesh_proxy.pool.dial import Peer
from mesh_proxy.pool.endpoint import Endpoint

MakeEndpoint = Callable[[EndpointSpec, "Service"], Endpoint]


class Cluster:
    """The endpoints that one arm of a split may use, and their balancer."""

    __slots__ = ("_rng", "balancer", "endpoints", "subset")

    def __init__(
        self, subset: str, endpoints: Sequence[Endpoint], algorithm: Algorithm, rng: random.Random
    ) -> None:
        self.subset = subset
        self.endpoints = endpoints
        self.balancer: LeastLatency | RoundRobin = (
            RoundRobin() if algorithm is Algorithm.ROUND_ROBIN else LeastLatency()
        )
        self._rng = rng

    def pick(self, tried: Collection[Endpoint], now: float) -> Endpoint | None:
        """An endpoint that is not in `tried`, or None."""
        return self.balancer.pick(self.endpoints, tried, self._rng, now)


class Service:
    """One destination; `rule` names it in errors, `label` in statistics."""

    __slots__ = (
        "_endpoints",
        "_rng",
        "arms",
        "budget",
        "label",
        "retries",
        "rule",
        "spec",
        "split",
        "timeouts",
    )

    def __init__(
        self, label: str, rule: str, timeouts: Timeouts, retries: Retries, rng: random.Random
    ) -> None:
        self.label = label
        self.rule = rule
        self.timeouts = timeouts
        self.retries = retries
        self.budget = Budget(retries.budget_percent, retries.budget_min_per_s)
        self.spec: Destination | None = None
        self.arms: tuple[Cluster, ...] = ()
        self.split: Weights | None = None
        self._endpoints: dict[tuple[Peer, str, int], Endpoint] = {}
        self._rng = rng

    def choose(self) -> Cluster:
        """The arm for the next request or connection, by weight."""
        if self.split is None:
            return self.arms[0]
        return self.arms[split(self.split, self._rng)]

    def endpoints(self) -> Collection[Endpoint]:
        """Every endpoint, of all arms."""
        return self._endpoints.values()

    def only(self, endpoint: Endpoint) -> None:
        """Make this a destination of one endpoint, without a split."""
        self._endpoints = {(endpoint.peer, endpoint.workload, 1): endpoint}
        self.arms = (Cluster("", (endpoint,), Algorithm.ROUND_ROBIN, self._rng),)

    def update(self, dest: Destination, make: MakeEndpoint) -> None:
        """Take over a new description of the destination."""
        self.spec = dest
        if (dest.retries.budget_percent, dest.retries.budget_min_per_s) != (
            self.retries.budget_percent,
            self.retries.budget_min_per_s,
        ):
            self.budget = Budget(dest.retries.budget_percent, dest.retries.budget_min_per_s)
        self.timeouts = dest.timeouts
        self.retries = dest.retries
        old = self._endpoints
        new: dict[tuple[Peer, str, int], Endpoint] = {}
        for spec in dest.endpoints:
            key = (peer_of(spec), spec.workload, spec.weight)
            endpoint = old.get(key) or make(spec, self)
            endpoint.labels = spec.labels
            endpoint.idle_s = dest.timeouts.pool_idle_s
            new[key] = endpoint
        self._endpoints = new
        for key, endpoint in old.items():
            if key not in new:
                endpoint.retire()
        self._build_arms(dest)

    @property
    def plaintext(self) -> bool:
        """Whether some endpoint is reached without mTLS."""
        return any(not endpoint.peer.identity for endpoint in self._endpoints.values())

    def retire(self) -> None:
        """The destination is gone."""
        for endpoint in self._endpoints.values():
            endpoint.retire()

    def _build_arms(self, dest: Destination) -> None:
        every = tuple(self._endpoints.values())
        if not dest.split:
            self.arms = (self._arm("", every, dest),)
            self.split = None
            return
        arms = []
        for target in dest.split:
            chosen = every
            if target.subset:
                wanted = dest.subsets[target.subset].labels.items()
                chosen = tuple(e for e in every if wanted <= e.labels.items())
            arms.append(self._arm(target.subset, chosen, dest))
        self.arms = tuple(arms)
        self.split = Weights([target.weight for target in dest.split]) if len(arms) > 1 else None

    def _arm(self, subset: str, endpoints: tuple[Endpoint, ...], dest: Destination) -> Cluster:
        return Cluster(subset, endpoints, dest.algorithm, self._rng)


def peer_of(spec: EndpointSpec) -> Peer:
    """How to reach an endpoint of the configuration."""
    identity = spec.identity if spec.tls is TlsMode.MESH else ""
    return Peer(Addr(spec.address, spec.port), identity)
