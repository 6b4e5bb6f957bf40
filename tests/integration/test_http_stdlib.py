"""Python's own HTTP/1 client and server, which know nothing of these tests, on every path."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trio

from mesh_proxy.net.addr import Addr
from tests.integration.http_peers import each_path, mesh_test, settled
from tests.support.mesh import path

STEP_S = 10
BIG = bytes(range(256)) * 4096  # 1 MiB


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was sent; `/chunks` in chunks, `/end` up to the end of the connection."""

    timeout = STEP_S
    wbufsize = -1

    def do_POST(self) -> None:
        body = (
            b"".join(self._chunks())
            if "transfer-encoding" in self.headers
            else self._exactly("content-length")
        )
        self.send_response(200)
        self.send_header("X-Said", f"{self.command} {self.path} {self.headers.get('x-say', '')}")
        if self.path == "/chunks" and "HTTP/1.1" == self.protocol_version == self.request_version:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:10], body[10:]) if p))
            self.wfile.write(b"0\r\n\r\n")
            return
        if self.path == "/end":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST

    def _exactly(self, name: str) -> bytes:
        return self.rfile.read(int(self.headers.get(name, 0)))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@asynccontextmanager
async def served(hops: str, version: str) -> AsyncIterator[Addr]:
    """Where a client connects to a server that speaks `version`."""
    handler = type("Handler", (Echo,), {"protocol_version": version})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            async with path(Addr(*server.server_address[:2]), hops) as (addr, sidecars):
                yield addr
                await settled(*sidecars)
        finally:
            server.shutdown()
            thread.join(STEP_S)


async def use(addr: Addr, client: Callable[[HTTPConnection], None]) -> None:
    """Run a client in a thread, to the end of its connection."""

    def run() -> None:
        connection = HTTPConnection(addr.ip, addr.port, timeout=STEP_S)
        try:
            client(connection)
        finally:
            connection.close()

    await trio.to_thread.run_sync(run)


def pieces() -> Iterator[bytes]:
    for at in range(0, len(BIG), 100_000):
        yield BIG[at : at + 100_000]


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
@each_path
@mesh_test
async def test_requests_of_every_kind(hops: str, version: str) -> None:
    def client(connection: HTTPConnection) -> None:
        for method, target, body in (
            ("GET", "/", None),
            ("HEAD", "/", None),
            ("POST", "/", b"hello"),
            ("POST", "/chunks", BIG),
            ("PUT", "/", pieces()),
            ("PUT", "/chunks", pieces()),
            ("POST", "/end", BIG),
            ("GET", "/?again", None),
        ):
            connection.request(method, target, body, {"X-Say": "a word"}, encode_chunked=body is not None)
            response = connection.getresponse()
            expected = (body if isinstance(body, bytes) else BIG) if body is not None else b""
            assert response.read() == expected
            assert response.status == 200
            assert response.headers["X-Said"] == f"{method} {target} a word"

    async with served(hops, version) as addr:
        await use(addr, client)


@each_path
@mesh_test
async def test_expectations(hops: str) -> None:
    def client(connection: HTTPConnection) -> None:
        for _ in range(2):
            connection.request("POST", "/", b"hello", {"Expect": "100-continue"})
            assert connection.getresponse().read() == b"hello"

    async with served(hops, "HTTP/1.1") as addr:
        await use(addr, client)
