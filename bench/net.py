"""Small blocking HTTP/1.1 client steps, enough for the bench's own checks."""

from __future__ import annotations

import re
import socket
import subprocess

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def get_bytes(path: str) -> bytes:
    """A GET request for `path` that keeps the connection."""
    return f"GET {path} HTTP/1.1\r\nHost: server.bench\r\n\r\n".encode()


def read_response(sock: socket.socket) -> tuple[int, bytes]:
    """Status and body of one answer with a Content-Length. Raises OSError if it ends early or is none."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        more = sock.recv(65536)
        if not more or len(data) > 65536:
            raise ConnectionError("the connection ended before the end of the response head")
        data += more
    found = _LENGTH.search(data, 0, end)
    if not data.startswith(b"HTTP/1.1 ") or found is None:
        raise ConnectionError("expected HTTP/1.1 with a Content-Length")
    status = int(data[9:12])
    parts = [data[end + 4 :]]
    missing = int(found[1]) - len(parts[0])
    while missing > 0:
        more = sock.recv(min(missing, 1 << 20))
        if not more:
            raise ConnectionError(f"the connection ended with {missing} bytes of the body missing")
        parts.append(more)
        missing -= len(more)
    return status, b"".join(parts)


def get(port: int, path: str, timeout_s: float = 5.0) -> tuple[int, bytes]:
    """One GET on a new connection to 127.0.0.1. Raises OSError."""
    with socket.socket() as sock:
        sock.settimeout(timeout_s)
        sock.connect(("127.0.0.1", port))
        sock.sendall(get_bytes(path))
        return read_response(sock)


def accepts(port: int) -> bool:
    """Whether something listens on 127.0.0.1:`port`."""
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def answers(port: int, path: str, body: bytes | None = None) -> bool:
    """Whether a GET gives 200, and the right `body` if one is given."""
    try:
        if body is not None:
            return get(port, path) == (200, body)
        with socket.socket() as sock:
            sock.settimeout(5.0)
            sock.connect(("127.0.0.1", port))
            sock.sendall(get_bytes(path))
            return sock.recv(12) == b"HTTP/1.1 200"
    except OSError:
        return False


def answers_http2(port: int, path: str, body: bytes) -> bool:
    """Whether a GET with HTTP/2 in cleartext gives `body`; by the client `nghttp`."""
    command = ["nghttp", "--no-dep", "--timeout=5", f"http://127.0.0.1:{port}{path}"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=10.0)
    return done.stdout == body
