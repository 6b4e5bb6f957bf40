"""What the shop's programs share: an HTTP server that answers JSON, a client that keeps connections."""

import http.client
import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Answer = tuple[int, Any]
Page = Callable[[str, dict[str, str]], Answer]
"""Path and query parameters in, status and JSON out."""

_kept = threading.local()


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 512

    def server_bind(self) -> None:
        """Take both families on one socket."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve(port: int, page: Page) -> None:
    """Serve pages for ever."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            status, answer = page(url.path, dict(parse_qsl(url.query)))
            body = json.dumps(answer).encode() + b"\n"
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the mesh keeps the books."""

    _Server(("::", port), Handler).serve_forever()


def get(host: str, port: int, path: str, timeout_s: float = 10) -> tuple[int, str, bytes]:
    """Status, `x-triomesh-error` and body of a GET; a kept connection that has died is replaced once.

    Raises OSError or http.client.HTTPException.
    """
    pool: dict[tuple[str, int], http.client.HTTPConnection] = _kept.__dict__.setdefault("pool", {})
    kept = pool.pop((host, port), None)
    for conn in (kept, None) if kept is not None else (None,):
        fresh = conn is None
        if conn is None:
            conn = http.client.HTTPConnection(host, port, timeout=timeout_s)
        try:
            conn.request("GET", path)
            response = conn.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            conn.close()
            if fresh:
                raise
            continue
        if not response.will_close:
            pool[host, port] = conn
        return response.status, response.headers.get("x-triomesh-error", ""), body
    raise AssertionError("the last connection is fresh")
