"""A coarse timer wheel, so that a deadline costs the hot path one attribute.

An item is queued once in the bucket of its deadline. Moving the deadline later only writes the attribute:
when the old bucket comes due, the item is queued again. So work per message is O(1) without any queue
operation. An item that is done must be forgotten, or the wheel would keep it alive until its bucket is due.
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
        self._buckets: dict[int, dict[Timed, None]] = {}
        self._heap: list[int] = []

    def set(self, item: Timed, deadline: float) -> bool:
        """Give `item` a deadline (NEVER clears it); true if it became the earliest of all."""
        item.deadline = deadline
        if deadline == NEVER:
            return False
        tick = int(deadline / TICK_S) + 1
        if tick >= item.queued:
            return False
        if item.queued != _UNQUEUED:
            self._take_out(item)
        item.queued = tick
        bucket = self._buckets.get(tick)
        if bucket is not None:
            bucket[item] = None
            return False
        self._buckets[tick] = {item: None}
        heap = self._heap
        if len(heap) > 2 * len(self._buckets) + 64:
            heap[:] = self._buckets
            heapq.heapify(heap)
        else:
            heapq.heappush(heap, tick)
        return heap[0] == tick

    def forget(self, item: Timed) -> None:
        """Clear the item's deadline and drop every reference to it."""
        item.deadline = NEVER
        if item.queued != _UNQUEUED:
            self._take_out(item)

    def _take_out(self, item: Timed) -> None:
        bucket = self._buckets.get(item.queued)
        if bucket is not None and item in bucket:
            del bucket[item]
            if not bucket:
                del self._buckets[item.queued]  # its tick stays in the heap, where it does no harm
        item.queued = _UNQUEUED

    def next_due(self) -> float:
        """When the earliest bucket comes due; NEVER if there is none."""
        return self._heap[0] * TICK_S if self._heap else NEVER

    def due(self, now: float) -> list[Timed]:
        """Take every item whose deadline has passed; the others are queued again."""
        expired: list[Timed] = []
        heap = self._heap
        while heap and heap[0] * TICK_S <= now:
            tick = heapq.heappop(heap)
            for item in self._buckets.pop(tick, ()):
                item.queued = _UNQUEUED
                if item.deadline <= now:
                    expired.append(item)
                else:
                    self.set(item, item.deadline)
        return expired
