"""Remove what a cluster has on this machine outside its directories, however its runtime ended."""

from collections.abc import Callable

import trio

from mesh_local.kubelet import mounts
from mesh_local.kubelet.kubelet import purge
from mesh_local.network.node import NetworkOptions, NodeNetwork, remains
from mesh_local.settings import Places


def remove(places: Places, say: Callable[[str], None]) -> bool:
    """Containers, mounts, network namespaces. True if there was anything."""
    containers = places.pods.is_dir() and any(places.pods.iterdir())
    namespaces = remains(places.name)
    if containers:
        say("ending the containers")
        trio.run(purge, places.pods)
    if places.run.is_dir():
        mounts.unmount_under(places.run)
    if namespaces:
        say(f"removing {len(namespaces)} network namespaces")
        trio.run(NodeNetwork(NetworkOptions(places.name, places.network)).down)
    return bool(containers or namespaces)
