"""Tunnels on HTTP/2 streams, by extended CONNECT (RFC 8441): `upgrade.py` has those of HTTP/1."""

from __future__ import annotations

from collections.abc import Awaitable

from mesh_proxy.base.errors import PartnerGone
from mesh_proxy.http.exchange import Exchange, Outcome
from mesh_proxy.net.conn import Interruptible


class _StreamTunnel:
    __slots__ = ("_ends",)

    def __init__(self, down: Interruptible, up: Interruptible) -> None:
        self._ends = down, up

    def stop(self, flag: str, detail: str) -> None:
        """End both directions at once."""
        for end in self._ends:
            end.interrupt(PartnerGone(f"{flag}: {detail}"))


async def stream_tunnel(x: Exchange, up: Interruptible, relayed: Awaitable[Outcome]) -> Outcome:
    """Await a tunnel; one of an unproved caller may be ended by a change of its port's mTLS mode."""
    port = x.view.plaintext_port
    if not port:
        return await relayed
    relays = x.context.relays
    running = _StreamTunnel(x.down, up)
    relays[running] = port
    try:
        return await relayed
    finally:
        del relays[running]
