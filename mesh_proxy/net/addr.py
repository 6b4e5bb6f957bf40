"""Addresses at the socket boundary: the original destination of a redirected connection, and text forms.

REDIRECT keeps the address that the client dialled in the connection's conntrack entry; the kernel gives it
through SO_ORIGINAL_DST (SOL_IP) and IP6T_SO_ORIGINAL_DST (SOL_IPV6), both option 80.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import NamedTuple

_SO_ORIGINAL_DST = 80
_SOL_IPV6 = 41
IP_BIND_ADDRESS_NO_PORT = 24
INBOUND_SOURCE = {4: "127.0.0.6", 6: "::6"}
"""Source addresses of the sidecar's connections to its application; the iptables rules let them pass."""


class Addr(NamedTuple):
    """An IP address in canonical text form, and a port."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.ip else socket.AF_INET


def original_dst(sock: socket.socket) -> Addr:
    """Where the client wanted to go; raises OSError if the kernel does not know."""
    if sock.family == socket.AF_INET:
        raw = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
        port, ip = struct.unpack_from("!2xH4s", raw)
        return Addr(socket.inet_ntop(socket.AF_INET, ip), port)
    raw = sock.getsockopt(_SOL_IPV6, _SO_ORIGINAL_DST, 28)
    port, ip6 = struct.unpack_from("!2xH4x16s", raw)
    return canonical(socket.inet_ntop(socket.AF_INET6, ip6), port)


def canonical(ip: str, port: int) -> Addr:
    """An address without scope; a v4-mapped one as the IPv4 address that it is (RFC 4291 2.5.5.2)."""
    ip = ip.partition("%")[0]
    if ":" in ip:
        address = ipaddress.IPv6Address(ip)
        mapped = address.ipv4_mapped
        ip = str(mapped) if mapped is not None else str(address)
    return Addr(ip, port)


def peer_addr(sock: socket.socket) -> Addr:
    """The address of the socket's peer; raises OSError once it is gone."""
    name = sock.getpeername()
    return canonical(name[0], name[1])


class LocalAddresses:
    """Which addresses are this pod's own. Loopback never counts: nothing from outside is for it."""

    def __init__(self, known: frozenset[str]) -> None:
        self._answers = dict.fromkeys(known, True)

    def __contains__(self, ip: str) -> bool:
        answer = self._answers.get(ip)
        if answer is None:
            address = ipaddress.ip_address(ip)
            if address.is_loopback or address.is_unspecified or address.is_multicast:
                return False
            answer = _can_bind(ip)
            # An address may be added while we run, so only a yes is remembered.
            if answer and len(self._answers) < 256:
                self._answers[ip] = True
        return answer


def _can_bind(ip: str) -> bool:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True
