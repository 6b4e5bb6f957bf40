"""One of our sidecars as a process: `python -m bench.ours FILE`, FILE being a `Params` in JSON.

It differs from a deployed sidecar in two things: its ports are given, and what a client dialled is said by
`Params.dialled`, because the bench has no redirecting rules.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import msgspec
import trio

from mesh_proxy.app import raise_descriptor_limit, run
from mesh_proxy.net.addr import Addr
from mesh_proxy.settings import Settings

_LOOPBACK = ("127.0.0.1",)


class Params(msgspec.Struct, frozen=True):
    """What one process is told."""

    config_file: str
    ca_socket: str
    dialled: dict[str, Addr]
    """What a client dialled, by the address that it connected to."""
    listen_ip: str
    pod_ip: str
    outbound_port: int
    inbound_port: int
    admin_port: int
    metrics_port: int
    health_port: int
    http2_engine: str


def settings(params: Params) -> Settings:
    """The sidecar's settings for `params`; any user may run it."""
    return Settings(
        config_file=params.config_file,
        ca_socket=params.ca_socket,
        pod_ips=frozenset({params.pod_ip}),
        outbound_hosts=(params.listen_ip,),
        inbound_hosts=(params.listen_ip,),
        admin_hosts=_LOOPBACK,
        public_hosts=_LOOPBACK,
        outbound_port=params.outbound_port,
        inbound_port=params.inbound_port,
        admin_port=params.admin_port,
        metrics_port=params.metrics_port,
        health_port=params.health_port,
        http2_engine=params.http2_engine,
        uid=-1,
        drain_s=0.5,
    )


def main() -> None:
    """Run until SIGTERM."""
    params = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Params)

    def original_dst(sock: socket.socket) -> Addr:
        return params.dialled[sock.getsockname()[0]]

    async def sidecar() -> None:
        await run(settings(params), original_dst=original_dst)

    raise_descriptor_limit()
    trio.run(sidecar)


if __name__ == "__main__":
    main()
