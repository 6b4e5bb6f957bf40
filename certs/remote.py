"""The sidecar's way to the CA of the cluster, and its first trust.

The token is worth an identity to whoever holds it, so it is sent only after the other end has proven to be
exactly the control plane: a chain to one of our roots is not enough, every workload has that.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec
import trio

from certs.clock import WallClock, wall_clock
from certs.credentials import MAX_PEM_CHARS, MAX_ROOTS
from certs.framing import FrameError, read_frame, write_frame
from certs.verify import PeerRejected, peer_identity
from certs.workload import SIGN_DEADLINE_S, SignerError
from mesh_api.ca import ALPN_CA, SignRequest, SignResponse

MAX_TOKEN_BYTES = 16 * 1024

_encode = msgspec.json.Encoder().encode
_response = msgspec.json.Decoder(SignResponse)


class TrustError(Exception):
    """There is no bundle to begin with; the message says what each source lacked."""


def trusting(bundle_pem: str, now: float) -> ssl.SSLContext:
    """A client context for the CA's endpoint that trusts the bundle and nothing else.

    `now` is in unix seconds. Raises TrustError for what is no bundle, or one whose roots have all expired.
    """
    if not bundle_pem.strip():
        raise TrustError("it is empty")
    if len(bundle_pem) > MAX_PEM_CHARS or not bundle_pem.isascii():
        raise TrustError(f"expected at most {MAX_PEM_CHARS} ASCII characters, got {len(bundle_pem)}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the server is named by its SPIFFE id
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN_CA])
    try:
        context.load_verify_locations(cadata=bundle_pem)
        roots = context.get_ca_certs()
    except (ssl.SSLError, ValueError) as exc:
        raise TrustError(f"expected certificates in PEM: {exc}") from None
    if not 1 <= len(roots) <= MAX_ROOTS:
        raise TrustError(f"expected 1 to {MAX_ROOTS} CA certificates, got {len(roots)}")
    if all(ssl.cert_time_to_seconds(str(root["notAfter"])) <= now for root in roots):
        raise TrustError(f"every root in it has expired, the last at {roots[-1]['notAfter']}")
    return context


class BundleSource:
    """Where the first bundle comes from: the newest of those that are valid.

    The mounted file follows the cluster; where there is none, `latest` is what this process has been told
    since it started; the environment is from when the Pod was made.
    """

    def __init__(
        self, environment_pem: str, path: str, latest: Callable[[], str], wall: WallClock = wall_clock
    ) -> None:
        self._environment = environment_pem
        self._path = path
        self._latest = latest
        self._wall = wall

    def _file(self) -> str:
        try:
            with Path(self._path).open("rb") as file:
                return file.read(MAX_PEM_CHARS + 1).decode("ascii", "replace")
        except OSError as exc:
            raise TrustError(exc.strerror or str(exc)) from None

    def context(self) -> ssl.SSLContext:
        """The context of the newest valid bundle; reads a file. Raises TrustError."""
        sources: list[tuple[str, Callable[[], str]]] = [
            (self._path, self._file),
            ("since the start", self._latest),
            ("TRIOMESH_TRUST_BUNDLE", lambda: self._environment),
        ]
        wrong = []
        for name, read in sources:
            try:
                return trusting(read(), self._wall())
            except TrustError as exc:
                wrong.append(f"{name}: {exc}")
        raise TrustError(f"no valid trust bundle ({'; '.join(wrong)})")


class TlsSigner:
    """Asks the CA over TLS with the Pod's token; one connection for each request. See `workload.Signer`.

    Args:
        address: HOST:PORT, with an IPv6 address in brackets.
        control_identity: the SPIFFE id that the server must have.
        token_path: projected ServiceAccount token; read at every request, because it is rotated.
    """

    def __init__(
        self,
        address: str,
        control_identity: str,
        token_path: str,
        bundle_source: BundleSource,
        trust_domain: str,
        deadline_s: float = SIGN_DEADLINE_S,
    ) -> None:
        host, _, port = address.rpartition(":")
        self._host = host.removeprefix("[").removesuffix("]")
        if not self._host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"address of the CA: expected HOST:PORT, got {address!r}")
        self._port = int(port)
        self._address = address
        self._identity = control_identity
        self._token_path = token_path
        self._bundles = bundle_source
        self._trust_domain = trust_domain
        self._deadline_s = deadline_s

    async def sign(self, csr_pem: str) -> SignResponse:
        """The CA's answer. Raises SignerError; no byte of the token has left then if the server was wrong."""
        try:
            with trio.fail_after(self._deadline_s):
                context = await trio.to_thread.run_sync(self._bundles.context)
                token = await trio.to_thread.run_sync(self._token)
                return await self._ask(context, SignRequest(csr_pem=csr_pem, token=token))
        except TrustError as exc:
            raise SignerError(str(exc)) from None
        except trio.TooSlowError:
            raise SignerError(f"{self._address}: no answer within {self._deadline_s:g} s") from None
        except PeerRejected as exc:
            raise SignerError(
                f"{self._address}: expected {self._identity} there, the token was not sent: {exc}"
            ) from None
        except msgspec.MsgspecError as exc:
            raise SignerError(f"{self._address}: expected a sign response: {exc}") from None
        except (trio.BrokenResourceError, FrameError, OSError) as exc:
            raise SignerError(f"{self._address}: {_said(exc)}") from None
        except RuntimeError as exc:  # no thread to be had
            raise SignerError(str(exc)) from None

    def _token(self) -> str:
        try:
            with Path(self._token_path).open("rb") as file:
                data = file.read(MAX_TOKEN_BYTES + 1).strip()
        except OSError as exc:
            raise SignerError(f"token {self._token_path}: {exc.strerror or exc}") from None
        if not 0 < len(data) <= MAX_TOKEN_BYTES or not data.isascii():
            raise SignerError(f"token {self._token_path}: expected 1 to {MAX_TOKEN_BYTES} ASCII characters")
        return data.decode("ascii")

    async def _ask(self, context: ssl.SSLContext, request: SignRequest) -> SignResponse:
        stream = await trio.open_tcp_stream(self._host, self._port)
        tls = trio.SSLStream(stream, context, https_compatible=True)
        try:
            await tls.do_handshake()
            if tls.selected_alpn_protocol() != ALPN_CA:
                raise FrameError(f"expected a server of {ALPN_CA}")
            peer = peer_identity(tls.getpeercert(), self._trust_domain)
            if peer.identity != self._identity:
                raise PeerRejected("other-identity", f"got {peer.identity}")
            await write_frame(tls, _encode(request))
            return _response.decode(await read_frame(tls))
        finally:
            await trio.aclose_forcefully(stream)


def _said(exc: BaseException) -> str:
    """What TLS found where it was TLS, else what the operating system said."""
    cause = exc.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate was refused, the token was not sent: {cause.verify_message}"
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return str(cause or exc) or type(exc).__name__
