"""How a destination is named in keys and answers: NAMESPACE/NAME:PORT[/FAMILY[/NODE]].

The families of a Service are told apart, so that a caller who dialled an IPv4 address is never given an IPv6
endpoint: `shop/web:80` is the IPv4 half and `shop/web:80/ipv6` the IPv6 half. Where callers on different
nodes are given different endpoints (internalTrafficPolicy, trafficDistribution), the node is the last part:
`shop/web:80/ipv4/node-1`. A sidecar takes such names as they are from the answer about an address.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

_FORM = "expected NAMESPACE/NAME:PORT[/ipv4|ipv6[/NODE]]"


class Family(enum.Enum):
    """Address family."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"


class DestinationName(NamedTuple):
    """One port of one Service, in one family, as seen from one node ('' for all nodes alike)."""

    namespace: str
    name: str
    port: int
    family: Family = Family.IPV4
    node: str = ""

    def __str__(self) -> str:
        base = f"{self.namespace}/{self.name}:{self.port}"
        if self.node:
            return f"{base}/{self.family.value}/{self.node}"
        return base if self.family is Family.IPV4 else f"{base}/{self.family.value}"


def parse_destination(text: str) -> DestinationName:
    """Read a name in its one spelling. Raises ValueError that says what was expected."""
    namespace, _, rest = text.partition("/")
    service, _, rest = rest.partition("/")
    name, _, port = service.partition(":")
    family, _, node = rest.partition("/")
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if namespace and name and digits and family in ("", "ipv4", "ipv6") and "/" not in node:
        found = DestinationName(namespace, name, int(port), Family(family or "ipv4"), node)
        if 1 <= found.port <= 65535 and str(found) == text:
            return found
    raise ValueError(f"{_FORM}, got {text[:100]!r}")
