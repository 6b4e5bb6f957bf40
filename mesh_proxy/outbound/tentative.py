"""A connection that is opened beside the wait for a silent client, in case the server speaks first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from certs.credentials import ALPN_TCP
from mesh_proxy.base.errors import TransportError
from mesh_proxy.net.conn import Conn
from mesh_proxy.outbound.opaque import Tentative
from mesh_proxy.pool.service import Service
from mesh_proxy.wire.detect import server_undecided

_HELD_BYTES = 64 * 1024


async def open_tentative(conn: Conn, service: Service, silent_s: float) -> Tentative | None:
    """Open it; returns when the client (`conn`) has spoken or the server's bytes decide.

    The server has decided if the client has still not spoken. None if no connection came up: the client's
    own bytes will meet the error. Nothing is counted yet.
    """
    plan = service.tcp_plan
    arm = plan.arm() if plan is not None else None
    cluster = (arm.fixed or arm.find()) if arm is not None else None
    if arm is None or cluster is None or not cluster.endpoints:
        return None
    now = conn.reactor.now
    endpoint = cluster.pick((), False, now)
    if endpoint is None:
        return None
    conn.set_deadline(silent_s)
    dialled: list[Conn] = []

    async def dial() -> None:
        dialled.append(await endpoint.dialer.dial(endpoint.peer, ALPN_TCP, cluster.connect_s))

    try:
        await _unless_readable(conn, dial)
        if not dialled:
            return None
        tentative = Tentative(arm, cluster, endpoint, dialled[0])
        tentative.decided = await _server_decides(conn, dialled[0])
        return tentative
    except TransportError:
        if dialled:
            dialled[0].abort()
        return None
    except BaseException:
        if dialled:
            dialled[0].abort()
        raise
    finally:
        cluster.outliers.release(endpoint, now)


async def _server_decides(conn: Conn, up: Conn) -> bool:
    """Wait for either side; whether the server's bytes, which stay unread, decide."""
    held = b""
    decided = False
    while not conn.readable:
        got: list[bytes] = []

        async def read() -> None:
            got.append(await up.read())  # noqa: B023 - awaited within this turn

        await _unless_readable(conn, read)
        if not got:
            break
        held += got[0]
        # Bytes that do not decide are held; more of them, or the client's first, will.
        if not got[0]:
            break  # ended; that says nothing about who speaks first
        if not server_undecided(held) or len(held) > _HELD_BYTES:
            decided = True
            break
    up.unread(held)
    return decided


async def _unless_readable(conn: Conn, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`, cancelled as soon as `conn` has bytes or has ended; raises what `work` raises."""
    failure: TransportError | None = None

    async def watch() -> None:
        try:
            await conn.wait_readable()
        except TransportError:
            pass  # whoever reads next meets it
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        try:
            await work()
        except TransportError as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
