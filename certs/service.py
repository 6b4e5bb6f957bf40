"""The CA's endpoint: answers sign requests on a Unix socket.

Who is calling is an `Authenticator`'s decision, made from the connection and the request; the identity that
it returns is the only one that gets signed.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec
import trio

from certs.authority import Authority, AuthorityError
from certs.clock import WallClock, wall_clock
from certs.events import OnEvent, ignore_event
from certs.framing import FrameError, read_frame, write_frame
from certs.identity import SpiffeId
from mesh_api.ca import SignRequest, SignResponse

MAX_CONNECTIONS = 64
DEADLINE_S = 10.0

_MAX_PATH_BYTES = 107
_NO_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}

_request = msgspec.json.Decoder(SignRequest)
_encode = msgspec.json.Encoder().encode


class ServiceError(Exception):
    """The endpoint could not be opened; the message says why."""


class Denied(Exception):
    """An authenticator does not know the caller; the message is sent to it."""


class Authenticator(Protocol):
    """Decides who a caller is."""

    async def authenticate(self, stream: trio.SocketStream, request: SignRequest) -> SpiffeId:
        """The caller's identity. Raises Denied."""
        ...


class SocketAuthenticator:
    """Everybody who can open this socket is the same workload: the file's permissions are the proof.

    For tests and for one machine; a cluster reviews the token in the request instead.
    """

    def __init__(self, identity: SpiffeId) -> None:
        self.identity = identity

    async def authenticate(self, stream: trio.SocketStream, request: SignRequest) -> SpiffeId:
        """The identity of this socket."""
        await trio.lowlevel.checkpoint()
        return self.identity


def _answer(
    authority: Authority, request: SignRequest, identity: SpiffeId, lifetime_s: float, now: datetime
) -> SignResponse:
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


async def _converse(
    stream: trio.SocketStream,
    authority: Callable[[], Authority],
    authenticator: Authenticator,
    lifetime_s: float,
    wall: WallClock,
    on_event: OnEvent,
) -> None:
    try:
        request = _request.decode(await read_frame(stream))
        identity = await authenticator.authenticate(stream, request)
        response = _answer(authority(), request, identity, lifetime_s, datetime.fromtimestamp(wall(), UTC))
        on_event("ca.signed", {"identity": str(identity)})
    except msgspec.MsgspecError as exc:
        response = SignResponse(error=f"expected a sign request: {exc}")
        on_event("ca.refused", {"error": response.error})
    except (AuthorityError, Denied) as exc:
        response = SignResponse(error=str(exc))
        on_event("ca.refused", {"error": response.error})
    await write_frame(stream, _encode(response))


async def serve(
    path: str,
    authority: Callable[[], Authority],
    authenticator: Authenticator,
    *,
    lifetime_s: float = 86_400.0,
    mode: int = 0o600,
    owner: tuple[int, int] | None = None,
    max_connections: int = MAX_CONNECTIONS,
    deadline_s: float = DEADLINE_S,
    wall: WallClock = wall_clock,
    on_event: OnEvent = ignore_event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on a Unix socket at `path` until cancelled; the socket file is removed at the end.

    `authority` is asked at every request, so that a rotation takes effect at once. A connection carries one
    request and ends after `deadline_s` seconds; above `max_connections` callers wait in the kernel's backlog.
    What is no frame is closed without an answer; every other failure is answered with `SignResponse.error`.

    Events: `ca.signed` (identity), `ca.refused` (error), `ca.dropped` (error), `ca.failed` (error: a defect
    or a lack of resources here). Raises ServiceError if the socket cannot be opened.
    """
    slots = trio.Semaphore(max_connections)

    async def handle(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                with trio.fail_after(deadline_s):
                    await _converse(stream, authority, authenticator, lifetime_s, wall, on_event)
        except trio.TooSlowError:
            on_event("ca.dropped", {"error": f"no request within {deadline_s:g} s"})
        except (FrameError, trio.BrokenResourceError, OSError) as exc:
            on_event("ca.dropped", {"error": str(exc)})
        except Exception as exc:  # one request must not end the CA for everybody
            on_event("ca.failed", {"error": f"{type(exc).__name__}: {exc}"})
        finally:
            slots.release()

    sock = open_socket(path, mode, owner)
    inode = os.lstat(path).st_ino
    try:
        async with trio.open_nursery() as nursery:
            with trio.socket.from_stdlib_socket(sock) as listening:
                listener = trio.SocketListener(listening)
                task_status.started()
                while True:
                    await slots.acquire()
                    try:
                        stream = await listener.accept()
                    except OSError as exc:
                        slots.release()
                        if exc.errno not in _NO_RESOURCES:
                            raise
                        on_event("ca.failed", {"error": f"accept: {exc}"})
                        await trio.sleep(0.1)
                        continue
                    nursery.start_soon(handle, stream)
    finally:
        try:
            if os.lstat(path).st_ino == inode:
                os.unlink(path)
        except FileNotFoundError:
            pass
