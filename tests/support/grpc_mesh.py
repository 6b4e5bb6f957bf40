"""Real gRPC: grpcio's client and server, over nothing, one sidecar, or two with mTLS.

Messages are plain bytes. A test's body runs in a thread, for grpcio's client blocks; calls have deadlines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent import futures
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import msgspec
import pytest
import trio

from mesh_api.sidecar import Endpoint, Protocol, TlsMode
from mesh_proxy.net.addr import Addr
from tests.support.mesh import (
    VIP,
    Sidecar,
    TestCa,
    client_snapshot,
    identity,
    server_snapshot,
    sidecar,
)

PATHS = ("direct", "one sidecar", "undeclared", "two sidecars", "two on hyper")
"""Undeclared: the port says nothing of its protocol. Hyper: the other HTTP/2 engine."""
MESHED = PATHS[1:]
CALL_S = 10.0
ANY_SIZE = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_SERVICE = "mesh.test.Tests"
Context = grpc.ServicerContext


def size_of(request: bytes) -> int:
    """How many bytes the client wants back: a request begins with that number and a colon."""
    return int(request.partition(b":")[0])


class Server:
    """One gRPC server, and what it has seen."""

    def __init__(self, name: str, options: Sequence[tuple[str, Any]] = ()) -> None:
        self.name = name
        self.calls: list[tuple[str, dict[str, str | bytes]]] = []
        """Method and metadata of each call that reached a handler."""
        self.cancelled = threading.Event()
        """The last call of a handler that waits was ended by the other side."""
        self.failures_left = 0
        """Calls of `flaky` that fail before one succeeds."""
        self._server = grpc.server(futures.ThreadPoolExecutor(32), options=(*ANY_SIZE, *options))
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(_SERVICE, self._methods())]
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.addr = Addr("127.0.0.1", self.port)
        self._server.start()

    def stop(self, grace_s: float | None = None) -> None:
        self._server.stop(grace_s).wait()

    def count(self, method: str) -> int:
        return sum(1 for name, _ in self.calls if name == method)

    def seen(self, method: str) -> dict[str, str | bytes]:
        """The metadata of the last call of a method."""
        return next(metadata for name, metadata in reversed(self.calls) if name == method)

    def _methods(self) -> dict[str, grpc.RpcMethodHandler]:
        kinds: dict[str, Callable[..., grpc.RpcMethodHandler]] = {
            "echo": grpc.unary_unary_rpc_method_handler,
            "who": grpc.unary_unary_rpc_method_handler,
            "sized": grpc.unary_unary_rpc_method_handler,
            "fail": grpc.unary_unary_rpc_method_handler,
            "flaky": grpc.unary_unary_rpc_method_handler,
            "sleep": grpc.unary_unary_rpc_method_handler,
            "remaining": grpc.unary_unary_rpc_method_handler,
            "collect": grpc.stream_unary_rpc_method_handler,
            "spread": grpc.unary_stream_rpc_method_handler,
            "half": grpc.unary_stream_rpc_method_handler,
            "ping_pong": grpc.stream_stream_rpc_method_handler,
        }
        return {name: kind(self._noted(name)) for name, kind in kinds.items()}

    def _noted(self, name: str) -> Callable[[Any, Context], Any]:
        behaviour = getattr(self, f"_{name}")

        def handler(request: Any, context: Context) -> Any:
            self.calls.append((name, dict(context.invocation_metadata())))
            return behaviour(request, context)

        return handler

    def _echo(self, request: bytes, context: Context) -> bytes:
        given = dict(context.invocation_metadata())
        if "x-initial" in given:
            context.send_initial_metadata((("x-initial", given["x-initial"]),))
        if "x-trailing-bin" in given:
            context.set_trailing_metadata((("x-trailing-bin", given["x-trailing-bin"]),))
        return request

    def _who(self, request: bytes, context: Context) -> bytes:
        return self.name.encode()

    def _sized(self, request: bytes, context: Context) -> bytes:
        return b"r" * size_of(request)

    def _fail(self, request: bytes, context: Context) -> bytes:
        code, _, details = request.decode().partition(" ")
        context.set_trailing_metadata((("x-why", "asked for"),))
        context.abort(grpc.StatusCode[code], details)

    def _flaky(self, request: bytes, context: Context) -> bytes:
        if self.failures_left > 0:
            self.failures_left -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return request

    def _wait_for_end(self, context: Context) -> None:
        ended = threading.Event()
        if context.add_callback(ended.set):
            ended.wait(CALL_S * 2)
        self.cancelled.set()

    def _sleep(self, request: bytes, context: Context) -> bytes:
        self._wait_for_end(context)
        return b""

    def _remaining(self, request: bytes, context: Context) -> bytes:
        left = context.time_remaining()
        return b"none" if left is None or left > 1e6 else b"%.3f" % left

    def _collect(self, requests: Iterator[bytes], context: Context) -> bytes:
        return b"%d" % sum(len(request) for request in requests)

    def _spread(self, request: bytes, context: Context) -> Iterator[bytes]:
        for part in request.split(b","):
            yield b"s" * int(part)

    def _half(self, request: bytes, context: Context) -> Iterator[bytes]:
        if not context.add_callback(self.cancelled.set):
            self.cancelled.set()
        yield b"first"  # grpcio does not go on after it if the call has ended by then
        self._wait_for_end(context)

    def _ping_pong(self, requests: Iterator[bytes], context: Context) -> Iterator[bytes]:
        for request in requests:
            yield b"r" * size_of(request)
        self.cancelled.set()


class Scene:
    """What a test's body is given."""

    def __init__(
        self, target: str, servers: list[Server], front: Sidecar | None, back: Sidecar | None
    ) -> None:
        self.servers = servers
        self.front = front
        self.back = back
        self._target = target
        self.channel = self.connect()

    @property
    def server(self) -> Server:
        return self.servers[0]

    def connect(self, *options: tuple[str, Any]) -> grpc.Channel:
        """A channel of its own connections."""
        alone = ("grpc.use_local_subchannel_pool", 1)
        return grpc.insecure_channel(self._target, options=(*ANY_SIZE, alone, *options))

    def call(self, method: str, request: bytes = b"", **options: Any) -> bytes:
        options.setdefault("timeout", CALL_S)
        found: bytes = self.channel.unary_unary(f"/{_SERVICE}/{method}")(request, **options)
        return found

    def method(self, kind: str, name: str) -> Any:
        """`kind` is unary_unary, unary_stream, stream_unary or stream_stream."""
        return getattr(self.channel, kind)(f"/{_SERVICE}/{name}")

    def metric(self, side: Sidecar, name: str, **labels: str) -> float:
        return trio.from_thread.run_sync(lambda: side.metric(name, **labels))

    def apply(self, side: Sidecar, snapshot: Any) -> None:
        """A new configuration."""
        trio.from_thread.run_sync(side.app.on_snapshot, snapshot)

    def drain(self, side: Sidecar) -> None:
        """End it as SIGTERM would."""
        trio.from_thread.run_sync(side.app.stop.set)

    def wait_until(self, predicate: Callable[[], object]) -> None:
        end = time.monotonic() + CALL_S
        while not predicate():
            assert time.monotonic() < end, "it did not come to pass"
            threading.Event().wait(0.01)


def fails(code: grpc.StatusCode, call: Callable[[], object]) -> grpc.RpcError:
    """The error of a call that must fail with `code`."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is code, caught.value.details()
    return caught.value


def over(
    path: str,
    body: Callable[[Scene], None],
    *,
    servers: int = 1,
    server_options: Sequence[tuple[str, Any]] = (),
    gone: bool = False,
    **changes: object,
) -> None:
    """Run `body` with servers at the end of `path`.

    Args:
        path: one of PATHS.
        body: the test, in a thread.
        servers: how many there are; with "direct" there is one.
        server_options: of grpcio.
        gone: the servers' ports refuse connections.
        changes: of the destination.
    """
    made = [Server(f"server-{number}", server_options) for number in range(servers)]
    if gone:
        for server in made:
            server.stop()

    async def main() -> None:
        with trio.fail_after(60):
            async with AsyncExitStack() as stack:
                scene = await stack.enter_async_context(_scene(path, made, changes))
                try:
                    await trio.to_thread.run_sync(body, scene)
                finally:
                    await trio.to_thread.run_sync(scene.channel.close)

    try:
        trio.run(main)
    finally:
        for server in made:
            server.stop()


@asynccontextmanager
async def _scene(path: str, servers: list[Server], changes: dict[str, object]) -> AsyncIterator[Scene]:
    if path == "direct":
        yield Scene(str(servers[0].addr), servers, None, None)
        return
    ca = TestCa()
    engine = "hyper" if path == "two on hyper" else "nghttp2"
    async with AsyncExitStack() as stack:
        back: Sidecar | None = None
        endpoints = [
            Endpoint(address=one.addr.ip, port=one.port, tls=TlsMode.NONE, workload=one.name)
            for one in servers
        ]
        if path.startswith("two"):
            backs = [
                await stack.enter_async_context(
                    sidecar(ca.credentials("server"), server_snapshot(), http2_engine=engine, drain_s=5)
                )
                for _ in servers
            ]
            for one, its in zip(servers, backs, strict=True):
                its.aim(inbound=one.addr)
            back = backs[0]
            meshed = {"tls": TlsMode.MESH, "identity": identity("server")}
            endpoints = [
                msgspec.structs.replace(endpoint, port=its.inbound.port, **meshed)
                for endpoint, its in zip(endpoints, backs, strict=True)
            ]
        protocol = Protocol.AUTO if path == "undeclared" else Protocol.HTTP2
        wanted = {"protocol": protocol, "endpoints": tuple(endpoints), **changes}
        snapshot = client_snapshot(servers[0].addr, **wanted)
        front = await stack.enter_async_context(
            sidecar(ca.credentials("client"), snapshot, http2_engine=engine)
        )
        front.aim(outbound=VIP)
        yield Scene(str(front.outbound), servers, front, back)
