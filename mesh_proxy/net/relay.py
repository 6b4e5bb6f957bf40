"""Bytes both ways between two connections, for what is not HTTP.

Each direction ends by itself (half-close). A reset on one side resets the other, once what had arrived
before it is passed on; any other error resets both at once. One timer bounds the silence of both directions
together.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from mesh_proxy.base.errors import IdentityEnded, PeerReset, ProtocolFailed, TransportError
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.wheel import NEVER, Timed
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.wire.detect import LateHttp, Verdict

LAST_S = 5.0
"""After a reset: how long the other side may take none of the bytes that had arrived before it."""
_LOOK_S = 0.01, 0.5
"""How soon it is looked whether they have been taken: at first, and at last where none are."""
_TCP_CLOSE = 7
"""The state of a connection that is no more (include/net/tcp_states.h), the first byte of TCP_INFO."""


class Relay(Timed):
    """One relay between the client (`down`) and the endpoint (`up`); `deadline` is the idle timer."""

    __slots__ = (
        "_open",
        "_sent",
        "detail",
        "down",
        "flag",
        "idle_s",
        "scope",
        "to_down",
        "to_up",
        "up",
        "watch",
    )

    def __init__(self, down: Conn, up: Conn, idle_s: float) -> None:
        """`idle_s`: seconds without a byte in either direction."""
        super().__init__()
        self.down = down
        self.up = up
        self.idle_s = idle_s
        self.flag: str = ""
        self.detail = ""
        self.to_up = 0
        self.to_down = 0
        self.watch: Callable[[bytes], bool] | None = None
        """Shown the client's bytes before they go on, until it returns true; it may raise ProtocolFailed."""
        self.scope = trio.CancelScope()
        self._open = [down, up]
        """The connections whose bytes may still come."""
        self._sent = 0

    async def run(self) -> None:
        """Relay until both directions have ended, or one has failed; both connections are closed then."""
        down, up = self.down, self.up
        reactor = down.reactor
        down.deadline = up.deadline = NEVER
        down.partner, up.partner = _Ear(self, down), _Ear(self, up)
        reactor.set_deadline(self, reactor.now + self.idle_s)
        ended = False
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, down, up)
                    await self._copy(up, down)
                ended = not self.flag
            if self.flag == Flag.DC:
                down.abort()
                await _drained(up)
            elif self.flag == Flag.UC:
                up.abort()
                await _drained(down)
        finally:
            reactor.wheel.forget(self)
            if ended:
                down.close()
                up.close()
            else:
                down.abort()
                up.abort()

    def on_deadline(self) -> None:
        sent = self.down.sent + self.up.sent
        if self.flag and sent != self._sent:
            # The last bytes of a connection that was reset are still being taken.
            self._sent = sent
            self.down.reactor.set_deadline(self, self.down.reactor.now + LAST_S)
            return
        self.stop(Flag.SI, f"no byte for {self.idle_s:g} s")

    def stop(self, flag: str, detail: str) -> None:
        """End the relay with a reset on both sides."""
        if not self.flag:
            self.flag, self.detail = flag, detail
        self.scope.cancel()

    def lost(self, conn: Conn, detail: str) -> None:
        """`conn` is broken: what had come on it goes on to the other one, which is reset then."""
        if not self.flag:
            self.flag, self.detail = self._fault_of(conn), detail
            self.idle_s = min(self.idle_s, LAST_S)
            self._sent = self.down.sent + self.up.sent
            conn.reactor.set_deadline(self, conn.reactor.now + self.idle_s)
        if conn not in self._open:
            self.scope.cancel()

    def _fault_of(self, conn: Conn) -> str:
        return Flag.DC if conn is self.down else Flag.UC

    async def _copy(self, source: Conn, sink: Conn) -> None:
        reactor = source.reactor
        upwards = source is self.down
        at_fault = source
        try:
            while True:
                at_fault = source
                parts = await source.read_parts()
                at_fault = sink
                if not parts:
                    if self.flag:
                        # An end that follows a failure is no end to pass on.
                        if self.flag == self._fault_of(source):
                            self.scope.cancel()
                        return
                    self._open.remove(source)
                    await sink.write_eof()
                    return
                size = sum(map(len, parts))
                if upwards:
                    self.to_up += size
                    if self.watch is not None and self.watch(b"".join(parts)):
                        self.watch = None
                else:
                    self.to_down += size
                await sink.write_parts(parts)
                self.deadline = reactor.now + self.idle_s
        except IdentityEnded as exc:
            self.stop(Flag.UAEX, exc.detail)
        except ProtocolFailed as exc:
            self.stop(Flag.DPE, exc.detail)
        except PeerReset as exc:
            if at_fault is sink:
                self.lost(sink, exc.detail)
            else:
                self.stop(self._fault_of(source), exc.detail)
        except TransportError as exc:
            self.stop(self._fault_of(at_fault), exc.detail)


class _Ear:
    """Hears that a connection of a relay was reset while nobody waited for its bytes."""

    __slots__ = ("_conn", "_relay")

    def __init__(self, relay: Relay, conn: Conn) -> None:
        self._relay = relay
        self._conn = conn

    def interrupt(self, error: TransportError) -> None:
        self._relay.lost(self._conn, error.detail)


def refuse_late_http() -> Callable[[bytes], bool]:
    """A `watch` for a client that stopped within what may be a request."""
    late = LateHttp()

    def watch(data: bytes) -> bool:
        verdict = late.feed(data)
        if verdict is Verdict.HTTP1 or verdict is Verdict.HTTP2:
            raise ProtocolFailed("a request of HTTP that began too slowly to be told from opaque bytes")
        return verdict is not Verdict.NEED_MORE

    return watch


async def _drained(conn: Conn) -> None:
    """Wait until the peer has what was sent, as long as it takes some: a reset would destroy the rest."""
    left = _unsent(conn)
    pause_s, longest_s = _LOOK_S
    with trio.move_on_after(LAST_S) as scope:
        while left:
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
            before, left = left, _unsent(conn)
            if left < before:
                pause_s = _LOOK_S[0]
                scope.deadline = trio.current_time() + LAST_S


def _unsent(conn: Conn) -> int:
    """Bytes in the kernel's send queue that the peer has not acknowledged."""
    # A connection that the peer has reset keeps its count for ever.
    if conn.closed or conn.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE:
        return 0
    return conn.taken()[1]


async def wait_either(one: Conn, other: Conn) -> None:
    """Return once one of two connections has bytes or has ended; raises their errors."""
    failure: TransportError | None = None

    async def wait(conn: Conn) -> None:
        nonlocal failure
        try:
            await conn.wait_readable()
        except TransportError as exc:
            failure = exc
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, one)
        await wait(other)
    if failure is not None:
        raise failure
