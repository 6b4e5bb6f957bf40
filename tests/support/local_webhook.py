"""A webhook (or any small HTTP server) on loopback, with what it was asked."""

import base64
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio

from mesh_local.apiserver.auth.pki import KeyPair, Pki


@dataclass
class Asked:
    """One request as it arrived; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def review(self) -> Any:
        return json.loads(self.body)["request"]


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Asked], Awaitable[Reply]]


@dataclass
class Server:
    port: int
    asked: list[Asked]


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None) -> AsyncIterator[Server]:
    """Serve HTTP/1.1, one request per connection, on a port of 127.0.0.1."""
    asked: list[Asked] = []

    async def serve(stream: trio.abc.Stream) -> None:
        if tls:
            stream = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        try:
            async with stream:
                request = await _read(stream)
                asked.append(request)
                reply = await handler(request)
                await stream.send_all(_written(reply))
        except (trio.BrokenResourceError, EOFError):
            return  # the client gave up

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield Server(listeners[0].socket.getsockname()[1], asked)
        nursery.cancel_scope.cancel()


async def _read(stream: trio.abc.ReceiveStream) -> Asked:
    data = bytearray()

    async def more() -> None:
        chunk = await stream.receive_some(65536)
        if not chunk:
            raise EOFError
        data.extend(chunk)

    while b"\r\n\r\n" not in data:
        await more()
    head, _, rest = bytes(data).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    method, target, _ = lines[0].split(" ")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    data[:] = rest
    if headers.get("transfer-encoding") == "chunked":
        while not data.endswith(b"0\r\n\r\n"):
            await more()
    while len(data) < int(headers.get("content-length", "0")):
        await more()
    return Asked(method, target, headers, bytes(data))


def _written(reply: Reply) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} X", f"Content-Length: {len(reply.body)}", "Connection: close"]
    if reply.content_type:
        lines.append(f"Content-Type: {reply.content_type}")
    lines += [f"{k}: {v}" for k, v in reply.headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + reply.body


class Authority:
    """A certificate authority for servers of a test."""

    def __init__(self, directory: Path) -> None:
        self.pki = Pki(directory, datetime.now(UTC))

    @property
    def bundle(self) -> str:
        """For `caBundle`."""
        return base64.b64encode(self.pki.ca.certificate).decode()

    def tls(self, *sans: str) -> ssl.SSLContext:
        return server_tls(self.pki.directory, self.pki.server(sans))


def server_tls(directory: Path, pair: KeyPair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain, key = directory / "chain.pem", directory / "chain.key"
    chain.write_bytes(pair.certificate)
    key.write_bytes(pair.key)
    context.load_cert_chain(chain, key)
    return context
