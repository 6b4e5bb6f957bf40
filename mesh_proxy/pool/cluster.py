"""The endpoints that one arm of a split may use, and how: balancer, limits, ejection, time-outs.

A destination has one cluster for all its endpoints, or one for each subset that its routes lead to. Each has
endpoints of its own, so what is learned, counted and limited in one says nothing about another. A new
configuration is taken over in place: what has not changed keeps its state.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from mesh_api.sidecar import Protocol
from mesh_api.traffic import HttpVersion, Settings
from mesh_proxy.http2.stream import ClientStream
from mesh_proxy.net.conn import Conn
from mesh_proxy.policy.affinity import chosen_by
from mesh_proxy.policy.breaker import Breaker
from mesh_proxy.policy.outlier import Outliers
from mesh_proxy.pool.connections import Connections
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.pool.overflow import Overflow
from mesh_proxy.pool.sessions import HasPartner
from mesh_proxy.wire.http2.seam import RequestFields

if TYPE_CHECKING:
    from mesh_proxy.pool.service import Service


class Cluster:
    """Endpoints with one set of settings; `subset` is '' for all endpoints of the destination."""

    __slots__ = (
        "_rng",
        "balancer",
        "breaker",
        "connect_s",
        "connections",
        "endpoints",
        "http2",
        "outliers",
        "per_connection",
        "request_s",
        "service",
        "settings",
        "stream_idle_s",
        "subset",
        "tcp_idle_s",
    )

    def __init__(self, service: Service, subset: str, settings: Settings, rng: random.Random) -> None:
        self.service = service
        self.subset = subset
        self.endpoints: tuple[Endpoint, ...] = ()
        self.breaker = Breaker(settings.breaker)
        self.connections = Connections(self.breaker)
        self.outliers: Outliers[Endpoint] = Outliers(settings.outliers)
        self.balancer = chosen_by(settings)
        self._rng = rng
        self._take(settings)

    def update(self, settings: Settings, endpoints: tuple[Endpoint, ...]) -> None:
        """Take over a new configuration; what has not changed keeps its state."""
        before = self.settings
        self._take(settings)
        if _choice(settings) != _choice(before):
            self.balancer = chosen_by(settings)
        self.breaker.update(settings.breaker)
        self.connections.serve()
        if endpoints != self.endpoints or settings.outliers != before.outliers:
            self.endpoints = endpoints
            self.outliers.update(settings.outliers, endpoints)

    def _take(self, settings: Settings) -> None:
        self.settings = settings
        timeouts = settings.timeouts
        self.connect_s = timeouts.connect_s
        self.request_s = timeouts.request_s
        self.stream_idle_s = timeouts.stream_idle_s
        self.tcp_idle_s = timeouts.tcp_idle_s
        self.per_connection = settings.breaker.max_requests_per_connection
        self.http2 = self._version(settings.http_version)
        """Whether endpoints are asked in HTTP/2; None: as the client speaks."""

    def _version(self, version: HttpVersion) -> bool | None:
        if version is not HttpVersion.CLIENT:
            return version is HttpVersion.HTTP2
        spec = self.service.spec
        return True if spec is not None and spec.protocol is Protocol.HTTP2 else None

    # -- choosing -----------------------------------------------------------------------------------------

    def pick(self, tried: Sequence[Endpoint], again: bool, now: float) -> Endpoint | None:
        """The endpoint for an attempt; call `release` at its end.

        Args:
            tried: endpoints that are not asked again while others are left ...
            again: ... and then only if this is set.
            now: the reactor's clock.
        """
        outliers = self.outliers
        if now >= outliers.due and not self.balancer.holds(outliers.eligible, now):
            probe = outliers.probe(tried, now)
            if probe is not None:
                return probe
        found = self.balancer.pick(outliers.eligible, tried, self._rng, now)
        if found is None and again and tried:
            return self.balancer.pick(outliers.eligible, (), self._rng, now)
        return found

    def can_pick(self, tried: Sequence[Endpoint], again: bool) -> bool:
        """Whether there is an endpoint for another attempt."""
        eligible = self.outliers.eligible
        return bool(eligible) and (again or any(endpoint not in tried for endpoint in eligible))

    def why_none(self) -> str:
        """Why there was no endpoint for a first attempt."""
        what = f"subset {self.subset}" if self.subset else "destination"
        spec = self.service.spec
        where = " on this node (internalTrafficPolicy Local)" if spec is not None and spec.local else ""
        return f"the {what} has no endpoint{where}"

    def left_out(self) -> str:
        """How many endpoints are ejected, to be added to an error's detail; '' for none."""
        ejected = len(self.outliers.ejected)
        return f"; {ejected} of {len(self.endpoints)} endpoints ejected" if ejected else ""

    def observe(self, endpoint: Endpoint, begun: float, status: int, failed: bool, now: float) -> bool:
        """Learn from an attempt; status 0: no answer, by the endpoint's fault. Whether it was ejected."""
        self.balancer.observe(endpoint, now - begun, failed, now)
        if not failed and endpoint.strikes is None:
            return False
        outliers = self.outliers
        before = outliers.ejections
        outliers.observe(endpoint, status, begun, now)
        return outliers.ejections > before

    # -- connections --------------------------------------------------------------------------------------

    async def connect(self, endpoint: Endpoint, alpn: str, within_s: float, client: HasPartner) -> Conn:
        """A connection to an endpoint: a new one, or, where their number is limited, one that became free.

        It is for `client`, whose reset ends a wait for its turn.

        Raises:
            ConnectFailed: none came up.
            Overflow: too many wait for one, or no turn came within the time.
            PartnerGone: the client is gone.
        """
        limit = self.breaker.wait()
        if limit:
            raise Overflow(limit)
        try:
            limit = self.connections.open()
            if limit:
                until = trio.current_time() + within_s
                try:
                    conn = await self.connections.turn(endpoint, self.endpoints, within_s, client)
                except trio.TooSlowError:
                    raise Overflow(f"{limit}, and none became free within {within_s:g} s") from None
                if conn is not None:
                    return conn
                within_s = until - trio.current_time()
            return await self._dial(endpoint, alpn, within_s)
        finally:
            self.breaker.waited()

    async def open(
        self, endpoint: Endpoint, fields: RequestFields, end: bool, within_s: float, client: HasPartner
    ) -> ClientStream:
        """A stream to an endpoint with a request's head on its way, where `endpoint.sessions` had no room.

        Raises like `connect`.
        """
        limit = self.breaker.wait()
        if limit:
            raise Overflow(limit)
        try:
            return await endpoint.sessions.turn(self, fields, end, within_s, client)
        finally:
            self.breaker.waited()

    async def dial_session(self, endpoint: Endpoint, alpn: str, client: HasPartner) -> Conn:
        """A new connection for a session. Raises ConnectFailed, Overflow."""
        within_s = self.connect_s
        limit = self.connections.open()
        if limit:
            until = trio.current_time() + within_s
            try:
                await self.connections.turn(endpoint, self.endpoints, within_s, client, new=True)
            except trio.TooSlowError:
                raise Overflow(f"{limit}, and none became free within {within_s:g} s") from None
            within_s = until - trio.current_time()
        return await self._dial(endpoint, alpn, within_s)

    async def connect_now(self, endpoint: Endpoint, alpn: str) -> Conn:
        """A connection for an opaque stream, which waits for no other to end. Raises like `connect`."""
        limit = self.connections.open()
        if limit:
            raise Overflow(limit)
        return await self._dial(endpoint, alpn, self.connect_s)

    async def _dial(self, endpoint: Endpoint, alpn: str, within_s: float) -> Conn:
        """Dial a connection that is counted already."""
        try:
            conn = await endpoint.dialer.dial(endpoint.peer, alpn, within_s)
        except BaseException:
            self.connections.closed()
            raise
        conn.lease = self.connections
        return conn

    def give(self, endpoint: Endpoint, conn: Conn) -> None:
        """Take back a connection on which an exchange has ended cleanly."""
        if self.per_connection:
            conn.uses += 1
            if conn.uses >= self.per_connection:
                conn.partner = None
                conn.bye()
                return
        if self.connections.waiting:
            self.connections.hand_over(conn, endpoint)
        else:
            endpoint.give(conn)


def _choice(settings: Settings) -> object:
    """What the balancer is made of."""
    return settings.algorithm, settings.warmup_s, settings.affinity_s
