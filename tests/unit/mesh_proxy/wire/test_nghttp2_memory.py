"""What the C side of the libnghttp2 engine holds, and that it lets go of it."""

import random
import resource

import pytest

from mesh_proxy.wire.http2 import nghttp2
from mesh_proxy.wire.http2.nghttp2 import Nghttp2Engine
from mesh_proxy.wire.http2.seam import DATA, REQUEST, Http2Error, Http2Limits, RequestFields

_GET = RequestFields(b"GET", b"http", b"/", b"", b"host: a\r\n")
_POST = RequestFields(b"POST", b"http", b"/", b"", b"host: a\r\n")
_LIMITS = Http2Limits()


def pair() -> tuple[Nghttp2Engine, Nghttp2Engine]:
    return Nghttp2Engine(False, _LIMITS), Nghttp2Engine(True, _LIMITS)


def exchange(client: Nghttp2Engine, server: Nghttp2Engine) -> None:
    """Carry bytes both ways until none are left; requests are answered."""
    while True:
        out = client.drain()
        for kind, stream, _, _ in server.feed(out, 0):
            if kind == REQUEST:
                server.respond(stream, 200, b"server: x\r\n", False)
                server.data(stream, b"y" * 3000, False)
                server.trailers(stream, b"x: y\r\n")
        back = server.drain()
        for kind, stream, value, _ in client.feed(back, 0):
            if kind == DATA:
                assert isinstance(value, bytes)
                client.consumed(0, len(value))
                client.consumed(stream, len(value))
        if not out and not back:
            return


def test_streams_that_are_over_are_freed() -> None:
    before = nghttp2.live()
    client, server = pair()
    for _ in range(50):
        assert client.request(_GET, True) > 0
    exchange(client, server)
    assert nghttp2.live() == before + 2, "expected the two connections only"


def test_what_waits_is_freed_with_its_stream() -> None:
    before = nghttp2.live()
    client, server = pair()
    exchange(client, server)
    stream = client.request(_POST, False)
    client.data(stream, b"x" * 1_000_000, False)
    client.drain()
    assert client.queued(stream) == 1_000_000 - _LIMITS.stream_window
    client.reset(stream, 8)
    assert client.queued(stream) == 0
    client.drain()
    assert nghttp2.live() == before + 2


def test_tiny_pieces_that_wait_are_joined() -> None:
    before = nghttp2.live()
    client, server = pair()
    exchange(client, server)
    stream = client.request(_POST, False)
    exchange(client, server)
    client.data(stream, b"x" * _LIMITS.stream_window, False)
    exchange(client, server)
    for _ in range(10_000):
        client.data(stream, b"yz", False)
    client.data(stream, b"", True)
    assert client.queued(stream) == 20_000 + 1  # the end counts too
    assert nghttp2.live() < before + 60, "expected pieces of some 500 bytes"
    server.consumed(0, _LIMITS.stream_window)
    server.consumed(stream, _LIMITS.stream_window)
    body = b""
    client.feed(server.drain(), 0)
    while out := client.drain():
        body += b"".join(value for kind, _, value, _ in server.feed(out, 0) if kind == DATA)  # type: ignore[misc]
    assert body == b"yz" * 10_000


def test_a_request_that_never_went_out_leaves_nothing() -> None:
    before = nghttp2.live()
    client, server = pair()
    stream = client.request(_POST, False)
    client.data(stream, b"x", True)
    client.reset(stream, 8)
    exchange(client, server)
    assert nghttp2.live() == before + 2


def test_a_reset_between_two_drains_drops_the_frame_that_was_ready() -> None:
    limits = Http2Limits(stream_window=1 << 20, connection_window=1 << 21)
    client, server = Nghttp2Engine(False, limits), Nghttp2Engine(True, limits)
    for _ in range(3):
        server.feed(client.drain(), 0)
        client.feed(server.drain(), 0)
    stream = client.request(_POST, False)
    client.data(stream, b"x" * 1_000_000, True)
    assert len(client.drain()) >= 256 * 1024
    client.reset(stream, 8)
    rest = b"".join(iter(client.drain, b""))
    assert len(rest) < 100
    assert rest.endswith(b"\x00\x00\x04\x03\x00" + stream.to_bytes(4, "big") + b"\x00\x00\x00\x08")


def test_closing_frees_once_and_later_calls_do_nothing() -> None:
    before = nghttp2.live()
    client, server = pair()
    stream = client.request(_POST, False)
    client.data(stream, b"x" * 100, False)
    for engine in (client, server):
        engine.close()
        engine.close()
    assert nghttp2.live() == before
    client.data(stream, b"x", True)
    client.trailers(stream, b"a: b\r\n")
    client.consumed(stream, 5)
    client.reset(stream, 0)
    client.ping(b"12345678")
    client.goaway(0)
    server.respond(1, 200, b"", True)
    assert client.request(_GET, True) == 0
    assert client.queued(stream) == 0
    assert (client.drain(), client.feed(b"x", 0), client.within_head) == (b"", [], False)


def test_an_engine_that_is_forgotten_is_freed() -> None:
    before = nghttp2.live()
    pair()
    assert nghttp2.live() == before


def test_connections_leave_no_memory() -> None:
    rng = random.Random(1)

    def connections(count: int) -> int:
        for _ in range(count):
            client, server = pair()
            client.request(
                RequestFields(b"GET", b"http", b"/", b"", b"host: a\r\nx: %b\r\n" % (b"y" * 5000)), True
            )
            stream = client.request(_POST, False)
            client.data(stream, rng.randbytes(100_000), rng.random() < 0.5)
            exchange(client, server)
            client.close()
            server.close()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    first = connections(200)
    assert connections(1000) - first < 4096, "KiB; one leaked buffer a connection would be 5,000 and more"


def test_a_connection_error_keeps_the_events_before_it_and_then_nothing() -> None:
    client, server = pair()
    client.request(_GET, True)
    good = client.drain()
    with pytest.raises(Http2Error, match=r"\S") as raised:
        server.feed(good + b"\x00\x00\x01\x06\x00\x00\x00\x00\x00x", 0)  # a PING of one byte
    assert raised.value.code == 6
    assert [kind for kind, *_ in raised.value.events][-1] == REQUEST
    assert server.feed(good, 0) == []
    assert b"\x07\x00\x00\x00\x00\x00" in server.drain(), "expected GOAWAY"
