"""Conntrack's memory of UDP translations. Works on the network namespace of the calling thread."""

import errno
import os
import socket
from collections.abc import Set
from typing import Any

from pyroute2 import NetlinkError, NFCTSocket
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

from mesh_local.network.services import UdpFlow
from mesh_local.network.types import NetworkError


def forget_all_but(flows: Set[UdpFlow]) -> int:
    """Delete the entries of translations that no longer apply; answers how many there were.

    A UDP client that keeps sending from one port would otherwise be sent to an endpoint that is gone:
    rules are asked only for a flow's first packet. Raises NetworkError.
    """
    try:
        return sum(_forget_all_but(family, flows) for family in (socket.AF_INET, socket.AF_INET6))
    except NetlinkError as error:
        raise NetworkError(f"cannot delete conntrack entries: {os.strerror(error.code)}") from None
    except OSError as error:
        raise NetworkError(f"cannot delete conntrack entries: {error.strerror}") from None


def _forget_all_but(family: int, flows: Set[UdpFlow]) -> int:
    deleted = 0
    with NFCTSocket(nfgen_family=family) as conntrack:
        for entry in list(conntrack.dump()):
            original = _tuple(family, entry, "CTA_TUPLE_ORIG")
            reply = _tuple(family, entry, "CTA_TUPLE_REPLY")
            if original is None or reply is None or original.proto != socket.IPPROTO_UDP:
                continue
            flow = UdpFlow(original.daddr, original.dport, reply.saddr, reply.sport)
            translated = (flow.address, flow.port) != (flow.endpoint, flow.endpoint_port)
            if not translated or flow in flows:
                continue
            try:
                conntrack.entry("del", tuple_orig=original)
                deleted += 1
            except NetlinkError as error:
                if error.code != errno.ENOENT:  # it ended by itself
                    raise
    return deleted


def _tuple(family: int, entry: Any, name: str) -> Any:
    found = entry.get_attr(name)
    return None if found is None else NFCTAttrTuple.from_netlink(family, found)
