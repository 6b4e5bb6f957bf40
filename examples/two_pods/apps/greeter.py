"""A TCP server that speaks first, as mail servers do. Usage: greeter.py HOST PORT NAME

It greets, then answers each line with the same line in capitals.
"""

import socket
import socketserver
import sys


class Handler(socketserver.StreamRequestHandler):
    """One connection."""

    def handle(self) -> None:
        """Greet, then answer lines to the end."""
        self.wfile.write(f"220 {sys.argv[3]} at your service\r\n".encode())
        for line in self.rfile:
            self.wfile.write(line.upper())


class Server(socketserver.ThreadingTCPServer):
    """Takes IPv4 and IPv6 where the host is an IPv6 one."""

    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
