"""Do the rules work? A real connection, and the address that SO_ORIGINAL_DST gives for it.

Outbound: a connection like one of the application must arrive at the sidecar's outbound port. Inbound:
nothing inside a namespace can send as if from the network, but a self-call takes the same chain: a socket
owned by the sidecar's uid dials the pod's own address and must arrive at the inbound port.
"""

import contextlib
import ctypes
import errno
import ipaddress
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Final

from injector.netinit import host, walk
from injector.netinit.plan import Family, Options

DEADLINE: Final = 5.0
_SO_ORIGINAL_DST: Final = 80
_SOL_IPV6: Final = 41
_NO_ROUTE: Final = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES)
_RESET: Final = struct.pack("ii", 1, 0)

Say = Callable[[str], None]


class _SkipError(Exception):
    """This check cannot be made here; the message says why."""


def probe(options: Options, family: Family, say: Say, deadline: float = DEADLINE) -> None:
    """Check one family; a check that cannot be made is reported through `say`."""
    end = monotonic() + deadline
    for name, check in (("outbound", _outbound), ("inbound", _inbound)):
        try:
            told = check(options, family, end)
        except _SkipError as reason:
            say(f"probe: IPv{family} {name} not checked: {reason}")
        except OSError as error:
            raise host.NetinitError(f"probe: IPv{family} {name}: {error}") from None
        else:
            say(f"probe: IPv{family} {name} works ({told})")


def _outbound(options: Options, family: Family, end: float) -> str:
    target = walk.outbound_target(options, family)
    if target is None:
        raise _SkipError("the options capture no connection that could be tried")
    if os.geteuid() == options.proxy_uid or os.getegid() == options.proxy_gid:
        raise _SkipError("this process runs with the sidecar's uid or gid, whose connections are exempt")
    address, port = target
    with _listen(family, options.outbound_port) as listener, _tcp(family) as client:
        _expect(listener, client, family, (str(address), port), options.outbound_port, end)
    return f"{_text(str(address), port)} arrived at port {options.outbound_port}"


def _inbound(options: Options, family: Family, end: float) -> str:
    port = walk.inbound_port(options, family)
    if port is None:
        raise _SkipError("the options capture no inbound port that could be tried")
    own = _own_address(family)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(family, options.inbound_port))
        client = stack.enter_context(_tcp(family, (options.proxy_uid, options.proxy_gid)))
        _expect(listener, client, family, (own, port), options.inbound_port, end)
    return f"{_text(own, port)} arrived at port {options.inbound_port}"


def _expect(
    listener: socket.socket,
    client: socket.socket,
    family: Family,
    dialled: tuple[str, int],
    wanted_port: int,
    end: float,
) -> None:
    what = f"probe: IPv{family}: the connection to {_text(*dialled)}"
    try:
        client.connect(dialled)
    except BlockingIOError:
        pass
    except OSError as error:
        if error.errno in _NO_ROUTE:
            raise _SkipError(f"no route to {dialled[0]}") from None
        raise
    while True:
        ready, _, _ = select.select([listener], [], [], max(0.0, end - monotonic()))
        if not ready:
            problem = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            reason = os.strerror(problem) if problem else f"nothing in {DEADLINE:.0f} s"
            raise host.NetinitError(f"{what} did not arrive at port {wanted_port}: {reason}")
        accepted, peer = listener.accept()
        with accepted:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            if peer[:2] != client.getsockname()[:2]:
                continue  # somebody else's connection
            got = original_destination(accepted, family)
            if got != dialled:
                raise host.NetinitError(f"{what} arrived, but SO_ORIGINAL_DST says {_text(*got)}")
            return


def original_destination(sock: socket.socket, family: Family) -> tuple[str, int]:
    """The address that was dialled before REDIRECT changed it."""
    if family == 4:
        raw = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
        return socket.inet_ntop(socket.AF_INET, raw[4:8]), int.from_bytes(raw[2:4], "big")
    raw = sock.getsockopt(_SOL_IPV6, _SO_ORIGINAL_DST, 28)
    return socket.inet_ntop(socket.AF_INET6, raw[8:24]), int.from_bytes(raw[2:4], "big")


def _listen(family: Family, port: int) -> socket.socket:
    sock = socket.socket(_af(family), socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1" if family == 4 else "::1", port))
        sock.listen(16)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise _SkipError(f"port {port} is in use; a sidecar seems to be running") from None
        raise
    return sock


def _tcp(family: Family, owner: tuple[int, int] | None = None) -> socket.socket:
    with _socket_owner(owner):
        sock = socket.socket(_af(family), socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def _socket_owner(owner: tuple[int, int] | None) -> Iterator[None]:
    """Sockets made inside belong to this uid and gid: the owner match asks who made the socket."""
    if owner is None:
        yield
        return
    if not (host.has_capability("CAP_SETUID") and host.has_capability("CAP_SETGID")):
        raise _SkipError("making a socket of the sidecar's uid needs CAP_SETUID and CAP_SETGID")
    libc = ctypes.CDLL(None)
    libc.setfsgid(owner[1])
    libc.setfsuid(owner[0])
    try:
        yield
    finally:
        libc.setfsuid(os.geteuid())
        libc.setfsgid(os.getegid())


def _own_address(family: Family) -> str:
    """The address that the pod would use towards the network; asking sends nothing."""
    with socket.socket(_af(family), socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((str(walk.NOWHERE[family]), 9))
        except OSError as error:
            if error.errno in _NO_ROUTE:
                raise _SkipError("no route, so no address of the pod is known") from None
            raise
        address = str(sock.getsockname()[0])
    if ipaddress.ip_address(address.partition("%")[0]).is_link_local:
        raise _SkipError("the pod has only a link-local address")
    return address


def _af(family: Family) -> socket.AddressFamily:
    return socket.AF_INET if family == 4 else socket.AF_INET6


def _text(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
