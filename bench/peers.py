"""The pairs: configurations of ours, Envoy and HAProxy for the same job, and their start.

Client side: plaintext in, mTLS (TLS 1.3, ECDSA P-256) out. Server side: mTLS in, plaintext out. One worker
thread a process. No access log, no TLS session resumption on the accepting side, keep-alive pools. Ours and
Envoy check the chain and the SPIFFE id of the peer on both sides; HAProxy 2.6 cannot match a URI name and
checks the chain only.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from bench.envoy import envoy_binary, envoy_config
from bench.modes import ALPN, Mode
from bench.net import accepts, answers, answers_http2
from bench.origin import SMALL, UNARY, body, find
from bench.ours import Params
from bench.pki import TRUST_DOMAIN, Pki, identity
from bench.policy import HAPROXY_DEFAULTS, HAPROXY_LIMIT, HAPROXY_ROUTES, with_policy
from bench.procs import BenchError, Proc, free_port, running, until
from certs.credentials import ALPN_HTTP1
from mesh_api.sidecar import (
    Destination,
    Endpoint,
    Inbound,
    MtlsMode,
    Protocol,
    Snapshot,
    TlsMode,
    Workload,
    encode_snapshot,
)
from mesh_proxy.net.addr import Addr

Side = Literal["client", "server"]
ENVOY: Final = "envoy"
HAPROXY: Final = "haproxy"
OURS: Final = "ours"
HYPER: Final = "hyper"
"""Ours again, with the other HTTP/2 engine."""
PEERS = (ENVOY, HAPROXY, HYPER)
_START_S = 15.0

_HAPROXY = """\
global
  nbthread 1
  maxconn 4000
defaults
  mode {mode}
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  {http}
  {policy}
frontend in
  bind {address}:{listen} {tls_in}
  {routes}
  default_backend out
"""
_HAPROXY_BACKEND = """\
backend {name}
  {reuse}
  server next {address}:{target} {limit} {tls_out}
"""


@dataclass(frozen=True)
class Layout:
    """Ports and files of one pair."""

    directory: Path
    pki: Pki
    mode: Mode
    app_port: int
    policy: bool = False
    """Whether the client side is given policies: see `bench.policy`. HTTP only."""
    destinations: int = 1
    """How many the client side knows. Of several, a client names the Nth by the address 127.0.0.N that it
    connects to and by the host `dN`; all are the one server. HTTP only."""
    entry: int = field(default_factory=free_port)
    """Plaintext listener of the client side."""
    mtls: int = field(default_factory=free_port)
    """mTLS listener of the server side."""
    client_admin: int = field(default_factory=free_port)
    server_admin: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        """What both sides listen on."""
        return "127.0.0.1" if self.destinations == 1 else "0.0.0.0"

    def listens(self, side: Side) -> int:
        return self.entry if side == "client" else self.mtls

    def admin(self, side: Side) -> int:
        return self.client_admin if side == "client" else self.server_admin


def alpn(peer: str) -> str:
    """The protocol name that a client of the peer's server side offers for HTTP/1.1."""
    return ALPN_HTTP1 if peer == OURS else "http/1.1"


def command(peer: str, side: Side, layout: Layout) -> list[str]:
    """Write the configuration of one process and return how to start it. Raises BenchError."""
    stem = layout.directory / f"{peer}-{layout.mode}-{side}-{layout.listens(side)}"
    if peer in (OURS, HYPER):
        return _ours(peer, side, layout, stem)
    if peer == ENVOY:
        config = stem.with_suffix(".json")
        config.write_bytes(
            msgspec.json.encode(
                envoy_config(
                    layout.pki,
                    side,
                    layout.mode,
                    layout.listens(side),
                    _target(side, layout),
                    layout.admin(side),
                    policy=side == "client" and layout.policy,
                    destinations=layout.destinations,
                )
            )
        )
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
        return [str(envoy_binary()), "-c", str(config), *options]
    if peer == HAPROXY:
        config = stem.with_suffix(".cfg")
        config.write_text(_haproxy_config(side, layout))
        return [find("haproxy"), "-db", "-f", str(config)]
    raise BenchError(f"{peer}: expected one of {', '.join((OURS, *PEERS))}")


def is_ready(peer: str, side: Side, layout: Layout) -> bool:
    """What the peer itself calls ready: its health page, or a listener that accepts."""
    if peer in (OURS, HYPER):
        return answers(layout.admin(side), "/healthz/ready")
    if peer == ENVOY:
        return accepts(layout.listens(side)) and answers(layout.admin(side), "/ready")
    return accepts(layout.listens(side))


@contextlib.asynccontextmanager
async def one_side(peer: str, side: Side, layout: Layout) -> AsyncIterator[Proc]:
    """One running process of a pair, ready."""
    name = f"{peer}-{layout.mode}-{side}"
    async with running(name, command(peer, side, layout), layout.directory) as proc:
        await until("ready", proc, lambda: is_ready(peer, side, layout), _START_S)
        yield proc


@dataclass(frozen=True)
class Pair:
    """Two running processes."""

    peer: str
    layout: Layout
    client: Proc
    server: Proc

    def cpu_s(self) -> float:
        """CPU time of both so far."""
        return self.client.cpu_s() + self.server.cpu_s()


@contextlib.asynccontextmanager
async def pair(peer: str, layout: Layout) -> AsyncIterator[Pair]:
    """A pair for the length of the block; with HTTP it has been seen to give the right answer."""
    async with one_side(peer, "server", layout) as server, one_side(peer, "client", layout) as client:
        if layout.mode != "tcp":
            await until("a right answer", client, lambda: is_right(layout), _START_S)
        yield Pair(peer, layout, client, server)


def is_right(layout: Layout) -> bool:
    """Whether a request through the pair is answered as it should be. Not for opaque TCP."""
    path = UNARY if layout.mode == "grpc" else SMALL
    ask = answers if layout.mode == "http" else answers_http2
    return ask(layout.entry, path, body(path))


def _target(side: Side, layout: Layout) -> int:
    return layout.mtls if side == "client" else layout.app_port


def _haproxy_config(side: Side, layout: Layout) -> str:
    tls = f"ssl crt {layout.pki.cert(side)} ca-file {layout.pki.root} verify required no-tls-tickets"
    tls += " ssl-min-ver TLSv1.3"
    http = layout.mode == "http"
    if http:
        tls += f" alpn {ALPN['http']}"
    client = side == "client"
    policy = client and layout.policy
    routes = HAPROXY_ROUTES if policy else ""
    backends = {"out": "127.0.0.1", "out-v2": "127.0.0.1"}
    if client and layout.destinations > 1:
        routes = "use_backend %[req.hdr(host)]"
        backends |= {f"d{n}": f"127.0.0.{n}" for n in range(1, layout.destinations + 1)}
    text = _HAPROXY.format(
        mode=layout.mode,
        policy=HAPROXY_DEFAULTS if policy else "",
        routes=routes,
        http="timeout http-keep-alive 600s" if http else "",
        address=layout.address,
        listen=layout.listens(side),
        tls_in="" if client else tls,
    )
    for name, address in backends.items():
        text += _HAPROXY_BACKEND.format(
            name=name,
            reuse="http-reuse always" if http else "",
            address=address,
            target=_target(side, layout),
            limit=HAPROXY_LIMIT if policy else "",
            tls_out=tls if client else "",
        )
    return text


def _destinations(layout: Layout) -> Iterator[Destination]:
    protocols = {"http": Protocol.HTTP, "tcp": Protocol.TCP}
    for n in range(1, layout.destinations + 1):
        endpoint = Endpoint(
            address=f"127.0.0.{n}",
            port=layout.mtls,
            tls=TlsMode.MESH,
            identity=str(identity("server")),
            workload="server",
        )
        yield Destination(
            name=f"d{n}",
            namespace="bench",
            port=80,
            addresses=(f"10.255.0.{n}",),
            protocol=protocols.get(layout.mode, Protocol.HTTP2),
            endpoints=(endpoint,),
        )


def snapshot(side: Side, layout: Layout) -> Snapshot:
    """What our sidecar of one side is configured with."""
    workload = Workload(name=side, namespace="bench", service_account=side)
    destinations = tuple(_destinations(layout))
    if side == "server":
        # Strict, as the peers are: they accept nothing but mTLS either.
        inbound = Inbound(mtls=MtlsMode.STRICT, protocols={str(layout.app_port): destinations[0].protocol})
        return Snapshot(workload=workload, trust_domain=TRUST_DOMAIN, inbound=inbound)
    if layout.policy:
        destinations = tuple(map(with_policy, destinations))
    return Snapshot(workload=workload, trust_domain=TRUST_DOMAIN, destinations=destinations)


def _ours(peer: str, side: Side, layout: Layout, stem: Path) -> list[str]:
    dialled = {f"127.0.0.{n}": Addr(f"10.255.0.{n}", 80) for n in range(1, layout.destinations + 1)}
    if side == "server":
        dialled = {ip: Addr("127.0.0.1", layout.app_port) for ip in dialled}
    ports = Ports(layout.listens(side), layout.admin(side))
    engine = "hyper" if peer == HYPER else "auto"
    return our_command(stem, layout.pki, side, snapshot(side, layout), dialled, layout.address, ports, engine)


class Ports(NamedTuple):
    """Where one of our processes listens for the traffic of its side, and for questions about its health."""

    traffic: int
    health: int


def our_command(
    stem: Path,
    pki: Pki,
    side: Side,
    config: Snapshot,
    dialled: dict[str, Addr],
    listen_ip: str,
    ports: Ports,
    engine: str = "auto",
) -> list[str]:
    """Write what one of our processes needs, its configuration to `stem`.snapshot.json; how to start it."""
    file = config_file(stem)
    file.write_bytes(encode_snapshot(config))
    server = side == "server"
    params = Params(
        config_file=str(file),
        ca_socket=str(pki.socket(side)),
        dialled=dialled,
        listen_ip=listen_ip,
        # The server's application is on loopback, which the sidecar takes for this pod's only if told.
        pod_ip="127.0.0.1" if server else "10.255.255.1",
        outbound_port=free_port() if server else ports.traffic,
        inbound_port=ports.traffic if server else free_port(),
        admin_port=free_port(),
        metrics_port=free_port(),
        health_port=ports.health,
        http2_engine=engine,
    )
    told = stem.with_suffix(".params.json")
    told.write_bytes(msgspec.json.encode(params))
    return [sys.executable, "-m", "bench.ours", str(told)]


def config_file(stem: Path) -> Path:
    """Where `our_command` writes the configuration; a change is noticed."""
    return stem.with_suffix(".snapshot.json")
