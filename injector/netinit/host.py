"""What netinit asks of the machine: namespaces, capabilities, addresses and the iptables programs.

Everything is read for the calling thread: a network namespace belongs to a thread, and a process that
prepares many pods may be in several at once.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from injector.netinit.plan import Family

Backend = Literal["nft", "legacy"]
BACKENDS: Final[tuple[Backend, Backend]] = ("nft", "legacy")
PASS_THROUGH_V6: Final = "::6"

_CLONE_NEWNET: Final = 0x40000000
_COMMAND_TIMEOUT: Final = 30.0
_CAPABILITIES: Final = {"CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
_IF_INET6: Final = Path("/proc/thread-self/net/if_inet6")


class NetinitError(Exception):
    """The work failed; the message is one line for the user."""

    exit_code = 1


class SetupError(NetinitError):
    """The work cannot be started here: a program, a capability or a namespace is missing."""

    exit_code = 2


@contextlib.contextmanager
def network_namespace(path: str | None) -> Iterator[None]:
    """Put the calling thread into the network namespace at `path` and, afterwards, back."""
    if path is None:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(fd: int, what: str) -> None:
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            hint = " (CAP_SYS_ADMIN is needed)" if number == errno.EPERM else ""
            raise SetupError(f"cannot enter network namespace {what}: {os.strerror(number)}{hint}")

    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SetupError(f"cannot open network namespace {path}: {error.strerror}") from None
    try:
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(there, path)
            try:
                yield
            finally:
                enter(here, "of the caller")
        finally:
            os.close(here)
    finally:
        os.close(there)


def has_capability(name: str) -> bool:
    """Whether the calling thread has the capability in effect."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAPABILITIES[name] & 1)
    return False


def require_capabilities() -> None:
    missing = [name for name in ("CAP_NET_ADMIN", "CAP_NET_RAW") if not has_capability(name)]
    if missing:
        raise SetupError(
            f"{' and '.join(missing)} missing (running as uid {os.geteuid()}); the network init container"
            " runs as uid 0 with capabilities NET_ADMIN and NET_RAW"
        )


@dataclass(frozen=True, slots=True)
class Address6:
    address: str
    interface: str
    is_global: bool


def addresses6() -> list[Address6]:
    """The IPv6 addresses of this namespace; none when IPv6 is off."""
    try:
        lines = _IF_INET6.read_text().splitlines()
    except FileNotFoundError:
        return []
    # hex address, interface index, prefix length, scope, flags, interface name
    return [
        Address6(fields[0], fields[5], fields[3] == "00" and fields[5] != "lo")
        for fields in map(str.split, lines)
    ]


def has_ipv6() -> bool:
    if not _IF_INET6.exists():
        return False
    # Read in the thread's own namespace, unlike most of /proc.
    disabled = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
    return not (disabled.exists() and disabled.read_text().strip() == "1")


def has_global_ipv6() -> bool:
    return any(address.is_global for address in addresses6())


def has_pass_through_address() -> bool:
    return any(item.interface == "lo" and item.address == f"{6:032x}" for item in addresses6())


def change_pass_through_address(*, present: bool) -> None:
    """Add ::6 to lo, or remove it. Without it the sidecar could not connect to the application over IPv6."""
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as route:
            index = route.link_lookup(ifname="lo")[0]
            route.addr("add" if present else "del", index=index, address=PASS_THROUGH_V6, prefixlen=128)
    except (NetlinkError, OSError) as error:
        verb = "add" if present else "remove"
        raise NetinitError(f"cannot {verb} {PASS_THROUGH_V6}/128 on lo: {error}") from None


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs of one back end for one family."""

    backend: Backend
    family: Family
    restore: str
    save: str

    def read(self) -> str:
        return _run([self.save], "")

    def write(self, text: str) -> None:
        _run([self.restore, "--noflush", "-w", "5"], text)


def find_tools(backend: Backend, family: Family) -> Tools | None:
    """The programs by their full names, or the plain names where an image has only one back end."""
    program = "iptables" if family == 4 else "ip6tables"
    restore, save = (shutil.which(f"{program}-{backend}-{verb}") for verb in ("restore", "save"))
    if restore is None or save is None:
        restore, save = (shutil.which(f"{program}-{verb}") for verb in ("restore", "save"))
        if restore is None or save is None or _backend_of(restore) != backend:
            return None
    return Tools(backend, family, restore, save)


def _backend_of(program: str) -> Backend | None:
    try:
        version = _run([program, "--version"], "")
    except NetinitError:
        return None
    return "nft" if "nf_tables" in version else "legacy"


def _run(argv: list[str], text: str) -> str:
    name = Path(argv[0]).name
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, errors="replace", timeout=_COMMAND_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise NetinitError(f"{name} did not finish in {_COMMAND_TIMEOUT:.0f} s") from None
    except OSError as error:
        raise SetupError(f"cannot run {argv[0]}: {error.strerror}") from None
    if done.returncode != 0:
        reason = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise NetinitError(f"{name} failed with status {done.returncode}: {reason or 'no message'}")
    return done.stdout
