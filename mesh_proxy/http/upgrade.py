"""Tunnels: what becomes of a connection after 101 (RFC 9110, 7.8), or after a 2xx to CONNECT (9.3.6).

Only protocols on the sidecar's list are asked for; every other `Upgrade` is removed like any field of one
hop, and the request goes on without. What an endpoint agrees to is checked against what was asked. From then
on bytes go both ways as in a relay of an opaque connection: with half-close, the TCP idle time-out in place
of the request's, and no part in latencies. CONNECT leads where the connection leads, never to its target.
"""

from __future__ import annotations

from mesh_proxy.base.errors import TransportError
from mesh_proxy.http.exchange import Exchange
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.relay import Relay
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.pool.cluster import Cluster
from mesh_proxy.pool.plan import Plan
from mesh_proxy.wire.http1 import ResponseHead


async def tunnel(
    x: Exchange, plan: Plan, cluster: Cluster, response: ResponseHead, rest: bytes, up: Conn
) -> tuple[bool, str, str, bool]:
    """Pass the response on that opens a tunnel, and bytes both ways to its end; `rest` came with it.

    What the client has sent behind its request is the first that goes up. Returns as `response.relay` does.
    """
    down = x.conn
    x.status = response.status
    x.switched = x.reactor.now
    if x.idle is not None:
        x.idle.stop()
    block = response.forward_block(x.view.keep_mesh_error and bool(up.peer))
    if plan.response_edits is not None:
        block = plan.response_edits.apply(block)
    if x.asked is not None and x.asked.agreed:
        block += b"connection: upgrade\r\nupgrade: %s\r\n" % x.asked.agreed
    relay = Relay(down, up, cluster.tcp_idle_s)
    port = x.view.plaintext_port
    relays = x.context.relays
    if port:
        relays[relay] = port
    try:
        await down.write(b"HTTP/1.1%s\r\n%s\r\n" % (response.line[8:], block))
        if relay.flag:  # the port has become STRICT meanwhile
            down.abort()
        else:
            if rest:
                up.unread(rest)
            await relay.run()
    except TransportError as exc:
        down.abort()
        return False, Flag.DC, exc.detail, False
    finally:
        relays.pop(relay, None)
    return False, relay.flag, relay.detail, False
