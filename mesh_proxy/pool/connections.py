"""Whose turn is next where the number of connections of a cluster is limited."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import trio

from mesh_proxy.base.errors import PartnerGone, TransportError
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.policy.breaker import Breaker
from mesh_proxy.pool.endpoint import Endpoint
from mesh_proxy.pool.sessions import HasPartner


class _Waiter:
    __slots__ = ("conn", "endpoint", "error", "event", "granted", "new")

    def __init__(self, endpoint: Endpoint, new: bool) -> None:
        self.endpoint = endpoint
        self.new = new
        self.event = trio.Event()
        self.error: TransportError | None = None
        """The client is gone."""
        self.conn: Conn | None = None
        """A connection of `endpoint` that was handed over, or ..."""
        self.granted = False
        """... leave to open one, which is counted already."""

    def interrupt(self, error: TransportError) -> None:
        self.error = error
        self.event.set()


class Connections:
    """The open connections of one cluster, which `breaker` counts; who waits for one is served in order."""

    __slots__ = ("_breaker", "waiting")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self.waiting: deque[_Waiter] = deque()

    def open(self) -> str:
        """Count a connection that is about to be dialled; otherwise why not, in words."""
        if self.waiting:
            return "maxConnections is reached, and others wait already"
        return self._breaker.connect()

    def closed(self) -> None:
        """One of them has been closed: the next may open one."""
        self._breaker.closed()
        self.serve()

    def serve(self) -> None:
        """Let those go on for whom there is room."""
        while self.waiting and not self._breaker.connect():
            waiter = self.waiting.popleft()
            waiter.granted = True
            waiter.event.set()

    def hand_over(self, conn: Conn, endpoint: Endpoint) -> None:
        """Give a connection that became idle to whoever is next; without anybody it stays idle."""
        if not self.waiting or conn.lease is not self or conn.readable or conn.ended or conn.doom:
            endpoint.give(conn)
            return
        conn.partner = None
        first = self.waiting[0]
        if first.new or first.endpoint is not endpoint or conn.expires <= conn.reactor.now:
            conn.bye()  # its place goes to the next, who wants another endpoint or needs a new one
            return
        conn.fresh = False
        conn.deadline = NEVER  # it was that of the exchange before
        waiter = self.waiting.popleft()
        waiter.conn = conn
        waiter.event.set()

    def take_over(self, endpoint: Endpoint) -> None:
        """Count the idle connections that an endpoint has from one of another cluster."""
        for conn in list(endpoint.idle):
            if self._breaker.connect():
                endpoint.drop_idle(conn)
                continue
            if conn.lease is not None:
                conn.lease.closed()
            conn.lease = self

    async def turn(
        self,
        endpoint: Endpoint,
        others: Iterable[Endpoint],
        within_s: float,
        client: HasPartner,
        new: bool = False,
    ) -> Conn | None:
        """Wait for a connection of `endpoint`, or (None) for leave to open one, which is counted then.

        Args:
            endpoint: whose connection is wanted.
            others: every endpoint of the cluster: what is idle there makes room.
            within_s: how long to wait.
            client: for whom; its reset ends the wait.
            new: only leave to open one will do.

        Raises:
            trio.TooSlowError: neither came in time.
            PartnerGone: the client is gone.
        """
        if client.doom is not None:
            raise PartnerGone(client.doom.detail)
        waiter = _Waiter(endpoint, new)
        self.waiting.append(waiter)
        self._close_idle(others)
        client.partner = waiter
        try:
            with trio.fail_after(max(within_s, 0.0)):
                await waiter.event.wait()
            if waiter.error is not None:
                raise waiter.error
        except BaseException:
            self._leave(waiter)
            raise
        finally:
            client.partner = None
        return waiter.conn

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.granted:
            self.closed()
        elif waiter.conn is not None:
            self.hand_over(waiter.conn, waiter.endpoint)
        else:
            self.waiting.remove(waiter)

    def _close_idle(self, endpoints: Iterable[Endpoint]) -> None:
        """Make room: nobody needs to wait for a place that an idle connection takes."""
        for endpoint in endpoints:
            for conn in list(endpoint.idle):
                if not self.waiting:
                    return
                endpoint.drop_idle(conn)
            if self.waiting:
                endpoint.sessions.close_idle()
