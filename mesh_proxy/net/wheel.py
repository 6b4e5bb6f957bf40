"""A coarse timer wheel, so that a deadline costs the hot path one attribute.

An item is queued once in the bucket of its deadline. Moving the deadline later only writes the attribute:
when the old bucket comes due, the item is queued again. Moving it earlier queues a second entry, and the
outdated one is ignored when it comes due. So work per message is O(1) without any queue operation.
"""

from __future__ import annotations

import heapq

NEVER = float("inf")
TICK_S = 0.01
_UNQUEUED = 1 << 62


class Timed:
    """Something with a deadline on the wheel's clock, in seconds. Set it by `Wheel.set`."""

    __slots__ = ("deadline", "queued")

    def __init__(self) -> None:
        self.deadline = NEVER
        self.queued = _UNQUEUED

    def on_deadline(self) -> None:
        """Called by the owner of the wheel once the deadline has passed; must not block."""
        raise NotImplementedError


class Wheel:
    """Buckets of `TICK_S`; holds no clock: the caller passes `now`."""

    __slots__ = ("_buckets", "_heap")

    def __init__(self) -> None:
        self._buckets: dict[int, list[Timed]] = {}
        self._heap: list[int] = []

    def set(self, item: Timed, deadline: float) -> bool:
        """Give `item` a deadline (NEVER clears it); true if it became the earliest of all."""
        item.deadline = deadline
        if deadline == NEVER:
            return False
        tick = int(deadline / TICK_S) + 1
        if tick >= item.queued:
            return False
        item.queued = tick
        bucket = self._buckets.get(tick)
        if bucket is not None:
            bucket.append(item)
            return False
        self._buckets[tick] = [item]
        heapq.heappush(self._heap, tick)
        return self._heap[0] == tick

    def next_due(self) -> float:
        """When the earliest bucket comes due; NEVER if there is none."""
        return self._heap[0] * TICK_S if self._heap else NEVER

    def due(self, now: float) -> list[Timed]:
        """Take every item whose deadline has passed; the others are queued again."""
        expired: list[Timed] = []
        heap = self._heap
        while heap and heap[0] * TICK_S <= now:
            tick = heapq.heappop(heap)
            for item in self._buckets.pop(tick):
                if item.queued != tick:
                    continue
                item.queued = _UNQUEUED
                if item.deadline <= now:
                    expired.append(item)
                else:
                    self.set(item, item.deadline)
        return expired
