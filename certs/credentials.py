"""TLS contexts of a workload, built whole, tried out, and only then put in place of the old ones.

OpenSSL contexts are awkward to change while in use (roots can only be added, a failed load leaves a broken
one), so a renewal makes new ones. Connections that are up keep theirs.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from certs.verify import Peer, PeerRejected, peer_identity
from mesh_api.discovery import ALPN_DISCOVERY

ALPN_HTTP1 = "triomesh-h1"
"""HTTP/1.1 inside."""
ALPN_HTTP2 = "triomesh-h2"
"""HTTP/2 inside."""
ALPN_TCP = "triomesh-tcp"
"""Opaque bytes inside."""
ALPN_ALL = (ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP)

MAX_PEM_CHARS = 192 * 1024
MAX_ROOTS = 32
MAX_CHAIN = 9

_BEGIN = "-----BEGIN CERTIFICATE-----"


class CredentialsError(Exception):
    """Credentials that would not work; the message says which check failed."""


class Material:
    """A private key with its chain in a memory file, kept so that contexts can be made from it again.

    Args:
        fd: taken over; closed at the latest when the last credentials that hold this are gone.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def path(self) -> str:
        """Where OpenSSL reads it; no disk is behind that."""
        return f"/proc/self/fd/{self._fd}"

    def close(self) -> None:
        """Forget the key; contexts that were made from it go on working."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True)
class Credentials:
    """One generation of contexts. Times are unix seconds, those of the leaf."""

    server: ssl.SSLContext = field(repr=False)
    """For the accepting side; speaks every protocol of `ALPN_ALL`."""
    client: Mapping[str, ssl.SSLContext] = field(repr=False)
    """For the dialling side, by ALPN protocol (that of discovery too): a context offers exactly one."""
    discovery: ssl.SSLContext = field(repr=False)
    """For the control plane's side of the discovery stream."""
    identity: str
    trust_domain: str
    not_before: float
    not_after: float
    chain_pem: str = field(repr=False)
    bundle_pem: str = field(repr=False)
    material: Material | None = field(repr=False, default=None, compare=False)
    """The key, where it was kept: then `rebuild` and `open_server` work."""


def _context(protocol: int, key_and_chain: str, bundle_pem: str, alpn: tuple[str, ...]) -> ssl.SSLContext:
    # A plain SSLContext, not create_default_context: that would trust the system's roots.
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # peers are named by SPIFFE id, see certs.verify
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    context.set_alpn_protocols(list(alpn))
    context.load_verify_locations(cadata=bundle_pem)
    context.load_cert_chain(key_and_chain)
    return context


def _handshake(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> tuple[ssl.SSLObject, ...]:
    """Both ends after a handshake in memory, one byte in each direction included. Raises ssl.SSLError.

    The byte matters: in TLS 1.3 the client is done before the server has judged the client's certificate.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_side=False)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(8):
        for end in tuple(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                pass
        if not waiting:
            break
    else:
        raise CredentialsError("self-test: the handshake did not finish")
    for writer, reader in ((client, server), (server, client)):
        writer.write(b"x")
        if reader.read(1) != b"x":
            raise CredentialsError("self-test: a byte did not pass")
    return client, server


def _try_out(client: ssl.SSLContext, server: ssl.SSLContext, alpn: str, trust_domain: str) -> Peer:
    try:
        ends = _handshake(client, server)
        peers = {peer_identity(end.getpeercert(), trust_domain) for end in ends}
    except ssl.SSLCertVerificationError as exc:
        raise CredentialsError(f"self-test of {alpn}: {exc.verify_message}") from None
    except (ssl.SSLError, PeerRejected) as exc:
        raise CredentialsError(f"self-test of {alpn}: {exc}") from None
    for end in ends:
        if end.selected_alpn_protocol() != alpn or end.version() != "TLSv1.3":
            raise CredentialsError(
                f"self-test of {alpn}: got {end.selected_alpn_protocol()} over {end.version()}"
            )
    return peers.pop()


def _bounded(what: str, pem: str, most: int) -> None:
    if len(pem) > MAX_PEM_CHARS or not pem.isascii():
        raise CredentialsError(f"{what}: expected at most {MAX_PEM_CHARS} ASCII characters, got {len(pem)}")
    count = pem.count(_BEGIN)
    if not 1 <= count <= most:
        raise CredentialsError(f"{what}: expected 1 to {most} PEM certificates, got {count}")


def build(
    key_and_chain_path: str,
    chain_pem: str,
    bundle_pem: str,
    trust_domain: str,
    now: float,
    material: Material | None = None,
) -> Credentials:
    """Contexts from a file with the private key and the chain, trusting `bundle_pem` and nothing else.

    TLS 1.3 (RFC 8446) only, certificates required both ways, no session tickets. Before it returns, both ends
    shake hands in memory for each ALPN protocol and must recognise each other. It takes some milliseconds of
    CPU: call it from a thread. `now` is in unix seconds; `material` is kept in the result.

    Raises CredentialsError; nothing that existed before has been changed then.
    """
    _bounded("chain", chain_pem, MAX_CHAIN)
    _bounded("trust bundle", bundle_pem, MAX_ROOTS)
    try:
        server = _context(ssl.PROTOCOL_TLS_SERVER, key_and_chain_path, bundle_pem, ALPN_ALL)
        discovery = _context(ssl.PROTOCOL_TLS_SERVER, key_and_chain_path, bundle_pem, (ALPN_DISCOVERY,))
        client = {
            alpn: _context(ssl.PROTOCOL_TLS_CLIENT, key_and_chain_path, bundle_pem, (alpn,))
            for alpn in (*ALPN_ALL, ALPN_DISCOVERY)
        }
    except (ssl.SSLError, OSError, ValueError) as exc:
        raise CredentialsError(f"expected a key with its chain, and roots: {exc}") from None
    for alpn, context in client.items():
        peer = _try_out(context, discovery if alpn == ALPN_DISCOVERY else server, alpn, trust_domain)
    if not peer.not_before <= now < peer.not_after:
        raise CredentialsError(
            f"leaf: expected one in force at {now:.0f}, got {peer.not_before:.0f} to {peer.not_after:.0f}"
        )
    return Credentials(
        server,
        client,
        discovery,
        peer.identity,
        trust_domain,
        peer.not_before,
        peer.not_after,
        chain_pem,
        bundle_pem,
        material,
    )


def rebuild(old: Credentials, bundle_pem: str, now: float) -> Credentials:
    """The same key and leaf with contexts that trust `bundle_pem`: for a bundle that changes before the leaf.

    Call it from a thread. Raises CredentialsError, also where the key was not kept, or where the new bundle
    does not have the leaf's own root.
    """
    if old.material is None:
        raise CredentialsError("expected credentials whose key was kept")
    return build(old.material.path, old.chain_pem, bundle_pem, old.trust_domain, now, old.material)


def open_server(credentials: Credentials, alpn: str) -> ssl.SSLContext:
    """A context for callers who have no certificate yet; speaks one protocol. Raises CredentialsError."""
    if credentials.material is None:
        raise CredentialsError("expected credentials whose key was kept")
    try:
        context = _context(
            ssl.PROTOCOL_TLS_SERVER, credentials.material.path, credentials.bundle_pem, (alpn,)
        )
    except (ssl.SSLError, OSError, ValueError) as exc:
        raise CredentialsError(f"expected a key with its chain, and roots: {exc}") from None
    context.verify_mode = ssl.CERT_NONE
    return context


def open_pair(credentials: Credentials, alpn: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of server and client for one protocol; the server lets in who has no certificate, too.

    Raises CredentialsError.
    """
    server = open_server(credentials, alpn)
    server.verify_mode = ssl.CERT_OPTIONAL
    assert credentials.material is not None
    key_and_chain = credentials.material.path
    return server, _context(ssl.PROTOCOL_TLS_CLIENT, key_and_chain, credentials.bundle_pem, (alpn,))


class Holder:
    """The one place where the current credentials are looked up, at every new connection.

    `swaps` and `failures` count what the renewal did. `bundle_pem` is the newest trust bundle that came on
    its own, without a leaf; '' for none.
    """

    def __init__(self) -> None:
        self.current: Credentials | None = None
        self.swaps = 0
        self.failures = 0
        self.bundle_pem = ""
        self._ready = trio.Event()
        self._renew = trio.Event()

    def swap(self, new: Credentials) -> None:
        """Make `new` current. Its contexts have passed the self-test in `build`."""
        self.current = new
        self.swaps += 1
        self._ready.set()

    def renew(self) -> None:
        """Have a new leaf asked for now rather than when it is due."""
        self._renew.set()

    async def wait_renew(self) -> None:
        """Return when `renew` has been called since this last returned."""
        await self._renew.wait()
        self._renew = trio.Event()

    async def wait_ready(self) -> Credentials:
        """The current credentials, as soon as there are any; they may have expired since."""
        await self._ready.wait()
        assert self.current is not None
        return self.current
