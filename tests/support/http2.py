"""HTTP/2 sessions on loopback, and a peer of another make (the h2 library, raw) to talk to them."""

from __future__ import annotations

import functools
import inspect
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio

from mesh_proxy.http2.budget import Budget, SessionSettings
from mesh_proxy.http2.client import ClientSession
from mesh_proxy.http2.server import ServerSession
from mesh_proxy.http2.stream import ServerStream
from mesh_proxy.net.conn import Conn
from mesh_proxy.net.reactor import Reactor
from mesh_proxy.wire.http2.engines import EngineError, load
from mesh_proxy.wire.http2.seam import Engine, Http2Limits, RequestFields

ENGINES = ["hyper", "nghttp2"]
Serve = Callable[[ServerStream], Awaitable[None]]
Make = Callable[[bool, Http2Limits], Engine]


def make_engine(name: str) -> Make:
    """The engine's maker, or the test is skipped where it was not built."""
    try:
        return load(name).make
    except EngineError as exc:
        pytest.skip(str(exc))


def run(test: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run an async test with its own loop, at most 20 seconds."""

    async def main() -> None:
        with trio.fail_after(20):
            await test(*args)

    trio.run(main)


def http2_test(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test on both engines: its first argument is a `Net`."""

    @pytest.mark.parametrize("engine", ENGINES)
    @functools.wraps(test)
    def sync(engine: str, **kwargs: Any) -> None:
        async def main() -> None:
            async with net(engine) as n:
                await test(n, **kwargs)

        make_engine(engine)
        run(main)

    signature = inspect.signature(test)
    parameters = list(signature.parameters.values())
    first = parameters[0].replace(name="engine", annotation="str")
    sync.__signature__ = signature.replace(parameters=[first, *parameters[1:]])  # type: ignore[attr-defined]
    return sync


def fields(method: bytes = b"GET", target: bytes = b"/", block: bytes = b"host: test\r\n") -> RequestFields:
    """A request's head."""
    return RequestFields(method, b"http", target, b"", block)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets of loopback TCP, not blocking."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        one = socket.create_connection(listener.getsockname())  # noqa: TID251
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one, other


class Net:
    """Makes sessions of one engine in one reactor."""

    def __init__(self, engine: str, reactor: Reactor, nursery: trio.Nursery) -> None:
        self.make = make_engine(engine)
        self.engine = engine
        self.reactor = reactor
        self.nursery = nursery
        self.budget = Budget()
        self.peers: list[RawPeer] = []

    def server(
        self,
        sock: socket.socket,
        serve: Serve,
        settings: SessionSettings | None = None,
        limits: Http2Limits | None = None,
    ) -> ServerSession:
        """A server session that runs on `sock`."""
        limits = limits or Http2Limits()
        conn = Conn(self.reactor, sock)
        session = ServerSession(
            conn, self.make(True, limits), settings or SessionSettings(), self.budget, limits
        )
        self.nursery.start_soon(session.run, serve)
        return session

    def client(
        self,
        sock: socket.socket,
        settings: SessionSettings | None = None,
        limits: Http2Limits | None = None,
    ) -> ClientSession:
        """A client session that runs on `sock`."""
        limits = limits or Http2Limits()
        conn = Conn(self.reactor, sock)
        session = ClientSession(
            conn, self.make(False, limits), settings or SessionSettings(), self.budget, limits
        )
        self.nursery.start_soon(session.run)
        return session

    def pair(
        self,
        serve: Serve,
        settings: SessionSettings | None = None,
        limits: Http2Limits | None = None,
    ) -> tuple[ClientSession, ServerSession]:
        """A client session and a server session that talk to each other."""
        one, other = tcp_pair()
        return self.client(one, settings, limits), self.server(other, serve, settings, limits)

    def raw_client(
        self,
        serve: Serve,
        settings: SessionSettings | None = None,
        limits: Http2Limits | None = None,
    ) -> tuple[RawPeer, ServerSession]:
        """The h2 library as client of a server session."""
        one, other = tcp_pair()
        return self.raw(one, client=True), self.server(other, serve, settings, limits)

    def raw_server(
        self, settings: SessionSettings | None = None, limits: Http2Limits | None = None
    ) -> tuple[RawPeer, ClientSession]:
        """The h2 library as server of a client session."""
        one, other = tcp_pair()
        return self.raw(one, client=False), self.client(other, settings, limits)

    def listen(self, serve: Serve, settings: SessionSettings | None = None) -> int:
        """Serve every connection to a port of loopback, which is returned."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)

        async def accept() -> None:
            with listener:
                while True:
                    await trio.lowlevel.wait_readable(listener)
                    sock, _ = listener.accept()
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.server(sock, serve, settings)

        self.nursery.start_soon(accept)
        port: int = listener.getsockname()[1]
        return port

    def raw(self, sock: socket.socket, *, client: bool) -> RawPeer:
        """The h2 library on a socket, which is closed at the end."""
        peer = RawPeer(sock, client=client)
        self.peers.append(peer)
        return peer


@asynccontextmanager
async def net(engine: str) -> AsyncIterator[Net]:
    """A reactor that runs, and what makes sessions on it; all are cancelled at the end."""
    reactor = Reactor()
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        async with trio.open_nursery() as sessions:
            n = Net(engine, reactor, sessions)
            try:
                yield n
            finally:
                sessions.cancel_scope.cancel()
                for peer in n.peers:
                    peer.close()
        assert not reactor.conns, "a connection was left open"
        assert n.budget.used == 0, f"{n.budget.used} bytes were not given back to the budget"
        assert not n.budget.waiting
        nursery.cancel_scope.cancel()


class RawPeer:
    """The h2 library on a socket, step by step: `until` collects events."""

    def __init__(self, sock: socket.socket, *, client: bool) -> None:
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        config = h2.config.H2Configuration(client_side=client, header_encoding=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.ended = False
        self.ack = True
        """Give credit for data as it comes."""

    def close(self) -> None:
        """Close the socket without waiting."""
        self.stream.socket.close()

    async def flush(self) -> None:
        """Send what the library wants to send."""
        data = self.h2.data_to_send()
        if data:
            await self.stream.send_all(data)

    async def receive(self) -> bool:
        """Read once; false at the end."""
        await self.flush()
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.ended = True
            return False
        events = self.h2.receive_data(data)
        for event in events:
            if self.ack and isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.events += events
        await self.flush()
        return True

    async def until(self, kind: type[Any], **match: Any) -> Any:
        """Read until an event of that kind, with those attributes, has come; it is taken out."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and all(getattr(event, k) == v for k, v in match.items()):
                    self.events.remove(event)
                    return event
            if not await self.receive():
                raise AssertionError(f"the connection ended before {kind.__name__}: {self.events}")

    async def until_end(self) -> None:
        """Read until the connection ends."""
        while await self.receive():
            pass

    async def request(self, *, end: bool = True, method: str = "GET", path: str = "/") -> int:
        """Send a request's head; its stream id."""
        stream_id: int = self.h2.get_next_available_stream_id()
        headers = [(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)]
        self.h2.send_headers(stream_id, headers, end_stream=end)
        await self.flush()
        return stream_id

    async def respond(self, stream_id: int, body: bytes = b"", *, end: bool = True) -> None:
        """Send a response, of at most one window."""
        self.h2.send_headers(stream_id, [(":status", "200")], end_stream=end and not body)
        for start in range(0, len(body), 16384):
            last = start + 16384 >= len(body)
            self.h2.send_data(stream_id, body[start : start + 16384], end_stream=end and last)
        await self.flush()

    async def body(self, stream_id: int) -> bytes:
        """Read a stream to its end."""
        data = b""
        while True:
            for event in list(self.events):
                if getattr(event, "stream_id", None) != stream_id:
                    continue
                if isinstance(event, h2.events.DataReceived):
                    self.events.remove(event)
                    data += event.data or b""
                elif isinstance(event, h2.events.StreamEnded):
                    return data
            assert await self.receive(), "the connection ended within a body"


async def wait_until(predicate: Callable[[], object], seconds: float = 5.0) -> None:
    """Poll until `predicate` is true; fails after `seconds`."""
    with trio.fail_after(seconds):
        while not predicate():
            await trio.sleep(0.002)
