"""HTTP/2 ends for whole-proxy tests, on the h2 library: they see every event and know nothing of the mesh."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import trio
from h2.connection import ConnectionInputs, ConnectionState

from mesh_proxy.net.addr import Addr
from tests.integration.http_peers import STEP_S

Fields = list[tuple[bytes, bytes]]


class Http2Stream:
    """One stream as this end has seen it so far."""

    def __init__(self, peer: Http2Peer, stream_id: int) -> None:
        self._peer = peer
        self.id = stream_id
        self.fields: Fields = []
        self.interims: list[Fields] = []
        self.trailers: Fields = []
        self.body = bytearray()
        self.ended = False
        self.reset: int | None = None
        """Code with which the peer, or the end of the connection (-1), has ended it."""
        self.hold = False
        """Flow-control credit is not given back."""

    def get(self, name: bytes) -> bytes | None:
        """The value of a header field, or of a trailer."""
        values = [value for key, value in self.fields + self.trailers if key == name]
        assert len(values) < 2, f"{name!r} is repeated: {values}"
        return values[0] if values else None

    @property
    def status(self) -> int:
        return int(self.get(b":status") or 0)

    async def until(self, predicate: Callable[[], object]) -> None:
        """Wait for something that events of the connection bring."""
        with trio.fail_after(STEP_S):
            while not predicate():
                await self._peer.changed.wait()

    async def head(self) -> Http2Stream:
        """Wait for the final head, or the stream's end."""
        await self.until(lambda: self.fields or self.reset is not None)
        return self

    async def whole(self) -> Http2Stream:
        """Wait for the end; a reset fails."""
        await self.until(lambda: self.ended or self.reset is not None)
        assert self.reset is None, f"reset with {self.reset}: {self.fields}"
        return self

    async def cut(self) -> int:
        """Wait for the reset; its code."""
        await self.until(lambda: self.reset is not None)
        assert self.reset is not None
        return self.reset

    async def send(self, data: bytes, end: bool = False) -> None:
        """Send a part of the body, as fast as flow control lets it go."""
        conn = self._peer.conn
        view = memoryview(data)
        while view:
            await self.until(lambda: self.reset is not None or conn.local_flow_control_window(self.id) > 0)
            if self.reset is not None:
                raise EOFError(f"reset with {self.reset}")
            n = min(len(view), conn.local_flow_control_window(self.id), conn.max_outbound_frame_size)
            conn.send_data(self.id, bytes(view[:n]), end_stream=end and n == len(view))
            view = view[n:]
            await self._peer.flush()
        if end and not data:
            conn.end_stream(self.id)
            await self._peer.flush()

    async def respond(
        self, fields: Fields, body: bytes = b"", trailers: Fields | None = None, end: bool = True
    ) -> None:
        """Send a response, of which this is all with `end`."""
        conn = self._peer.conn
        conn.send_headers(self.id, fields, end_stream=end and not body and not trailers)
        await self._peer.flush()
        if body:
            await self.send(body, end and not trailers)
        if trailers:
            conn.send_headers(self.id, trailers, end_stream=True)
            await self._peer.flush()

    async def cancel(self, code: int = h2.errors.ErrorCodes.CANCEL) -> None:
        """Reset it."""
        self._peer.conn.reset_stream(self.id, code)
        await self._peer.flush()

    async def take(self) -> None:
        """Give back the credit that was held."""
        self.hold = False
        self._peer.conn.acknowledge_received_data(len(self.body), self.id)
        await self._peer.flush()


Handler = Callable[[Http2Stream], Awaitable[None]]


class Http2Peer:
    """One end of a connection; `run` must be running."""

    def __init__(
        self, stream: trio.SocketStream, client: bool, settings: dict[int, int] | None = None
    ) -> None:
        self.stream = stream
        config = h2.config.H2Configuration(client_side=client, header_encoding=None)
        self.conn = h2.connection.H2Connection(config)
        # The library takes a GOAWAY for the end; the RFC (9113, 6.8) has open streams go on.
        machine = self.conn.state_machine
        state = ConnectionState.CLIENT_OPEN if client else ConnectionState.SERVER_OPEN
        machine._transitions = {  # type: ignore[misc]
            **machine._transitions,
            (state, ConnectionInputs.RECV_GOAWAY): (None, state),
        }
        if settings:
            self.conn.local_settings = h2.settings.Settings(client=client, initial_values=settings)
        self.conn.initiate_connection()
        if not settings or h2.settings.SettingCodes.INITIAL_WINDOW_SIZE not in settings:
            self.conn.increment_flow_control_window(1 << 24)
        self.client = client
        self.changed = trio.Event()
        self.streams: dict[int, Http2Stream] = {}
        self.goaway: h2.events.ConnectionTerminated | None = None
        self.ended = False
        self.handler: Handler | None = None
        self._nursery: trio.Nursery | None = None
        self._lock = trio.Lock()

    async def flush(self) -> None:
        async with self._lock:
            data = self.conn.data_to_send()
            if data:
                with trio.fail_after(STEP_S * 2):
                    await self.stream.send_all(data)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read to the connection's end."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self.flush()
                task_status.started()
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.ended = True
            for stream in self.streams.values():
                if not stream.ended and stream.reset is None:
                    stream.reset = -1
            self._wake()

    async def _read(self) -> None:
        try:
            while data := await self.stream.receive_some(65536):
                for event in self.conn.receive_data(data):
                    self._take(event)
                await self.flush()
                self._wake()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def _wake(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            stream = self.streams[event.stream_id] = Http2Stream(self, event.stream_id)
            stream.fields = list(event.headers)
            if self.handler is not None and self._nursery is not None:
                self._nursery.start_soon(self._handle, stream)
            return
        if isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = event
            return
        stream = self.streams.get(getattr(event, "stream_id", 0) or 0)  # type: ignore[assignment]
        if stream is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            stream.fields = list(event.headers)
        elif isinstance(event, h2.events.InformationalResponseReceived):
            stream.interims.append(list(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            stream.body += event.data
            if not stream.hold:
                self.conn.acknowledge_received_data(event.flow_controlled_length, stream.id)
        elif isinstance(event, h2.events.TrailersReceived):
            stream.trailers = list(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            stream.ended = True
        elif isinstance(event, h2.events.StreamReset):
            stream.reset = int(event.error_code)

    async def _handle(self, stream: Http2Stream) -> None:
        assert self.handler is not None
        try:
            await self.handler(stream)
        except (EOFError, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except h2.exceptions.ProtocolError:
            pass  # the stream or connection has ended meanwhile

    async def start(
        self,
        path: bytes = b"/",
        method: bytes = b"GET",
        fields: Fields | None = None,
        body: bytes = b"",
        end: bool = True,
        authority: bytes = b"server",
    ) -> Http2Stream:
        """Send a request, of which this is all with `end`."""
        stream_id = self.conn.get_next_available_stream_id()
        stream = self.streams[stream_id] = Http2Stream(self, stream_id)
        head = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", authority)]
        self.conn.send_headers(stream_id, head + (fields or []), end_stream=end and not body)
        await self.flush()
        if body:
            await stream.send(body, end)
        return stream

    async def ask(self, path: bytes = b"/", method: bytes = b"GET", **more: object) -> Http2Stream:
        """One request and its whole response."""
        return await (await self.start(path, method, **more)).whole()  # type: ignore[arg-type]

    def close(self) -> None:
        self.stream.socket.close()


@asynccontextmanager
async def http2_client(addr: Addr, settings: dict[int, int] | None = None) -> AsyncIterator[Http2Peer]:
    """A client connected to an address, by prior knowledge."""
    peer = Http2Peer(await trio.open_tcp_stream(*addr), True, settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.run)
        try:
            yield peer
        finally:
            peer.close()
            nursery.cancel_scope.cancel()


class Http2Application:
    """A listening socket whose streams a test's handler serves."""

    def __init__(
        self, listener: trio.SocketListener, handler: Handler, settings: dict[int, int] | None
    ) -> None:
        self._listener = listener
        self._handler = handler
        self._settings = settings
        self.peers: list[Http2Peer] = []
        self.addr = Addr(*listener.socket.getsockname()[:2])

    @property
    def requests(self) -> list[Http2Stream]:
        """Every stream so far."""
        return [stream for peer in self.peers for stream in peer.streams.values()]

    def refuse(self) -> None:
        """Take no further connection."""
        self._listener.socket.close()

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    stream = await self._listener.accept()
                except trio.ClosedResourceError:
                    return
                nursery.start_soon(self._one, stream)

    async def _one(self, stream: trio.SocketStream) -> None:
        peer = Http2Peer(stream, False, self._settings)
        peer.handler = self._handler
        self.peers.append(peer)
        try:
            await peer.run()
        except h2.exceptions.ProtocolError:
            pass
        finally:
            peer.close()


@asynccontextmanager
async def http2_application(
    handler: Handler, settings: dict[int, int] | None = None
) -> AsyncIterator[Http2Application]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    app = Http2Application(listener, handler, settings)
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(app.serve)
        try:
            yield app
        finally:
            nursery.cancel_scope.cancel()


OK: Fields = [(b":status", b"200")]


async def echo(stream: Http2Stream) -> None:
    """Answer with the request's body, its path and its trailers."""
    await stream.whole()
    path = stream.get(b":path") or b""
    await stream.respond([*OK, (b"x-path", path)], bytes(stream.body), stream.trailers)
