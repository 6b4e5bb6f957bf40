"""Which keys are to be looked at, and when: client-go's work queue.

A key is held once however often it is added. One that is added while a worker has it waits until that
worker is done, so that no key is ever worked on twice at the same time.
"""

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import trio

K = TypeVar("K", bound=Hashable)

BACKOFF_FIRST_S = 0.005
BACKOFF_MAX_S = 60.0
LIMIT = 10_000


class WorkQueue(Generic[K]):
    """A de-duplicating queue with delays and a back-off for each key.

    Args:
        refill: all keys there are; asked when more than `limit` were waiting, so that what could not be
            held is not lost.
        limit: how many keys wait at most, ready and delayed each.
    """

    def __init__(self, refill: Callable[[], Iterable[K]], limit: int = LIMIT) -> None:
        self._refill = refill
        self._limit = limit
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()
        self._taken: set[K] = set()
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = 0
        self._failures: dict[K, int] = {}
        self._overflowed = False
        self._missed: deque[K] = deque()
        self._idle = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        """How many keys wait, delayed ones included."""
        return len(self._ready) + len(self._due)

    def add(self, key: K) -> None:
        """Have `key` looked at as soon as a worker is free."""
        if key in self._dirty:
            return
        if len(self._dirty) >= self._limit:
            self._overflowed = True
            return
        self._dirty.add(key)
        if key not in self._taken:
            self._ready.append(key)
            self._wake()

    def add_after(self, key: K, seconds: float) -> None:
        """Add `key` later; of several times for one key the earliest counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = trio.current_time() + seconds
        if due >= self._due.get(key, float("inf")):
            return
        if key not in self._due and len(self._due) >= self._limit:
            self.add(key)
            return
        self._due[key] = due
        self._order += 1
        heapq.heappush(self._heap, (due, self._order, key))
        self._wake()

    def add_failed(self, key: K) -> float:
        """Add `key` after its back-off, which doubles each time until `forget`; returns the delay."""
        failures = self._failures.get(key, 0)
        if failures or len(self._failures) < self._limit:
            self._failures[key] = failures + 1
        delay = min(BACKOFF_FIRST_S * 2.0 ** min(failures, 32), BACKOFF_MAX_S)
        self.add_after(key, delay)
        return delay

    def failures(self, key: K) -> int:
        """How often `add_failed` was called since the last `forget`."""
        return self._failures.get(key, 0)

    def forget(self, key: K) -> None:
        """The key was dealt with: its next back-off starts anew."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Take the next key; `done` must follow."""
        while True:
            self._move_due()
            if self._ready:
                key = self._ready.popleft()
                self._dirty.discard(key)
                self._taken.add(key)
                if self._ready or self._heap:
                    # Another worker takes over the watch on what comes next.
                    self._wake()
                await trio.lowlevel.cancel_shielded_checkpoint()
                return key
            if self._add_missed():
                continue
            with trio.move_on_at(self._heap[0][0] if self._heap else float("inf")):
                await self._idle.park()

    def done(self, key: K) -> None:
        """The worker that took `key` has finished with it."""
        self._taken.discard(key)
        if key in self._dirty:
            self._ready.append(key)
            self._wake()

    def _add_missed(self) -> bool:
        """After an overflow, go through all keys, as many at a time as the queue holds."""
        if self._overflowed and not self._missed:
            self._overflowed = False
            self._missed.extend(self._refill())
        for _ in range(min(len(self._missed), self._limit - len(self._dirty))):
            self.add(self._missed.popleft())
        return bool(self._ready)

    def _move_due(self) -> None:
        now = trio.current_time()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)

    def _wake(self) -> None:
        """Let one idle worker look again: it takes a key, or waits for the next one that is due."""
        self._idle.unpark()
