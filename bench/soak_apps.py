"""What is behind the soak's sidecars: an echo of streams, of switched protocols, of bytes, and gRPC."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from functools import partial

import grpc
import h11
import trio

SERVICE = "bench.Soak"
_WEBSOCKET = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_CHUNK = 1 << 16


async def serve(listener: trio.SocketListener, *, http: bool) -> None:
    """Answer on a listener until cancelled: HTTP/1.1, or opaque bytes that are sent back."""
    await trio.serve_listeners(_echo_http if http else _echo, [listener])


async def _echo(stream: trio.SocketStream) -> None:
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)
            await stream.send_eof()


async def _echo_http(stream: trio.SocketStream) -> None:
    """Requests with bodies are sent back as they come; `Upgrade` leads to an echo of bytes."""
    conn = h11.Connection(h11.SERVER)
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
            while True:
                request = await next_event(conn, stream)
                if not isinstance(request, h11.Request):
                    return
                fields = dict(request.headers)
                if b"upgrade" in fields:
                    await _switch(conn, stream, fields[b"sec-websocket-key"])
                    return
                await stream.send_all(conn.send(h11.Response(status_code=200, headers=[])) or b"")
                while isinstance(event := await next_event(conn, stream), h11.Data):
                    await stream.send_all(conn.send(h11.Data(event.data)) or b"")
                await stream.send_all(conn.send(h11.EndOfMessage()) or b"")
                if conn.our_state is not h11.DONE or conn.their_state is not h11.DONE:
                    return
                conn.start_next_cycle()


async def _switch(conn: h11.Connection, stream: trio.SocketStream, key: bytes) -> None:
    await next_event(conn, stream)  # the end of the request
    accept = base64.b64encode(hashlib.sha1(key + _WEBSOCKET).digest())
    headers = [(b"connection", b"upgrade"), (b"upgrade", b"websocket"), (b"sec-websocket-accept", accept)]
    await stream.send_all(conn.send(h11.InformationalResponse(status_code=101, headers=headers)) or b"")
    first, _ = conn.trailing_data
    if first:
        await stream.send_all(first)
    await _echo(stream)


async def next_event(conn: h11.Connection, stream: trio.SocketStream) -> h11.Event | type[h11.PAUSED]:
    """The next event of a connection, with what it takes read from the stream."""
    while (event := conn.next_event()) is h11.NEED_DATA:
        conn.receive_data(await stream.receive_some(_CHUNK))
    assert not isinstance(event, type) or event is h11.PAUSED
    return event


@contextlib.contextmanager
def grpc_server() -> Iterator[int]:
    """A gRPC server for the length of the block; gives its port."""

    def unary(request: bytes, _: grpc.ServicerContext) -> bytes:
        return request

    def stream(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        yield from requests

    methods = {
        "unary": grpc.unary_unary_rpc_method_handler(unary),
        "stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@contextlib.asynccontextmanager
async def echoes() -> AsyncIterator[tuple[int, int]]:
    """Ports of the HTTP/1.1 echo and of the echo of bytes, for the length of the block."""
    async with trio.open_nursery() as nursery:
        ports = []
        for http in (True, False):
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            ports.append(listener.socket.getsockname()[1])
            nursery.start_soon(partial(serve, listener, http=http))
        yield ports[0], ports[1]
        nursery.cancel_scope.cancel()


class Stopped:
    """Tells threads that the soak is over."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Pause a thread; whether the soak is over."""
        return self._event.wait(seconds)
