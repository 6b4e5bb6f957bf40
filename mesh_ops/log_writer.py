"""The way of every log line to the output: a bounded queue and one thread that writes.

Theory of operation: `put` takes a lock that is only ever held for a few instructions, so it never waits for
the output. The thread takes all lines that are there, writes them in one go, then rests for a few
milliseconds before it looks again: under load it wakes per batch, not per line, and leaves the interpreter
to the loop. When the reader of the output stalls, the thread is the one that blocks; the queue fills up and
further lines are counted and dropped.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from mesh_ops.printable import clean, timestamp

LEVELS = ("debug", "info", "warning", "error")
MAX_QUEUED_BYTES = 4 * 1024 * 1024
MAX_BATCH_BYTES = 64 * 1024
MAX_FIELDS = 32
MAX_FIELD_CHARS = 1_024
MAX_EVENT_CHARS = 256
REST_S = 0.005

_RANK = {name: rank for rank, name in enumerate(LEVELS)}
_INT_RANGE = range(-(2**63), 2**63)
_encode = msgspec.json.Encoder().encode


class LogWriter:
    """Writes lines to a file descriptor that it does not own. Any thread may put."""

    def __init__(
        self,
        stream_fd: int,
        capacity: int = 4_096,
        *,
        level: str = "info",
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            stream_fd: where to write; blocking or not.
            capacity: lines that may wait.
            level: least level that `log` writes.
            clock: Unix time for `log`; the system's by default.
        """
        self.dropped = 0
        """Lines that were not written: the queue was full, the output failed, or the writer was closed."""
        self._fd = stream_fd
        self._capacity = capacity
        self._clock = clock if clock is not None else _unix_time
        self._lock = threading.Lock()
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._idle = False
        self._closed = False
        self._wake = threading.Lock()
        self._wake.acquire()
        self._closing = threading.Event()
        self._level = ""
        self._rank = 0
        self.set_level(level)
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def level(self) -> str:
        """Least level that `log` writes."""
        return self._level

    def set_level(self, level: str) -> None:
        """Change the level.

        Raises ValueError when it is not one of LEVELS.
        """
        if level not in _RANK:
            raise ValueError(f"expected one of {', '.join(LEVELS)}, got {clean(level, MAX_EVENT_CHARS)!r}")
        self._level = level
        self._rank = _RANK[level]

    def enabled(self, level: str) -> bool:
        """Whether `log` would write at this level; for callers whose fields are costly."""
        return _RANK.get(level, 0) >= self._rank

    def put(self, line: bytes) -> bool:
        """Queue one line, newline included; False when it was dropped. Never waits for the output."""
        with self._lock:
            if (
                self._closed
                or len(self._lines) >= self._capacity
                or self._bytes + len(line) > MAX_QUEUED_BYTES
            ):
                self.dropped += 1
                return False
            self._lines.append(line)
            self._bytes += len(line)
            if self._idle:
                self._idle = False
                self._wake.release()
        return True

    def log(self, level: str, event: str, /, **fields: object) -> bool:
        """Write one application log line as JSON; False when it was dropped or its level is off.

        Args:
            level: one of LEVELS; anything else is written as it were an error.
            event: what happened, in constant words; what varies goes into fields.
            fields: numbers and booleans stay what they are, everything else becomes text.
        """
        rank = _RANK.get(level, len(LEVELS))
        if rank < self._rank:
            return False
        message: dict[str, object] = {
            "time": timestamp(self._clock()),
            "level": level if level in _RANK else "error",
            "event": clean(event, MAX_EVENT_CHARS),
        }
        for name, value in list(fields.items())[:MAX_FIELDS]:
            message.setdefault(name, _plain(value))
        return self.put(_encode(message) + b"\n")

    def close(self, timeout_s: float) -> bool:
        """Refuse further lines and wait up to `timeout_s` for those in the queue; False when some are left.

        The thread of a stalled output is abandoned; it does not keep the process alive.
        """
        with self._lock:
            self._closed = True
            if self._idle:
                self._idle = False
                self._wake.release()
        self._closing.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            batch = self._take()
            if batch:
                self._write(batch)
                self._closing.wait(REST_S)
                continue
            with self._lock:
                if self._lines:
                    continue
                if self._closed:
                    return
                self._idle = True
            self._wake.acquire()

    def _take(self) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        with self._lock:
            while self._lines and (not batch or size + len(self._lines[0]) <= MAX_BATCH_BYTES):
                line = self._lines.popleft()
                size += len(line)
                batch.append(line)
            self._bytes -= size
        return batch

    def _write(self, batch: list[bytes]) -> None:
        rest = memoryview(b"".join(batch))
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                # Somebody who shares the descriptor made it non-blocking.
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll(1_000)
            except OSError:
                # A closed or broken output has nobody to tell; the count is what remains.
                with self._lock:
                    self.dropped += bytes(rest).count(b"\n") or 1
                return


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and value in _INT_RANGE:
        return int(value)
    if isinstance(value, str | bytes):
        return clean(value, MAX_FIELD_CHARS)
    try:
        return clean(str(value), MAX_FIELD_CHARS)
    except Exception:
        return f"<{type(value).__name__}>"


def _unix_time() -> float:
    return datetime.now(UTC).timestamp()
