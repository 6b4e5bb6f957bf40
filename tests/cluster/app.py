"""The demo application: an echo server, a gRPC health server, and an agent that calls others when told to.

Its text is given to `python3 -c`, so it needs nothing but the standard library of Python 3.9 or newer.
"""

import http.client
import json
import os
import socket
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ECHO_PORT, AGENT_PORT, HEALTH_PORT = 8080, 8090, 9090
MAX_FAILURES = 50


def call(url: str, timeout: float, kept: "http.client.HTTPConnection | None" = None) -> "dict[str, Any]":
    """One GET, on a connection of its own or on `kept`."""
    parts = urlsplit(url)
    connection = kept or http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout)
    found: dict[str, Any] = {}
    began = time.monotonic()
    try:
        connection.request("GET", parts.path or "/")
        answer = connection.getresponse()
        found["body"] = answer.read().decode("utf-8", "replace")
        found["status"] = answer.status
        found["mesh_error"] = answer.getheader("x-triomesh-error")
    except (OSError, http.client.HTTPException) as exc:
        found["error"] = f"{type(exc).__name__}: {exc}"
        connection.close()
    found["seconds"] = round(time.monotonic() - began, 3)
    if kept is None:
        connection.close()
    return found


class Load:
    """Requests without end to some URLs: on kept connections, and each on a new one."""

    def __init__(self, urls: "list[str]") -> None:
        self.ok = self.failed = 0
        self.failures: list[dict[str, Any]] = []
        self.stopped = threading.Event()
        self.lock = threading.Lock()
        for url in urls:
            for keep in (False, True):
                threading.Thread(target=self.run, args=(url, keep), daemon=True).start()

    def run(self, url: str, keep: bool) -> None:
        parts = urlsplit(url)
        kept = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=10)
        while not self.stopped.wait(0.02):
            found = call(url, 10, kept if keep else None)
            with self.lock:
                if found.get("status") == 200:
                    self.ok += 1
                    continue
                self.failed += 1
                if len(self.failures) < MAX_FAILURES:
                    self.failures.append({"url": url, "kept": keep, **found})

    def state(self) -> "dict[str, Any]":
        with self.lock:
            return {"ok": self.ok, "failed": self.failed, "failures": self.failures}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing: the log is for what goes wrong."""

    def say(self, found: "dict[str, Any]", status: int = 200) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Echo(Handler):
    def do_GET(self) -> None:
        self.say({"pod": socket.gethostname(), "path": self.path, "peer": self.client_address[0]})


class Agent(Handler):
    load: "Load | None" = None

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        given = parse_qs(parts.query)
        if parts.path == "/call":
            self.say(call(given["url"][0], float(given.get("timeout", ["10"])[0])))
        elif parts.path == "/load/start":
            Agent.load = Load(given["url"])
            self.say({})
        elif parts.path == "/load" and Agent.load is not None:
            self.say(Agent.load.state())
        elif parts.path == "/load/stop" and Agent.load is not None:
            Agent.load.stopped.set()
            self.say(Agent.load.state())
        else:
            self.say({"error": "expected /call, /load/start, /load or /load/stop"}, 404)


class Health(socketserver.BaseRequestHandler):
    """Answers every gRPC call with HealthCheckResponse{status: SERVING}; of HTTP/2 only what that takes."""

    def handle(self) -> None:
        stream = self.request.makefile("rwb")
        if stream.read(24) != b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":
            return
        self.frame(stream, 4, 0, 0, b"")
        while len(head := stream.read(9)) == 9:
            kind, flags, number = head[3], head[4], int.from_bytes(head[5:9], "big")
            payload = stream.read(int.from_bytes(head[:3], "big"))
            if kind == 4 and not flags & 1:  # SETTINGS
                self.frame(stream, 4, 1, 0, b"")
            elif kind == 6 and not flags & 1:  # PING
                self.frame(stream, 6, 1, 0, payload)
            elif kind == 0 and flags & 1:  # DATA that ends the request
                self.frame(stream, 1, 4, number, b"\x88" + self.field(b"content-type", b"application/grpc"))
                self.frame(stream, 0, 0, number, b"\0\0\0\0\2\x08\1")
                self.frame(stream, 1, 5, number, self.field(b"grpc-status", b"0"))

    @staticmethod
    def field(name: bytes, value: bytes) -> bytes:
        return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value

    @staticmethod
    def frame(stream: Any, kind: int, flags: int, number: int, payload: bytes) -> None:
        stream.write(
            len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big") + payload
        )
        stream.flush()


def listening(base: type, handler: type, port: int) -> Any:
    family = socket.AF_INET6 if os.path.exists("/proc/net/if_inet6") else socket.AF_INET
    kind = type(
        "Server", (base,), {"address_family": family, "daemon_threads": True, "request_queue_size": 128}
    )
    return kind(("::" if family == socket.AF_INET6 else "", port), handler)


def main() -> int:
    if len(sys.argv) > 1:  # a Job, or an init container: one call, which is its result
        found = call(sys.argv[1], 10)
        print(json.dumps(found))
        return 0 if found.get("status") == 200 else 1
    for base, handler, port in (
        (ThreadingHTTPServer, Agent, AGENT_PORT),
        (socketserver.ThreadingTCPServer, Health, HEALTH_PORT),
    ):
        threading.Thread(target=listening(base, handler, port).serve_forever, daemon=True).start()
    listening(ThreadingHTTPServer, Echo, ECHO_PORT).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
