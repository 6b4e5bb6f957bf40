"""An engine's answer does not depend on how bytes are cut, and no bytes make it raise anything unexpected."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_proxy.wire.http2.engines import NAMES
from mesh_proxy.wire.http2.seam import DATA, RESET, Engine, Event
from tests.support import http2_frames as h2
from tests.support import http2_messages as messages
from tests.support.http2_conformance import FRAMES, KINDS, PREFACES, STATES, Case
from tests.support.http2_engines import drained, fed, make, plain, request

CASES = [*PREFACES, *FRAMES, *STATES, *KINDS, *messages.SERVER, *messages.IN_MEMORY]
engines = pytest.mark.parametrize("name", NAMES)

_GOOD = [
    h2.get(1, (b"cookie", b"a=1"), (b"cookie", b"b=2")),
    h2.post(3, (b"content-length", b"8")),
    h2.data(3, b"12345") + h2.padded(h2.DATA, 3, b"678", 4, flags=1, padding=bytes(4)),
    h2.ping(b"12345678"),
    h2.post(5) + h2.data(5, b"x" * 500) + h2.headers(5, [(b"x-sum", b"1")], end=True),
    h2.headers(7, h2.GET, end=True, done=False) + h2.continuation(7, h2.plain([(b"a", b"b")])),
    h2.settings((h2.INITIAL_WINDOW, 70_000)) + h2.window_update(0, 9),
    h2.post(9) + h2.rst_stream(9, 8),
    h2.goaway(0),
]
TALK = h2.PREFACE + h2.settings() + b"".join(_GOOD)
ANSWERS = b"".join(
    [
        h2.settings((h2.MAX_CONCURRENT, 9)) + h2.settings_ack(),
        h2.headers(1, [(b":status", b"103"), (b"link", b"x")]) + h2.headers(1, [*h2.OK, (b"a", b"b")]),
        h2.data(1, b"x" * 300) + h2.headers(1, [(b"x-sum", b"1")], end=True),
        h2.window_update(3, 100) + h2.headers(3, [*h2.OK, (b"content-length", b"9")], end=True),
        h2.rst_stream(5, 7) + h2.goaway(5, 0, b"bye"),
    ]
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    marks = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(marks)]


def client(name: str) -> Engine:
    engine = make(name, server=False)
    for method in (b"GET", b"HEAD", b"POST"):
        engine.request(request(method), method != b"POST")
    drained(engine)
    return engine


def outcome(engine: Engine, parts: list[bytes]) -> tuple[list[object], int | None, list[object]]:
    """Events, connection error, and what was refused."""
    events: list[Event] = []
    code = None
    for part in parts:
        some, code = fed(engine, part)
        events += some
        if code is not None:
            break
    out = h2.read_frames(drained(engine))
    refused = [
        (frame.kind, frame.stream, frame.code) for frame in out if frame.kind in (h2.RST_STREAM, h2.GOAWAY)
    ]
    return settled(plain(events), code), code, sorted(refused)  # type: ignore[type-var]


def settled(events: list[tuple[int, int, object, bool]], code: int | None) -> list[object]:
    """Without DATA that a later error makes worthless: how much of it was told depends on the cuts."""
    broken = {stream for kind, stream, _, _ in events if kind == RESET}
    return [
        event for event in events if event[0] != DATA or event[3] or (code is None and event[1] not in broken)
    ]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@engines
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name) for case in CASES if len(case.sends) < 2000 or case.raw]
)
def test_conformance_cases_byte_by_byte(name: str, case: Case) -> None:
    sends = case.sends if case.raw else h2.PREFACE + h2.settings() + case.sends
    whole = outcome(make(name, server=True), [sends])
    assert outcome(make(name, server=True), bytewise(sends)) == whole


@engines
@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_random_cuts(name: str, cuts: list[int]) -> None:
    whole = outcome(make(name, server=True), [TALK])
    assert whole[1] is None
    assert outcome(make(name, server=True), pieces(TALK, cuts)) == whole
    whole = outcome(client(name), [ANSWERS])
    assert whole[1] is None
    assert outcome(client(name), pieces(ANSWERS, cuts)) == whole


def test_engines_say_the_same() -> None:
    for data, end in ((TALK, lambda name: make(name, server=True)), (ANSWERS, client)):
        first, second = (outcome(end(name), [data])[0] for name in NAMES)
        assert first == second
        first, second = (outcome(end(name), bytewise(data))[0] for name in NAMES)
        assert first == second


def survives(engine: Engine, data: bytes, cuts: list[int]) -> None:
    """Feed it all, using what is told; only Http2Error may be raised, and a dead engine stays quiet."""
    for part in pieces(data, cuts):
        events, code = fed(engine, part)
        for kind, stream, value, _ in events:
            if kind == 1:
                engine.respond(stream, 200, b"x: y\r\n", False)
                engine.data(stream, b"answer", True)
            elif kind == DATA and value:
                engine.consumed(0, len(value))  # type: ignore[arg-type]
                engine.consumed(stream, len(value))  # type: ignore[arg-type]
        out = drained(engine)
        if code is not None:
            assert h2.read_frames(out)[-1].kind == h2.GOAWAY
            assert engine.feed(b"more", 1.0) == []
            assert engine.request(request(), True) == 0
            break
    engine.close()


@engines
@settings(max_examples=200, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    moved=st.tuples(st.integers(0, 10_000), st.integers(0, 40)),
    cuts=st.lists(st.integers(0, 10_000), max_size=5),
)
def test_mutated_frames(
    name: str, changes: list[tuple[int, int]], moved: tuple[int, int], cuts: list[int]
) -> None:
    for base, engine in ((TALK, make(name, server=True)), (ANSWERS, client(name))):
        data = bytearray(base)
        for at, byte in changes:
            data[at % len(data)] = byte
        begin, size = moved
        del data[begin % len(data) : begin % len(data) + size]
        survives(engine, bytes(data), cuts)


_FRAME = st.builds(
    h2.frame,
    st.one_of(st.integers(0, 9), st.integers(0, 255)),
    st.integers(0, 255),
    st.sampled_from([0, 1, 1, 2, 3, 5, 7, 2**31 - 1]),
    st.one_of(st.binary(max_size=20), st.just(h2.plain(h2.GET)), st.just(h2.plain(h2.OK))),
)


@engines
@settings(max_examples=200, deadline=None)
@given(frames=st.lists(_FRAME, max_size=12), cuts=st.lists(st.integers(0, 500), max_size=3))
def test_random_frames(name: str, frames: list[bytes], cuts: list[int]) -> None:
    data = h2.settings() + b"".join(frames)
    survives(make(name, server=True), h2.PREFACE + data, cuts)
    survives(client(name), data, cuts)


@engines
@settings(deadline=None)
@given(data=st.binary(max_size=200), greeted=st.booleans())
def test_random_bytes(name: str, data: bytes, greeted: bool) -> None:
    survives(make(name, server=True), (h2.PREFACE + h2.settings() if greeted else b"") + data, [7, 50])
    survives(client(name), (h2.settings() if greeted else b"") + data, [7, 50])
