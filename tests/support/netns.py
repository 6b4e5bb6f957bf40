"""What tests in network namespaces share: applications in threads of this process, and mesh TLS by hand."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable

import trio

from certs.credentials import Credentials
from certs.workload import UnixSigner, obtain
from examples.two_pods.scene import TRUST_DOMAIN, Pod, Scene

_REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
Handle = Callable[[socket.socket], None]


class App:
    """A server inside a pod; `handle` gets each connection in a thread of its own and need not close it."""

    def __init__(self, pod: Pod, port: int, handle: Handle, ip: str = "") -> None:
        self._handle = handle
        self._listener = pod.listen(port, ip)
        self._threads = [threading.Thread(target=self._accept)]
        self._conns: list[socket.socket] = []
        self.errors: list[OSError] = []
        self.accepted = 0

    def __enter__(self) -> App:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._conns):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._conns.append(conn)
            thread = threading.Thread(target=self._serve, args=(conn,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, conn: socket.socket) -> None:
        try:
            with conn:
                conn.settimeout(20)
                self._handle(conn)
        except OSError as exc:
            self.errors.append(exc)


def read_all(sock: socket.socket) -> bytes:
    """Everything up to a clean end. Raises OSError."""
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """Bytes up to and including `end`, or up to the end of the connection."""
    data = b""
    while not data.endswith(end) and (piece := sock.recv(65536)):
        data += piece
    return data


def outcome(pod: Pod, ip: str, port: int, send: bytes = _REQUEST) -> bytes | str:
    """What comes back for some bytes: all of it up to the end, or "reset"."""
    try:
        with pod.connect(ip, port, 5) as sock:
            sock.sendall(send)
            return read_all(sock)
    except (ConnectionResetError, ConnectionRefusedError, BrokenPipeError):
        return "reset"


def credentials(scene: Scene, pod: Pod) -> Credentials:
    """A certificate of this pod's identity, straight from the CA."""

    async def ask() -> Credentials:
        with trio.fail_after(20):
            return await obtain(UnixSigner(str(scene.ca_socket(pod))), TRUST_DOMAIN)

    return trio.run(ask)


def mesh_tls(sock: socket.socket, context: ssl.SSLContext, *, server: bool = False) -> ssl.SSLSocket:
    """Mesh TLS over a connected socket; an end without close_notify is an error."""
    return context.wrap_socket(sock, server_side=server, suppress_ragged_eofs=False)
