"""A CA endpoint over TLS on loopback, and the sidecar's way to it."""

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import trio

from certs.authority import Authority
from certs.credentials import Credentials, Material, build
from certs.identity import SpiffeId
from certs.keygen import make
from certs.remote import BundleSource, TlsSigner

DOMAIN = "cluster.local"
CONTROL = SpiffeId(DOMAIN, "triomesh-system", "triomesh-control")


def kept_credentials(authority: Authority, identity: SpiffeId, lifetime_s: float = 3600) -> Credentials:
    """Credentials whose key is kept, signed by `authority`."""
    now = datetime.now(UTC)
    key, csr = make()
    chain = authority.sign(csr, identity, now, timedelta(seconds=lifetime_s)).decode()
    fd = os.memfd_create("test-key")
    os.write(fd, key + chain.encode())
    material = Material(fd)
    roots = authority.bundle.to_pem().decode()
    return build(material.path, chain, roots, identity.trust_domain, now.timestamp(), material)


def port_of(listener: trio.SocketListener) -> int:
    return int(listener.socket.getsockname()[1])


def signer(
    port: int,
    directory: Path,
    bundle_pem: str,
    *,
    token: str = "",
    file: str = "bundle.pem",
    control: SpiffeId = CONTROL,
    **more: Any,
) -> TlsSigner:
    """The signer of a sidecar whose token is `directory/token` and whose environment has `bundle_pem`."""
    if token:
        (directory / "token").write_text(token)
    source = BundleSource(bundle_pem, str(directory / file), lambda: "")
    return TlsSigner(
        f"127.0.0.1:{port}", str(control), str(directory / "token"), source, control.trust_domain, **more
    )


class Eavesdropper:
    """A TLS server that answers nothing and notes what it was told after the handshake."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.heard: list[bytes] = []
        self.handshakes = 0
        self.ended = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, self.context, server_side=True, https_compatible=True)
        try:
            await tls.do_handshake()
            self.handshakes += 1
            while data := await tls.receive_some():
                self.heard.append(bytes(data))
        except trio.BrokenResourceError:
            pass
        finally:
            self.ended.set()
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def eavesdropping(context: ssl.SSLContext) -> AsyncIterator[tuple[Eavesdropper, int]]:
    server = Eavesdropper(context)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        yield server, port_of(listener)
        nursery.cancel_scope.cancel()
