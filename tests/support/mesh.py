"""Sidecars in this process, on loopback: real sockets and TLS, with the original destination told by hand."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import msgspec
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from certs.authority import Authority
from certs.clock import wall_clock
from certs.credentials import Credentials, build
from certs.identity import SpiffeId
from mesh_api.sidecar import (
    Destination,
    Endpoint,
    Inbound,
    Pod,
    Protocol,
    Snapshot,
    TlsMode,
    Workload,
)
from mesh_ops.log_writer import LogWriter
from mesh_proxy.app import App
from mesh_proxy.discovery.dial import Resolve
from mesh_proxy.net.addr import Addr
from mesh_proxy.runtime import DEFECT
from mesh_proxy.settings import Settings

TRUST_DOMAIN = "cluster.local"
VIP = Addr("10.255.0.1", 80)
HOPS = DIRECT, ONE, INBOUND, TWO = ("direct", "one-sidecar", "inbound-sidecar", "two-sidecars")
"""A client's way to the application: straight, through its own sidecar, through the server's in plaintext, or
through both with mTLS."""
DEADLINE_S = 10.0
HTTP2_ENGINE = "auto"
"""That of sidecars whose settings name none."""


def run(test: Callable[[], object], seconds: float = 30.0) -> None:
    """Run an async test with a deadline."""

    async def main() -> None:
        with trio.fail_after(seconds):
            await test()

    trio.run(main)


class TestCa:
    """A CA whose leaves are made in memory."""

    __test__ = False

    def __init__(self, trust_domain: str = TRUST_DOMAIN) -> None:
        self.trust_domain = trust_domain
        self.authority = Authority.create(trust_domain, datetime.now(UTC))

    def credentials(self, name: str, lifetime_s: float = 3600, namespace: str = "shop") -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        now = datetime.now(UTC)
        chain = self.authority.sign(
            csr.public_bytes(serialization.Encoding.PEM),
            SpiffeId(self.trust_domain, namespace, name),
            now,
            timedelta(seconds=lifetime_s),
        )
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        fd = os.memfd_create("key")
        try:
            os.write(fd, pem + b"\n" + chain)
            bundle = self.authority.bundle_pem(now).decode()
            return build(f"/proc/self/fd/{fd}", chain.decode(), bundle, self.trust_domain, wall_clock())
        finally:
            os.close(fd)


def identity(name: str, namespace: str = "shop", trust_domain: str = TRUST_DOMAIN) -> str:
    return str(SpiffeId(trust_domain, namespace, name))


class Log:
    """A sidecar's log, read back as objects."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self.writer = LogWriter(self._write, level="debug")
        self._buf = b""
        self.lines: list[dict[str, object]] = []

    def poll(self) -> list[dict[str, object]]:
        while True:
            try:
                data = os.read(self._read, 65536)
            except BlockingIOError:
                break
            if not data:
                break
            self._buf += data
        *lines, self._buf = self._buf.split(b"\n")
        self.lines += [msgspec.json.decode(line) for line in lines]
        return self.lines

    async def wait_for(self, predicate: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        with trio.fail_after(DEADLINE_S):
            while True:
                for line in self.poll():
                    if predicate(line):
                        return line
                await trio.sleep(0.01)

    def close(self) -> None:
        self.writer.close(1)
        self.poll()
        os.close(self._read)
        os.close(self._write)


class Sidecar:
    """One in-process sidecar. `target` is what its next connections were dialled to."""

    def __init__(self, app: App, log: Log, targets: dict[str, Addr]) -> None:
        self.app = app
        self.log = log
        self.defects = 0
        """How many errors of its own a test has caused."""
        self._targets = targets

    @property
    def outbound(self) -> Addr:
        return Addr("127.0.0.1", self.app.ports["outbound"])

    @property
    def inbound(self) -> Addr:
        return Addr("127.0.0.1", self.app.ports["inbound"])

    def aim(self, *, outbound: Addr | None = None, inbound: Addr | None = None) -> None:
        if outbound is not None:
            self._targets["outbound"] = outbound
        if inbound is not None:
            self._targets["inbound"] = inbound

    def metric(self, name: str, **labels: str) -> float:
        total = 0.0
        for family in self.app.runtime.registry.collect():
            if family.name != name:
                continue
            for values, child in family.children.items():
                have = dict(zip(family.labels, values, strict=True))
                if labels.items() <= have.items():
                    total += child.count if hasattr(child, "count") else child.read()
        return total


@asynccontextmanager
async def sidecar(
    credentials: Credentials | None = None,
    snapshot: Snapshot | None = None,
    resolve: Resolve | None = None,
    **settings: object,
) -> AsyncIterator[Sidecar]:
    """Start a sidecar and stop it afterwards."""
    log = Log()
    targets: dict[str, Addr] = {}
    ports: dict[int, str] = {}

    def original_dst(sock: socket.socket) -> Addr:
        name = ports[sock.getsockname()[1]]
        if name not in targets:
            raise OSError("no original destination")
        return targets[name]

    base: dict[str, object] = {
        "uid": -1,
        "outbound_hosts": ("127.0.0.1",),
        "inbound_hosts": ("127.0.0.1",),
        "admin_hosts": ("127.0.0.1",),
        "public_hosts": ("127.0.0.1",),
        "outbound_port": 0,
        "inbound_port": 0,
        "admin_port": 0,
        "metrics_port": 0,
        "health_port": 0,
        "pod_ips": frozenset(("127.0.0.1",)),
        "drain_s": 0.2,
        "http2_engine": HTTP2_ENGINE,
    }
    app = App(Settings(**{**base, **settings}), log.writer, original_dst, resolve)  # type: ignore[arg-type]
    if credentials is not None:
        app.holder.swap(credentials)
    if snapshot is not None:
        app.on_snapshot(snapshot)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(app.run)
            ports.update({app.ports["outbound"]: "outbound", app.ports["inbound"]: "inbound"})
            side = Sidecar(app, log, targets)
            yield side
            app.stop.set()
            with trio.move_on_after(0.5) as scope:
                while app.runtime.connections:
                    await trio.sleep(0.01)
            if scope.cancelled_caught:
                nursery.cancel_scope.cancel()
        defects = app.runtime.stats.refused.child("any", DEFECT).value
        assert defects == side.defects, [line for line in log.poll() if line.get("event") == DEFECT]
    finally:
        log.close()


class Pair:
    """A client's sidecar, a server's sidecar, and the address of the application behind it."""

    def __init__(self, client: Sidecar, server: Sidecar, ca: TestCa, app: Addr) -> None:
        self.client = client
        self.server = server
        self.ca = ca
        self.app = app

    def snapshot(self, **changes: object) -> Snapshot:
        return client_snapshot(self.server.inbound, **changes)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(*self.client.outbound)


def client_snapshot(endpoint: Addr, **changes: object) -> Snapshot:
    """What the client's sidecar knows: one Service at VIP with one meshed endpoint."""
    destination = Destination(
        name="server",
        namespace="shop",
        port=VIP.port,
        addresses=(VIP.ip,),
        endpoints=(
            Endpoint(
                address=endpoint.ip,
                port=endpoint.port,
                tls=TlsMode.MESH,
                identity=identity("server"),
                workload="server-v1",
            ),
        ),
    )
    destination = msgspec.structs.replace(destination, **changes)
    return Snapshot(
        workload=Workload(name="client", namespace="shop"), destinations=(destination,), access_log=True
    )


def server_snapshot(**changes: object) -> Snapshot:
    base = Snapshot(
        workload=Workload(name="server", namespace="shop"),
        pods=(Pod(name="client-0", namespace="shop", addresses=("127.0.0.9",), identity=identity("client")),),
        inbound=Inbound(),
        access_log=True,
    )
    return msgspec.structs.replace(base, **changes)


@asynccontextmanager
async def pair(
    app: Addr,
    *,
    protocol: Protocol = Protocol.HTTP,
    server: Snapshot | None = None,
    ca: TestCa | None = None,
    client_settings: dict[str, object] | None = None,
    **changes: object,
) -> AsyncIterator[Pair]:
    """Client sidecar -> mTLS -> server sidecar -> `app`."""
    ca = ca or TestCa()
    async with sidecar(ca.credentials("server"), server or server_snapshot()) as back:
        back.aim(inbound=app)
        snapshot = client_snapshot(back.inbound, protocol=protocol, **changes)
        async with sidecar(ca.credentials("client"), snapshot, **(client_settings or {})) as front:
            front.aim(outbound=VIP)
            yield Pair(front, back, ca, app)


@asynccontextmanager
async def path(
    app: Addr,
    hops: str,
    *,
    protocol: Protocol = Protocol.HTTP,
    server: Snapshot | None = None,
    ca: TestCa | None = None,
    client_settings: dict[str, object] | None = None,
    **changes: object,
) -> AsyncIterator[tuple[Addr, tuple[Sidecar, ...]]]:
    """Where a client connects, and the sidecars between it and the application.

    Args:
        app: of the application, which speaks plaintext.
        hops: one of HOPS.
        protocol: of the application's port.
        server: what the server's sidecar is configured with, where there is one.
        ca: signs the certificates.
        client_settings: of the client's sidecar, where there is one.
        changes: of the destination that this sidecar knows.
    """
    ca = ca or TestCa()
    if hops == DIRECT:
        yield app, ()
    elif hops == ONE:
        endpoint = Endpoint(address=app.ip, port=app.port, tls=TlsMode.NONE, workload="server-v1")
        snapshot = client_snapshot(VIP, **{"endpoints": (endpoint,), "protocol": protocol, **changes})
        async with sidecar(ca.credentials("client"), snapshot, **(client_settings or {})) as front:
            front.aim(outbound=VIP)
            yield front.outbound, (front,)
    elif hops == INBOUND:
        declared = server_snapshot(inbound=Inbound(protocols={str(app.port): protocol}))
        async with sidecar(ca.credentials("server"), server or declared) as back:
            back.aim(inbound=app)
            yield back.inbound, (back,)
    else:
        async with pair(
            app, protocol=protocol, server=server, ca=ca, client_settings=client_settings, **changes
        ) as both:
            yield both.client.outbound, (both.client, both.server)


async def wait_until(predicate: Callable[[], object], seconds: float = DEADLINE_S) -> None:
    """Poll until `predicate` is true; fails after `seconds`."""
    with trio.fail_after(seconds):
        while not predicate():
            await trio.sleep(0.005)
