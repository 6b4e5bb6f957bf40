"""Links, addresses and routes. Every function works on the network namespace of the calling thread."""

import contextlib
import errno
import os
import re
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute, NetlinkError

from mesh_local.network.addressing import IPV4, NODE_LINK, POD_LINK, Family, Version
from mesh_local.network.types import NetworkError, PacketFaults

_SYSCTL: Final = Path("/proc/sys/net")
_IFA_F_NODAD: Final = 0x02
_RTNH_F_ONLINK: Final = 4
_SCOPE_LINK: Final = 253
_COMMAND_TIMEOUT_S: Final = 30.0
_AF: Final = {4: socket.AF_INET, 6: socket.AF_INET6}

_QUIET_V4: Final = (  # of `all` and `default`
    ("rp_filter", "0"),  # a pod's link carries every source that the node routes to it
    ("send_redirects", "0"),  # hairpinned packets leave by the link that they came from, and rightly so
    ("accept_redirects", "0"),
)
_QUIET_V6: Final = (
    ("accept_dad", "0"),  # addresses are usable at once; nobody else is on a pod's link
    ("accept_ra", "0"),
    ("accept_redirects", "0"),
)


@contextlib.contextmanager
def _netlink(what: str) -> Iterator[Any]:
    """An open IPRoute; its failures become NetworkError, with `what` was attempted."""
    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        raise NetworkError(f"{what}: {os.strerror(error.code)}") from None
    except OSError as error:
        raise NetworkError(f"{what}: {error.strerror}") from None


def _sysctl(name: str, value: str) -> None:
    try:
        (_SYSCTL / name).write_text(value)
    except OSError as error:
        raise NetworkError(f"cannot set net.{name.replace('/', '.')} to {value}: {error.strerror}") from None


def _quiet(families: Iterable[Family]) -> None:
    versions = {family.version for family in families}
    if 6 in versions and not (_SYSCTL / "ipv6").exists():
        raise NetworkError("the cluster is to have IPv6, but this kernel has it switched off")
    for scope in ("all", "default"):
        for name, value in _QUIET_V4:
            _sysctl(f"ipv4/conf/{scope}/{name}", value)
        if 6 in versions:
            _sysctl(f"ipv6/conf/{scope}/disable_ipv6", "0")
        if (_SYSCTL / "ipv6").exists():
            for name, value in _QUIET_V6:
                _sysctl(f"ipv6/conf/{scope}/{name}", value)


def _index(ip: Any, name: str) -> int:
    found = ip.link_lookup(ifname=name)
    if not found:
        raise NetworkError(f"link {name} is missing")
    return int(found[0])


def _add_address(ip: Any, index: int, version: Version, address: str, prefix: int) -> None:
    extra = {"flags": _IFA_F_NODAD} if version == 6 else {}
    if address == IPV4.gateway:
        extra["scope"] = _SCOPE_LINK  # never chosen as a source towards anyone else
    ip.addr("add", index=index, family=_AF[version], address=address, prefixlen=prefix, **extra)


def prepare_node(families: tuple[Family, ...]) -> None:
    """Make the present namespace a router whose default route ends in a link that leads nowhere.

    That route lets packets to Service addresses reach the rules that translate or refuse them: without one
    the node's own connections would fail before.
    """
    _quiet(families)
    _sysctl("ipv4/ip_forward", "1")
    # A refused connection is to be refused every time, at once.
    _sysctl("ipv4/icmp_ratelimit", "0")
    for limit in ("ipv4/icmp_msgs_per_sec", "ipv4/icmp_msgs_burst"):
        if (_SYSCTL / limit).exists():  # on older kernels it is the machine's, not a namespace's
            _sysctl(limit, "1000000")
    if any(family.version == 6 for family in families):
        _sysctl("ipv6/conf/all/forwarding", "1")
        _sysctl("ipv6/icmp/ratelimit", "0")
    with _netlink("cannot set up the node's network namespace") as ip:
        ip.link("set", index=_index(ip, "lo"), state="up")
        # A pair of veth stands in for a dummy link, which not every kernel has.
        ip.link("add", ifname=NODE_LINK, kind="veth", peer={"ifname": "void1"})
        index = _index(ip, NODE_LINK)
        for name in (NODE_LINK, "void1"):
            ip.link("set", index=_index(ip, name), state="up")
        for family in families:
            _add_address(ip, index, family.version, family.node, family.bits)
            ip.route("add", dst="default", family=_AF[family.version], oif=index, prefsrc=family.node)


def prepare_pod(families: tuple[Family, ...]) -> None:
    """Bring a new pod's namespace to the state that containers expect, without a link yet."""
    _quiet(families)
    _sysctl("ipv4/ip_unprivileged_port_start", "0")  # as containerd 2 does
    with _netlink("cannot set up a pod's network namespace") as ip:
        ip.link("set", index=_index(ip, "lo"), state="up")


def add_pair(link: str, netns: str, families: tuple[Family, ...]) -> None:
    """In the node: a link whose other end is eth0 of `netns`, with the gateway's addresses."""
    with _netlink(f"cannot link {netns} to the node") as ip, open(netns) as namespace:
        ip.link("add", ifname=link, kind="veth", peer={"ifname": POD_LINK, "net_ns_fd": namespace.fileno()})
        index = _index(ip, link)
        ip.link("set", index=index, state="up")
        for family in families:
            _add_address(ip, index, family.version, family.gateway, 64 if family.version == 6 else 32)


def configure_pod(place: int, families: tuple[Family, ...]) -> None:
    """In the pod: addresses and the route through the node."""
    with _netlink("cannot configure a pod's link") as ip:
        index = _index(ip, POD_LINK)
        ip.link("set", index=index, state="up")
        for family in families:
            _add_address(ip, index, family.version, family.pod(place), family.bits)
            ip.route(
                "add",
                dst="default",
                family=_AF[family.version],
                gateway=family.gateway,
                oif=index,
                flags=_RTNH_F_ONLINK,
            )


def route_to_pod(link: str, place: int, families: tuple[Family, ...]) -> None:
    """In the node: the routes to a pod; made last, they mark a complete attachment."""
    with _netlink(f"cannot route to the pod behind {link}") as ip:
        index = _index(ip, link)
        for family in families:
            ip.route(
                "add",
                dst=f"{family.pod(place)}/{family.bits}",
                family=_AF[family.version],
                oif=index,
                prefsrc=family.node,
                **({"scope": _SCOPE_LINK} if family.version == 4 else {}),
            )


def routed(families: tuple[Family, ...]) -> set[tuple[str, str]]:
    """In the node: pairs of (link, address) for which there is a host route."""
    with _netlink("cannot read the node's routes") as ip:
        links = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ip.get_links()}
        return {
            (links.get(route.get_attr("RTA_OIF"), ""), str(route.get_attr("RTA_DST")))
            for family in families
            for route in ip.get_routes(family=_AF[family.version])
            if route["dst_len"] == family.bits
        }


def remove_link(link: str) -> None:
    """In the node: remove a pod's link, both ends of it; nothing if there is none."""
    with _netlink(f"cannot remove link {link}") as ip:
        for index in ip.link_lookup(ifname=link):
            ip.link("del", index=index)


def remove_all_links() -> None:
    """In the node: remove every link but lo, so that a process left in a pod is cut off."""
    with _netlink("cannot remove the node's links") as ip:
        for name in [link.get_attr("IFLA_IFNAME") for link in ip.get_links()]:
            if name != "lo":
                for index in ip.link_lookup(ifname=name):  # not the other end of a pair that is gone already
                    ip.link("del", index=index)


def set_netem(link: str, faults: PacketFaults) -> bool:
    """In the node: delay and drop packets to the pod by netem; False if this kernel has none.

    `PacketFaults()` removes what was set.
    """
    with _netlink(f"cannot set packet faults on {link}") as ip:
        index = _index(ip, link)
        for qdisc in ip.get_qdiscs(index):
            if qdisc["index"] == index and qdisc.get_attr("TCA_KIND") == "netem":
                ip.tc("del", index=index, handle=qdisc["handle"], parent=qdisc["parent"])
        if faults == PacketFaults():
            return True
        try:
            ip.tc(
                "add",
                "netem",
                index,
                loss=faults.loss_percent,
                delay=int(faults.delay_ms * 1000),
                jitter=int(faults.jitter_ms * 1000),
            )
        except NetlinkError as error:
            if error.code == errno.ENOENT:
                return False
            raise
        return True


def restore(version: Version, text: str) -> None:
    """Replace the tables named in `text` in one step each, by iptables-restore. Raises NetworkError."""
    program = "iptables-restore" if version == 4 else "ip6tables-restore"
    try:
        done = subprocess.run(
            [program, "--wait", "10"],
            input=text,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"{program}: {error}") from None
    if done.returncode != 0:
        raise NetworkError(f"{program} failed ({done.returncode}): {_explain(done.stderr, text)}")


def _explain(message: str, text: str) -> str:
    """What iptables-restore says, with the line that it means."""
    lines = text.splitlines()
    found = re.search(r"line:? (\d+)", message)
    number = int(found[1]) if found else 0
    return message.strip() + (f": {lines[number - 1]}" if 0 < number <= len(lines) else "")
