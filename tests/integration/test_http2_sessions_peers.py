"""HTTP/2 sessions with programs of another make: curl, nghttp, h2load, grpcio.

curl asks once for each connection: 7.88 cannot reuse one that began with HTTP/2 (curl's pull request 10643).
"""

from __future__ import annotations

import shutil
import socket
from concurrent import futures
from pathlib import Path

import grpc
import pytest
import trio

from mesh_proxy.http2.stream import ServerStream
from tests.support.http2 import Net, fields, http2_test, wait_until

BODY = bytes(range(256)) * 4 * 1024 * 5


async def echo(stream: ServerStream) -> None:
    """GET is answered with megabytes, anything else with what came."""
    stream.respond(200, b"content-type: application/octet-stream\r\n")
    if stream.fields.method == b"GET":
        await stream.write(BODY, end=True)
        return
    while data := await stream.read():
        await stream.write(data)
    await stream.end(stream.trailers)


async def small(stream: ServerStream) -> None:
    stream.respond(200, b"content-length: 2\r\n")
    await stream.write(b"ok", end=True)


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


async def output(*command: str, stdin: bytes = b"") -> bytes:
    """What a program wrote; it must succeed."""
    done = await trio.run_process([*command], stdin=stdin, capture_stdout=True, capture_stderr=True)
    return bytes(done.stdout)


@http2_test
async def test_curl(n: Net) -> None:
    curl = [program("curl"), "-sS", "--fail", "--max-time", "10", "--http2-prior-knowledge"]
    port = n.listen(echo)
    url = f"http://127.0.0.1:{port}/"
    assert await output(*curl, url) == BODY
    upload = [*curl, "--data-binary", "@-", "-w", "%{http_version} %{response_code}", url]
    assert await output(*upload, stdin=BODY) == BODY + b"2 200"


@http2_test
async def test_many_at_once_from_nghttp(n: Net) -> None:
    port = n.listen(small)
    urls = [f"http://127.0.0.1:{port}/{index}" for index in range(50)]
    assert await output(program("nghttp"), "-t", "10", "-m", "4", *urls) == b"ok" * 200


@http2_test
async def test_nghttp(n: Net, tmp_path: Path) -> None:
    nghttp = program("nghttp")
    port = n.listen(echo)
    path = tmp_path / "body"
    path.write_bytes(BODY)
    url = f"http://127.0.0.1:{port}/"
    assert await output(nghttp, "-t", "10", url) == BODY
    assert await output(nghttp, "-t", "10", "-d", str(path), "--trailer", "x-sum: 1", url) == BODY
    # padding and small windows
    assert await output(nghttp, "-t", "10", "-b", "99", "-w", "14", "-W", "15", "-d", str(path), url) == BODY


@http2_test
async def test_h2load(n: Net) -> None:
    h2load = program("h2load")
    port = n.listen(small)
    text = (await output(h2load, "-n", "2000", "-c", "4", "-m", "20", f"http://127.0.0.1:{port}/")).decode()
    assert "2000 succeeded, 0 failed, 0 errored" in text
    assert "status codes: 2000 2xx" in text


@http2_test
async def test_h2load_large_bodies(n: Net) -> None:
    h2load = program("h2load")
    port = n.listen(echo)
    text = (await output(h2load, "-n", "20", "-c", "2", "-m", "5", f"http://127.0.0.1:{port}/")).decode()
    assert "20 succeeded, 0 failed, 0 errored" in text


@http2_test
async def test_a_grpc_server(n: Net) -> None:
    """A unary call by hand: message out, message and trailers back; then a method that is not there."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            if details.method != "/test.Echo/Say":
                return None
            return grpc.unary_unary_rpc_method_handler(lambda request, context: request * 2)

    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        sock = socket.create_connection(("127.0.0.1", port))  # noqa: TID251
        sock.setblocking(False)
        client = n.client(sock)
        block = b"host: test\r\ncontent-type: application/grpc\r\nte: trailers\r\n"
        for target, expected, status in (
            (b"/test.Echo/Say", b"\0\0\0\0\x06abcabc", b"grpc-status: 0\r\n"),
            (b"/test.Echo/No", b"", b"grpc-status: 12\r\n"),
        ):
            stream = client.open(fields(b"POST", target, block), False)
            await stream.write(b"\0\0\0\0\x03abc", end=True)
            code, head, end = await stream.response()
            assert code == 200
            body = b""
            while data := await stream.read():
                body += data
            assert body == expected
            assert status in (head if end else stream.trailers)
            stream.close()
        await wait_until(lambda: not client.streams)
    finally:
        server.stop(0)


@http2_test
async def test_a_grpc_client_and_its_keep_alive(n: Net) -> None:
    async def serve(stream: ServerStream) -> None:
        stream.respond(200, b"content-type: application/grpc\r\n")
        while data := await stream.read():
            await stream.write(data)
        await stream.end(b"grpc-status: 0\r\n")

    port = n.listen(serve)

    def call() -> list[bytes]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            say = channel.stream_stream("/test.Echo/Talk")
            return list(say(iter([b"one", b"two", b"x" * 1_000_000]), timeout=10))

    assert await trio.to_thread.run_sync(call) == [b"one", b"two", b"x" * 1_000_000]
