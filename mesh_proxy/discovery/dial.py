"""Where the control plane is, and a connection to it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import trio

RESOLVE_S = 5.0
CONNECT_S = 3.0
MAX_ADDRESSES = 32


class StreamError(Exception):
    """The stream could not be made, or has ended; the message says why.

    `moving`: nothing is wrong, come back soon and elsewhere.
    """

    def __init__(self, reason: str, *, moving: bool = False) -> None:
        super().__init__(reason)
        self.moving = moving


class Target(NamedTuple):
    """One address of the control plane."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


Resolve = Callable[[str, int], Awaitable[Sequence[Target]]]


class Resolver:
    """Names to addresses, in threads of its own: a name server that does not answer stops nobody else."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(2)

    async def __call__(self, host: str, port: int) -> Sequence[Target]:
        """The addresses of `host`. Raises StreamError."""
        try:
            return [Target(str(ipaddress.ip_address(host)), port)]
        except ValueError:
            pass
        try:
            with trio.fail_after(RESOLVE_S):
                found = await trio.to_thread.run_sync(
                    lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
                    abandon_on_cancel=True,
                    limiter=self._threads,
                )
        except trio.TooSlowError:
            raise StreamError(f"{host}: no address within {RESOLVE_S:g} s") from None
        except (OSError, UnicodeError) as exc:
            raise StreamError(f"{host}: {getattr(exc, 'strerror', None) or exc}") from None
        targets = dict.fromkeys(Target(str(info[4][0]), port) for info in found)
        return list(targets)[:MAX_ADDRESSES]


async def dial(target: Target) -> trio.SocketStream:
    """Connect. Raises StreamError."""
    family = socket.AF_INET6 if ":" in target.ip else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        with trio.fail_after(CONNECT_S):
            await sock.connect((target.ip, target.port))
        return trio.SocketStream(sock)
    except trio.TooSlowError:
        sock.close()
        raise StreamError(f"no connection within {CONNECT_S:g} s") from None
    except OSError as exc:
        sock.close()
        raise StreamError(exc.strerror or str(exc)) from None
    except BaseException:
        sock.close()
        raise
