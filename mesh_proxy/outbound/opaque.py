"""Opaque connections: one to an endpoint, and bytes both ways."""

from __future__ import annotations

from certs.credentials import ALPN_TCP
from mesh_proxy.base.errors import ConnectFailed
from mesh_proxy.net.addr import Addr
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.relay import Relay, refuse_late_http
from mesh_proxy.outbound.view import DIRECTION
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.policy.retry import Phase
from mesh_proxy.pool.cluster import Cluster
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.pool.overflow import Overflow
from mesh_proxy.pool.plan import Arm, Plan
from mesh_proxy.pool.service import Service
from mesh_proxy.runtime import Runtime
from mesh_proxy.wire.client_hello import HelloWatch


class Tentative:
    """A connection that may become the client's."""

    __slots__ = ("arm", "cluster", "conn", "decided", "endpoint")

    def __init__(self, arm: Arm, cluster: Cluster, endpoint: Endpoint, conn: Conn) -> None:
        self.arm = arm
        self.cluster = cluster
        self.endpoint = endpoint
        self.conn = conn
        self.decided = False
        """The server's own bytes have shown that it speaks first."""

    def drop(self) -> None:
        """Close it if nothing else has: nothing of the client's was ever sent on it."""
        if not self.conn.closed:
            self.conn.bye()


class _Failed(Exception):
    """There is no connection."""

    def __init__(self, flag: str, detail: str) -> None:
        super().__init__(detail)
        self.flag = flag
        self.detail = detail


class Opaque:
    """One opaque connection of a client to its end."""

    __slots__ = (
        "_addr",
        "_conn",
        "_runtime",
        "_service",
        "_source",
        "_tls",
        "arm",
        "attempts",
        "cluster",
        "upstream",
    )

    def __init__(self, runtime: Runtime, conn: Conn, addr: Addr, service: Service, source: str) -> None:
        self._runtime = runtime
        self._conn = conn
        self._addr = addr
        self._service = service
        self._source = source
        self.arm: Arm | None = None
        self.cluster: Cluster | None = None
        self.upstream: Endpoint | None = None
        self.attempts = 0
        self._tls = HelloWatch()

    async def run(self, tentative: Tentative | None, undecided: bool = False) -> None:
        """Relay to `tentative` or to an endpoint of the service; both ends are closed then.

        `undecided`: what has come of the client's bytes may begin a request.
        """
        runtime = self._runtime
        started = runtime.reactor.now
        relay: Relay | None = None
        flag: str = ""
        detail = ""
        try:
            chosen = self._counted(tentative) if tentative is not None else await self._connect()
            relay = Relay(self._conn, chosen.conn, chosen.cluster.tcp_idle_s)
            relay.watch = refuse_late_http() if undecided else self._look
            await self._relay(chosen, relay)
            flag, detail = relay.flag, relay.detail
        except _Failed as exc:
            flag, detail = exc.flag, exc.detail
            self._count_failure(flag)
            self._conn.abort()
        finally:
            self._record(relay, flag, detail, started)

    async def _relay(self, chosen: Tentative, relay: Relay) -> None:
        stats = chosen.arm.stats
        assert stats is not None, "outbound arms count"
        chosen.endpoint.inflight += 1
        try:
            await self._runtime.run_relay(relay, stats.tcp(chosen.endpoint))
        finally:
            chosen.endpoint.inflight -= 1

    def _look(self, data: bytes) -> bool:
        """Read the server name off the client's TLS, if it is TLS, in passing."""
        done = self._tls.feed(data)
        hello = self._tls.hello
        if hello is not None:
            self._runtime.stats.tls_connections.child(self._service.label, hello.sni.lower()).value += 1
        return done

    def _counted(self, chosen: Tentative) -> Tentative:
        """The tentative connection becomes the client's. Raises _Failed."""
        self.arm, self.cluster, self.upstream = chosen.arm, chosen.cluster, chosen.endpoint
        self.attempts = 1
        limit = chosen.cluster.connections.open()
        if limit:
            raise _Failed(Flag.UO, limit)
        chosen.conn.lease = chosen.cluster.connections
        return chosen

    async def _connect(self) -> Tentative:
        """A connection to one endpoint; others are tried while none has come up. Raises _Failed."""
        service = self._service
        plan = service.tcp_plan
        if plan is None:
            raise _Failed(Flag.NR, f"no route of {service.rule} takes connections that are not HTTP")
        self.arm = arm = plan.arm()
        self.cluster = cluster = arm.fixed or arm.find()
        if cluster is None:
            raise _Failed(Flag.NC, f"nothing is known (yet) of {arm.key}, where the route leads")
        cluster.service.budget.deposit(self._runtime.reactor.now)
        tried: list[Endpoint] = []
        failed: _Failed | None = None
        while True:
            now = self._runtime.reactor.now
            endpoint = cluster.pick(tried, False, now)
            if endpoint is None:
                raise failed or _Failed(Flag.UH, cluster.why_none())
            self.upstream = endpoint
            self.attempts += 1
            try:
                return Tentative(arm, cluster, endpoint, await self._dial(cluster, endpoint, now))
            except ConnectFailed as exc:
                failed = _Failed(Flag.UF, f"{endpoint.text}: {exc.detail}")
            tried.append(endpoint)
            if not self._again(plan, cluster):
                raise failed

    def _again(self, plan: Plan, cluster: Cluster) -> bool:
        decision = plan.retry.decide(Phase.NOT_CONNECTED, b"", True, self.attempts)
        return decision.retry and cluster.service.budget.withdraw(self._runtime.reactor.now)

    async def _dial(self, cluster: Cluster, endpoint: Endpoint, begun: float) -> Conn:
        try:
            conn = await cluster.connect_now(endpoint, ALPN_TCP)
            cluster.observe(endpoint, begun, 200, False, self._runtime.reactor.now)
            return conn
        except Overflow as exc:
            raise _Failed(Flag.UO, str(exc)) from None
        except ConnectFailed:
            cluster.observe(endpoint, begun, 0, True, self._runtime.reactor.now)
            raise
        finally:
            cluster.outliers.release(endpoint, begun)

    def _count_failure(self, flag: str) -> None:
        runtime, service = self._runtime, self._service
        stats = self.arm.stats if self.arm is not None else None
        if stats is None:
            runtime.stats.tcp_stats(DIRECTION, service.label, False).failed(flag)
            return
        stats.tcp(self.upstream).failed(flag)
        if flag is Flag.UO:
            stats.none.overflowed()

    def _record(self, relay: Relay | None, flag: str, detail: str, started: float) -> None:
        upstream, cluster = self.upstream, self.cluster
        self._runtime.relay_record(
            DIRECTION,
            relay,
            flag,
            detail,
            started,
            source=self._source,
            source_identity="",
            destination=str(self._addr),
            rule=self._service.tcp_plan.rule if self._service.tcp_plan is not None else self._service.rule,
            subset=cluster.subset if cluster is not None else "",
            upstream=upstream.text if upstream is not None else "",
            mtls=bool(upstream and upstream.peer.identity),
            attempts=self.attempts,
            sni=self._tls.hello.sni if self._tls.hello is not None else "",
        )
