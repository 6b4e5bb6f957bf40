"""Who has which address and name: pure arithmetic on the options."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal

from mesh_local.network.types import NetworkError

Families = Literal["ipv4", "ipv6", "dual"]
Version = Literal[4, 6]

NODE_LINK: Final = "void0"
POD_LINK: Final = "eth0"
_NODE_INDEX: Final = 1
_CLUSTER = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Family:
    """The addresses of one IP version; equal in every cluster, for none of them is seen outside it.

    Args:
        gateway: the node's end of each pod's link.
    """

    version: Version
    pods: IPv4Network | IPv6Network
    services: IPv4Network | IPv6Network
    gateway: str

    @property
    def node(self) -> str:
        return self.pod(_NODE_INDEX)

    @property
    def dns(self) -> str:
        """The address of the Service kube-dns: the tenth, by convention."""
        return str(self.services[10])

    @property
    def bits(self) -> int:
        return self.pods.max_prefixlen

    def pod(self, index: int) -> str:
        return str(self.pods[index])


IPV4: Final = Family(4, IPv4Network("10.244.0.0/16"), IPv4Network("10.96.0.0/16"), "169.254.1.1")
IPV6: Final = Family(6, IPv6Network("fd10:244::/64"), IPv6Network("fd10:96::/112"), "fe80::1")
FIRST_POD: Final = 2
LAST_POD: Final = IPV4.pods.num_addresses - 2  # both families count alike


def families(choice: Families) -> tuple[Family, ...]:
    """The families in the order in which addresses are listed. Raises NetworkError."""
    table: dict[str, tuple[Family, ...]] = {"ipv4": (IPV4,), "ipv6": (IPV6,), "dual": (IPV4, IPV6)}
    if choice not in table:
        raise NetworkError(f"families: expected ipv4, ipv6 or dual, not {choice!r}")
    return table[choice]


def check_cluster(cluster: str) -> str:
    """The cluster's name, which becomes part of names of namespaces. Raises NetworkError."""
    if not _CLUSTER.fullmatch(cluster):
        raise NetworkError(
            f"cluster name {cluster!r}: expected at most 32 of a-z, 0-9 and -,"
            " with a letter or digit at each end"
        )
    return cluster


def node_name(cluster: str) -> str:
    """The network namespace of the cluster's node."""
    return f"tm-{cluster}-node"


def pod_name(cluster: str, uid: str) -> str:
    return f"tm-{cluster}-{short(uid)}"


def short(uid: str) -> str:
    """The first eight hexadecimal digits of a UUID. Raises NetworkError."""
    if not re.fullmatch(r"[0-9a-f]{8}-[-0-9a-f]{27}", uid):
        raise NetworkError(f"pod uid {uid!r}: expected a UUID in lower case")
    return uid[:8]


def link_name(uid: str) -> str:
    """The node's end of a pod's link (at most 15 bytes, IFNAMSIZ)."""
    return f"v{short(uid)}"


def belongs(cluster: str, name: str) -> bool:
    """Whether a network namespace is this cluster's; `a` does not own what `a-b` has."""
    return re.fullmatch(rf"tm-{re.escape(cluster)}-(node|[0-9a-f]{{8}})", name) is not None
