"""What one peer may make an engine hold or do: every flood ends, and what is allowed goes on."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hpack import Encoder

from mesh_proxy.wire.http2.engines import NAMES
from mesh_proxy.wire.http2.seam import (
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    REFUSED_STREAM,
    REQUEST,
    Engine,
    Http2Limits,
)
from tests.support import http2_frames as h2
from tests.support.http2_engines import answers, drained, fed, greeted, request
from tests.support.http2_known import with_engines

engines = pytest.mark.parametrize("name", NAMES)

FEW = Http2Limits(resets_burst=20, resets_per_s=10, control_burst=50, control_per_s=100, queued_control=60)
MANY = Http2Limits(control_burst=100_000, queued_control=60)


@dataclass
class Outcome:
    """How a flood ended."""

    code: int | None
    frames: int
    requests: int
    came: list[h2.Frame]


def flood(engine: Engine, piece: Callable[[int], bytes], *, times: int = 500, per_s: float = 0.0) -> Outcome:
    """Send pieces until the connection ends, reading every answer at once."""
    outcome = Outcome(None, 0, 0, [])
    for turn in range(times):
        events, outcome.code = fed(engine, piece(turn), turn / per_s if per_s else 0.0)
        outcome.requests += sum(event[0] == REQUEST for event in events)
        outcome.came += answers(engine)
        if outcome.code is not None:
            break
        outcome.frames += 1
    return outcome


def stream_of(turn: int) -> int:
    return 2 * turn + 1


FLOODS: dict[str, Callable[[int], bytes]] = {
    "PING": lambda turn: h2.ping(turn.to_bytes(8)),
    "PING acknowledgements": lambda turn: h2.ping(turn.to_bytes(8), ack=True),
    "SETTINGS": lambda turn: h2.settings(),
    "SETTINGS with values": lambda turn: h2.settings((h2.INITIAL_WINDOW, turn)),
    "PRIORITY": lambda turn: h2.priority(1, 0),
    "PRIORITY of idle streams": lambda turn: h2.priority(stream_of(turn) + 2, 0),
    "WINDOW_UPDATE of the connection": lambda turn: h2.window_update(0, 1),
    "WINDOW_UPDATE of a stream": lambda turn: h2.window_update(1, 1),
    "empty DATA": lambda turn: h2.data(1),
    "DATA of padding": lambda turn: h2.padded(h2.DATA, 1, b"", 9, padding=bytes(9)),
    "unknown frames": lambda turn: h2.frame(0x42, 0, 1, b"x"),
    "GOAWAY": lambda turn: h2.goaway(0),
}


@pytest.mark.parametrize(("name", "what"), with_engines(FLOODS, "flood of "))
def test_flood_of_frames_that_bring_nothing(name: str, what: str) -> None:
    engine = greeted(name, limits=FEW)
    fed(engine, h2.post(1))
    outcome = flood(engine, FLOODS[what])
    assert outcome.code == ENHANCE_YOUR_CALM
    assert 40 <= outcome.frames <= 60
    assert (outcome.came[-1].kind, outcome.came[-1].code) == (h2.GOAWAY, ENHANCE_YOUR_CALM)


@engines
@pytest.mark.parametrize("what", FLOODS)
def test_slow_trickle_of_the_same_is_allowed(name: str, what: str) -> None:
    engine = greeted(name, limits=FEW)
    fed(engine, h2.post(1))
    assert flood(engine, FLOODS[what], per_s=90).code is None


@engines
def test_data_pays_for_window_updates(name: str) -> None:
    """As from a Go peer: one WINDOW_UPDATE of the stream and one of the connection for each 4 KiB."""
    engine = greeted(name, server=False, limits=Http2Limits(control_burst=200, control_per_s=1))
    stream = engine.request(request(b"POST"), False)
    engine.data(stream, bytes(4_000_000), True)
    while engine.queued(stream):
        size = sum(len(frame.payload) for frame in answers(engine) if frame.kind == h2.DATA)
        assert size
        for _ in range(size // 4096 + 1):
            assert fed(engine, h2.window_update(0, 4096) + h2.window_update(stream, 4096))[1] is None


@engines
def test_rapid_reset(name: str) -> None:
    engine = greeted(name, limits=FEW)
    outcome = flood(engine, lambda turn: h2.get(stream_of(turn)) + h2.rst_stream(stream_of(turn)))
    assert outcome.code == ENHANCE_YOUR_CALM
    assert 15 <= outcome.requests <= 25


@engines
def test_resets_at_a_moderate_rate_are_allowed(name: str) -> None:
    engine = greeted(name, limits=FEW)
    outcome = flood(
        engine, lambda turn: h2.get(stream_of(turn)) + h2.rst_stream(stream_of(turn)), times=100, per_s=9
    )
    assert (outcome.code, outcome.requests) == (None, 100)


@engines
@pytest.mark.parametrize(
    "piece",
    [
        lambda turn: h2.get(stream_of(turn), (b"connection", b"close")),
        lambda turn: h2.headers(stream_of(turn), h2.GET[1:], end=True),
        lambda turn: h2.post(stream_of(turn), (b"content-length", b"1")) + h2.data(stream_of(turn), b"12"),
        lambda turn: h2.post(stream_of(turn)) + h2.window_update(stream_of(turn), 2**31 - 1),
    ],
    ids=["malformed", "no method", "content-length", "window overflow"],
)
def test_making_us_reset_is_limited_too(name: str, piece: Callable[[int], bytes]) -> None:
    outcome = flood(greeted(name, limits=FEW), piece)
    assert outcome.code == ENHANCE_YOUR_CALM
    assert 15 <= outcome.frames <= 25


@engines
def test_answers_that_nobody_reads(name: str) -> None:
    engine = greeted(name, limits=MANY)
    code = None
    for turn in range(10_000):
        code = fed(engine, h2.ping(turn.to_bytes(8)))[1]
        if code is not None:
            break
    assert code == ENHANCE_YOUR_CALM
    assert len(drained(engine)) < 80 * 17


@engines
def test_responses_that_nobody_reads(name: str) -> None:
    """The peer cannot make us queue answers without end."""
    engine = greeted(name, limits=Http2Limits(streams=10, resets_burst=20, queued_control=60))
    noise = random.Random(1)
    for turn in range(2_000):
        events, code = fed(engine, h2.get(stream_of(turn)))
        for _, stream, _, _ in events:
            engine.respond(stream, 200, b"x-filler: " + noise.randbytes(1000).hex().encode() + b"\r\n", True)
        if code is not None:
            break
    assert len(drained(engine)) < 800_000


@engines
def test_continuation_count(name: str) -> None:
    limits = Http2Limits(continuations=4)
    pieces = [h2.continuation(1, h2.plain([(b"n", b"v")]), done=turn == 3) for turn in range(4)]
    events, code = fed(greeted(name, limits=limits), h2.headers(1, h2.GET, done=False) + b"".join(pieces))
    assert (code, len(events)) == (None, 1)
    empty = [h2.continuation(1, done=False)] * 5
    events, code = fed(greeted(name, limits=limits), h2.headers(1, h2.GET, done=False) + b"".join(empty))
    assert (code, events) == (ENHANCE_YOUR_CALM, [])


def refused_as_too_large(name: str, sends: bytes, limits: Http2Limits) -> None:
    """The stream or the connection ends with ENHANCE_YOUR_CALM, and no request is told of."""
    engine = greeted(name, limits=limits)
    events, code = fed(engine, sends)
    assert events == []
    came = answers(engine)
    if code is None:
        assert [(frame.kind, frame.stream, frame.code) for frame in came] == [
            (h2.RST_STREAM, 1, ENHANCE_YOUR_CALM)
        ]
        assert [event[0] for event in fed(engine, h2.get(3))[0]] == [REQUEST]
    else:
        assert code == ENHANCE_YOUR_CALM


@engines
def test_header_list_of_too_many_bytes(name: str) -> None:
    fields = [*h2.GET, *((b"name-%d" % n, b"v" * 100) for n in range(40))]
    refused_as_too_large(name, h2.headers(1, fields, end=True), Http2Limits(head_bytes=5000))


@engines
def test_header_list_of_too_many_fields(name: str) -> None:
    fields = [*h2.GET, *((b"n", b"v") for _ in range(40))]
    refused_as_too_large(name, h2.headers(1, fields, end=True), Http2Limits(header_count=40))


@engines
def test_header_list_of_endless_bytes(name: str) -> None:
    part = h2.plain([(b"n", b"v" * 16000)])
    sends = h2.headers(1, h2.GET, done=False) + h2.continuation(1, part, done=False) * 20
    refused_as_too_large(name, sends, Http2Limits(continuations=60))


@engines
def test_hpack_bomb(name: str) -> None:
    """One entry of 4000 bytes in the table, named 12000 times: 48 MB from 16 kB."""
    bomb = h2.plain(h2.GET) + b"\x40\x01n" + h2.integer(4000, 7) + b"v" * 4000 + b"\xbe" * 12000
    refused_as_too_large(name, h2.frame(h2.HEADERS, 5, 1, bomb), Http2Limits())


@engines
def test_hpack_state_survives_a_refused_head(name: str) -> None:
    """What a head that is too large put into the table is there for the next one."""
    encoder = Encoder()
    engine = greeted(name, limits=Http2Limits(header_count=20))
    large = [*h2.GET, (b"x-kept", b"value"), *((b"n", b"v%d" % n) for n in range(30))]
    _, code = fed(engine, h2.frame(h2.HEADERS, 5, 1, encoder.encode(large)))
    if code is not None:
        return  # the other right end: nothing follows
    events, _ = fed(engine, h2.frame(h2.HEADERS, 5, 3, encoder.encode([*h2.GET, (b"x-kept", b"value")])))
    assert events[0][2].block == b"host: a.test\r\nx-kept: value\r\n"  # type: ignore[attr-defined]


@engines
def test_concurrent_streams(name: str) -> None:
    """Until the peer has acknowledged the number, more are refused one by one (RFC 9113 5.1.2)."""
    engine = greeted(name, limits=Http2Limits(streams=3))
    events, code = fed(engine, b"".join(h2.get(stream) for stream in (1, 3, 5)))
    assert (code, [event[1] for event in events]) == (None, [1, 3, 5])
    engine.respond(3, 200, b"", True)
    drained(engine)
    events, code = fed(engine, h2.get(7))
    assert (code, [event[1] for event in events]) == (None, [7])
    events, code = fed(engine, h2.get(9))
    assert events == []
    if code is None:
        assert [(frame.stream, frame.code) for frame in answers(engine)] == [(9, REFUSED_STREAM)]


@engines
@pytest.mark.parametrize("streams", [1, 5], ids=["stream", "connection"])
def test_data_beyond_the_window(name: str, streams: int) -> None:
    """RFC 9113 6.9.1: a stream or a connection error of type FLOW_CONTROL_ERROR."""
    limits = Http2Limits(stream_window=40_000 if streams == 1 else 65_535, connection_window=65_535)
    engine = greeted(name, limits=limits)
    total, code = 0, None
    for turn in range(20):
        stream = stream_of(turn % streams)
        head = h2.post(stream) if turn < streams else b""
        events, code = fed(engine, head + h2.data(stream, bytes(10_000)))
        total += sum(len(value) for kind, _, value, _ in events if kind == 3)  # type: ignore[arg-type]
        resets = {frame.code for frame in answers(engine) if frame.kind == h2.RST_STREAM}
        if code is not None or resets:
            assert resets <= {FLOW_CONTROL_ERROR}
            assert code in (None, FLOW_CONTROL_ERROR)
            break
    else:
        pytest.fail("the window was not kept")
    assert total <= (40_000 if streams == 1 else 65_535) + 10_000  # the last frame may have been told
