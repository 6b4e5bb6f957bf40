"""Waiting within a request, on nothing but time: a pause before a retry, a fault that delays."""

from __future__ import annotations

import trio

from mesh_proxy.base.errors import PartnerGone, TransportError
from mesh_proxy.http.exchange import Exchange


class _Pause:
    __slots__ = ("error", "over")

    def __init__(self) -> None:
        self.over = trio.Event()
        self.error: TransportError | None = None

    def interrupt(self, error: TransportError) -> None:
        self.error = error
        self.over.set()


async def pause(x: Exchange, seconds: float) -> None:
    """Wait; the client's end ends it.

    Raises:
        PartnerGone: the client has reset its connection or stream.
    """
    if x.gone():
        raise PartnerGone("the client reset the connection")
    down = x.down
    waiting = _Pause()
    before, down.partner = down.partner, waiting
    try:
        with trio.move_on_after(seconds):
            await waiting.over.wait()
    finally:
        down.partner = before
        x.reactor.now = trio.current_time()  # no event may have come meanwhile
    if waiting.error is not None:
        raise waiting.error
