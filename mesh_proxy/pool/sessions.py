"""The HTTP/2 sessions of one endpoint: many requests share one, and those that wait share one dial.

Sessions are filled one after the other; one that holds much for slow readers gets no more while another may
be dialled. A request for which there is no room waits until a stream is over, or until another session is up,
which is dialled for it; the circuit breaker counts sessions as connections.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import trio

from certs.credentials import ALPN_HTTP2
from mesh_proxy.base.errors import ConnectFailed, PartnerGone, PeerReset, StreamReset, TransportError
from mesh_proxy.http2.client import ClientSession
from mesh_proxy.http2.stream import ClientStream
from mesh_proxy.net.roles import Interruptible
from mesh_proxy.pool.overflow import Overflow
from mesh_proxy.wire.http1 import HttpError
from mesh_proxy.wire.http2.seam import RequestFields

if TYPE_CHECKING:
    from mesh_proxy.pool.cluster import Cluster
    from mesh_proxy.pool.endpoint import Endpoint

PER_DIAL = 100
"""Requests that wait for one dial; for more, another is begun beside it."""


class HasPartner(Protocol):
    """For whom something is waited."""

    partner: Interruptible | None
    doom: TransportError | None
    """Why nothing needs to be waited for any more."""


class _Waiter:
    __slots__ = ("end", "error", "event", "fields", "per_session", "stream")

    def __init__(self, fields: RequestFields, end: bool, per_session: int) -> None:
        self.fields = fields
        self.end = end
        self.per_session = per_session
        self.event = trio.Event()
        self.stream: ClientStream | None = None
        self.error: TransportError | Overflow | HttpError | None = None

    def interrupt(self, error: TransportError) -> None:
        self.error = error
        self.event.set()


class _Turn:
    """For whom a dial waits for leave: whoever will have a stream of it."""

    partner: Interruptible | None = None
    doom: TransportError | None = None
    """Nobody waits any more."""


class Sessions:
    """Sessions to one endpoint."""

    __slots__ = ("_cluster", "_dials", "_endpoint", "_turns", "_waiting", "up")

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._cluster: Cluster | None = None
        self._dials = 0
        self._turns: dict[_Turn, None] = {}
        self._waiting: dict[_Waiter, None] = {}
        self.up: list[ClientSession] = []
        """Those that are open; some may take no new stream."""

    def open(
        self, fields: RequestFields, end: bool, per_session: int, clogged: bool = False
    ) -> ClientStream | None:
        """A stream with a request's head on its way; None if there is no room.

        `per_session`: how many requests a session carries before it ends; 0 is no limit. `clogged`: on any
        session, as there will be no better one. Raises HttpError for an extended CONNECT that the endpoint
        does not take (RFC 8441, 3).
        """
        for session in self.up:
            if not session.capacity() or (session.streams and not session.settled):
                continue  # how many streams the peer takes is known with its SETTINGS
            if (
                not clogged
                and session.clogged
                and self._cluster is not None
                and not self._cluster.breaker.full
            ):
                continue
            if fields.protocol and not session.engine.peer_connect_protocol:
                if session.settled:
                    raise HttpError(501, "no-extended-connect", "the endpoint takes no extended CONNECT")
                continue
            try:
                stream = session.open(fields, end)
            except StreamReset:
                continue  # it takes none any more
            if per_session and session.uses >= per_session:
                session.retire()
            return stream
        return None

    async def turn(
        self, cluster: Cluster, fields: RequestFields, end: bool, within_s: float, client: HasPartner
    ) -> ClientStream:
        """The same; waits until there is room.

        Raises:
            ConnectFailed: no session came up.
            Overflow: there may be no more sessions, and no stream ended within the time.
            PartnerGone: the client is gone.
        """
        if client.doom is not None:
            raise PartnerGone(client.doom.detail)
        waiter = _Waiter(fields, end, cluster.per_connection)
        self._waiting[waiter] = None
        self._cluster = cluster
        self._dial_for_all()
        client.partner = waiter
        try:
            with trio.fail_after(max(within_s, 0.0)):
                await waiter.event.wait()
            if waiter.error is not None:
                raise waiter.error
        except trio.TooSlowError:
            full = bool(self._turns) or not self._coming
            self._drop(waiter)
            if full:
                raise Overflow(f"every stream is in use, and none ended within {within_s:g} s") from None
            raise ConnectFailed(f"no session within {within_s:g} s") from None
        except BaseException:
            self._drop(waiter)
            raise
        finally:
            client.partner = None
        assert waiter.stream is not None, "woken without an error"
        return waiter.stream

    def idle(self) -> Iterable[ClientSession]:
        """Sessions without a stream."""
        return [session for session in self.up if not session.streams]

    def close_idle(self) -> None:
        """Close the sessions that nobody uses, at once."""
        for session in self.idle():
            session.stop(PeerReset("not needed any more"))

    def retire(self) -> None:
        """No new request comes here: sessions end with the streams that they have."""
        for session in list(self.up):
            session.retire()

    def _drop(self, waiter: _Waiter) -> None:
        self._waiting.pop(waiter, None)
        if waiter.stream is not None:
            waiter.stream.close()
        self._call_off()

    @property
    def _coming(self) -> int:
        """Dials, and sessions whose peer has not said yet what it takes."""
        return self._dials + sum(not session.settled and session.dead is None for session in self.up)

    def _dial_for_all(self) -> None:
        """Begin as many dials as those who wait are likely to need."""
        tasks = self._endpoint.dialer.tasks
        assert tasks is not None, "the sidecar runs"
        if any(session.open_to_new and not session.engine.peer_max_streams for session in self.up):
            return  # the endpoint takes no stream for now: another session would make no difference
        while self._cluster is not None and len(self._waiting) > PER_DIAL * self._coming:
            self._dials += 1
            tasks.start_soon(self._run, self._cluster)

    async def _run(self, cluster: Cluster) -> None:
        """Dial one session and serve it to its end. A defect of ours ends this session and no other."""
        try:
            await self._serve_one(cluster)
        except Exception as exc:
            self._endpoint.dialer.on_defect(f"HTTP/2 session to {self._endpoint.peer.addr}", exc)

    async def _serve_one(self, cluster: Cluster) -> None:
        dialer = self._endpoint.dialer
        try:
            turn = _Turn()
            self._turns[turn] = None
            try:
                conn = await cluster.dial_session(self._endpoint, ALPN_HTTP2, turn)
            finally:
                del self._turns[turn]
        except (ConnectFailed, Overflow) as exc:
            self._dials -= 1
            if turn.doom is None:
                self._failed(exc)
            else:
                self._dial_for_all()  # for those who have come meanwhile
            return
        except BaseException:
            self._dials -= 1
            raise
        session = dialer.http2.client(conn, self._endpoint.idle_s)
        session.on_free = self._freed
        dialer.http2.clients[session] = None
        self.up.append(session)
        self._dials -= 1
        dialer.stats.upstream_connections.child(cluster.service.label).value += 1
        self._serve()
        if self._endpoint.retired:
            session.retire()
        try:
            await session.run()
        finally:
            self.up.remove(session)
            del dialer.http2.clients[session]
            conn.abort()

    def _failed(self, exc: ConnectFailed | Overflow) -> None:
        """A dial has brought no session: tell those who wait for one, unless they can have a stream."""
        if self._dials or (self.up and isinstance(exc, Overflow)):
            return
        self._place(clogged=True)
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            waiter.error = exc
            waiter.event.set()

    def _call_off(self) -> None:
        """Nobody waits any more: no dial needs to wait for leave."""
        if not self._waiting:
            for turn in self._turns:
                if turn.partner is not None:
                    turn.doom = ConnectFailed("not needed any more")
                    turn.partner.interrupt(turn.doom)

    def _freed(self, session: ClientSession) -> None:
        if self._waiting:
            if session.dead is not None and not session.settled:
                self._failed(ConnectFailed(f"no HTTP/2 session: {session.dead.detail}"))
            self._serve()
            self._call_off()
        cluster = self._cluster
        wanted = cluster is not None and bool(cluster.connections.waiting)
        if wanted and session.dead is None and not session.streams:
            session.stop(PeerReset("another endpoint needs the connection"))

    def _serve(self) -> None:
        """Let those go on for whom there is room, and dial for the others."""
        self._place()
        if self._waiting and not self._coming:
            self._dial_for_all()

    def _place(self, clogged: bool = False) -> None:
        while self._waiting:
            waiter = next(iter(self._waiting))
            try:
                waiter.stream = self.open(waiter.fields, waiter.end, waiter.per_session, clogged)
            except HttpError as exc:
                waiter.error = exc
            if waiter.stream is None and waiter.error is None:
                break
            del self._waiting[waiter]
            waiter.event.set()
