"""`python -m bench.soak`: mixed traffic through our pair for SOAK_S seconds (default ten minutes).

Every second both sides get another configuration: endpoints, weights, routes, settings. A second server side
comes and goes, and certificates live for a minute only. Fails if a request fails, since its application would
have answered it, or if memory or descriptors of a sidecar grow.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression

import trio

from bench import pki, soak_config
from bench.net import answers
from bench.origin import Origin, origin
from bench.peers import Ports, Side, config_file, our_command
from bench.procs import BenchError, Proc, free_port, interruptible, messages, running, until
from bench.runner import progress
from bench.soak_apps import echoes, grpc_server
from bench.soak_config import Servers
from bench.soak_traffic import Totals, Traffic
from mesh_api.sidecar import Snapshot, encode_snapshot

_DEFAULT_S = 600.0
_WARM_S = 60.0
_LEAF_S = 60.0
_CHANGE_S = 1.0
_PASSING_S = 8.0
"""How long the second server side is used, and how long it is away."""
_DRAIN_S = 4.0
"""From the configuration without it to its end."""
_MEMORY_FACTOR, _MEMORY_MB = 0.08, 3.0
"""By how much memory may rise after the warm-up: a part of what it was, and some."""
_DESCRIPTORS = 64
"""By how many the descriptors may exceed what they were after the warm-up: connections that just exist."""


@dataclass(frozen=True)
class Sample:
    """One look at one process."""

    at: float
    rss_mb: float
    descriptors: int


def rise(samples: Sequence[Sample]) -> float:
    """MB a second, by the straight line that fits best."""
    return linear_regression([s.at for s in samples], [s.rss_mb for s in samples]).slope


def settled(samples: Sequence[Sample], length_s: float) -> list[Sample]:
    """Those after the first minute, or after the first third of a shorter run."""
    return [s for s in samples if s.at >= min(_WARM_S, length_s / 3)]


def growth(samples: Sequence[Sample], length_s: float) -> str:
    """What grew too much after the warm-up, or an empty string."""
    later = settled(samples, length_s)
    if len(later) < 3:
        return "no samples to judge by"
    grown = rise(later) * (later[-1].at - later[0].at)
    allowed = later[0].rss_mb * _MEMORY_FACTOR + _MEMORY_MB
    if grown > allowed:
        return f"memory rose by {grown:.1f} MB after {later[0].at:.0f} s, allowed are {allowed:.1f}"
    half = len(later) // 2
    before, after = (max(s.descriptors for s in part) for part in (later[:half], later[half:]))
    if after > before + _DESCRIPTORS:
        return f"descriptors grew from {before} to {after}, allowed are {before + _DESCRIPTORS}"
    return ""


@dataclass
class Scene:
    """The sidecars, and what they are told."""

    directory: Path
    keys: pki.Pki
    app_ports: tuple[int, ...]
    """Of the applications, in the order of `soak_config.KINDS`."""
    rng: random.Random
    client: Ports = field(default_factory=lambda: Ports(free_port(), free_port()))
    servers: Servers = field(default_factory=lambda: Servers(free_port()))
    changes: int = 0
    visits: int = 0

    def snapshot(self, side: Side) -> Snapshot:
        """The next configuration of a side."""
        if side == "client":
            return soak_config.client_snapshot(self.servers, self.rng)
        return soak_config.server_snapshot(self.app_ports, self.rng)

    @contextlib.asynccontextmanager
    async def sidecar(self, name: str, side: Side, ports: Ports) -> AsyncIterator[Proc]:
        """One running process, ready."""
        dialled = soak_config.dialled_by_client()
        if side == "server":
            dialled = soak_config.dialled_by_mesh(self.app_ports)
        stem, config = self.directory / name, self.snapshot(side)
        command = our_command(stem, self.keys, side, config, dialled, "0.0.0.0", ports)
        async with running(name, command, self.directory) as proc:
            await until("ready", proc, lambda: answers(ports.health, "/healthz/ready"), 15.0)
            yield proc

    async def change(self) -> None:
        """Another configuration for both sides, every second."""
        while True:
            await trio.sleep(_CHANGE_S)
            for name in ("client", "server"):
                replace_file(config_file(self.directory / name), encode_snapshot(self.snapshot(name)))
            self.changes += 1

    async def come_and_go(self) -> None:
        """A second server side, told to the client side as long as it is there."""
        while True:
            ports = Ports(free_port(), free_port())
            async with self.sidecar("passing", "server", ports):
                self.servers = Servers(self.servers.lasting, ports.traffic)
                await trio.sleep(_PASSING_S)
                self.servers = Servers(self.servers.lasting)
                await trio.sleep(_DRAIN_S)
            self.visits += 1
            await trio.sleep(_PASSING_S)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file that a reader finds either old or new."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.rename(path)


async def _watch(
    procs: Sequence[Proc], samples: dict[str, list[Sample]], totals: Totals, every_s: float
) -> None:
    start = trio.current_time()
    while True:
        await trio.sleep(every_s)
        at = trio.current_time() - start
        parts = []
        for proc in procs:
            sample = Sample(at, proc.rss_mb(), proc.descriptors())
            samples.setdefault(proc.name, []).append(sample)
            parts.append(f"{proc.name} {sample.rss_mb:.1f} MB {sample.descriptors} fds")
        failed = totals.failed.total()
        progress(f"{at:.0f} s: {totals.done.total()} done, {failed} failed; {'; '.join(parts)}")


async def _soak(directory: Path, length_s: float, totals: Totals) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {}
    keys = pki.create(directory)
    rng = random.Random(os.urandom(8))
    async with trio.open_nursery() as nursery:
        await nursery.start(keys.serve, _LEAF_S)
        with grpc_server() as grpc:
            async with origin(directory) as app, echoes() as (http_echo, tcp_echo):
                scene = Scene(directory, keys, _ports(app, grpc, http_echo, tcp_echo), rng)
                server_ports = Ports(scene.servers.lasting, free_port())
                async with (
                    scene.sidecar("server", "server", server_ports) as server,
                    scene.sidecar("client", "client", scene.client) as client,
                ):
                    with trio.move_on_after(length_s):
                        async with trio.open_nursery() as inner:
                            every_s = min(5.0, length_s / 12)
                            inner.start_soon(_watch, (client, server), samples, totals, every_s)
                            inner.start_soon(scene.change)
                            inner.start_soon(scene.come_and_go)
                            traffic = Traffic(scene.client.traffic, directory, totals, rng)
                            inner.start_soon(traffic.run)
        nursery.cancel_scope.cancel()
    print(f"{scene.changes} configurations, {scene.visits} visits of the second server side")
    return samples


def _ports(app: Origin, grpc: int, http_echo: int, tcp_echo: int) -> tuple[int, ...]:
    """In the order of `soak_config.KINDS`."""
    return app.port, app.http2, grpc, http_echo, tcp_echo


def _report(samples: dict[str, list[Sample]], totals: Totals, length_s: float) -> list[str]:
    """Print what was seen; what is wrong with it."""
    problems = [f"{count} x {what}" for what, count in totals.failed.most_common(20)]
    for name, its in samples.items():
        later = settled(its, length_s)
        slope = f"{rise(later) * 60:+.2f} MB/min after {later[0].at:.0f} s" if len(later) > 2 else "too short"
        print(
            f"{name}: {its[0].rss_mb:.1f} MB at first, {its[-1].rss_mb:.1f} at last, {slope}; "
            f"descriptors at most {max(s.descriptors for s in its)}"
        )
        grown = growth(its, length_s)
        if grown:
            problems.append(f"{name}: {grown}")
    print("done:", ", ".join(f"{count} {kind}" for kind, count in sorted(totals.done.items())))
    return problems


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
    samples: dict[str, list[Sample]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="triomesh-soak-") as directory:
            samples = trio.run(_soak, Path(directory), length_s, totals)
    except* KeyboardInterrupt:
        progress("interrupted")
        failed = 130
    except* BenchError as group:
        progress(messages(group))
        failed = 1
    if failed:
        sys.exit(failed)
    problems = _report(samples, totals, length_s)
    for problem in problems:
        print("failed:", problem)
    print("passed" if not problems else "FAILED")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
