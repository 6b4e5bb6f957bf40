"""Which version of HTTP a client's connection speaks, and who serves it."""

from __future__ import annotations

from mesh_proxy.base.errors import DeadlineExceeded, TransportError
from mesh_proxy.http.context import Context, View
from mesh_proxy.http.server import Http1Server
from mesh_proxy.http.streams import Http2Requests
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.wheel import NEVER
from mesh_proxy.wire.detect import H2_PREFACE


async def serve_http1(context: Context, view: View) -> None:
    """Serve a connection of HTTP/1.x to its end."""
    await Http1Server(context, view).run()


async def serve_http2(context: Context, view: View) -> None:
    """Serve a connection of HTTP/2 to its end."""
    http2 = context.http2
    session = http2.server(view.conn, view.idle_s)
    http2.servers[session] = view.drains
    if view.drains and context.draining:
        session.drain()
    try:
        await session.run(Http2Requests(context, view).serve)
    finally:
        del http2.servers[session]
        view.conn.abort()


async def serve_http(context: Context, view: View) -> None:
    """Serve a connection of either version (RFC 9113, 3.3: prior knowledge) to its end."""
    conn = view.conn
    try:
        preface = await _has_preface(conn, view, context.limits.head_seconds)
    except DeadlineExceeded:
        conn.bye()
        return
    except TransportError:
        conn.abort()
        return
    if preface:
        await serve_http2(context, view)
    else:
        await serve_http1(context, view)


async def _has_preface(conn: Conn, view: View, head_s: float) -> bool:
    """Whether the client begins with the preface of HTTP/2; its bytes stay unread."""
    conn.set_deadline(view.idle_s)
    conn.between = view.drains
    first = b""
    while True:
        data = await conn.read()
        conn.between = False
        first += data
        begun = H2_PREFACE.startswith(first[: len(H2_PREFACE)])
        if not data or not begun or len(first) >= len(H2_PREFACE):
            break
        if len(first) == len(data):  # the first of them: the rest of a preface has to come in time
            conn.set_deadline(head_s)
    if first:
        conn.unread(first)
    conn.deadline = NEVER
    return begun and len(first) >= len(H2_PREFACE)
