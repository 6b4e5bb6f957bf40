"""Raw HTTP/1.1 ends, and paths of 0, 1 and 2 sidecars between them.

The ends send and receive exact bytes and know nothing of the mesh.
"""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from mesh_api.sidecar import Endpoint, TlsMode
from mesh_proxy.net.addr import Addr
from mesh_proxy.net.conn import Conn
from tests.support.mesh import HOPS, ONE, TWO, VIP, Sidecar, path, run, wait_until

STEP_S = 5.0
"""No single step on loopback takes longer."""
_RESET = struct.pack("ii", 1, 0)

each_path = pytest.mark.parametrize("hops", HOPS)
"""For what is true of HTTP with or without a mesh."""
each_mesh = pytest.mark.parametrize("hops", [ONE, TWO])
"""For what the client's sidecar does, wherever its next hop is."""


def mesh_test(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test function under trio."""

    @functools.wraps(test)
    def wrapper(*args: object, **kwargs: object) -> None:
        try:
            run(lambda: test(*args, **kwargs))
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
            raise error from None

    return wrapper


class Message:
    """One message as it came; `raw` is the head, `body` the body with its chunk framing."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.body = b""
        line, *fields = raw[:-4].split(b"\r\n")
        self.line = line
        self.fields = [(name, value.strip()) for name, _, value in (f.partition(b":") for f in fields)]

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]

    def get(self, name: bytes) -> bytes | None:
        values = self.all(name)
        assert len(values) < 2, f"{name!r} is repeated: {values}"
        return values[0] if values else None

    @property
    def status(self) -> int:
        return int(self.line.split(b" ")[1])

    @property
    def path(self) -> bytes:
        return self.line.split(b" ")[1]

    @property
    def closes(self) -> bool:
        """Whether the sender wants no further message on this connection (RFC 9112, 9.3)."""
        options = [
            option.strip().lower() for value in self.all(b"connection") for option in value.split(b",")
        ]
        return b"close" in options or (self.line.endswith(b" HTTP/1.0") and b"keep-alive" not in options)

    def without(self, *names: bytes) -> bytes:
        """The head, less the header lines named."""
        lines = self.raw[:-4].split(b"\r\n")
        kept = [line for line in lines if line.partition(b":")[0].lower() not in names]
        return b"\r\n".join(kept) + b"\r\n\r\n"


class Peer:
    """One end of a TCP connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buf = bytearray()
        self.sent = 0
        self.received = b""
        """Everything that came, up to 64 KiB."""

    async def _fill(self) -> bool:
        with trio.fail_after(STEP_S):
            data = await self.stream.receive_some(256 * 1024)
        self.buf += data
        if len(self.received) < 65536:
            self.received += data
        return bool(data)

    def _take(self, n: int) -> bytes:
        data = bytes(self.buf[:n])
        del self.buf[:n]
        return data

    async def until(self, mark: bytes) -> bytes:
        while mark not in self.buf:
            if not await self._fill():
                raise EOFError(bytes(self.buf[-200:]))
        return self._take(self.buf.index(mark) + len(mark))

    async def exactly(self, n: int) -> bytes:
        while len(self.buf) < n:
            if not await self._fill():
                raise EOFError(f"{len(self.buf)} of {n} bytes")
        return self._take(n)

    async def rest(self) -> bytes:
        """Everything up to a clean end; a reset raises trio.BrokenResourceError."""
        while await self._fill():
            pass
        return self._take(len(self.buf))

    async def head(self) -> Message:
        return Message(await self.until(b"\r\n\r\n"))

    async def chunked(self) -> bytes:
        """A chunked body, framing and trailers included."""
        raw = b""
        while True:
            line = await self.until(b"\r\n")
            raw += line
            size = int(line.partition(b";")[0], 16)
            if not size:
                break
            raw += await self.exactly(size + 2)
        while True:
            line = await self.until(b"\r\n")
            raw += line
            if line == b"\r\n":
                return raw

    async def body(self, message: Message) -> bytes:
        if message.get(b"transfer-encoding"):
            return await self.chunked()
        return await self.exactly(int(message.get(b"content-length") or 0))

    async def request(self) -> Message:
        message = await self.head()
        message.body = await self.body(message)
        return message

    async def response(self, method: bytes = b"GET") -> Message:
        """The next response, interim ones included; a close-delimited one is read to its end."""
        message = await self.head()
        if method == b"HEAD" or message.status < 200 or message.status in (204, 304):
            return message
        if message.get(b"transfer-encoding") or message.get(b"content-length"):
            message.body = await self.body(message)
        else:
            message.body = await self.rest()
        return message

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        with trio.fail_after(STEP_S * 4):
            while view:
                n = await self.stream.socket.send(view[:65536])
                self.sent += n
                view = view[n:]

    async def send_with_fin(self, data: bytes) -> None:
        """The last bytes and FIN in one segment."""
        sock = self.stream.socket
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        await self.send(data)
        sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.stream.socket.close()

    def close(self) -> None:
        self.stream.socket.close()

    async def end(self) -> str:
        """How the other end finishes: `clean` or `reset`; no further byte is expected."""
        try:
            data = await self.rest()
        except trio.BrokenResourceError:
            return "reset"
        assert data == b"", data
        return "clean"

    async def get(self, path: bytes = b"/", method: bytes = b"GET") -> Message:
        await self.send(b"%s %s HTTP/1.1\r\nHost: server\r\n\r\n" % (method, path))
        return await self.response(method)


Handler = Callable[[Peer], Awaitable[None]]


class Application:
    """A listening socket whose connections a test's handler serves."""

    def __init__(self, listener: trio.SocketListener, handler: Handler) -> None:
        self._listener = listener
        self._handler = handler
        self.peers: list[Peer] = []
        self.requests: list[Message] = []
        self.addr = Addr(*listener.socket.getsockname()[:2])

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    stream = await self._listener.accept()
                except trio.ClosedResourceError:
                    return
                peer = Peer(stream)
                self.peers.append(peer)
                nursery.start_soon(self._one, peer)

    async def _one(self, peer: Peer) -> None:
        try:
            await self._handler(peer)
        except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            peer.close()

    async def stop_listening(self) -> None:
        await self._listener.aclose()


@asynccontextmanager
async def application(handler: Handler) -> AsyncIterator[Application]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    app = Application(listener, handler)
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(app.serve)
        try:
            yield app
        finally:
            nursery.cancel_scope.cancel()


def ok(body: bytes = b"ok", *fields: bytes) -> bytes:
    lines = b"".join(b"%s\r\n" % field for field in fields)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), lines, body)


def post(body: bytes, *fields: bytes) -> bytes:
    lines = b"".join(b"%s\r\n" % field for field in fields)
    return b"POST /up HTTP/1.1\r\nHost: server\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), lines, body)


def answering(answer: bytes | Callable[[Message], bytes]) -> Handler:
    """An application that keeps connections, unless it is asked not to."""

    async def handle(peer: Peer) -> None:
        while True:
            request = await peer.request()
            await peer.send(answer if isinstance(answer, bytes) else answer(request))
            if request.closes:
                return

    return handle


async def settled(*sidecars: Sidecar) -> None:
    """Wait until nothing is in use: no downstream connection, no request in flight, only idle sockets.

    Idle connections are closed then, so that the next sidecar has no reason to hold one: callers come first.
    """
    for side in sidecars:
        runtime = side.app.runtime

        def left(side: Sidecar = side) -> list[object]:
            runtime = side.app.runtime
            endpoints = [e for service in runtime.services.all() for e in service.endpoints()]
            idle = {conn for endpoint in endpoints for conn in endpoint.idle}
            idle |= {session.conn for endpoint in endpoints for session in endpoint.sessions.idle()}
            found: list[object] = [e for e in endpoints if e.inflight]
            found += [conn for conn in runtime.reactor.conns.values() if conn not in idle]
            return found

        try:
            await wait_until(lambda r=runtime, f=left: not r.connections and not f(), 3)
        except trio.TooSlowError:
            raise AssertionError(f"left over: {runtime.connections} connections, {left()}") from None
        assert runtime.handshaker.active == 0
        assert side.metric("triomesh_connections") == 0
        runtime.services.close_idle()
        await wait_until(lambda r=runtime: not r.reactor.conns, 3)
        assert runtime.http2.budget.used == 0


def plain(addr: Addr, **labels: str) -> Endpoint:
    """An endpoint that has no sidecar."""
    return Endpoint(
        address=addr.ip, port=addr.port, tls=TlsMode.NONE, workload=f"at-{addr.port}", labels=labels
    )


class Fleet:
    """Sidecars before applications: `m.connect()` reaches the first hop; clients are closed at the end."""

    def __init__(self, addr: Addr, sidecars: tuple[Sidecar, ...]) -> None:
        self.addr = addr
        """Where clients connect."""
        self.sidecars = sidecars
        """Those on the path, the client's first."""
        self._peers: list[Peer] = []

    @property
    def client(self) -> Sidecar:
        return self.sidecars[0]

    @property
    def server(self) -> Sidecar:
        _, server = self.sidecars
        return server

    async def connect(self, addr: Addr | None = None, *, rcvbuf: int = 0) -> Peer:
        sock = trio.socket.socket()
        if rcvbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        try:
            await sock.connect(addr or self.addr)
        except BaseException:
            sock.close()
            raise
        peer = Peer(trio.SocketStream(sock))
        self._peers.append(peer)
        return peer

    def close_clients(self) -> None:
        for peer in self._peers:
            peer.close()

    async def record(self, side: str = "client", **fields: object) -> dict[str, object]:
        """The access-log record of that sidecar that has these fields."""
        found = self.client if side == "client" else self.server
        return await _record(found, fields)

    async def records(self, **fields: object) -> list[dict[str, object]]:
        """The record with these fields of each sidecar on the path."""
        return [await _record(side, fields) for side in self.sidecars]


async def _record(side: Sidecar, fields: dict[str, object]) -> dict[str, object]:
    return await side.log.wait_for(lambda line: "duration_ms" in line and fields.items() <= line.items())


class Mesh(Fleet):
    """One application, at the end of a path."""

    def __init__(self, app: Application, addr: Addr, sidecars: tuple[Sidecar, ...]) -> None:
        super().__init__(addr, sidecars)
        self.app = app

    def heard(self) -> int:
        """How many bytes the first hop has read from clients (of an application, the first 64 KiB each)."""
        if not self.sidecars:
            return sum(len(peer.received) for peer in self.app.peers)
        return sum(conn.received for conn in self.conns_of_clients())

    def conns_of_clients(self) -> list[Conn]:
        """The first sidecar's ends of its clients' connections."""
        conns = self.client.app.runtime.reactor.conns.values()
        return [conn for conn in conns if conn.sock.getsockname()[1] == self.addr.port]


@asynccontextmanager
async def mesh(handler: Handler | bytes, hops: str = TWO, **kwargs: object) -> AsyncIterator[Mesh]:
    """A path to `handler` (or to an answer to everything); at the end nothing may be left over."""
    if isinstance(handler, bytes):
        handler = answering(handler)
    async with application(handler) as app, path(app.addr, hops, **kwargs) as (addr, sidecars):  # type: ignore[arg-type]
        found = Mesh(app, addr, sidecars)
        yield found
        found.close_clients()
        await settled(*sidecars)


@asynccontextmanager
async def fleet(*endpoints: Endpoint, **changes: object) -> AsyncIterator[Fleet]:
    """One sidecar and a destination of these endpoints; nothing may be left over at the end."""
    async with path(VIP, ONE, endpoints=endpoints, **changes) as (addr, sidecars):  # type: ignore[arg-type]
        found = Fleet(addr, sidecars)
        yield found
        found.close_clients()
        await settled(*sidecars)


def closed_port() -> Addr:
    """An address that refuses connections."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return Addr(*sock.getsockname())
