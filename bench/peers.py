"""The pairs: configurations of ours, Envoy and HAProxy for the same job, and their start.

Client side: plaintext in, mTLS (TLS 1.3, ECDSA P-256) out. Server side: mTLS in, plaintext out. One worker
thread a process. No access log, no TLS session resumption on the accepting side, keep-alive pools. Ours and
Envoy check the chain and the SPIFFE id of the peer on both sides; HAProxy 2.6 cannot match a URI name and
checks the chain only.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from bench.envoy import envoy_binary, envoy_config
from bench.net import accepts, answers
from bench.origin import SMALL, body
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

Mode = Literal["http", "tcp"]
Side = Literal["client", "server"]
PEERS = ("envoy", "haproxy")
OURS = "ours"
_VIP = "10.255.0.1"
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
  bind 127.0.0.1:{listen} {tls_in}
  {routes}
  default_backend out
backend out
  {reuse}
  server next 127.0.0.1:{target} {limit} {tls_out}
backend out-v2
  {reuse}
  server next 127.0.0.1:{target} {limit} {tls_out}
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
    entry: int = field(default_factory=free_port)
    """Plaintext listener of the client side."""
    mtls: int = field(default_factory=free_port)
    """mTLS listener of the server side."""
    client_admin: int = field(default_factory=free_port)
    server_admin: int = field(default_factory=free_port)

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
    if peer == OURS:
        return _ours(side, layout, stem)
    if peer == "envoy":
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
                )
            )
        )
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
        return [str(envoy_binary()), "-c", str(config), *options]
    if peer == "haproxy":
        haproxy = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        if haproxy is None:
            raise BenchError("haproxy: not installed")
        config = stem.with_suffix(".cfg")
        config.write_text(_haproxy_config(side, layout))
        return [haproxy, "-db", "-f", str(config)]
    raise BenchError(f"{peer}: expected one of {', '.join((OURS, *PEERS))}")


def is_ready(peer: str, side: Side, layout: Layout) -> bool:
    """What the peer itself calls ready: its health page, or a listener that accepts."""
    if peer == OURS:
        return answers(layout.admin(side), "/healthz/ready")
    if peer == "envoy":
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
        if layout.mode == "http":
            good = body(SMALL)
            await until("a right answer", client, lambda: answers(layout.entry, SMALL, good), _START_S)
        yield Pair(peer, layout, client, server)


def _target(side: Side, layout: Layout) -> int:
    return layout.mtls if side == "client" else layout.app_port


def _haproxy_config(side: Side, layout: Layout) -> str:
    tls = f"ssl crt {layout.pki.cert(side)} ca-file {layout.pki.root} verify required no-tls-tickets"
    tls += " ssl-min-ver TLSv1.3"
    http = layout.mode == "http"
    if http:
        tls += " alpn http/1.1"
    policy = side == "client" and layout.policy
    return _HAPROXY.format(
        mode=layout.mode,
        policy=HAPROXY_DEFAULTS if policy else "",
        routes=HAPROXY_ROUTES if policy else "",
        limit=HAPROXY_LIMIT if policy else "",
        http="timeout http-keep-alive 600s" if http else "",
        reuse="http-reuse always" if http else "",
        listen=layout.listens(side),
        target=_target(side, layout),
        tls_in=tls if side == "server" else "",
        tls_out=tls if side == "client" else "",
    )


def _snapshot(side: Side, layout: Layout) -> Snapshot:
    protocol = Protocol.HTTP if layout.mode == "http" else Protocol.TCP
    workload = Workload(name=side, namespace="bench", service_account=side)
    if side == "server":
        # Strict, as the peers are: they accept nothing but mTLS either.
        inbound = Inbound(mtls=MtlsMode.STRICT, protocols={str(layout.app_port): protocol})
        return Snapshot(workload=workload, trust_domain=TRUST_DOMAIN, inbound=inbound)
    endpoint = Endpoint(
        address="127.0.0.1",
        port=layout.mtls,
        tls=TlsMode.MESH,
        identity=str(identity("server")),
        workload="server",
    )
    destination = Destination(
        name="server", namespace="bench", port=80, addresses=(_VIP,), protocol=protocol, endpoints=(endpoint,)
    )
    if layout.policy:
        destination = with_policy(destination)
    return Snapshot(workload=workload, trust_domain=TRUST_DOMAIN, destinations=(destination,))


def _ours(side: Side, layout: Layout, stem: Path) -> list[str]:
    config = stem.with_suffix(".snapshot.json")
    config.write_bytes(encode_snapshot(_snapshot(side, layout)))
    server = side == "server"
    values: dict[str, Any] = {
        "config_file": str(config),
        "ca_socket": str(layout.pki.socket(side)),
        "dialled_ip": "127.0.0.1" if server else _VIP,
        "dialled_port": layout.app_port if server else 80,
        # The server's application is on loopback, which the sidecar takes for this pod's only if told.
        "pod_ip": "127.0.0.1" if server else "10.255.0.2",
        "outbound_port": free_port() if server else layout.entry,
        "inbound_port": layout.mtls if server else free_port(),
        "admin_port": free_port(),
        "metrics_port": free_port(),
        "health_port": layout.admin(side),
    }
    params = stem.with_suffix(".params.json")
    params.write_bytes(msgspec.json.encode(Params(**values)))
    return [sys.executable, "-m", "bench.ours", str(params)]
