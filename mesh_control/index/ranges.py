"""Which addresses are the cluster's own, whether or not it is known who has them.

Said for certain: the networks that are given, the `podCIDRs` of Nodes, the `cidrs` of ServiceCIDRs. More is
concluded from what is there, so that a Service or pod that nobody has told of yet is not taken for something
outside the mesh:

- Where no ServiceCIDR is known (Kubernetes before 1.33): around each cluster IP a block such as ranges of
  Services are made of, IPv4 /16, IPv6 /108; /20 where the address is a public one, as some providers have it.
- Around each pod's own address the block /24 or /64, for network plug-ins that write no `podCIDRs`.

Nothing is concluded where something else may live: in the /16 or /64 of a node's address, for where the pods'
network is that of the nodes (VPC-native plug-ins) databases may be next to them; and in the /24 or /64 of a
`podCIDR`, which says it exactly. A node's own address is never the cluster's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

from mesh_control.index.addresses import own_ips
from mesh_control.index.objects import Node, Pod, Service, ServiceCIDR

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_POD_BLOCK = {4: 24, 6: 64}
_VIP_BLOCK = {4: 16, 6: 108}
_PUBLIC_VIP_BLOCK = {4: 20, 6: 108}
_NODES_NETWORK = {4: 16, 6: 64}


class _Block(NamedTuple):
    """A network."""

    version: int
    free: int
    """How many of the last bits of its addresses are free."""
    start: int
    """The bits before those."""


def _block(network: Network) -> _Block:
    free = network.max_prefixlen - network.prefixlen
    return _Block(network.version, free, int(network.network_address) >> free)


def _around(address: Address, length: dict[int, int]) -> _Block:
    free = address.max_prefixlen - length[address.version]
    return _Block(address.version, free, int(address) >> free)


def _at(ip: str) -> _Block:
    address = ipaddress.ip_address(ip)
    return _Block(address.version, 0, int(address))


class _Blocks:
    """Networks, each counted, found by what is within them; and which came and went since `settle`."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int], dict[int, int]] = {}
        self._before: dict[_Block, bool] = {}

    def count(self, block: _Block, by: int) -> None:
        """The network is there once more, or once less."""
        starts = self._counts.setdefault((block.version, block.free), {})
        now = starts.get(block.start, 0)
        self._before.setdefault(block, now > 0)
        if now + by:
            starts[block.start] = now + by
        else:
            del starts[block.start]

    def settle(self) -> list[_Block]:
        """The networks that are new or gone since the last call."""
        if not self._before:
            return []
        changed = [
            block
            for block, before in self._before.items()
            if before != (block.start in self._counts[block.version, block.free])
        ]
        self._before.clear()
        return changed

    def __contains__(self, block: _Block) -> bool:
        return any(
            block.start >> (free - block.free) in starts
            for (version, free), starts in self._counts.items()
            if version == block.version and free >= block.free
        )

    def __bool__(self) -> bool:
        return any(self._counts.values())


class Ranges:
    """The cluster's own addresses, from `given` networks and the objects that are there."""

    def __init__(self, given: Iterable[str]) -> None:
        self._given = _Blocks()
        self._nodes = _Blocks()
        self._pod_cidrs = _Blocks()
        self._service_cidrs = _Blocks()
        self._apart = _Blocks()
        """Where nothing is concluded."""
        self._around_pods = _Blocks()
        self._around_vips = _Blocks()
        for text in given:
            self._given.count(_block(ipaddress.ip_network(text, strict=False)), 1)

    def node(self, node: Node, by: int) -> None:
        """A node is there (1), or no longer (-1)."""
        for ip in node.addresses:
            self._nodes.count(_at(ip), by)
            self._apart.count(_around(ipaddress.ip_address(ip), _NODES_NETWORK), by)
        for text in node.pod_cidrs:
            network = ipaddress.ip_network(text)
            self._pod_cidrs.count(_block(network), by)
            self._apart.count(_around(network.network_address, _POD_BLOCK), by)

    def service_cidr(self, found: ServiceCIDR, by: int) -> None:
        """A range of Services is there (1), or no longer (-1)."""
        for text in found.cidrs:
            self._service_cidrs.count(_block(ipaddress.ip_network(text)), by)

    def pod(self, pod: Pod, by: int) -> None:
        """A pod is there (1), or no longer (-1)."""
        for ip in own_ips(pod):
            self._around_pods.count(_around(ipaddress.ip_address(ip), _POD_BLOCK), by)

    def service(self, service: Service, by: int) -> None:
        """A Service is there (1), or no longer (-1)."""
        for ip in service.cluster_ips:
            # Who gives the range knows it: nothing is concluded beyond it.
            if _at(ip) not in self._given:
                address = ipaddress.ip_address(ip)
                length = _PUBLIC_VIP_BLOCK if address.is_global else _VIP_BLOCK
                self._around_vips.count(_around(address, length), by)

    def settle(self) -> bool:
        """Whether other addresses may be the cluster's than at the last call."""
        certain = [
            blocks.settle() for blocks in (self._nodes, self._pod_cidrs, self._service_cidrs, self._apart)
        ]
        pods, vips = self._around_pods.settle(), self._around_vips.settle()
        concluded = pods if self._service_cidrs else pods + vips
        return any(certain) or any(
            not self._certain(block) and block not in self._apart for block in concluded
        )

    def _certain(self, block: _Block) -> bool:
        return block in self._given or block in self._pod_cidrs or block in self._service_cidrs

    def __contains__(self, ip: str) -> bool:
        address = _at(ip)
        if address in self._nodes:
            return False
        if self._certain(address):
            return True
        if address in self._apart:
            return False
        return address in self._around_pods or (not self._service_cidrs and address in self._around_vips)
