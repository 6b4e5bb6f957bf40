"""Several workloads of one mesh, each behind a sidecar of its own, called through one client's sidecar."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import trio

from certs.credentials import Credentials
from mesh_api.sidecar import Destination, Endpoint, Protocol, Snapshot, TlsMode, Workload
from mesh_api.traffic import Route, WeightedTarget
from mesh_proxy.net.addr import Addr
from mesh_proxy.policy.outcome import Flag
from mesh_proxy.pool.cluster import Cluster
from tests.integration.http2_peers import Handler as StreamHandler
from tests.integration.http2_peers import Http2Application, http2_application
from tests.integration.http_peers import (
    STEP_S,
    Application,
    Handler,
    Message,
    Peer,
    answering,
    application,
    mesh_test,
    ok,
    settled,
)
from tests.support.mesh import VIP, Sidecar, TestCa, identity, server_snapshot, sidecar

Http2Handlers = dict[str, StreamHandler]
OTHER_VIP = Addr("10.255.0.2", 81)
OTHER = "shop/other:81"
GET = b"GET / HTTP/1.1\r\nHost: s\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\nab"


@functools.cache
def _credentials(name: str) -> Credentials:
    return _ca().credentials(name)


@functools.cache
def _ca() -> TestCa:
    return TestCa()


def to(*subsets: str, **more: object) -> Route:
    """A route to subsets, with equal weights."""
    return Route(to=tuple(WeightedTarget(subset=name) for name in subsets), **more)  # type: ignore[arg-type]


class PolicyMesh:
    """`connect()` reaches the client's sidecar; `apps` and `servers` are by name."""

    def __init__(self, client: Sidecar, apps: dict[str, Application], servers: dict[str, Sidecar]) -> None:
        self.client = client
        self.apps = apps
        self.apps2: dict[str, Http2Application] = {}
        """Those that speak HTTP/2."""
        self.servers = servers
        self._peers: list[Peer] = []

    async def connect(self) -> Peer:
        self._peers.append(Peer(await trio.open_tcp_stream(*self.client.outbound)))
        return self._peers[-1]

    async def ask(self, raw: bytes = GET) -> Message:
        """One request on a connection of its own."""
        peer = await self.connect()
        await peer.send(raw)
        return await peer.response(raw.partition(b" ")[0])

    async def bodies(self, n: int, raw: bytes = GET) -> Counter[bytes]:
        """What `n` requests on one connection are answered."""
        peer = await self.connect()
        got: Counter[bytes] = Counter()
        for _ in range(n):
            await peer.send(raw)
            got[(await peer.response()).body] += 1
        return got

    def close_clients(self) -> None:
        for peer in self._peers:
            peer.close()

    def cluster(self, subset: str = "", name: str = "server") -> Cluster:
        """At run time, in the client's sidecar."""
        snapshot = self.client.app.store.snapshot
        assert snapshot is not None
        (dest,) = [dest for dest in snapshot.destinations if dest.name == name]
        return self.client.app.runtime.services.destination(dest).clusters[subset]

    def change(self, **changes: object) -> None:
        """Change the destination."""
        snapshot = self.client.app.store.snapshot
        assert snapshot is not None
        first, *others = snapshot.destinations
        destinations = (msgspec.structs.replace(first, **changes), *others)
        self.client.app.on_snapshot(msgspec.structs.replace(snapshot, destinations=destinations))

    async def record(self, **fields: object) -> dict[str, object]:
        """The client's sidecar's access-log record that has these fields."""
        return await self.client.log.wait_for(
            lambda line: "duration_ms" in line and fields.items() <= line.items()
        )


def error(response: Message) -> bytes:
    """What the sidecar says of its own answer."""
    return response.get(b"x-triomesh-error") or b""


def flag_of(response: Message) -> str:
    return Flag(error(response).partition(b";")[0].removeprefix(b"flag=").decode())


def endpoint(side: Sidecar, name: str) -> Endpoint:
    """A workload's endpoint, with mTLS to its sidecar."""
    return Endpoint(
        address=side.inbound.ip,
        port=side.inbound.port,
        tls=TlsMode.MESH,
        identity=identity("server"),
        workload=f"server-{name}",
        labels={"version": name},
    )


@asynccontextmanager
async def policy_mesh(
    handlers: dict[str, Handler | bytes],
    *,
    other: Handler | bytes | None = None,
    other_changes: dict[str, object] | None = None,
    labels: dict[str, str] | None = None,
    http2: Http2Handlers | None = None,
    **changes: object,
) -> AsyncIterator[PolicyMesh]:
    """Workloads by version behind the destination VIP, and `other` behind OTHER_VIP.

    `changes` are of the destination; `labels` are the client's own; workloads of `http2` speak that. Nothing
    may be left over at the end.
    """
    async with AsyncExitStack() as stack:
        apps: dict[str, Application] = {}
        apps2: dict[str, Http2Application] = {}
        servers: dict[str, Sidecar] = {}
        for name, stream_handler in (http2 or {}).items():
            apps2[name] = await stack.enter_async_context(http2_application(stream_handler))
        for name, handler in {**handlers, **({"other": other} if other is not None else {})}.items():
            run = answering(handler) if isinstance(handler, bytes) else handler
            apps[name] = await stack.enter_async_context(application(run))
        for name, app in {**apps, **apps2}.items():
            servers[name] = await stack.enter_async_context(
                sidecar(_credentials("server"), server_snapshot(access_log=False))
            )
            servers[name].aim(inbound=app.addr)
        first = Destination(
            name="server",
            namespace="shop",
            port=VIP.port,
            addresses=(VIP.ip,),
            protocol=Protocol.HTTP,
            endpoints=tuple(endpoint(servers[name], name) for name in (*handlers, *apps2)),
            policy="shop/server",
        )
        second = Destination(
            name="other",
            namespace="shop",
            port=OTHER_VIP.port,
            addresses=(OTHER_VIP.ip,),
            protocol=Protocol.HTTP,
            endpoints=(endpoint(servers["other"], "other"),) if other is not None else (),
        )
        snapshot = Snapshot(
            workload=Workload(name="client", namespace="shop", service_account="client", labels=labels or {}),
            destinations=(
                msgspec.structs.replace(first, **changes),
                msgspec.structs.replace(second, **(other_changes or {})),
            ),
            access_log=True,
        )
        front = await stack.enter_async_context(sidecar(_credentials("client"), snapshot))
        front.aim(outbound=VIP)
        found = PolicyMesh(front, apps, servers)
        found.apps2 = apps2
        yield found
        found.close_clients()
        await settled(front, *servers.values())
        for service in front.app.runtime.services.all():
            for cluster in service.clusters.values():
                breaker = cluster.breaker
                assert (breaker.requests, breaker.pending, breaker.connections) == (0, 0, 0)


__all__ = [
    "GET",
    "OTHER",
    "OTHER_VIP",
    "POST",
    "STEP_S",
    "PolicyMesh",
    "endpoint",
    "error",
    "flag_of",
    "mesh_test",
    "ok",
    "policy_mesh",
    "to",
]
