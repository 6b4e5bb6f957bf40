"""The seams of the kubelet: what it is given by the cluster."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import trio

from mesh_local.kubelet.lifecycle import Backoff
from mesh_local.machinery.objects import Object

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PREFIX_TARGET = "/opt/triomesh"


@dataclass(frozen=True, slots=True)
class KubeletOptions:
    """Args:
    node: name of the Node.
    pods: directory for pods; emptied of what is not wanted any more.
    netns: path of the node's network namespace, for pods with hostNetwork.
    node_ips: the node's addresses, one per family.
    dns_ips: addresses of the cluster's DNS.
    prefix: directory that containers see as /opt/triomesh; None for none.
    hidden: directories of the host that containers see empty (the cluster's state).
    cluster_domain: what the cluster's DNS serves.
    max_pods: as the Node tells.
    parallel_starts: containers that may be starting at once.
    log_max_bytes: size at which a container's log is moved aside.
    backoff: the delays between restarts.
    """

    node: str
    pods: Path
    netns: str
    node_ips: tuple[str, ...]
    dns_ips: tuple[str, ...] = ()
    prefix: Path | None = None
    hidden: tuple[Path, ...] = ()
    cluster_domain: str = "cluster.local"
    max_pods: int = 110
    parallel_starts: int = 4
    log_max_bytes: int = 10 * 1024 * 1024
    backoff: Backoff = field(default_factory=Backoff)


class Source(Protocol):
    """A current copy of one resource (`controllers.informer.Informer`). What it returns is shared."""

    synced: trio.Event

    def get(self, name: str, namespace: str = "") -> Object | None: ...

    def list(self, namespace: str = "") -> Sequence[Object]: ...

    def on_change(self, callback: Callable[[Object | None, Object | None], None]) -> None:
        """Call back with `(old, new)`; at once for what is there."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Args:
    pods: all pods, or those of this node.
    """

    pods: Source
    config_maps: Source
    secrets: Source
    services: Source


class Recorder(Protocol):
    """Records events (`controllers.events.Recorder`); never waits, never fails."""

    def event(
        self,
        obj: Object,
        type: Literal["Normal", "Warning"],
        reason: str,
        message: str,
        *,
        field_path: str = "",
    ) -> None: ...


class ConfigError(Exception):
    """A container cannot be made from its spec: CreateContainerConfigError."""


class VolumeError(Exception):
    """A volume cannot be set up; the text follows `MountVolume.SetUp failed for volume "x" : `."""
