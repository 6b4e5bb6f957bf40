"""What is measured: each case gives its figures for one peer and one repetition."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import trio

from bench import load
from bench.clients import HandshakeResult, RateResult
from bench.modes import Mode
from bench.origin import BULK, GRPC_FIELDS, SIZES, SMALL, UNARY, Origin
from bench.peers import (
    ENVOY,
    HAPROXY,
    HYPER,
    Layout,
    Pair,
    alpn,
    command,
    is_ready,
    is_right,
    one_side,
)
from bench.pki import Pki
from bench.procs import BenchError, running, until
from bench.report import Metric

ANY_COUNT = 1_000_000


@dataclass(frozen=True)
class Env:
    """What every measurement is given."""

    directory: Path
    pki: Pki
    origin: Origin
    quick: bool

    def layout(
        self, mode: Mode, app_port: int | None = None, policy: bool = False, destinations: int = 1
    ) -> Layout:
        """New ports for a pair in front of the mode's origin, or of `app_port`; the rest as in `Layout`."""
        port = app_port or self.origin_port(mode)
        return Layout(self.directory, self.pki, mode, port, policy, destinations)

    def origin_port(self, mode: Mode) -> int:
        """Where the origin of a mode is; that of opaque TCP speaks HTTP/1.1."""
        origin = self.origin
        return {"http2": origin.http2, "grpc": origin.grpc}.get(mode, origin.port)

    @property
    def seconds(self) -> int:
        """Length of one measurement under load."""
        return 1 if self.quick else 2


Figures = Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """One case. Exactly one of `on_pair` and `on_peer` is set.

    `on_pair` measures a running pair of the given mode; `on_direct` takes the same from the origin without
    proxies, and those of its figures whose key is K become `added_K`. `on_peer` starts what it needs.
    """

    name: str
    metrics: tuple[Metric, ...]
    mode: Mode = "http"
    on_pair: Callable[[Env, Pair], Awaitable[Figures]] | None = None
    on_direct: Callable[[Env], Awaitable[Figures]] | None = None
    on_peer: Callable[[Env, str], Awaitable[Figures]] | None = None
    most_runs: int = 1000
    policy: bool = False
    """Whether the pair's client side is given policies."""

    def among(self, peers: Sequence[str]) -> list[str]:
        """Those of `peers` that this case is for."""
        http2 = self.mode in ("http2", "grpc")
        return [peer for peer in peers if peer == ENVOY or peer == (HYPER if http2 else HAPROXY)]


# -- HTTP/1.1 of 1 KB -------------------------------------------------------------------------------------


_LOAD_METRICS = (
    Metric("", "CPU us/request"),
    Metric("rps", "requests/s", "higher"),
    Metric("p50", "ms"),
    Metric("p99", "ms"),
    Metric("added_p50", "ms"),
    Metric("added_p99", "ms"),
)


def _closed_loop(connections: int, policy: bool = False) -> Case:
    async def on_pair(env: Env, pair: Pair) -> Figures:
        before = pair.cpu_s()
        result = await load.wrk(pair.layout.entry, SMALL, connections, env.seconds)
        cpu = pair.cpu_s() - before
        return {
            "": cpu * 1e6 / result.requests,
            "rps": result.rps,
            "p50": result.percentiles_ms[50],
            "p99": result.percentiles_ms[99],
        }

    async def on_direct(env: Env) -> Figures:
        result = await load.wrk(env.origin.port, SMALL, connections, env.seconds)
        return {"p50": result.percentiles_ms[50], "p99": result.percentiles_ms[99]}

    return Case(
        f"http1-1k-c{connections}{'-policy' if policy else ''}",
        _LOAD_METRICS,
        on_pair=on_pair,
        on_direct=on_direct,
        policy=policy,
    )


def _latencies(samples: list[tuple[float, float]], skip_s: float = 0.2) -> Figures:
    start = samples[0][0] + skip_s
    values = [latency * 1e3 for when, latency in samples if when >= start]
    return {f"p{percent}": load.percentile(values, percent) for percent in (50, 90, 99)}


def _fixed_rate(rps: int, connections: int) -> Case:
    async def on_pair(env: Env, pair: Pair) -> Figures:
        before = pair.cpu_s()
        result = await load.rate(pair.layout.entry, rps, connections, env.seconds)
        cpu = pair.cpu_s() - before
        return {"": cpu / len(result.samples) * rps, **_latencies(result.samples)}

    async def on_direct(env: Env) -> Figures:
        return _latencies((await load.rate(env.origin.port, rps, connections, env.seconds)).samples)

    added = tuple(Metric(f"added_p{percent}", "ms") for percent in (50, 90, 99))
    return Case(
        f"http1-fixed-{rps}rps-c{connections}",
        (Metric("", "CPUs"), Metric("p99", "ms"), *added),
        on_pair=on_pair,
        on_direct=on_direct,
    )


# -- HTTP/2 -----------------------------------------------------------------------------------------------


def _streams(mode: Mode) -> Case:
    async def run(env: Env, port: int) -> load.H2Result:
        log = env.directory / f"h2load-{port}.log"
        if mode == "http2":
            return await load.h2load(port, SMALL, log, env.seconds)
        options = [f"-d{env.origin.message}", *(f"-H{line}" for line in GRPC_FIELDS)]
        return await load.h2load(port, UNARY, log, env.seconds, *options)

    async def on_pair(env: Env, pair: Pair) -> Figures:
        before = pair.cpu_s()
        result = await run(env, pair.layout.entry)
        cpu = pair.cpu_s() - before
        percentiles = {f"p{percent}": ms for percent, ms in result.percentiles_ms.items()}
        return {"": cpu * 1e6 / result.requests, "rps": result.rps, **percentiles}

    async def on_direct(env: Env) -> Figures:
        result = await run(env, env.origin_port(mode))
        return {f"p{percent}": ms for percent, ms in result.percentiles_ms.items()}

    name = {"http2": "http2-1k", "grpc": "grpc-unary"}[mode]
    return Case(f"{name}-c8-m10", _LOAD_METRICS, mode, on_pair=on_pair, on_direct=on_direct)


# -- bulk -------------------------------------------------------------------------------------------------


async def _bulk(env: Env, pair: Pair) -> Figures:
    before = pair.cpu_s()
    result = await load.wrk(pair.layout.entry, BULK, 4, env.seconds)
    cpu = pair.cpu_s() - before
    megabytes = SIZES[BULK] / 1e6
    return {"": result.rps * megabytes, "cpu": cpu * 1e6 / (result.requests * megabytes)}


async def _tcp(env: Env, pair: Pair) -> Figures:
    before = pair.cpu_s()
    result = await load.tcp(pair.layout.entry, pair.layout.app_port, env.seconds)
    cpu = pair.cpu_s() - before
    megabytes = result.received / 1e6
    return {"": megabytes / result.seconds, "cpu": cpu * 1e6 / megabytes}


_BULK_METRICS = (Metric("", "MB/s", "higher"), Metric("cpu", "CPU us/MB"))

# -- handshakes -------------------------------------------------------------------------------------------


def _tls(env: Env, peer: str) -> tuple[str, str, str]:
    return str(env.pki.cert("client")), str(env.pki.root), alpn(peer)


async def _handshake_rate(env: Env, pair: Pair) -> Figures:
    before = pair.server.cpu_s()
    seconds = 1.5 if not env.quick else 1.0
    result = await load.handshakes(pair.layout.mtls, _tls(env, pair.peer), 32, ANY_COUNT, seconds)
    cpu = pair.server.cpu_s() - before
    return {"": result.count / (result.end - result.start), "cpu": cpu * 1e3 / result.count}


BURST = 300
_BURST_RPS = 1000
_CALM_S = 1.2
_AFTER_S = 1.6


async def _handshake_burst(env: Env, pair: Pair) -> Figures:
    """Fixed-rate traffic through the pair; after a calm time new connections all come at once."""
    figures: dict[str, float] = {}
    results: list[RateResult] = []
    bursts: list[HandshakeResult] = []

    async def traffic() -> None:
        results.append(await load.rate(pair.layout.entry, _BURST_RPS, 16, _CALM_S + _AFTER_S))

    async def burst() -> None:
        await trio.sleep(_CALM_S)
        bursts.append(await load.handshakes(pair.layout.mtls, _tls(env, pair.peer), BURST, BURST, 10.0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(traffic)
        nursery.start_soon(burst)
    samples, during = results[0].samples, bursts[0]
    first = samples[0][0]
    calm = [latency * 1e3 for when, latency in samples if first + 0.2 <= when < during.start]
    busy = [latency * 1e3 for when, latency in samples if during.start <= when <= during.end]
    figures[""] = load.percentile(busy, 99)
    figures["calm_p99"] = load.percentile(calm, 99)
    figures["slowdown"] = figures[""] / figures["calm_p99"]
    figures["took"] = (during.end - during.start) * 1e3
    return figures


# -- one process ------------------------------------------------------------------------------------------

IDLE = 1000


async def _memory(env: Env, peer: str) -> Figures:
    """The server side: at rest, with idle mTLS connections, and after load through it."""
    layout = env.layout("http")
    figures = {}
    async with one_side(peer, "server", layout) as server:
        await trio.sleep(0.5)
        figures[""] = server.rss_mb()
        ready = env.directory / f"idle-{layout.mtls}"
        arguments = ["idle", str(layout.mtls), str(IDLE), str(ready), "--tls", *_tls(env, peer)]
        name = f"idle-{peer}-{layout.mtls}"
        async with running(name, load.client_command(*arguments), env.directory) as holder:
            await until("all connections", holder, ready.exists, 30.0)
            await trio.sleep(0.2)
            figures["idle1000"] = server.rss_mb()
        async with one_side(peer, "client", layout):
            await load.wrk(layout.entry, SMALL, 32, env.seconds)
            figures["loaded"] = server.rss_mb()
    return figures


DESTINATIONS = 100
_REQUESTS = 100_000


async def _memory_destinations(env: Env, peer: str) -> Figures:
    """The client side, when it has used many destinations."""
    layout = env.layout("http", destinations=DESTINATIONS)
    async with one_side(peer, "server", layout), one_side(peer, "client", layout) as client:
        await trio.sleep(0.5)
        before = client.rss_mb()
        await load.spread(layout.entry, DESTINATIONS, _REQUESTS // 5 if env.quick else _REQUESTS)
        return {"": client.rss_mb(), "unused": before}


async def _ready(env: Env, peer: str) -> Figures:
    layout = env.layout("http")
    start_command = command(peer, "client", layout)
    async with running(f"{peer}-ready-{layout.entry}", start_command, env.directory) as proc:
        start = perf_counter()
        await until("ready", proc, lambda: is_ready(peer, "client", layout), 15.0, 0.005)
        return {"": perf_counter() - start}


CASES = (
    _closed_loop(1),
    _closed_loop(32),
    _closed_loop(32, policy=True),
    _closed_loop(256),
    _fixed_rate(1000, 16),
    _streams("http2"),
    _streams("grpc"),
    Case("bulk-10m-c4", _BULK_METRICS, on_pair=_bulk),
    Case("tcp-throughput", _BULK_METRICS, mode="tcp", on_pair=_tcp),
    Case(
        "handshake-burst",
        (
            Metric("", "p99 ms"),
            Metric("calm_p99", "ms"),
            Metric("slowdown", "x"),
            Metric("took", "ms"),
        ),
        on_pair=_handshake_burst,
    ),
    Case(
        "handshake-rate",
        (Metric("", "connections/s", "higher"), Metric("cpu", "CPU ms/connection")),
        on_pair=_handshake_rate,
    ),
    Case(
        "memory",
        (Metric("", "MB"), Metric("idle1000", "MB"), Metric("loaded", "MB")),
        on_peer=_memory,
        most_runs=3,
    ),
    Case(
        "memory-100-destinations",
        (Metric("", "MB"), Metric("unused", "MB")),
        on_peer=_memory_destinations,
        most_runs=1,
    ),
    Case("ready", (Metric("", "s"),), on_peer=_ready),
)


async def check(env: Env, pair: Pair) -> None:
    """Fail unless the pair still does its job. Raises BenchError."""
    if pair.layout.mode == "tcp":
        await load.tcp(pair.layout.entry, pair.layout.app_port, 0.1)
    elif not is_right(pair.layout):
        raise BenchError(f"{pair.peer}: no right answer through the pair")
