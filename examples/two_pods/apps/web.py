"""An ordinary HTTP server. Usage: web.py HOST PORT NAME

GET answers with the server's name and the path, `/wait/SECONDS` after that time; POST answers with the body
that it got.
"""

import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Keeps connections open, as servers do."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        """Answer with name and path."""
        if self.path.startswith("/wait/"):
            threading.Event().wait(float(self.path[6:]))
        self._answer(f"{sys.argv[3]} {self.path}\n".encode())

    def do_POST(self) -> None:
        """Answer with the body."""
        self._answer(self.rfile.read(int(self.headers.get("content-length", 0))))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.send_header("x-served-by", sys.argv[3])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Takes IPv4 and IPv6 where the host is an IPv6 one."""

    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    request_queue_size = 512


if __name__ == "__main__":
    Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
