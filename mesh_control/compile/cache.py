"""Contents, compiled once for all sidecars between two changes of the index."""

from __future__ import annotations

from mesh_api.discovery import WORKLOAD_KEY, Content
from mesh_control.compile.content import Mesh, content
from mesh_control.index.objects import Key
from mesh_control.index.state import Index

MAX_CONTENTS = 16_384


class Compiler:
    """Gives the content of keys; `mesh` may be replaced at any time."""

    def __init__(self, index: Index, mesh: Mesh) -> None:
        self.mesh = mesh
        self._index = index
        self._generation = index.generation
        self._contents: dict[str, Content | None] = {}

    def lookup(self, key: str, caller: Key) -> Content | None:
        """The content of a key for the sidecar of a pod (namespace, name); None if there is none.

        Raises ValueError for what is no key.
        """
        if key == WORKLOAD_KEY or key.startswith("address/"):  # cheap, and the caller matters
            return content(self._index, key, caller, self.mesh)
        if self._generation != self._index.generation or len(self._contents) >= MAX_CONTENTS:
            self._generation = self._index.generation
            self._contents.clear()
        try:
            return self._contents[key]
        except KeyError:
            found = self._contents[key] = content(self._index, key, caller, self.mesh)
            return found
