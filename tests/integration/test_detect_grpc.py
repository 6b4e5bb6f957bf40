"""A real gRPC server on a port that nobody has declared: it sends its SETTINGS before the client speaks."""

import socket
from concurrent import futures
from contextlib import asynccontextmanager, contextmanager

import grpc
import pytest
import trio

from mesh_api.sidecar import Protocol
from mesh_proxy.net.addr import Addr
from tests.integration.test_tcp_relay import application, exactly
from tests.support.mesh import pair, run, wait_until

METHOD = "/shop.Echo/Say"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@contextmanager
def grpc_server():
    """The address of a server with one unary method."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, _context: b"echo " + request)
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    service, method = METHOD.strip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield Addr("127.0.0.1", port)
    finally:
        server.stop(0).wait()


def say(port, word, count=1):
    """The answers to unary calls of a real client on one channel."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        call = channel.unary_unary(METHOD)
        return [call(word, timeout=5) for _ in range(count)]


@asynccontextmanager
async def slow_line(target, silent_s):
    """A port whose connections say nothing to `target` for a while; then bytes go both ways."""

    async def copy(source, sink):
        try:
            while data := await source.receive_some():
                await sink.send_all(data)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def serve(client):
        async with client, await trio.open_tcp_stream(*target) as side, trio.open_nursery() as nursery:
            nursery.start_soon(copy, side, client)
            await trio.sleep(silent_s)
            await copy(client, side)
            nursery.cancel_scope.cancel()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def verdicts(mesh, verdict):
    return mesh.client.metric("triomesh_detect_total", direction="outbound", verdict=verdict)


def test_the_server_does_speak_first():
    """What the other tests of this file are about; otherwise they would show nothing."""
    with grpc_server() as app, socket.socket() as sock:
        sock.settimeout(5)
        sock.connect(app)
        frame = sock.recv(9)
        assert frame[3] == 4, "SETTINGS"


@pytest.mark.parametrize("silent_s", [0, 0.15], ids=["prompt", "slow"])
def test_a_real_client_of_an_undeclared_port(silent_s):
    async def main():
        with grpc_server() as app:
            async with pair(app, protocol=Protocol.AUTO) as mesh:
                for n in range(1, 4):
                    async with slow_line(mesh.client.outbound, silent_s) as port:
                        said = await trio.to_thread.run_sync(say, port, b"hello", 3)
                    assert said == [b"echo hello"] * 3
                    assert verdicts(mesh, "http2") == n
                assert verdicts(mesh, "server-first") == 0, "the port is still looked at"
                line = await mesh.client.log.wait_for(lambda line: line.get("protocol") == "HTTP/2")
                assert (line["status"], line["mtls"]) == (200, True)
                assert mesh.client.metric("triomesh_requests_total", code="200", mtls="true") == 9
                assert mesh.client.metric("triomesh_tcp_connections_opened_total") == 0
                await wait_until(lambda: not mesh.client.app.runtime.connections)

    run(main)


def test_the_tentative_connection_is_dropped_for_http2():
    """Its bytes were for a client that may have been anyone; the session has a connection of its own."""

    async def main():
        async with application() as app, pair(app.addr, protocol=Protocol.AUTO) as mesh:
            async with await mesh.connect() as client:
                tentative = await app.accept()
                await tentative.send_all(b"\0\0\6\4\0\0\0\0\0" + b"\0\3\0\0\0\x64")
                await trio.sleep(0.05)
                for n in range(len(PREFACE)):
                    await client.send_all(PREFACE[n : n + 1])
                await client.send_all(b"\0\0\0\4\0\0\0\0\0")
                head = await exactly(client, 9)
                assert head[3] == 4, "the sidecar's own SETTINGS"
                try:
                    assert await tentative.receive_some() == b""
                except trio.BrokenResourceError:
                    pass
            await tentative.aclose()
            assert verdicts(mesh, "http2") == 1

    run(main)
