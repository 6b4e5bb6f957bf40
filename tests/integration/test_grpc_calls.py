"""What gRPC's interoperability suite asks of an implementation, with the mesh between grpcio's two ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import pytest

from tests.support.grpc_mesh import CALL_S, PATHS, Scene, fails, over

EVERYWHERE = pytest.mark.parametrize("path", PATHS)
CODE = grpc.StatusCode


@EVERYWHERE
def test_empty_and_small_unary(path: str) -> None:
    def body(scene: Scene) -> None:
        assert scene.call("echo") == b""
        assert [scene.call("echo", b"%d" % number) for number in range(20)] == [b"%d" % n for n in range(20)]

    over(path, body)


@EVERYWHERE
@pytest.mark.parametrize(("there", "back"), [(271_828, 314_159), (5_000_000, 6_000_000)])
def test_large_unary(path: str, there: int, back: int) -> None:
    def body(scene: Scene) -> None:
        request = b"%d:" % back
        assert len(scene.call("sized", request + b"q" * (there - len(request)))) == back

    over(path, body)


@EVERYWHERE
def test_client_streaming(path: str) -> None:
    sizes = (27_182, 8, 1828, 45_904, 0, 300_000)

    def body(scene: Scene) -> None:
        total = scene.method("stream_unary", "collect")((b"c" * size for size in sizes), timeout=CALL_S)
        assert int(total) == sum(sizes)

    over(path, body)


@EVERYWHERE
def test_server_streaming(path: str) -> None:
    sizes = (31_415, 9, 2653, 58_979, 0, 300_000)

    def body(scene: Scene) -> None:
        request = b",".join(b"%d" % size for size in sizes)
        parts = scene.method("unary_stream", "spread")(request, timeout=CALL_S)
        assert tuple(len(part) for part in parts) == sizes

    over(path, body)


@EVERYWHERE
def test_ping_pong(path: str) -> None:
    """Each request is sent only when the response to the one before has come."""
    sizes = ((27_182, 31_415), (8, 9), (1828, 2653), (45_904, 58_979))

    def body(scene: Scene) -> None:
        came = threading.Semaphore(1)

        def requests() -> Iterator[bytes]:
            for there, back in sizes:
                assert came.acquire(timeout=CALL_S)
                request = b"%d:" % back
                yield request + b"q" * (there - len(request))

        got = []
        for response in scene.method("stream_stream", "ping_pong")(requests(), timeout=CALL_S):
            got.append(len(response))
            came.release()
        assert got == [back for _, back in sizes]

    over(path, body)


@EVERYWHERE
def test_a_stream_without_messages(path: str) -> None:
    def body(scene: Scene) -> None:
        assert list(scene.method("stream_stream", "ping_pong")(iter(()), timeout=CALL_S)) == []

    over(path, body)


@EVERYWHERE
def test_many_calls_at_once_on_one_connection(path: str) -> None:
    def body(scene: Scene) -> None:
        method = scene.method("unary_unary", "sized")
        calls = [method.future(b"%d:" % (number * 1000), timeout=CALL_S) for number in range(150)]
        assert [len(call.result()) for call in calls] == [number * 1000 for number in range(150)]

    over(path, body)


@EVERYWHERE
def test_cancel_after_begin(path: str) -> None:
    def body(scene: Scene) -> None:
        more = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"0:"
            more.wait(CALL_S)

        call = scene.method("stream_unary", "collect").future(requests(), timeout=CALL_S)
        scene.wait_until(lambda: scene.server.count("collect"))
        call.cancel()
        more.set()
        assert call.code() is CODE.CANCELLED
        assert scene.call("echo", b"still here") == b"still here"

    over(path, body)


@EVERYWHERE
def test_cancel_reaches_the_server(path: str) -> None:
    def body(scene: Scene) -> None:
        call = scene.method("unary_unary", "sleep").future(b"", timeout=CALL_S)
        scene.wait_until(lambda: scene.server.count("sleep"))
        call.cancel()
        assert scene.server.cancelled.wait(CALL_S)

    over(path, body)


@EVERYWHERE
def test_cancel_after_the_first_response(path: str) -> None:
    def body(scene: Scene) -> None:
        call = scene.method("unary_stream", "half")(b"", timeout=CALL_S)
        assert next(call) == b"first"
        call.cancel()
        fails(CODE.CANCELLED, lambda: next(call))
        assert scene.server.cancelled.wait(CALL_S)

    over(path, body)


@EVERYWHERE
def test_timeout_on_a_server_that_sleeps(path: str) -> None:
    def body(scene: Scene) -> None:
        fails(CODE.DEADLINE_EXCEEDED, lambda: scene.call("sleep", timeout=0.3))
        assert scene.server.cancelled.wait(CALL_S)

    over(path, body)


@EVERYWHERE
def test_custom_metadata(path: str) -> None:
    def body(scene: Scene) -> None:
        binary = bytes(range(256))
        metadata = (
            ("x-initial", "test_initial_metadata_value"),
            ("x-trailing-bin", binary),
            ("x-many", "one"),
            ("x-many", "two, three"),
        )
        response, call = scene.method("unary_unary", "echo").with_call(
            b"m", metadata=metadata, timeout=CALL_S
        )
        assert response == b"m"
        assert dict(call.initial_metadata())["x-initial"] == "test_initial_metadata_value"
        assert dict(call.trailing_metadata())["x-trailing-bin"] == binary
        assert scene.server.seen("echo")["x-trailing-bin"] == binary

    over(path, body)


@EVERYWHERE
@pytest.mark.parametrize(
    "message",
    [
        "test status message",
        "\t\ntest with whitespace\r\nand Unicode BMP \u263a and non-BMP \U0001f608\t\n",
        "100 %",
    ],
)
def test_status_code_and_message(path: str, message: str) -> None:
    def body(scene: Scene) -> None:
        error = fails(CODE.UNKNOWN, lambda: scene.call("fail", f"UNKNOWN {message}".encode()))
        assert error.details() == message
        assert dict(error.trailing_metadata())["x-why"] == "asked for"

    over(path, body)


@EVERYWHERE
def test_every_status(path: str) -> None:
    def body(scene: Scene) -> None:
        for code in CODE:
            if code is not CODE.OK:
                error = fails(code, lambda code=code: scene.call("fail", f"{code.name} x".encode()))  # type: ignore[misc]
                assert error.details() == "x"

    over(path, body)


@EVERYWHERE
def test_unimplemented_method_and_service(path: str) -> None:
    def body(scene: Scene) -> None:
        fails(CODE.UNIMPLEMENTED, lambda: scene.call("nothing"))
        other = scene.channel.unary_unary("/no.such.Service/echo")
        fails(CODE.UNIMPLEMENTED, lambda: other(b"", timeout=CALL_S))

    over(path, body)


@EVERYWHERE
def test_deadline_is_told_to_the_server(path: str) -> None:
    def body(scene: Scene) -> None:
        assert 4 < float(scene.call("remaining", timeout=5)) <= 5.1
        assert scene.method("unary_unary", "remaining")(b"", timeout=None) == b"none"

    over(path, body)


@EVERYWHERE
@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compression_passes(path: str, compression: grpc.Compression) -> None:
    def body(scene: Scene) -> None:
        text = b"the same again and again. " * 5000
        assert scene.call("echo", text, compression=compression) == text

    over(path, body)


@EVERYWHERE
def test_wait_for_ready_and_concurrent_channels(path: str) -> None:
    def body(scene: Scene) -> None:
        for _ in range(4):
            with scene.connect() as channel:
                method = channel.unary_unary("/mesh.test.Tests/echo")
                assert method(b"w", wait_for_ready=True, timeout=CALL_S) == b"w"

    over(path, body)
