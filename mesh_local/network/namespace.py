"""Network namespaces, kept in /run/netns as `ip netns` keeps them, and sockets made inside them.

A network namespace belongs to a thread. What enters one does so in a thread of its own that ends with the
work, so that no pooled thread is ever left in a pod.
"""

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import trio

from mesh_local.network.types import NetworkError

T = TypeVar("T")

RUN_DIR: Final = Path("/run/netns")

_CLONE_NEWNET: Final = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 0x100000
_MNT_DETACH: Final = 2
_BACKLOG: Final = 1024
_libc = ctypes.CDLL(None, use_errno=True)
# Each piece of work takes two threads (one waits); the work is short, so a few suffice.
_threads = trio.CapacityLimiter(4)


def _system(call: str, *arguments: int | bytes | None) -> None:
    """Call libc; raises OSError."""
    if getattr(_libc, call)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def path_of(name: str) -> str:
    return str(RUN_DIR / name)


def names() -> list[str]:
    """All named network namespaces of this machine."""
    try:
        return sorted(entry.name for entry in RUN_DIR.iterdir())
    except FileNotFoundError:
        return []


def create(name: str, prepare: Callable[[], None] = lambda: None) -> str:
    """Make the namespace, run `prepare` inside it and mount it under its name; answers its path.

    The name appears last, so a namespace that has one is prepared. Raises NetworkError.
    """
    path = path_of(name)

    def make() -> None:
        _system("unshare", _CLONE_NEWNET)
        prepare()
        with _run_dir_locked():
            _share_run_dir()
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
            try:
                _system("mount", b"/proc/thread-self/ns/net", path.encode(), b"none", _MS_BIND, None)
            except BaseException:
                os.unlink(path)
                raise

    try:
        _in_thread(make)
    except OSError as error:
        raise NetworkError(f"cannot create network namespace {name}: {error.strerror}") from None
    return path


@contextlib.contextmanager
def _run_dir_locked() -> Iterator[None]:
    """Keep other clusters from mounting and unmounting /run/netns itself meanwhile; held for a moment only.

    The lock is on the directory above, for a mount that is in use could not be undone.
    """
    directory = os.open(RUN_DIR.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _share_run_dir() -> None:
    """Make /run/netns a shared mount, as `ip netns add` does (and would do on top of ours otherwise)."""
    RUN_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    directory = str(RUN_DIR).encode()
    try:
        _system("mount", b"none", directory, b"none", _MS_SHARED | _MS_REC, None)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _system("mount", directory, directory, b"none", _MS_BIND | _MS_REC, None)
        _system("mount", b"none", directory, b"none", _MS_SHARED | _MS_REC, None)


def delete(name: str) -> None:
    """Remove the name; the namespace goes with its last process and socket. Raises NetworkError."""
    path = path_of(name)
    try:
        try:
            _system("umount2", path.encode(), _MNT_DETACH)
        except OSError as error:  # EINVAL: not mounted, as after a crash between the two steps of `create`
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise NetworkError(f"cannot delete network namespace {name}: {error.strerror}") from None


def is_usable(name: str) -> bool:
    """Whether a namespace is mounted there, rather than an empty file left by a crash."""
    try:
        # Namespaces live in a file system of their own (nsfs).
        return os.stat(path_of(name)).st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


def release_run_dir() -> None:
    """Undo `_share_run_dir` where nothing needs it any more. Raises NetworkError."""
    try:
        with _run_dir_locked():
            if not names():
                _system("umount2", str(RUN_DIR).encode(), 0)
    except OSError as error:  # EBUSY: somebody adds one just now; EINVAL, ENOENT: it is not a mount
        if error.errno not in (errno.EBUSY, errno.EINVAL, errno.ENOENT):
            raise NetworkError(f"cannot unmount {RUN_DIR}: {error.strerror}") from None


def run_inside(path: str, work: Callable[[], T]) -> T:
    """Run `work` in a new thread inside the namespace at `path`; blocks. Raises NetworkError."""

    def enter_and_work() -> T:
        try:
            namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _system("setns", namespace, _CLONE_NEWNET)
            finally:
                os.close(namespace)
        except OSError as error:
            raise NetworkError(f"cannot enter network namespace {path}: {error.strerror}") from None
        return work()

    return _in_thread(enter_and_work)


async def in_namespace(path: str, work: Callable[[], T]) -> T:
    """`run_inside` without blocking the event loop; not cancellable once begun, so nothing leaks."""
    return await trio.to_thread.run_sync(run_inside, path, work, limiter=_threads)


def _in_thread(work: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # breaks the cycle of exception, traceback and frame
    return results[0]


def _family(host: str) -> socket.AddressFamily:
    """The address family of an IP address. Raises OSError."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        raise OSError(errno.EINVAL, f"not an IP address: {host}") from None
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _bound(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = _family(address)
    sock = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


async def open_listener(netns: str, address: str, port: int) -> trio.SocketListener:
    """A TCP listener inside the namespace. Raises OSError, NetworkError."""
    sock = await in_namespace(netns, lambda: _bound(address, port, socket.SOCK_STREAM))
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def open_udp(netns: str, address: str, port: int) -> trio.socket.SocketType:
    """A bound UDP socket inside the namespace. Raises OSError, NetworkError."""
    sock = await in_namespace(netns, lambda: _bound(address, port, socket.SOCK_DGRAM))
    return trio.socket.from_stdlib_socket(sock)


async def _connect(sock: socket.socket, host: str, port: int) -> trio.SocketStream:
    connecting = trio.socket.from_stdlib_socket(sock)
    try:
        await connecting.connect((host, port))
        return trio.SocketStream(connecting)
    except BaseException:
        connecting.close()
        raise


class NamespaceDialer:
    """Connects from inside a network namespace."""

    def __init__(self, netns: str) -> None:
        self._netns = netns

    async def dial(self, host: str, port: int) -> trio.SocketStream:
        """Raises OSError; a namespace that is gone is one too."""
        family = _family(host)
        try:
            sock = await in_namespace(self._netns, lambda: socket.socket(family, socket.SOCK_STREAM))
        except NetworkError as error:
            raise OSError(errno.ENETDOWN, str(error)) from None
        return await _connect(sock, host, port)


class HostDialer:
    """Connects from where the process is."""

    async def dial(self, host: str, port: int) -> trio.SocketStream:
        """Raises OSError."""
        return await _connect(socket.socket(_family(host), socket.SOCK_STREAM), host, port)
