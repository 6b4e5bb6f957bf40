"""From the index to what a sidecar receives. Pure."""

from mesh_control.compile.cache import Compiler
from mesh_control.compile.content import Mesh, address, content, destination, pod, version, workload

__all__ = ["Compiler", "Mesh", "address", "content", "destination", "pod", "version", "workload"]
