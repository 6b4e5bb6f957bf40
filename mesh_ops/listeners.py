"""Listening in every family that the host has."""

from __future__ import annotations

import errno
import socket

import trio

BACKLOG = 64
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def open_listeners(port: int, *, loopback: bool, backlog: int = BACKLOG) -> list[trio.SocketListener]:
    """Listen on `port` for both families, each with a socket of its own; a family the host lacks is left out.

    Raises OSError when the port is taken or no family is there.
    """
    addresses = (
        ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
        if loopback
        else ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))
    )
    listeners: list[trio.SocketListener] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            try:
                listeners.append(_listener(family, address, port, backlog))
            except OSError as exc:
                if exc.errno not in _NO_SUCH_FAMILY:
                    raise
                missing = exc
        if missing is not None and not listeners:
            raise missing
    except OSError:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


def _listener(family: socket.AddressFamily, address: str, port: int, backlog: int) -> trio.SocketListener:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(backlog)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except OSError:
        sock.close()
        raise
