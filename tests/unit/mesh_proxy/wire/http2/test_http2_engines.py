"""What each engine does for its caller: messages, flow control, ends; by itself and joined to any other."""

import itertools

import pytest

from mesh_proxy.wire.http2.engines import NAMES
from mesh_proxy.wire.http2.seam import (
    CANCEL,
    DATA,
    GOAWAY,
    NO_ERROR,
    PING_ACK,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    REQUEST,
    RESET,
    RESPONSE,
    SETTINGS,
    TRAILERS,
    Http2Limits,
    RequestFields,
)
from tests.support import http2_frames as h2
from tests.support.http2_engines import Pair, answers, drained, fed, greeted, make, plain, request

engines = pytest.mark.parametrize("name", NAMES)
pairs = pytest.mark.parametrize(("client", "server"), list(itertools.product(NAMES, NAMES)))

HEAD = (b"GET", b"http", b"/", b"", b"host: a.test\r\n")


@pairs
def test_request_and_response(client: str, server: str) -> None:
    pair = Pair(client, server)
    assert pair.take("server") == pair.take("client") == [(SETTINGS, 0, None, False)]
    stream = pair.client.request(request(b"POST", b"/a?b"), False)
    pair.client.data(stream, b"one", False)
    pair.client.data(stream, b"two", False)
    pair.client.trailers(stream, b"x-sum: 6\r\n")
    pair.settle()
    assert pair.take("server") == [
        (REQUEST, stream, (b"POST", b"http", b"/a?b", b"", b"host: a.test\r\n"), False),
        (DATA, stream, b"onetwo", False),
        (TRAILERS, stream, b"x-sum: 6\r\n", True),
    ]
    pair.server.respond(stream, 103, b"link: </a>\r\n", False)
    pair.server.respond(stream, 200, b"content-length: 4\r\n", False)
    pair.server.data(stream, b"body", True)
    pair.settle()
    assert pair.take("client") == [
        (RESPONSE, stream, (103, b"link: </a>\r\n"), False),
        (RESPONSE, stream, (200, b"content-length: 4\r\n"), False),
        (DATA, stream, b"body", True),
    ]


@pairs
def test_what_is_sent_has_no_fields_of_one_connection(client: str, server: str) -> None:
    """RFC 9113 8.2.2; names become lower-case, the host becomes :authority and comes first again."""
    pair = Pair(client, server)
    block = (
        b"X-First: 1\r\nConnection: close\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMA\r\nTransfer-Encoding: chunked\r\nTE: gzip\r\nHost: A.test:80\r\nX-Empty:\r\n"
        b"Authorization:  Basic eA== \r\nTE: trailers\r\n"
    )
    stream = pair.client.request(request(block=block), True)
    pair.settle()
    (_, _, (*_, got), _) = pair.take("server")[-1]  # type: ignore[misc]
    assert got == (
        b"host: A.test:80\r\nx-first: 1\r\nx-empty: \r\nauthorization: Basic eA==\r\nte: trailers\r\n"
    )
    pair.server.respond(stream, 200, b"Connection: close\r\nX-Out: 1\r\nTransfer-Encoding: chunked\r\n", True)
    pair.settle()
    assert pair.take("client")[-1] == (RESPONSE, stream, (200, b"x-out: 1\r\n"), True)


@engines
def test_cookie_crumbs_are_joined(name: str) -> None:
    """RFC 9113 8.2.3: one line for HTTP/1.1."""
    events, _ = fed(
        greeted(name), h2.get(1, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"), (b"cookie", b"c"))
    )
    assert plain(events)[0][2][4] == b"host: a.test\r\nx: y\r\ncookie: a=1; b=2; c\r\n"  # type: ignore[index]


@engines
def test_host_without_authority(name: str) -> None:
    fields = [*h2.GET[:3], (b"x", b"y"), (b"host", b"b.test")]
    events, _ = fed(greeted(name), h2.headers(1, fields, end=True))
    assert plain(events)[0][2][4] == b"host: b.test\r\nx: y\r\n"  # type: ignore[index]


@pairs
def test_connect(client: str, server: str) -> None:
    """RFC 9113 8.5 and RFC 8441."""
    pair = Pair(client, server)
    assert pair.client.peer_connect_protocol
    fields = RequestFields(b"CONNECT", b"", b"b.test:443", b"", b"host: b.test:443\r\nx: y\r\n")
    first = pair.client.request(fields, False)
    fields = RequestFields(b"CONNECT", b"https", b"/chat", b"websocket", b"host: b.test\r\n")
    second = pair.client.request(fields, False)
    pair.settle()
    assert pair.take("server")[1:] == [
        (REQUEST, first, (b"CONNECT", b"", b"b.test:443", b"", b"host: b.test:443\r\nx: y\r\n"), False),
        (REQUEST, second, (b"CONNECT", b"https", b"/chat", b"websocket", b"host: b.test\r\n"), False),
    ]
    pair.server.respond(second, 200, b"", False)
    pair.server.data(second, b"hello", False)
    pair.client.data(second, b"bye", True)
    pair.settle()
    assert pair.take("client")[1:] == [(RESPONSE, second, (200, b""), False), (DATA, second, b"hello", False)]
    assert pair.take("server") == [(DATA, second, b"bye", True)]


@engines
def test_empty_trailers_are_an_end(name: str) -> None:
    engine = greeted(name)
    events, _ = fed(engine, h2.post(1) + h2.data(1, b"x") + h2.headers(1, [], end=True))
    assert plain(events)[1:] == [(DATA, 1, b"x", True)]


@engines
def test_trailers_of_which_nothing_is_left_are_an_end(name: str) -> None:
    """What is only for one connection is not sent (RFC 9113 8.2.2)."""
    engine = greeted(name, server=False)
    stream = engine.request(request(b"POST"), False)
    engine.trailers(stream, b"keep-alive: 5\r\nte: gzip\r\n")
    last = answers(engine)[-1]
    assert (last.kind, last.flags, last.payload) == (h2.DATA, h2.END_STREAM, b"")


@pairs
def test_resets(client: str, server: str) -> None:
    """Each end learns of the other's; nothing comes for a stream that the caller has reset itself."""
    pair = Pair(client, server)
    first, second = (pair.client.request(request(b"POST"), False) for _ in range(2))
    pair.client.data(first, bytes(500_000), True)
    pair.settle()
    pair.take("server")
    pair.client.data(second, bytes(300_000), False)
    pair.client.reset(second, CANCEL)
    assert pair.client.queued(second) == 0
    pair.server.respond(second, 200, b"", False)
    pair.server.reset(first, PROTOCOL_ERROR)
    pair.settle()
    assert [event for event in pair.take("client") if event[0] != SETTINGS] == [
        (RESET, first, (PROTOCOL_ERROR, True), True)
    ]
    assert (RESET, second, (CANCEL, True), True) in pair.take("server")


@engines
def test_calls_for_streams_that_are_over_do_nothing(name: str) -> None:
    engine = greeted(name)
    fed(engine, h2.get(1) + h2.rst_stream(1))
    for stream in (1, 3, 2):
        engine.respond(stream, 200, b"", False)
        engine.data(stream, b"x", True)
        engine.trailers(stream, b"x: y\r\n")
        engine.reset(stream, CANCEL)
        engine.consumed(stream, 5)
        assert engine.queued(stream) == 0
    assert drained(engine) == b""


@engines
def test_nothing_follows_an_end(name: str) -> None:
    """A second head, and content or trailers behind the end, are not sent."""
    engine = greeted(name)
    fed(engine, h2.post(1))
    engine.respond(1, 200, b"", False)
    engine.respond(1, 500, b"", False)
    engine.respond(1, 103, b"", False)
    engine.data(1, b"x", True)
    engine.data(1, b"y", False)
    engine.trailers(1, b"x: y\r\n")
    assert [(frame.kind, frame.flags & h2.END_STREAM) for frame in answers(engine)] == [
        (h2.HEADERS, 0),
        (h2.DATA, h2.END_STREAM),
    ]
    engine.data(1, b"z", True)
    assert drained(engine) == b""


@pairs
def test_streams_take_turns(client: str, server: str) -> None:
    pair = Pair(client, server, Http2Limits(stream_window=2**20, connection_window=2**20))
    streams = [pair.client.request(request(b"POST"), False) for _ in range(4)]
    pair.settle()
    for stream in streams:
        pair.client.data(stream, bytes(200_000), True)
    order = [frame.stream for frame in h2.read_frames(pair.client.drain()) if frame.kind == h2.DATA]
    assert len(order) >= 12
    for at in range(0, 12, 4):
        assert sorted(order[at : at + 4]) == streams


@engines
def test_drain_gives_pieces(name: str) -> None:
    engine = greeted(name, server=False)
    fed(engine, h2.window_update(0, 2**30) + h2.settings((h2.INITIAL_WINDOW, 2**30), (h2.MAX_FRAME, 2**20)))
    stream = engine.request(request(b"POST"), False)
    engine.data(stream, bytes(2_000_000), True)
    pieces = list(iter(engine.drain, b""))
    assert max(map(len, pieces)) <= 300_000
    assert (
        sum(len(frame.payload) for frame in h2.read_frames(b"".join(pieces)) if not frame.kind) == 2_000_000
    )
    assert engine.queued(stream) == 0


@engines
def test_sender_keeps_the_windows(name: str) -> None:
    """RFC 9113 6.9.1 and 6.9.2: windows of the connection and of the stream, also one made smaller than 0."""
    engine = greeted(name, server=False)
    stream = engine.request(request(b"POST"), False)
    engine.data(stream, bytes(200_000), True)

    def sent() -> int:
        return sum(len(frame.payload) for frame in answers(engine) if frame.kind == h2.DATA)

    assert sent() == 65_535
    assert engine.queued(stream) == 200_000 - 65_535 + 1  # the end counts too
    fed(engine, h2.settings((h2.INITIAL_WINDOW, 1000)) + h2.window_update(0, 100_000))
    assert sent() == 0
    fed(engine, h2.window_update(stream, 65_535))
    assert sent() == 1000
    fed(engine, h2.settings((h2.INITIAL_WINDOW, 1500)))
    assert sent() == 500


def updates(frames: list[h2.Frame]) -> dict[int, int]:
    """Credit given, by stream."""
    given: dict[int, int] = {}
    for frame in frames:
        if frame.kind == h2.WINDOW_UPDATE:
            given[frame.stream] = given.get(frame.stream, 0) + int.from_bytes(frame.payload)
    return given


@engines
def test_credit_is_given_for_what_was_consumed(name: str) -> None:
    """`consumed` of a stream and of the connection are apart; nothing is given of itself."""
    engine = greeted(name, limits=Http2Limits(stream_window=60_000, connection_window=90_000))
    fed(engine, h2.post(1) + h2.data(1, bytes(16_000)) * 3)
    assert updates(answers(engine)) == {}
    engine.consumed(1, 48_000)
    assert updates(answers(engine)) == {1: 48_000}
    engine.consumed(0, 48_000)
    assert updates(answers(engine)) == {0: 48_000}


@engines
def test_credit_for_what_nobody_was_told_of(name: str) -> None:
    """Padding, and DATA of streams that we have reset: else the connection's window would leak away."""
    engine = greeted(name, limits=Http2Limits(connection_window=65_535))
    fed(engine, h2.post(1))
    total = 0
    for _ in range(100):
        fed(engine, h2.padded(h2.DATA, 1, b"x", 255, padding=bytes(255)))
        engine.consumed(0, 1)
        engine.consumed(1, 1)
        total += updates(answers(engine)).get(0, 0)
    engine.reset(1, CANCEL)
    for _ in range(20):
        events, code = fed(engine, h2.data(1, bytes(16_000)))
        assert (events, code) == ([], None)
        total += updates(answers(engine)).get(0, 0)
    assert total > 100 * 257 + 20 * 16_000 - 65_535


@engines
def test_goaway_from_the_server(name: str) -> None:
    """RFC 9113 6.8: streams up to the last go on, later ones were not processed, no new one is opened."""
    engine = greeted(name, server=False)
    streams = [engine.request(request(b"POST"), False) for _ in range(3)]
    drained(engine)
    events, code = fed(engine, h2.goaway(streams[1], 0, b"bye"))
    assert code is None
    events += fed(engine, h2.headers(streams[0], h2.OK, end=True))[0]
    assert (GOAWAY, 0, (streams[1], NO_ERROR, b"bye"), False) in events
    assert (RESET, streams[2], (REFUSED_STREAM, True), True) in events
    assert (RESPONSE, streams[0], (200, b""), True) in events
    assert engine.request(request(), True) == 0
    engine.data(streams[1], b"goes on", True)
    assert (streams[1], b"goes on") in [(frame.stream, frame.payload) for frame in answers(engine)]


@pairs
def test_graceful_goaway(client: str, server: str) -> None:
    pair = Pair(client, server)
    first = pair.client.request(request(), True)
    pair.server.goaway(NO_ERROR, notice=True)
    late = pair.client.request(request(), True)
    pair.settle()
    assert (GOAWAY, 0, (2**31 - 1, NO_ERROR, b""), False) in pair.take("client")
    assert [event[1] for event in pair.take("server") if event[0] == REQUEST] == [first, late]
    assert pair.client.request(request(), True) == 0
    pair.server.goaway(NO_ERROR)
    pair.settle()
    assert (GOAWAY, 0, (late, NO_ERROR, b""), False) in pair.take("client")
    pair.server.respond(first, 200, b"", True)
    pair.server.respond(late, 204, b"", True)
    pair.settle()
    assert [event[1:] for event in pair.take("client")] == [
        (first, (200, b""), True),
        (late, (204, b""), True),
    ]


@engines
def test_no_request_is_taken_after_our_goaway(name: str) -> None:
    engine = greeted(name)
    fed(engine, h2.get(1))
    engine.goaway(NO_ERROR)
    assert [(frame.kind, frame.payload[:4]) for frame in answers(engine)] == [(h2.GOAWAY, b"\0\0\0\1")]
    events, code = fed(engine, h2.get(3) + h2.ping(b"12345678"))
    assert (events, code) == ([], None)


@engines
def test_ping(name: str) -> None:
    engine = greeted(name)
    engine.ping(b"abcdefgh")
    assert [(frame.kind, frame.flags, frame.payload) for frame in answers(engine)] == [
        (h2.PING, 0, b"abcdefgh")
    ]
    events, _ = fed(engine, h2.ping(b"abcdefgh", ack=True) + h2.ping(b"ABCDEFGH"))
    assert events == [(PING_ACK, 0, b"abcdefgh", False)]
    assert [(frame.flags, frame.payload) for frame in answers(engine)] == [(h2.ACK, b"ABCDEFGH")]


@engines
def test_peer_settings(name: str) -> None:
    engine = make(name, server=False)
    assert (engine.peer_max_streams, engine.peer_connect_protocol) == (100, False)
    events, _ = fed(engine, h2.settings((h2.MAX_CONCURRENT, 2), (h2.ENABLE_CONNECT, 1)))
    assert events == [(SETTINGS, 0, None, False)]
    assert (engine.peer_max_streams, engine.peer_connect_protocol) == (2, True)
    assert [engine.request(request(), True) for _ in range(3)] == [1, 3, 0]
    fed(engine, h2.settings((h2.MAX_CONCURRENT, 2**32 - 1)))
    assert engine.peer_max_streams == 2**31 - 1
    assert engine.request(request(), True) == 5


@engines
def test_our_settings(name: str) -> None:
    limits = Http2Limits(streams=7, stream_window=100_000, connection_window=300_000, head_bytes=9000)
    settings, update, *_ = answers(make(name, server=True, limits=limits))
    pairs = {
        int.from_bytes(settings.payload[at : at + 2]): int.from_bytes(settings.payload[at + 2 : at + 6])
        for at in range(0, len(settings.payload), 6)
    }
    assert pairs[h2.MAX_CONCURRENT] == 7
    assert pairs[h2.INITIAL_WINDOW] == 100_000
    assert pairs[h2.MAX_HEADER_LIST] == 9000
    assert pairs[h2.ENABLE_CONNECT] == 1
    assert (update.kind, update.stream, int.from_bytes(update.payload)) == (8, 0, 300_000 - 65_535)
    client = answers(make(name, server=False, limits=limits))[0]
    assert h2.ENABLE_PUSH.to_bytes(2) + bytes(4) in client.payload


@engines
def test_within_head(name: str) -> None:
    """A head that has begun is known even before its frame is complete."""
    engine = greeted(name)
    whole = h2.headers(1, h2.GET, end=True, done=False) + h2.continuation(1, h2.plain([(b"n", b"v")]))
    cut = len(whole) - 10
    for at in range(len(whole)):
        fed(engine, whole[at : at + 1])
        if 9 <= at < cut:
            assert engine.within_head
    assert not engine.within_head


@engines
def test_an_error_keeps_the_events_before_it(name: str) -> None:
    events, code = fed(greeted(name), h2.get(1) + h2.ping(b"12345678") + h2.data(0, b"x") + h2.get(3))
    assert code == PROTOCOL_ERROR
    assert [event[:2] for event in events] == [(REQUEST, 1)]


@engines
def test_close_after_anything(name: str) -> None:
    engine = greeted(name)
    fed(engine, h2.post(1) + h2.data(1, b"x"))
    engine.respond(1, 200, b"", False)
    engine.data(1, bytes(100_000), False)
    engine.close()
