"""What all pods of the node share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mesh_local.client import Client
from mesh_local.kubelet.environment import Lookup
from mesh_local.kubelet.fields import Node
from mesh_local.kubelet.runtime import Runtime
from mesh_local.kubelet.types import KubeletOptions, Recorder, Sources
from mesh_local.machinery.objects import Object
from mesh_local.network.types import Dialer, PodNetwork


@dataclass(frozen=True, slots=True)
class Host:
    """Args:
    host_mounts: file systems of the host that containers see.
    """

    options: KubeletOptions
    client: Client
    runtime: Runtime
    network: PodNetwork
    dialer: Dialer
    recorder: Recorder
    sources: Sources
    node: Node
    host_mounts: Sequence[str]

    def lookup(self, namespace: str) -> Lookup:
        """Finds ConfigMaps and Secrets of a namespace."""

        def find(kind: Literal["ConfigMap", "Secret"], name: str) -> Object | None:
            source = self.sources.config_maps if kind == "ConfigMap" else self.sources.secrets
            return source.get(name, namespace)

        return find
