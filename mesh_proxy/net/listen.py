"""Listening sockets of the data path, and the loop that accepts from them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable

import trio

from mesh_proxy.net.addr import Addr

BACKLOG = 4096
BURST = 64
"""Connections accepted before the others get their turn."""
_PASSING = {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENETUNREACH, errno.EPERM}
_EXHAUSTED_S = 0.1


def listen(addr: Addr, *, backlog: int = BACKLOG) -> socket.socket:
    """A non-blocking listening socket; an IPv6 one takes IPv6 only. Raises OSError."""
    sock = socket.socket(addr.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if addr.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((addr.ip, addr.port))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


async def accept_loop(
    listener: socket.socket,
    handle: Callable[[socket.socket], Awaitable[None]],
    nursery: trio.Nursery,
    admit: Callable[[socket.socket], bool],
    on_exhausted: Callable[[str], None],
) -> None:
    """Accept until cancelled; one task per connection, in `nursery`.

    `admit` says whether one more connection is within the bounds; one that is not is reset. When the
    process is out of descriptors the loop pauses instead of spinning, and says so.
    """
    while True:
        await trio.lowlevel.wait_readable(listener)
        for _ in range(BURST):
            try:
                sock, _peer = listener.accept()
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno in _PASSING:
                    continue
                on_exhausted(exc.strerror or "accept failed")
                await trio.sleep(_EXHAUSTED_S)
                break
            sock.setblocking(False)
            try:
                tune(sock)
            except OSError:
                sock.close()
                continue
            if not admit(sock):
                reset(sock)
                continue
            nursery.start_soon(handle, sock)


def tune(sock: socket.socket) -> None:
    """What every connection of the data path gets: no delay, and an end if its peer's host has vanished.

    Probes start after 60 s of silence; five without an answer, 10 s apart, end the connection.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)


def reset(sock: socket.socket) -> None:
    """Close a connection with a reset."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    except OSError:
        pass
    sock.close()
