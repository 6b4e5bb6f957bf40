"""Live requests: while somebody watches, what ends is kept by its ends, method and path. Bounded.

`Taps.active` is None unless somebody watches, and that is all that a request pays then.
"""

from __future__ import annotations

import trio

from mesh_api.edge_sums import EdgeKey
from mesh_api.stats import Direction, Tapped, TappedRequest
from mesh_ops.printable import clean

MAX_ENTRIES = 500
MAX_METHOD = 32
MAX_PATH = 256

_Key = tuple[Direction, str, str, bytes, bytes]


class _Entry:
    __slots__ = ("best_s", "count", "failures", "last_s", "worst_s")

    def __init__(self) -> None:
        self.count = self.failures = 0
        self.best_s = float("inf")
        self.worst_s = self.last_s = 0.0


class Watch:
    """What one who watches has seen."""

    def __init__(self) -> None:
        self._entries: dict[_Key, _Entry] = {}
        self._dropped = 0

    def add(self, key: _Key, failed: bool, duration_s: float) -> None:
        """Take one request in."""
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= MAX_ENTRIES:
                self._dropped += 1
                return
            entry = self._entries[key] = _Entry()
        entry.count += 1
        entry.failures += failed
        entry.best_s = min(entry.best_s, duration_s)
        entry.worst_s = max(entry.worst_s, duration_s)
        entry.last_s = duration_s

    def seen(self, seconds: float) -> Tapped:
        """The answer to who watched for so long."""
        requests = [
            TappedRequest(
                direction,
                source,
                destination,
                clean(method, MAX_METHOD),
                clean(path, MAX_PATH),
                entry.count,
                entry.failures,
                round(entry.best_s * 1000, 3),
                round(entry.worst_s * 1000, 3),
                round(entry.last_s * 1000, 3),
            )
            for (direction, source, destination, method, path), entry in self._entries.items()
        ]
        return Tapped(seconds, tuple(requests), self._dropped)


class Taps:
    """Everybody who watches this sidecar."""

    def __init__(self) -> None:
        self.active: Taps | None = None
        """This object while somebody watches."""
        self.own = ""
        """NAME.NAMESPACE of this sidecar's workload."""
        self._watches: list[Watch] = []

    def add(
        self, edge: EdgeKey, client: str, method: bytes, target: bytes, failed: bool, duration_s: float
    ) -> None:
        """Take in one request at its end; `client` is the address that it came from."""
        if edge.direction is Direction.OUTBOUND:
            source, destination = self.own, _reached(edge)
        else:
            source, destination = client.rpartition(":")[0].strip("[]"), self.own
        path = target.partition(b"?")[0][: MAX_PATH + 1]
        key = (edge.direction, source, destination, method[: MAX_METHOD + 1], path)
        for watch in self._watches:
            watch.add(key, failed, duration_s)

    async def watch(self, seconds: float) -> Tapped:
        """The requests that end within the next `seconds`."""
        watch = Watch()
        self._watches.append(watch)
        self.active = self
        try:
            await trio.sleep(seconds)
        finally:
            self._watches.remove(watch)
            if not self._watches:
                self.active = None
        return watch.seen(seconds)


def _reached(edge: EdgeKey) -> str:
    return f"{edge.workload}.{edge.namespace}" if edge.workload else edge.service
