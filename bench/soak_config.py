"""The configurations of a soak: one every second, each valid, none of which may make a request fail."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from bench.pki import TRUST_DOMAIN, identity
from mesh_api.sidecar import (
    Destination,
    Endpoint,
    Inbound,
    MtlsMode,
    Protocol,
    Snapshot,
    TlsMode,
    Workload,
)
from mesh_api.traffic import (
    Algorithm,
    Breaker,
    HeaderEdits,
    Match,
    Outliers,
    PathMatch,
    Retries,
    RetryOn,
    Route,
    Settings,
    Subset,
    Timeouts,
    ValueMatch,
    WeightedTarget,
)
from mesh_proxy.net.addr import Addr

SHORT, HTTP2, GRPC, STREAMS, TCP = range(1, 6)
"""Destinations: the Nth is what a client means that connects to 127.0.0.N."""
KINDS = {
    SHORT: Protocol.HTTP,
    HTTP2: Protocol.HTTP2,
    GRPC: Protocol.HTTP2,
    STREAMS: Protocol.HTTP,
    TCP: Protocol.TCP,
}
LASTING = 3
"""Addresses of the server that stays; each is an endpoint of every destination."""
_LONG_LIVED = (STREAMS, TCP)


@dataclass(frozen=True)
class Servers:
    """mTLS ports: of the server side that stays, and of one that comes and goes (0: it is away)."""

    lasting: int
    passing: int = 0


def dialled_by_client() -> dict[str, Addr]:
    """What a client dialled, by where it connected to."""
    return {f"127.0.0.{n}": Addr(f"10.255.0.{n}", 80) for n in KINDS}


def dialled_by_mesh(ports: Sequence[int]) -> dict[str, Addr]:
    """The same for a server side, with the application of each destination."""
    hosts = range(LASTING)
    return {
        f"127.0.{k}.{n}": Addr("127.0.0.1", port) for k in hosts for n, port in zip(KINDS, ports, strict=True)
    }


def server_snapshot(ports: Sequence[int], rng: random.Random) -> Snapshot:
    """What a server side is told."""
    declared = {
        str(port): rng.choice((protocol, Protocol.AUTO)) if protocol is not Protocol.TCP else protocol
        for port, protocol in zip(ports, KINDS.values(), strict=True)
    }
    return Snapshot(
        workload=Workload(name="server", namespace="bench", service_account="server"),
        trust_domain=TRUST_DOMAIN,
        inbound=Inbound(mtls=rng.choice((MtlsMode.STRICT, MtlsMode.PERMISSIVE)), protocols=declared),
        access_log=False,
    )


def client_snapshot(servers: Servers, rng: random.Random) -> Snapshot:
    """What the client side is told: other endpoints, weights, routes and settings each time."""
    return Snapshot(
        workload=Workload(name="client", namespace="bench", service_account="client"),
        trust_domain=TRUST_DOMAIN,
        destinations=tuple(_destination(n, servers, rng) for n in KINDS),
    )


def _destination(n: int, servers: Servers, rng: random.Random) -> Destination:
    lasting = rng.sample(range(LASTING), rng.randint(1, LASTING))
    endpoints = [_endpoint(f"127.0.{k}.{n}", servers.lasting, f"v{k}", rng) for k in sorted(lasting)]
    if servers.passing and n not in _LONG_LIVED:
        endpoints.append(_endpoint(f"127.0.0.{n}", servers.passing, "v0", rng))
    versions = sorted({endpoint.labels["version"] for endpoint in endpoints})
    return Destination(
        name=f"d{n}",
        namespace="bench",
        port=80,
        addresses=(f"10.255.0.{n}",),
        protocol=KINDS[n],
        endpoints=tuple(endpoints),
        subsets={version: Subset(labels={"version": version}) for version in versions},
        routes=_routes(versions, rng) if KINDS[n] is not Protocol.TCP and rng.random() < 0.7 else (),
        settings=_settings(rng),
        retries=Retries(attempts=rng.randint(1, 3), on=(RetryOn.CONNECT_FAILURE, RetryOn.REFUSED_STREAM)),
    )


def _endpoint(address: str, port: int, version: str, rng: random.Random) -> Endpoint:
    return Endpoint(
        address=address,
        port=port,
        tls=TlsMode.MESH,
        identity=str(identity("server")),
        workload="server",
        labels={"version": version},
        weight=rng.randint(1, 5),
    )


def _routes(versions: Sequence[str], rng: random.Random) -> tuple[Route, ...]:
    split = tuple(WeightedTarget(subset=version, weight=rng.randint(1, 100)) for version in versions)
    edits = HeaderEdits(set={"x-revision": str(rng.randrange(1000))}, remove=("x-nobody",))
    header = ValueMatch(name="x-user", exact=f"user-{rng.randrange(10)}")
    return (
        Route(match=(Match(path=PathMatch(prefix="/nowhere"), headers=(header,)),), to=split[:1]),
        Route(match=(Match(path=PathMatch(exact="/1k")),), to=split, timeout_s=rng.choice((None, 20.0))),
        Route(to=split, response_headers=edits),
    )


def _settings(rng: random.Random) -> Settings:
    return Settings(
        timeouts=Timeouts(stream_idle_s=rng.choice((None, 60.0)), pool_idle_s=rng.uniform(1.0, 60.0)),
        algorithm=rng.choice(tuple(Algorithm)),
        breaker=Breaker(
            max_connections=rng.choice((None, 1000)),
            max_requests=rng.choice((None, 10_000)),
            max_requests_per_connection=rng.choice((0, 20, 1000)),
        ),
        outliers=Outliers(consecutive_5xx=rng.choice((0, 5)), interval_s=rng.uniform(1.0, 10.0)),
        affinity_s=rng.choice((None, 30.0)),
    )
