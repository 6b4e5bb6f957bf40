"""The notice board: a TCP protocol in which the server speaks first, as in SMTP or MySQL."""

import socket
import socketserver


class Board(socketserver.StreamRequestHandler):
    """Greets, then answers READ with a line until the client leaves."""

    timeout = 60

    def handle(self) -> None:
        """One conversation."""
        self.wfile.write(b"200 bookshop notices\n")
        for line in self.rfile:
            known = line.strip() == b"READ"
            self.wfile.write(b"open until six\n" if known else b"500 expected READ\n")


class Server(socketserver.ThreadingTCPServer):
    """Takes IPv4 and IPv6."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512

    def server_bind(self) -> None:
        """Take both families on one socket."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


if __name__ == "__main__":
    Server(("::", 7000), Board).serve_forever()
