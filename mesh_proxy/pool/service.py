"""A destination at run time: its routes, its clusters of endpoints, its retry budget.

A configuration change builds the routes anew; clusters keep their state, and endpoints whose peer is the
same keep their connections and what the balancer has learned of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from msgspec.structs import replace

from mesh_api.keys import parse_destination
from mesh_api.sidecar import ConfigError, Destination, TlsMode, Workload
from mesh_api.sidecar import Endpoint as EndpointSpec
from mesh_api.traffic import Budget as BudgetSpec
from mesh_api.traffic import Retries, Settings, WeightedTarget
from mesh_proxy.net.addr import Addr
from mesh_proxy.policy.edits import field
from mesh_proxy.policy.retry import Budget
from mesh_proxy.policy.routing import Caller, Router
from mesh_proxy.policy.rule import Rule
from mesh_proxy.pool.cluster import Cluster
from mesh_proxy.pool.dial import Peer
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.pool.plan import Arm, Follow, Plan
from mesh_proxy.telemetry.stats import ProxyStats
from mesh_proxy.wire.http1 import RequestHead

MakeEndpoint = Callable[[EndpointSpec], Endpoint]
EndpointKey = tuple[Peer, str, int]
"""What stays the same while an endpoint is the same: peer, workload, weight."""


class Service:
    """One destination; `rule` names it in errors, `label` in statistics."""

    __slots__ = (
        "_good",
        "_plans",
        "_rng",
        "_router",
        "_stats",
        "_whole",
        "budget",
        "caller",
        "clusters",
        "label",
        "namespace",
        "only_http",
        "plan",
        "rule",
        "spec",
        "tcp_plan",
    )

    def __init__(
        self, label: str, namespace: str, rule: str, stats: ProxyStats | None, rng: random.Random
    ) -> None:
        """Without `stats` nothing is counted here: the caller does."""
        self.label = label
        self.namespace = namespace
        self.rule = rule
        budget = BudgetSpec()
        self.budget = Budget(budget.percent, budget.min_per_s)
        self.spec: Destination | None = None
        self._good: Destination | None = None
        """The last description whose routes could be used."""
        self.caller: Workload | None = None
        """This sidecar's own, which routes may ask for."""
        self.clusters: dict[str, Cluster] = {}
        """By subset; '' is all endpoints."""
        self.plan: Plan | None = None
        """What every request does; None where that depends on the request."""
        self.tcp_plan: Plan | None = None
        """What opaque connections do; None where every route asks for HTTP."""
        self.only_http = False
        """Routes ask for, or do, what only HTTP has: an opaque connection may not go by them."""
        self._router: Router | None = None
        self._plans: dict[Rule, Plan] = {}
        self._whole = False
        """Routes of other destinations lead here."""
        self._stats = stats
        self._rng = rng

    def endpoints(self) -> Iterator[Endpoint]:
        """Every endpoint, of all clusters."""
        for cluster in self.clusters.values():
            yield from cluster.endpoints

    @property
    def plaintext(self) -> bool:
        """Whether some endpoint is reached without mTLS."""
        return any(not endpoint.peer.identity for endpoint in self.endpoints())

    def only(self, endpoint: Endpoint, settings: Settings) -> None:
        """Make this a destination of one endpoint, without routes."""
        cluster = self.clusters.get("")
        if cluster is None:
            cluster = self.clusters[""] = Cluster(self, "", settings, self._rng)
        cluster.update(settings, (endpoint,))
        self._route_all(cluster, Retries())

    def update(self, dest: Destination, caller: Workload | None, make: MakeEndpoint, follow: Follow) -> str:
        """Take over a new description of the destination; `caller` is who this sidecar is.

        Returns why its routes cannot be used, or ''. Those that were in force stay then; without any,
        nothing is let through.
        """
        before, self.spec = self.spec, dest
        same, self.caller = before == dest and self.caller == caller, caller
        if same:
            return ""
        self.rule = dest.policy or f"{dest.namespace}/{dest.name}:{dest.port}"
        if before is None or dest.budget != before.budget:
            self.budget = Budget(dest.budget.percent, dest.budget.min_per_s)
        problem = ""
        try:
            router = _router(dest, caller)
            self._good = dest
        except ConfigError as exc:
            problem = str(exc)
            good = self._good
            dest = replace(dest, routes=good.routes if good else (), subsets=good.subsets if good else {})
            self._good = dest if good else None
            router = _router(dest, caller)
        self._update_clusters(dest, make)
        if router is not None:
            self._route(router, dest, follow)
        elif self._good is not None:
            self._route_all(self.clusters[""], dest.retries)
        else:
            self.only_http = True
        return problem

    def whole(self, make: MakeEndpoint) -> Cluster:
        """All endpoints, for a route of another destination."""
        self._whole = True
        cluster = self.clusters.get("")
        if cluster is None:
            spec = self._good or self.spec
            assert spec is not None, "only destinations of the configuration are led to"
            self._update_clusters(spec, make)
            cluster = self.clusters[""]
        return cluster

    def route(self, head: RequestHead) -> Plan | None:
        """What a request does; None if no route matches it. Asked where `plan` is None."""
        if self._router is None:
            return None
        # What Connection names goes no further than here, so no route may go by it.
        block = head.forward_block() if head.nominated else head.block
        rule = self._router.match(head.method, head.target, partial(field, block))
        return self._plans[rule] if rule is not None else None

    # -- routes -------------------------------------------------------------------------------------------

    def _route_all(self, cluster: Cluster, retries: Retries) -> None:
        """Every request goes to one cluster."""
        stats = self._stats.arm(self.label, self.namespace) if self._stats is not None else None
        self.plan = self.tcp_plan = Plan(self.rule, (Arm(stats, cluster),), retries, self._rng)
        self.only_http = False
        self._router = None
        self._plans = {}

    def _route(self, router: Router, dest: Destination, follow: Follow) -> None:
        self._router = router
        self._plans = {rule: self._plan(dest, rule, follow) for rule in router.rules}
        tcp = router.tcp()
        self.tcp_plan = self._plans[tcp] if tcp is not None else None
        self.only_http = bool(
            tcp is None or router.rules[0] is not tcp or not tcp.plain or tcp.response_edits is not None
        )
        self.plan = None

    def _plan(self, dest: Destination, rule: Rule, follow: Follow) -> Plan:
        arms = [self._arm(rule.name, target, follow) for target in rule.targets]
        retries = dest.routes[rule.index].retries or dest.retries
        return Plan(f"{self.rule}/{rule.name}", arms, retries, self._rng, rule)

    def _arm(self, route: str, target: WeightedTarget, follow: Follow) -> Arm:
        assert self._stats is not None, "destinations with routes are counted here"
        if not target.destination:
            stats = self._stats.arm(self.label, self.namespace, route, target.subset)
            return Arm(stats, self.clusters[target.subset])
        other = parse_destination(target.destination)
        stats = self._stats.arm(self.label, other.namespace, route)
        return Arm(stats, None, target.destination, follow)

    def retire(self) -> None:
        """The destination is gone."""
        for endpoint in self.endpoints():
            endpoint.retire()

    # -- clusters -----------------------------------------------------------------------------------------

    def _update_clusters(self, dest: Destination, make: MakeEndpoint) -> None:
        names = {
            target.subset: None for route in dest.routes for target in route.to if not target.destination
        }
        if not dest.routes or self._whole:
            names[""] = None
        spare: dict[EndpointKey, Endpoint] = {}
        """What clusters have had that are no more: it goes on in new ones."""
        gone = [self.clusters.pop(name) for name in list(self.clusters) if name not in names]
        for cluster in gone:
            spare.update(_keyed(cluster.endpoints))
        for name in names:
            self._update_cluster(name, dest, make, spare)
        for cluster in gone:
            for endpoint in cluster.endpoints:
                endpoint.retire()

    def _update_cluster(
        self, name: str, dest: Destination, make: MakeEndpoint, spare: dict[EndpointKey, Endpoint]
    ) -> None:
        subset = dest.subsets[name] if name else None
        settings = subset.settings if subset and subset.settings else dest.settings
        cluster = self.clusters.get(name)
        if cluster is None:
            cluster = self.clusters[name] = Cluster(self, name, settings, self._rng)
        old = _keyed(cluster.endpoints)
        started = bool(old)
        new: dict[EndpointKey, Endpoint] = {}
        for spec in dest.endpoints:
            if subset is not None and not subset.labels.items() <= spec.labels.items():
                continue
            key = (peer_of(spec), spec.workload, spec.weight)
            endpoint = old.pop(key, None) or new.get(key)
            if endpoint is None:
                endpoint = make(spec)
                before = spare.pop(key, None)
                if before is not None:
                    endpoint.succeed(before)
                    cluster.connections.take_over(endpoint)
                elif started:
                    endpoint.since = endpoint.dialer.reactor.now
            endpoint.idle_s = settings.timeouts.pool_idle_s
            new[key] = endpoint
        cluster.update(settings, tuple(new.values()))
        for endpoint in old.values():
            endpoint.retire()


def _router(dest: Destination, caller: Workload | None) -> Router | None:
    """The routes, prepared; None if there are none. Raises ConfigError."""
    if not dest.routes:
        return None
    who = caller or Workload(name="unknown", namespace="unknown")
    return Router(dest.routes, Caller(who.namespace, who.service_account, who.labels))


def _keyed(endpoints: Iterable[Endpoint]) -> dict[EndpointKey, Endpoint]:
    return {(endpoint.peer, endpoint.workload, endpoint.weight): endpoint for endpoint in endpoints}


def peer_of(spec: EndpointSpec) -> Peer:
    """How to reach an endpoint of the configuration."""
    identity = spec.identity if spec.tls is TlsMode.MESH else ""
    return Peer(Addr(spec.address, spec.port), identity)
