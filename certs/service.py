"""The CA's endpoint: answers sign requests on a Unix socket, or over TLS.

Who is calling is an `Authenticator`'s decision, made from the connection and the request; the identity that
it returns is the only one that gets signed.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Protocol

import msgspec
import trio

from certs.authority import Authority, AuthorityError
from certs.clock import WallClock, wall_clock
from certs.csr import ForeignName, check_names
from certs.events import OnEvent, ignore_event
from certs.framing import FrameError, read_frame, write_frame
from certs.identity import SpiffeId
from mesh_api.ca import ALPN_CA, SignRequest, SignResponse

MAX_CONNECTIONS = 64
DEADLINE_S = 10.0

_MAX_PATH_BYTES = 107
_NO_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}

Secure = Callable[[], ssl.SSLContext | None]

_request = msgspec.json.Decoder(SignRequest)
_encode = msgspec.json.Encoder().encode


class ServiceError(Exception):
    """The endpoint could not be opened; the message says why."""


class Denied(Exception):
    """An authenticator does not know the caller; the message is sent to it.

    Args:
        reason: one of few words, fit for a metric label.
    """

    def __init__(self, message: str, reason: str = "denied") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Caller:
    """What a connection tells: `address` is the IP address at its other end, '' on a Unix socket."""

    address: str = ""


class Authenticator(Protocol):
    """Decides who a caller is."""

    async def authenticate(self, caller: Caller, request: SignRequest) -> SpiffeId:
        """The caller's identity. Raises Denied."""
        ...


class SocketAuthenticator:
    """Everybody who can open this socket is the same workload: the file's permissions are the proof.

    For tests and for one machine; a cluster reviews the token in the request instead.
    """

    def __init__(self, identity: SpiffeId) -> None:
        self.identity = identity

    async def authenticate(self, caller: Caller, request: SignRequest) -> SpiffeId:
        """The identity of this socket."""
        await trio.lowlevel.checkpoint()
        return self.identity


def _answer(
    authority: Authority, request: SignRequest, identity: SpiffeId, lifetime_s: float, now: datetime
) -> SignResponse:
    check_names(request.csr_pem.encode(), identity)
    chain = authority.sign(request.csr_pem.encode(), identity, now, timedelta(seconds=lifetime_s))
    return SignResponse(chain_pem=chain.decode(), bundle_pem=authority.bundle_pem(now).decode())


def _replace_stale(path: str) -> None:
    """Remove the socket file of a server that is gone. Raises ServiceError if it is anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ServiceError(f"{path}: expected a socket or nothing there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise ServiceError(f"{path}: another server is listening there")


def open_socket(path: str, mode: int = 0o600, owner: tuple[int, int] | None = None) -> socket.socket:
    """A listening Unix socket with permissions `mode`, belonging to (uid, gid) `owner` if given.

    Nobody can connect before the permissions are set. A socket file that no process listens on is replaced.
    Raises ServiceError.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ServiceError(f"{path}: expected a socket path of at most {_MAX_PATH_BYTES} bytes")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _replace_stale(path)
        sock.bind(path)
        if owner is not None:
            os.chown(path, *owner)
        os.chmod(path, mode)
        sock.listen(128)
    except OSError as exc:
        sock.close()
        raise ServiceError(f"{path}: {exc.strerror or exc}") from None
    except BaseException:
        sock.close()
        raise
    return sock


@dataclass(frozen=True)
class Service:
    """What is answered, and within which limits.

    Args:
        authority: asked at every request, so that a rotation takes effect at once.
        max_connections: more than these wait in the kernel's backlog.
        max_per_address: more than these from one address are closed, so that nobody holds all of them.
        deadline_s: of a connection, which carries one request.

    Events: `ca.signed` (identity), `ca.refused` (reason, error), `ca.dropped` (error), `ca.failed` (error: a
    defect or a lack of resources here).
    """

    authority: Callable[[], Authority]
    authenticator: Authenticator
    lifetime_s: float = 86_400.0
    max_connections: int = MAX_CONNECTIONS
    max_per_address: int = MAX_CONNECTIONS
    deadline_s: float = DEADLINE_S
    wall: WallClock = wall_clock
    on_event: OnEvent = ignore_event

    async def converse(self, stream: trio.abc.Stream, caller: Caller) -> None:
        """Answer one request. What is no frame raises FrameError; everything else gets an answer."""
        try:
            request = _request.decode(await read_frame(stream))
            identity = await self.authenticator.authenticate(caller, request)
            now = datetime.fromtimestamp(self.wall(), UTC)
            response = _answer(self.authority(), request, identity, self.lifetime_s, now)
            self.on_event("ca.signed", {"identity": str(identity)})
        except msgspec.MsgspecError as exc:
            response = self._refuse("request", f"expected a sign request: {exc}")
        except Denied as exc:
            response = self._refuse(exc.reason, str(exc))
        except ForeignName as exc:
            response = self._refuse("foreign-name", str(exc))
        except AuthorityError as exc:
            response = self._refuse("csr", str(exc))
        await write_frame(stream, _encode(response))

    def _refuse(self, reason: str, error: str) -> SignResponse:
        self.on_event("ca.refused", {"reason": reason, "error": error})
        return SignResponse(error=error)

    async def listen(self, listener: trio.SocketListener, secure: Secure | None = None) -> None:
        """Answer on `listener` until cancelled; closes it then.

        Args:
            secure: the TLS context for a new connection; None while there is none, which closes it.
        """
        slots = trio.Semaphore(self.max_connections)
        held: Counter[str] = Counter()

        async def handle(stream: trio.SocketStream, address: str) -> None:
            try:
                await self._handle(stream, address, secure)
            finally:
                slots.release()
                held[address] -= 1
                if not held[address]:
                    del held[address]

        async with listener, trio.open_nursery() as nursery:
            while True:
                await slots.acquire()
                try:
                    stream = await listener.accept()
                except OSError as exc:
                    slots.release()
                    if exc.errno not in _NO_RESOURCES:
                        raise
                    self.on_event("ca.failed", {"error": f"accept: {exc}"})
                    await trio.sleep(0.1)
                    continue
                address = _address(stream)
                if held[address] >= self.max_per_address:
                    slots.release()
                    self.on_event("ca.dropped", {"error": f"too many connections from {address}"})
                    await trio.aclose_forcefully(stream)
                    continue
                held[address] += 1
                nursery.start_soon(handle, stream, address)

    async def _handle(self, stream: trio.SocketStream, address: str, secure: Secure | None) -> None:
        try:
            async with stream:
                with trio.fail_after(self.deadline_s):
                    if secure is None:
                        await self.converse(stream, Caller(address))
                    else:
                        await self._handle_tls(stream, address, secure())
        except trio.TooSlowError:
            self.on_event("ca.dropped", {"error": f"no request within {self.deadline_s:g} s"})
        except (FrameError, trio.BrokenResourceError, OSError) as exc:
            self.on_event("ca.dropped", {"error": str(exc.__cause__ or exc)})
        except Exception as exc:  # one request must not end the CA for everybody
            self.on_event("ca.failed", {"error": f"{type(exc).__name__}: {exc}"})

    async def _handle_tls(
        self, stream: trio.SocketStream, address: str, context: ssl.SSLContext | None
    ) -> None:
        if context is None:
            raise FrameError("no certificate to serve with yet")
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        await tls.do_handshake()
        if tls.selected_alpn_protocol() != ALPN_CA:
            raise FrameError(f"expected the protocol {ALPN_CA}")
        await self.converse(tls, Caller(address))
        await tls.aclose()


def _address(stream: trio.SocketStream) -> str:
    if stream.socket.family == socket.AF_UNIX:
        return ""
    try:
        found = ip_address(str(stream.socket.getpeername()[0]).partition("%")[0])
    except OSError:
        return "gone"
    return str(getattr(found, "ipv4_mapped", None) or found)


async def serve(
    path: str,
    service: Service,
    *,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on a Unix socket at `path` until cancelled; the socket file is removed at the end.

    Raises ServiceError if the socket cannot be opened.
    """
    sock = open_socket(path, mode, owner)
    inode = os.lstat(path).st_ino
    try:
        with trio.socket.from_stdlib_socket(sock) as listening:
            task_status.started()
            await service.listen(trio.SocketListener(listening))
    finally:
        try:
            if os.lstat(path).st_ino == inode:
                os.unlink(path)
        except FileNotFoundError:
            pass
