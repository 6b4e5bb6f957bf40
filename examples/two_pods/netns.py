"""Network namespaces of this machine: make, enter, listen in, and remove what a killed run left."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import TypeVar

from injector.netinit.host import network_namespace

PREFIX = "tm-"
HOSTS = Path("/etc/netns")
TEMP = Path("/tmp")
_ETH_P_ALL = 3
_OWN = re.compile(r"tm-(\d+)-\d+(?:-|$)")
_T = TypeVar("_T")


class SceneError(Exception):
    """The scene cannot be set up; the message is one line."""


def path_of(netns: str) -> str:
    """The file that stands for a named namespace."""
    return f"/run/netns/{netns}"


def run(*argv: str, text: str | None = None, cwd: Path | None = None) -> str:
    """Run a command to its end; its output. Raises SceneError with what it said."""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60, cwd=cwd)
    except FileNotFoundError:
        raise SceneError(f"{argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise SceneError(f"{' '.join(argv)}: not done in 60 s") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise SceneError(f"{' '.join(argv)}: {said or f'exit code {done.returncode}'}")
    return done.stdout


def wait_for(probe: Callable[[], _T], what: str, seconds: float = 15.0, every: float = 0.02) -> _T:
    """Call `probe` until it returns something true; raises TimeoutError with `what`."""
    end = monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        threading.Event().wait(every)


def family_of(ip: str) -> socket.AddressFamily:
    """The socket family of an address in text form."""
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def connect(netns: str, ip: str, port: int, timeout: float = 10.0) -> socket.socket:
    """A TCP connection from inside a namespace. Raises OSError."""
    with network_namespace(path_of(netns)):
        sock = socket.socket(family_of(ip), socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect((ip, port))
    except BaseException:
        sock.close()
        raise
    return sock


def listen(netns: str, ip: str, port: int) -> socket.socket:
    """A listening TCP socket inside a namespace; an IPv6 one takes both families. Raises OSError."""
    with network_namespace(path_of(netns)):
        sock = socket.socket(family_of(ip), socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((ip, port))
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return sock


class Capture:
    """Every frame that passes one interface as long as the `with` block lasts."""

    def __init__(self, netns: str, interface: str) -> None:
        with network_namespace(path_of(netns)):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        self._sock.bind((interface, _ETH_P_ALL))
        self._sock.setblocking(False)
        self._stop_in, self._stop_out = os.pipe()
        self._thread = threading.Thread(target=self._collect, name="capture")
        self.frames: list[bytes] = []

    def __enter__(self) -> Capture:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stop_out)
        self._thread.join()
        os.close(self._stop_in)
        self._sock.close()

    def _collect(self) -> None:
        while True:
            ready, _, _ = select.select([self._sock.fileno(), self._stop_in], [], [])
            try:
                while True:
                    self.frames.append(self._sock.recv(1 << 18))
            except BlockingIOError:
                pass
            if self._stop_in in ready:
                return

    def payloads(self, port: int) -> list[bytes]:
        """What the TCP segments from or to a port carried."""
        return [data for frame in self.frames if (data := _payload(frame, port))]


def _payload(frame: bytes, port: int) -> bytes:
    kind = int.from_bytes(frame[12:14], "big")
    if kind == 0x0800 and frame[23] == 6:
        packet = frame[14 : 14 + int.from_bytes(frame[16:18], "big")]
        segment = packet[(packet[0] & 15) * 4 :]
    elif kind == 0x86DD and frame[20] == 6:
        segment = frame[54 : 54 + int.from_bytes(frame[18:20], "big")]
    else:
        return b""
    ports = (int.from_bytes(segment[:2], "big"), int.from_bytes(segment[2:4], "big"))
    return segment[(segment[12] >> 4) * 4 :] if port in ports else b""


def kill(pids: Sequence[int]) -> None:
    """End processes by their ids, at once."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def remove(netns: str) -> None:
    """Remove a namespace with every process in it, and its files."""
    if Path(path_of(netns)).exists():
        kill([int(pid) for pid in run("ip", "netns", "pids", netns).split()])
        run("ip", "netns", "delete", netns)
    shutil.rmtree(HOSTS / netns, ignore_errors=True)


def remove_leftovers() -> list[str]:
    """Remove namespaces and files of scenes whose process is gone; their names."""
    found = [path for place in (Path("/run/netns"), HOSTS, TEMP) for path in place.glob(PREFIX + "*")]
    names = []
    for path in found:
        match = _OWN.match(path.name)
        if match is None or Path(f"/proc/{match[1]}").exists():
            continue
        if path.parent == TEMP:
            shutil.rmtree(path, ignore_errors=True)
        else:
            remove(path.name)
        names.append(str(path))
    try:
        HOSTS.rmdir()
    except OSError:
        pass  # not ours alone, or not there
    return names
