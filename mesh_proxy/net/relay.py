"""Bytes both ways between two connections, for what is not HTTP.

Each direction ends by itself (half-close); an error or a reset on one side resets the other. One timer
bounds the silence of both directions together.
"""

from __future__ import annotations

import trio

from mesh_proxy.base.errors import IdentityEnded, PartnerGone, TransportError
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.wheel import NEVER, Timed
from mesh_proxy.policy.outcome import Flag


class Relay(Timed):
    """One relay between the client (`down`) and the endpoint (`up`); `deadline` is the idle timer."""

    __slots__ = ("detail", "down", "flag", "idle_s", "scope", "to_down", "to_up", "up")

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
        self.scope = trio.CancelScope()

    async def run(self) -> None:
        """Relay until both directions have ended, or one has failed; both connections are closed then."""
        down, up = self.down, self.up
        reactor = down.reactor
        down.deadline = up.deadline = NEVER
        down.partner, up.partner = up, down
        reactor.set_deadline(self, reactor.now + self.idle_s)
        ended = False
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._upwards)
                    await self._downwards()
                ended = not self.flag
        finally:
            reactor.wheel.forget(self)
            if ended:
                down.close()
                up.close()
            else:
                down.abort()
                up.abort()

    def on_deadline(self) -> None:
        self.stop(Flag.SI, f"no byte for {self.idle_s:g} s")

    def stop(self, flag: str, detail: str) -> None:
        """End the relay with a reset on both sides."""
        if not self.flag:
            self.flag, self.detail = flag, detail
        self.scope.cancel()

    async def _upwards(self) -> None:
        await self._copy(self.down, self.up)

    async def _downwards(self) -> None:
        await self._copy(self.up, self.down)

    async def _copy(self, source: Conn, sink: Conn) -> None:
        reactor = source.reactor
        upwards = source is self.down
        at_fault = source
        try:
            while True:
                at_fault = source
                data = await source.read()
                at_fault = sink
                if not data:
                    if self.flag:
                        return  # stopped: an end that follows a failure is no end to pass on
                    await sink.write_eof()
                    return
                if upwards:
                    self.to_up += len(data)
                else:
                    self.to_down += len(data)
                await sink.write(data)
                self.deadline = reactor.now + self.idle_s
        except PartnerGone as exc:
            # The other connection was reset while nobody waited on it.
            other = sink if at_fault is source else source
            self.stop(Flag.DC if other is self.down else Flag.UC, exc.detail)
        except IdentityEnded as exc:
            self.stop(Flag.UAEX, exc.detail)
        except TransportError as exc:
            self.stop(Flag.DC if at_fault is self.down else Flag.UC, exc.detail)


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
