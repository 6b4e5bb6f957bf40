"""TLS contexts of a workload, built whole, tried out, and only then put in place of the old ones.

OpenSSL contexts are awkward to change while in use (roots can only be added, a failed load leaves a broken
one), so a renewal makes new ones. Connections that are up keep theirs.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from certs.verify import Peer, PeerRejected, peer_identity

ALPN_HTTP1 = "triomesh-h1"
"""HTTP/1.1 inside."""
ALPN_TCP = "triomesh-tcp"
"""Opaque bytes inside."""
ALPN_ALL = (ALPN_HTTP1, ALPN_TCP)

MAX_PEM_CHARS = 192 * 1024
MAX_ROOTS = 32
MAX_CHAIN = 9

_BEGIN = "-----BEGIN CERTIFICATE-----"


class CredentialsError(Exception):
    """Credentials that would not work; the message says which check failed."""


@dataclass(frozen=True)
class Credentials:
    """One generation of contexts. Times are unix seconds, those of the leaf."""

    server: ssl.SSLContext = field(repr=False)
    """For the accepting side; speaks every protocol of `ALPN_ALL`."""
    client: Mapping[str, ssl.SSLContext] = field(repr=False)
    """For the dialling side, by ALPN protocol: a context offers exactly one."""
    identity: str
    trust_domain: str
    not_before: float
    not_after: float
    chain_pem: str = field(repr=False)
    bundle_pem: str = field(repr=False)


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
    key_and_chain_path: str, chain_pem: str, bundle_pem: str, trust_domain: str, now: float
) -> Credentials:
    """Contexts from a file with the private key and the chain, trusting `bundle_pem` and nothing else.

    TLS 1.3 (RFC 8446) only, certificates required both ways, no session tickets. Before it returns, both ends
    shake hands in memory for each ALPN protocol and must recognise each other. It takes some milliseconds of
    CPU: call it from a thread. `now` is in unix seconds.

    Raises CredentialsError; nothing that existed before has been changed then.
    """
    _bounded("chain", chain_pem, MAX_CHAIN)
    _bounded("trust bundle", bundle_pem, MAX_ROOTS)
    try:
        server = _context(ssl.PROTOCOL_TLS_SERVER, key_and_chain_path, bundle_pem, ALPN_ALL)
        client = {
            alpn: _context(ssl.PROTOCOL_TLS_CLIENT, key_and_chain_path, bundle_pem, (alpn,))
            for alpn in ALPN_ALL
        }
    except (ssl.SSLError, OSError, ValueError) as exc:
        raise CredentialsError(f"expected a key with its chain, and roots: {exc}") from None
    for alpn, context in client.items():
        peer = _try_out(context, server, alpn, trust_domain)
    if not peer.not_before <= now < peer.not_after:
        raise CredentialsError(
            f"leaf: expected one in force at {now:.0f}, got {peer.not_before:.0f} to {peer.not_after:.0f}"
        )
    return Credentials(
        server, client, peer.identity, trust_domain, peer.not_before, peer.not_after, chain_pem, bundle_pem
    )


class Holder:
    """The one place where the current credentials are looked up, at every new connection.

    `swaps` and `failures` count what the renewal did.
    """

    def __init__(self) -> None:
        self.current: Credentials | None = None
        self.swaps = 0
        self.failures = 0
        self._ready = trio.Event()

    def swap(self, new: Credentials) -> None:
        """Make `new` current. Its contexts have passed the self-test in `build`."""
        self.current = new
        self.swaps += 1
        self._ready.set()

    async def wait_ready(self) -> Credentials:
        """The current credentials, as soon as there are any; they may have expired since."""
        await self._ready.wait()
        assert self.current is not None
        return self.current
