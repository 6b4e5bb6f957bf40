"""`python -m bench.discovery`: how long a change takes from the control plane to its sidecars.

Streams are in this process, without TLS: what is measured is the work for subscriptions, encoding and the
protocol, of both ends. Every sidecar uses some of the services; one service is used by all.
"""

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Protocol

import click
import msgspec
import trio
import trio.testing

from certs.framing import read_frame, write_frame
from mesh_api.discovery import (
    MAX_FRAME_BYTES,
    AddressAnswer,
    Applied,
    Content,
    FromSidecar,
    Held,
    Hello,
    Ping,
    Pong,
    Subscribe,
    Update,
    WorkloadConfig,
    address_key,
    decode_from_control,
    encode_message,
)
from mesh_api.sidecar import Destination, Endpoint, TlsMode, Workload
from mesh_control.serve.discovery import DiscoveryServer, Source
from mesh_control.serve.subscriptions import PodRef
from mesh_ops.heap import settle_heap

ENDPOINTS = 5
_IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"


class Changing(Source, Protocol):
    """A source whose services change when told to."""

    moments: dict[str, float]
    """When a destination has changed last, by key."""

    def change(self, n: int) -> None:
        """Service `n`, which is at `service_ip(n)`, has changed."""
        ...


class Cluster:
    """Services that change their endpoints."""

    def __init__(self, services: int) -> None:
        self._own = WorkloadConfig(Workload(name="any", namespace="shop"), "cluster.local", "")
        self._callbacks: list[Callable[[Collection[str]], None]] = []
        self._contents: dict[str, Content] = {}
        self.moments: dict[str, float] = {}
        self._rounds = 0
        for n in range(services):
            self._put(n)

    async def wait_synced(self) -> None:
        await trio.lowlevel.checkpoint()

    def current(self) -> bool:
        return True

    def lookup(self, key: str, pod: PodRef) -> Content | None:
        return self._own if key == "workload" else self._contents.get(key)

    def subscribe(self, callback: Callable[[Collection[str]], None]) -> None:
        self._callbacks.append(callback)

    def change(self, n: int) -> None:
        """One endpoint of service `n` is another."""
        self._rounds += 1
        key = self._put(n)
        self.moments[key] = trio.current_time()
        for callback in self._callbacks:
            callback((key,))

    def _put(self, n: int) -> str:
        ip = service_ip(n)
        name = f"shop/web-{n}:80"
        endpoints = tuple(
            Endpoint(
                address=f"10.{e + self._rounds * (e == 0) % 200}.{n >> 8}.{n & 255}",
                port=8080,
                tls=TlsMode.MESH,
                identity=_IDENTITY,
                workload=f"web-{n}",
            )
            for e in range(ENDPOINTS)
        )
        dest = Destination(name=f"web-{n}", namespace="shop", port=80, addresses=(ip,), endpoints=endpoints)
        self._contents[f"destination/{name}"] = dest
        self._contents[address_key(ip, 80)] = AddressAnswer(destination=name)
        return f"destination/{name}"


def service_ip(n: int) -> str:
    return f"10.96.{n >> 8}.{n & 255}"


class Sidecars:
    """The other ends: they ask once, acknowledge everything, and note when a change arrived."""

    def __init__(self, server: DiscoveryServer, cluster: Changing) -> None:
        self._server = server
        self._cluster = cluster
        self.ready = 0
        self.waits: list[float] = []

    async def run(self, name: str, services: Collection[int]) -> None:
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._server.converse, far, _IDENTITY, 4e9)
            await self._say(near, Hello(pod=name, namespace="shop", version="bench"))
            await read_frame(near)
            keys = tuple(Held(address_key(service_ip(n), 80)) for n in services)
            await self._say(near, Subscribe((Held("workload"), *keys)))
            asked = 2 * len(keys) + 1
            while True:
                message = decode_from_control(await read_frame(near, MAX_FRAME_BYTES))
                if isinstance(message, Ping):
                    await self._say(near, Pong())
                elif isinstance(message, Update):
                    asked = self._take(message, asked)
                    await self._say(near, Applied(message.nonce))

    def _take(self, update: Update, asked: int) -> int:
        """Count first answers until all are there; note changes after that."""
        if asked:
            asked -= len(update.resources)
            self.ready += not asked
            return asked
        now = trio.current_time()
        self.waits += [now - self._cluster.moments[resource.key] for resource in update.resources]
        return 0

    async def _say(self, stream: trio.abc.Stream, message: FromSidecar) -> None:
        await write_frame(stream, encode_message(message), MAX_FRAME_BYTES)


class Figures(msgspec.Struct):
    """Milliseconds from change to received, over everyone who had to receive."""

    what: str
    received: int
    p50_ms: float
    p99_ms: float
    max_ms: float


async def _measure(
    sidecars: Sidecars, cluster: Changing, what: str, changes: Collection[int], every_s: float, expected: int
) -> Figures:
    waits: list[float] = []
    sidecars.waits = waits
    for n in changes:
        cluster.change(n)
        await trio.sleep(every_s)
    with trio.fail_after(60):
        while len(waits) < expected:  # noqa: ASYNC110 - counted by many tasks
            await trio.sleep(0.01)
    waits.sort()

    def at(share: float) -> float:
        return float(round(waits[min(len(waits) - 1, int(len(waits) * share))] * 1000, 2))

    return Figures(what, len(waits), at(0.5), at(0.99), at(1))


async def run(cluster: Changing, sidecars: int, services: int, used: int, changes: int) -> list[Figures]:
    """Measure with so many of each; raises trio.TooSlowError where something was never received."""
    rng = random.Random(7)
    server = DiscoveryServer(
        cluster, lambda _namespace, _pod: _IDENTITY, "cluster.local", rng, replica="bench", version="bench"
    )
    ends = Sidecars(server, cluster)
    users = [0] * services
    async with trio.open_nursery() as nursery:
        for n in range(sidecars):
            chosen = {0, *rng.sample(range(1, services), used - 1)}
            for service in chosen:
                users[service] += 1
            nursery.start_soon(ends.run, f"pod-{n}", chosen)
        began = trio.current_time()
        with trio.fail_after(300):
            while ends.ready < sidecars:  # noqa: ASYNC110 - counted by many tasks
                await trio.sleep(0.02)
        start_s = trio.current_time() - began
        click.echo(
            f"{sidecars} sidecars, {services} services, each uses {used}: all told after {start_s:.1f} s, "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB with both ends"
        )
        settle_heap()  # as the control plane does once it is up
        some = [rng.randrange(1, services) for _ in range(changes)]
        measure = partial(_measure, ends, cluster)
        rows = [
            await measure("one service, some of the sidecars", some, 0.05, sum(users[n] for n in some)),
            await measure("the service that all use", [0] * 10, 1.0, 10 * sidecars),
        ]
        nursery.cancel_scope.cancel()
    return rows


@click.command()
@click.option("--sidecars", default=1000, show_default=True)
@click.option("--services", default=1000, show_default=True)
@click.option("--used", default=50, show_default=True, help="Services that each sidecar uses.")
@click.option("--changes", default=100, show_default=True)
def main(sidecars: int, services: int, used: int, changes: int) -> None:
    """Measure the way of an endpoint's change to the sidecars that use it."""
    show(trio.run(run, Cluster(services), sidecars, services, used, changes))


def show(rows: Iterable[Figures]) -> None:
    """Print a line for each."""
    for row in rows:
        click.echo(
            f"{row.what:36} received {row.received:6}  p50 {row.p50_ms:7.2f} ms  "
            f"p99 {row.p99_ms:7.2f} ms  max {row.max_ms:7.2f} ms"
        )


if __name__ == "__main__":
    main()
