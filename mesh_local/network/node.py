"""The node's network: one namespace that routes and translates, and one namespace per pod.

Nothing is in the host's namespace, so clusters with equal addresses run side by side.
"""

import functools
import os
import shutil
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import trio

from mesh_local.network import addressing, conntrack, faults, links, namespace, services
from mesh_local.network.addressing import Families, Version
from mesh_local.network.namespace import NamespaceDialer
from mesh_local.network.records import PodRecord, Records
from mesh_local.network.types import Attachment, NetworkError, PacketFaults

T = TypeVar("T")
_PROGRAMS: Final[dict[Version, str]] = {4: "iptables-restore", 6: "ip6tables-restore"}


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """Args:
    cluster: its name; two clusters of one name are one.
    state_dir: an existing directory of the cluster, for the records of pods.
    families: of pods and Services.
    """

    cluster: str
    state_dir: Path
    families: Families = "ipv4"


class NodeNetwork:
    """A cluster's network (`PodNetwork`). All methods raise NetworkError."""

    def __init__(self, options: NetworkOptions) -> None:
        self._cluster = addressing.check_cluster(options.cluster)
        self._options = options
        self.families = addressing.families(options.families)
        self.netns = namespace.path_of(addressing.node_name(options.cluster))
        self._records: Records | None = None
        self._lock = trio.Lock()

    @property
    def node_ips(self) -> tuple[str, ...]:
        return tuple(family.node for family in self.families)

    @property
    def dns_ips(self) -> tuple[str, ...]:
        """The Service addresses of the cluster's DNS."""
        return tuple(family.dns for family in self.families)

    def dialer(self) -> NamespaceDialer:
        """Connects from the node to pods and Services."""
        return NamespaceDialer(self.netns)

    async def up(self) -> None:
        """Make the node, or adopt it with the pods that are complete; other remains of it are removed."""
        await self._run(self._up)

    async def down(self) -> None:
        """Remove every namespace, link and record of the cluster, whichever runtime made them."""
        await self._run(self._down)

    async def attach(self, uid: str) -> Attachment:
        """Give the pod a namespace and addresses, or return those that it has."""
        return await self._run(functools.partial(self._attach, uid))

    async def detach(self, uid: str) -> None:
        """Remove the pod's namespace and free its addresses; nothing if there are none."""
        await self._run(functools.partial(self._detach, uid))

    async def set_faults(self, uid: str, wanted: PacketFaults) -> None:
        """Lose or delay packets on their way to an attached pod; `PacketFaults()` ends it."""
        faults.check(wanted)
        await self._run(functools.partial(self._set_faults, uid, wanted))

    async def restore(self, texts: Mapping[Version, str]) -> None:
        """Apply one iptables-restore text per IP version in the node."""
        await self._run(lambda: [self._in_node(functools.partial(links.restore, v, texts[v])) for v in texts])

    async def forget_udp(self, but: Set[services.UdpFlow]) -> None:
        """Make conntrack forget all UDP translations except these."""
        await self._run(lambda: self._in_node(functools.partial(conntrack.forget_all_but, but)))

    async def _run(self, work: Callable[[], T]) -> T:
        """One change at a time, in a worker thread; once begun it is completed, whoever is cancelled."""
        async with self._lock:
            return await trio.to_thread.run_sync(work)

    def _in_node(self, work: Callable[[], T]) -> T:
        return namespace.run_inside(self.netns, work)

    @property
    def _pods(self) -> Records:
        if self._records is None:
            raise NetworkError(f"the network of cluster {self._cluster} is not up")
        return self._records

    def _up(self) -> None:
        _check_machine(self.families)
        records = Records(self._options.state_dir, self._options.families)
        node = addressing.node_name(self._cluster)
        if not namespace.is_usable(node):
            self._remove_namespaces()
            namespace.create(node, self._prepare_node)
        routed = self._in_node(lambda: links.routed(self.families))
        for uid, record in list(records.pods.items()):
            if not self._is_complete(uid, record, routed):
                self._tear_down(uid)
                records.release(uid)
        kept = {node, *(addressing.pod_name(self._cluster, uid) for uid in records.pods)}
        for name in self._own_names():
            if name not in kept:
                namespace.delete(name)
        self._records = records

    def _prepare_node(self) -> None:
        links.prepare_node(self.families)
        for version, text in services.plan((), (), self.families).texts.items():
            links.restore(version, text)

    def _is_complete(self, uid: str, record: PodRecord, routed: set[tuple[str, str]]) -> bool:
        link = addressing.link_name(uid)
        wanted = {(link, family.pod(record.index)) for family in self.families}
        return namespace.is_usable(addressing.pod_name(self._cluster, uid)) and wanted <= routed

    def _own_names(self) -> list[str]:
        return [name for name in namespace.names() if addressing.belongs(self._cluster, name)]

    def _remove_namespaces(self) -> None:
        if namespace.is_usable(addressing.node_name(self._cluster)):
            self._in_node(links.remove_all_links)
        for name in self._own_names():
            namespace.delete(name)

    def _down(self) -> None:
        self._remove_namespaces()
        namespace.release_run_dir()
        Records.remove(self._options.state_dir)
        self._records = None

    def _attach(self, uid: str) -> Attachment:
        name = addressing.pod_name(self._cluster, uid)
        known = uid in self._pods.pods
        if not known and name in namespace.names():
            raise NetworkError(f"pod {uid}: another pod has the network namespace {name}")
        record = self._pods.allocate(uid)
        if not known:
            try:
                self._build(uid, name, record)
            except BaseException:
                self._tear_down(uid)
                self._pods.release(uid)
                raise
        return Attachment(
            namespace.path_of(name), tuple(family.pod(record.index) for family in self.families)
        )

    def _build(self, uid: str, name: str, record: PodRecord) -> None:
        link = addressing.link_name(uid)
        path = namespace.create(name, lambda: links.prepare_pod(self.families))
        self._in_node(lambda: links.add_pair(link, path, self.families))
        namespace.run_inside(path, lambda: links.configure_pod(record.index, self.families))
        self._in_node(lambda: links.route_to_pod(link, record.index, self.families))

    def _detach(self, uid: str) -> None:
        had_faults = uid in self._pods.pods and self._pods.pods[uid].faults.loss_percent > 0
        if uid in self._pods.pods:
            self._tear_down(uid)
            self._pods.release(uid)
        if had_faults:
            self._restore_loss()

    def _tear_down(self, uid: str) -> None:
        self._in_node(lambda: links.remove_link(addressing.link_name(uid)))
        namespace.delete(addressing.pod_name(self._cluster, uid))

    def _set_faults(self, uid: str, wanted: PacketFaults) -> None:
        if uid not in self._pods.pods:
            raise NetworkError(f"pod {uid} is not attached")
        link = addressing.link_name(uid)
        by_netem = self._in_node(lambda: links.set_netem(link, wanted))
        if not by_netem and wanted.delay_ms:
            raise NetworkError(
                "packets cannot be delayed: this kernel has no netem (module sch_netem); loss alone works"
            )
        record = self._pods.pods[uid]
        record.faults = PacketFaults() if by_netem else wanted
        self._pods.save()
        self._restore_loss()

    def _restore_loss(self) -> None:
        """Packet loss of all pods for which iptables, not netem, is in charge."""
        text = faults.loss_table(
            {addressing.link_name(uid): pod.faults.loss_percent for uid, pod in self._pods.pods.items()}
        )
        for family in self.families:
            self._in_node(functools.partial(links.restore, family.version, text))


def _check_machine(families: tuple[addressing.Family, ...]) -> None:
    if os.geteuid() != 0:
        raise NetworkError("the cluster's network needs root")
    for family in families:
        program = _PROGRAMS[family.version]
        if shutil.which(program) is None:
            raise NetworkError(f"{program} is missing; install iptables")


def remains(cluster: str) -> list[str]:
    """Names of network namespaces that the cluster has, after a crash too."""
    addressing.check_cluster(cluster)
    return [name for name in namespace.names() if addressing.belongs(cluster, name)]
