"""`python -m bench.soak`: mixed traffic through our pair for SOAK_S seconds (default an hour).

Watches resident memory and descriptors of both sidecars and fails if they grow without end or if a request
fails. Traffic: kept connections, new connections, bulk, clients that go away in the middle.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from bench import pki
from bench.net import get_bytes
from bench.origin import BULK, MEDIUM, SIZES, SMALL, body, origin
from bench.peers import OURS, Layout, Pair, pair
from bench.procs import BenchError, interruptible, messages
from bench.runner import progress

Step = Callable[[], Awaitable[None]]
_DEFAULT_S = 3600.0
_REQUEST_S = 20.0
_MEMORY_FACTOR, _MEMORY_MB = 1.3, 10.0
_DESCRIPTORS = 64
"""By how many the descriptors may exceed what they were after the warm-up: connections that just exist."""


@dataclass(frozen=True)
class Sample:
    """One look at one process."""

    at: float
    rss_mb: float
    descriptors: int


@dataclass
class Totals:
    """What the traffic did."""

    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[Sample]] = field(default_factory=dict)


def growth(samples: Sequence[Sample], length_s: float) -> str:
    """What grew too much after the warm-up third, or an empty string.

    The highest value of the last two thirds is held against the highest of the first third.
    """
    warm = [s for s in samples if s.at <= length_s / 3]
    later = [s for s in samples if s.at > length_s / 3]
    if not warm or not later:
        return "no samples to judge by"
    rss, rss_warm = max(s.rss_mb for s in later), max(s.rss_mb for s in warm)
    bound = rss_warm * _MEMORY_FACTOR + _MEMORY_MB
    if rss > bound:
        return f"memory grew from {rss_warm:.1f} to {rss:.1f} MB, allowed are {bound:.1f}"
    fds, fds_warm = max(s.descriptors for s in later), max(s.descriptors for s in warm)
    if fds > fds_warm + _DESCRIPTORS:
        return f"descriptors grew from {fds_warm} to {fds}, allowed are {fds_warm + _DESCRIPTORS}"
    return ""


async def _exchange(stream: trio.SocketStream, path: str, read: int | None = None) -> None:
    """One GET; every byte of the answer is compared. With `read`, stop after that many bytes."""
    await stream.send_all(get_bytes(path))
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        more = await stream.receive_some(65536)
        if not more:
            raise BenchError("the connection ended before the response head")
        data += more
    if not data.startswith(b"HTTP/1.1 200"):
        raise BenchError(f"expected status 200, got {bytes(data[:40])!r}")
    del data[: end + 4]
    if read is not None:
        while len(data) < read:
            data += await stream.receive_some(65536)
        return
    while len(data) < SIZES[path]:
        more = await stream.receive_some(1 << 20)
        if not more:
            raise BenchError(f"the body ended after {len(data)} of {SIZES[path]} bytes")
        data += more
    if data != body(path):
        raise BenchError("the body is not what the origin sent")


class Traffic:
    """The mix; each kind is one endless task that pauses a little between its steps."""

    def __init__(self, port: int, totals: Totals, rng: random.Random) -> None:
        self.port = port
        self.totals = totals
        self.rng = rng

    async def run(self) -> None:
        """All kinds until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(self._kept)
            for _ in range(2):
                nursery.start_soon(self._repeat, "new", self._new, 0.05)
                nursery.start_soon(self._repeat, "aborted", self._aborted, 0.1)
            nursery.start_soon(self._repeat, "bulk", self._bulk, 0.5)

    async def _connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def _repeat(self, kind: str, step: Step, pause_s: float) -> None:
        while True:
            await self._counted(kind, step)
            await trio.sleep(pause_s * (0.5 + self.rng.random()))

    async def _counted(self, kind: str, step: Step) -> bool:
        try:
            with trio.fail_after(_REQUEST_S):
                await step()
        except (BenchError, OSError, trio.TooSlowError, trio.BrokenResourceError) as exc:
            self.totals.failed[f"{kind}: {str(exc) or type(exc).__name__}"] += 1
            return False
        self.totals.done[kind] += 1
        return True

    async def _kept(self) -> None:
        while True:
            async with await self._connect() as stream:
                for turn in itertools.count():
                    path = MEDIUM if turn % 20 == 19 else SMALL
                    if not await self._counted("kept", lambda: _exchange(stream, path)):  # noqa: B023
                        break
                    await trio.sleep(0.01 * self.rng.random())

    async def _new(self) -> None:
        async with await self._connect() as stream:
            await _exchange(stream, SMALL)

    async def _bulk(self) -> None:
        async with await self._connect() as stream:
            await _exchange(stream, BULK)

    async def _aborted(self) -> None:
        """Go away within the request, before the answer, or within the body."""
        async with await self._connect() as stream:
            match self.rng.randrange(3):
                case 0:
                    await stream.send_all(get_bytes(SMALL)[:20])
                case 1:
                    await stream.send_all(get_bytes(BULK))
                case _:
                    await _exchange(stream, BULK, self.rng.randrange(1, 1_000_000))


async def _watch(it: Pair, totals: Totals, start: float, every_s: float) -> None:
    while True:
        await trio.sleep(every_s)
        at = trio.current_time() - start
        parts = []
        for proc in (it.client, it.server):
            sample = Sample(at, proc.rss_mb(), proc.descriptors())
            totals.samples.setdefault(proc.name, []).append(sample)
            parts.append(f"{proc.name} {sample.rss_mb:.1f} MB {sample.descriptors} fds")
        failed = totals.failed.total()
        progress(f"{at:.0f} s: {totals.done.total()} done, {failed} failed; {'; '.join(parts)}")


async def _soak(directory: Path, length_s: float) -> Totals:
    totals = Totals()
    async with trio.open_nursery() as nursery:
        keys = pki.create(directory)
        await nursery.start(keys.serve)
        async with origin(directory) as app, pair(OURS, Layout(directory, keys, "http", app.port)) as it:
            start = trio.current_time()
            traffic = Traffic(it.layout.entry, totals, random.Random(os.urandom(8)))
            with trio.move_on_after(length_s):
                async with trio.open_nursery() as inner:
                    inner.start_soon(_watch, it, totals, start, min(10.0, length_s / 12))
                    inner.start_soon(traffic.run)
        nursery.cancel_scope.cancel()
    return totals


def main() -> None:
    """Run; exit code 1 if something grew or failed."""
    text = os.environ.get("SOAK_S", "")
    try:
        length_s = float(text or _DEFAULT_S)
    except ValueError:
        length_s = 0.0
    if not 5 <= length_s <= 1_000_000:
        print(f"SOAK_S: expected seconds from 5 to 1000000, got {text!r}", file=sys.stderr)
        sys.exit(2)
    interruptible()
    failed = 0
    totals = Totals()
    try:
        with tempfile.TemporaryDirectory(prefix="triomesh-soak-") as directory:
            totals = trio.run(_soak, Path(directory), length_s)
    except* KeyboardInterrupt:
        progress("interrupted")
        failed = 130
    except* BenchError as group:
        progress(messages(group))
        failed = 1
    if failed:
        sys.exit(failed)
    problems = [f"{count} x {what}" for what, count in totals.failed.most_common(20)]
    for name, samples in totals.samples.items():
        highest = max(s.rss_mb for s in samples), max(s.descriptors for s in samples)
        print(
            f"{name}: {samples[0].rss_mb:.1f} MB at first, {samples[-1].rss_mb:.1f} at last, "
            f"at most {highest[0]:.1f}; descriptors at most {highest[1]}"
        )
        grown = growth(samples, length_s)
        if grown:
            problems.append(f"{name}: {grown}")
    print("requests:", ", ".join(f"{count} {kind}" for kind, count in sorted(totals.done.items())))
    for problem in problems:
        print("failed:", problem)
    print("passed" if not problems else "FAILED")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
