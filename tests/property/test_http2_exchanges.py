"""Generated exchanges between two engines: what is sent arrives, windows are kept, engines agree."""

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_proxy.wire.http2.engines import NAMES
from mesh_proxy.wire.http2.seam import (
    CANCEL,
    DATA,
    NO_ERROR,
    REQUEST,
    RESET,
    RESPONSE,
    TRAILERS,
    Event,
    Http2Limits,
)
from tests.support import http2_frames as h2
from tests.support.http2_engines import Pair, consume, request

pairs = pytest.mark.parametrize(("client", "server"), list(itertools.product(NAMES, NAMES)))
LIMITS = Http2Limits(stream_window=700, connection_window=65_535)
OTHER = {"client": "server", "server": "client"}


class Windows:
    """What one end may still send, as the frames of both ends have it (RFC 9113 6.9)."""

    def __init__(self) -> None:
        self.initial = 65_535
        self.left = {0: 65_535}

    def granted(self, frame: h2.Frame) -> None:
        if frame.kind == h2.WINDOW_UPDATE:
            stream = frame.stream
            self.left[stream] = self.left.get(stream, self.initial) + int.from_bytes(frame.payload)
        elif frame.kind == h2.SETTINGS:
            for at in range(0, len(frame.payload), 6):
                if int.from_bytes(frame.payload[at : at + 2]) == h2.INITIAL_WINDOW:
                    value = int.from_bytes(frame.payload[at + 2 : at + 6])
                    for stream in self.left:
                        self.left[stream] += value - self.initial if stream else 0
                    self.initial = value

    def used(self, frame: h2.Frame) -> None:
        if frame.kind == h2.DATA:
            for stream in (0, frame.stream):
                self.left[stream] = self.left.get(stream, self.initial) - len(frame.payload)
                assert self.left[stream] >= 0, f"stream {frame.stream}: the window is exceeded"


class Watched(Pair):
    """Engines whose frames are watched, and whose events may be consumed late."""

    def __init__(self, client: str, server: str) -> None:
        self.windows = {"client": Windows(), "server": Windows()}
        self.reading = True
        self.kept: list[tuple[str, list[Event]]] = []
        super().__init__(client, server, LIMITS)

    def passing(self, source: str, data: bytes) -> None:
        frames = h2.read_frames(data)
        start = len(h2.PREFACE) if data.startswith(h2.PREFACE) else 0
        assert start + sum(9 + len(frame.payload) for frame in frames) == len(data)
        for frame in frames:
            self.windows[source].used(frame)
            self.windows[OTHER[source]].granted(frame)

    def came(self, name: str, events: list[Event]) -> None:
        self.kept.append((name, events))
        if self.reading:
            self.read()

    def read(self) -> None:
        for name, events in self.kept:
            consume(self.ends[name], events)
        self.kept.clear()


@dataclass
class Model:
    """A stream, as both callers have used it."""

    sent: dict[str, list[tuple[int, object]]] = field(default_factory=lambda: {"client": [], "server": []})
    ended: set[str] = field(default_factory=set)
    answered: bool = False
    reset: bool = False

    def expects(self, sink: str) -> list[tuple[int, object]]:
        """Events that come to `sink`, DATA joined, the end as an event of its own."""
        joined: list[tuple[int, object]] = []
        for kind, value in self.sent[OTHER[sink]]:
            if kind == DATA and joined and joined[-1][0] == DATA:
                joined[-1] = (DATA, joined[-1][1] + value)  # type: ignore[operator]
            elif kind != DATA or value:
                joined.append((kind, value))
        return [*joined, (0, "end")] if OTHER[sink] in self.ended else joined


def arrived(events: list[Event]) -> dict[int, list[tuple[int, object]]]:
    """Events by stream, in the form of `Model.expects`."""
    found: dict[int, list[tuple[int, object]]] = {}
    for kind, stream, value, end in events:
        mine = found.setdefault(stream, [])
        if kind == REQUEST:
            value = (value.method, value.target, value.block)  # type: ignore[attr-defined]
        if kind == DATA and mine and mine[-1][0] == DATA:
            mine[-1] = (DATA, mine[-1][1] + value)  # type: ignore[operator]
        elif kind != DATA or value:
            mine.append((kind, value))
        if end and kind != RESET:
            mine.append((0, "end"))
    found.pop(0, None)
    return found


_BLOCK = st.lists(
    st.tuples(
        st.sampled_from(["x-a", "x-b", "accept", "authorization"]),
        st.text("ab /;=", max_size=5).map(str.strip),
    ),
    max_size=3,
).map(lambda fields: "".join(f"{name}: {value}\r\n" for name, value in fields).encode())
_STREAM = st.integers(0, 3)
_NAMES = st.sampled_from(["client", "server"])
_DATA = st.tuples(
    st.just("data"),
    _NAMES,
    _STREAM,
    st.sampled_from([0, 1, 699, 700, 701, 5000]),
    st.sampled_from([False, False, True]),
)
_STEP = st.one_of(
    st.tuples(st.just("request"), st.sampled_from([b"PUT", b"POST"]), _BLOCK, st.booleans()),
    st.tuples(st.just("interim"), _STREAM, st.sampled_from([102, 103]), _BLOCK),
    st.tuples(st.just("answer"), _STREAM, st.sampled_from([200, 404]), _BLOCK, st.booleans()),
    *[_DATA] * 6,
    st.tuples(st.just("trailers"), _NAMES, _STREAM),
    st.tuples(st.just("reset"), _NAMES, _STREAM),
    st.tuples(st.just("reading"), st.booleans()),
)


class Play:
    """Plays steps on a pair; steps that make no sense now are left out."""

    def __init__(self, client: str, server: str) -> None:
        self.pair = Watched(client, server)
        self.streams: dict[int, Model] = {}

    def pick(self, number: int) -> tuple[int, Model] | None:
        alive = [item for item in self.streams.items() if not item[1].reset and len(item[1].ended) < 2]
        return alive[number % len(alive)] if alive else None

    def request(self, method: bytes, block: bytes, end: bool) -> None:
        stream = self.pair.client.request(request(method, b"/p", b"host: a.test\r\n" + block), end)
        model = self.streams[stream] = Model()
        model.sent["client"].append((REQUEST, (method, b"/p", b"host: a.test\r\n" + block)))
        if end:
            model.ended.add("client")

    def interim(self, number: int, status: int, block: bytes) -> None:
        if (picked := self.pick(number)) and not picked[1].answered:
            self.pair.server.respond(picked[0], status, block, False)
            picked[1].sent["server"].append((RESPONSE, (status, block)))

    def answer(self, number: int, status: int, block: bytes, end: bool) -> None:
        if (picked := self.pick(number)) and not picked[1].answered:
            stream, model = picked
            self.pair.server.respond(stream, status, block, end)
            model.sent["server"].append((RESPONSE, (status, block)))
            model.answered = True
            if end:
                model.ended.add("server")

    def data(self, name: str, number: int, size: int, end: bool) -> None:
        if (picked := self.pick(number)) and self.may_send(name, picked[1]):
            stream, model = picked
            content = bytes(range(256)) * (size // 256) + bytes(size % 256)
            self.pair.ends[name].data(stream, content, end)
            model.sent[name].append((DATA, content))
            if end:
                model.ended.add(name)

    def trailers(self, name: str, number: int) -> None:
        if (picked := self.pick(number)) and self.may_send(name, picked[1]):
            stream, model = picked
            self.pair.ends[name].trailers(stream, b"x-sum: 1\r\n")
            model.sent[name].append((TRAILERS, b"x-sum: 1\r\n"))
            model.ended.add(name)

    def reset(self, name: str, number: int) -> None:
        if picked := self.pick(number):
            self.pair.ends[name].reset(picked[0], CANCEL)
            picked[1].reset = True

    def reading(self, on: bool) -> None:
        self.pair.reading = on
        if on:
            self.pair.read()

    @staticmethod
    def may_send(name: str, model: Model) -> bool:
        return name not in model.ended and (name == "client" or model.answered)

    def run(self, steps: list[tuple]) -> None:  # type: ignore[type-arg]
        opening = [
            ("request", b"PUT", b"", False),
            ("request", b"PUT", b"", False),
            ("answer", 1, 200, b"", False),
        ]
        for what, *args in [*opening, *steps]:
            getattr(self, what)(*args)
            self.pair.settle()
        self.reading(True)
        self.pair.settle()


@pairs
@settings(max_examples=100, deadline=None)
@given(steps=st.lists(_STEP, min_size=8, max_size=30))
def test_what_is_sent_arrives(client: str, server: str, steps: list[tuple]) -> None:  # type: ignore[type-arg]
    play = Play(client, server)
    play.run(steps)
    for name in ("client", "server"):
        events = arrived(play.pair.told[name])
        for stream, model in play.streams.items():
            got, want = events.get(stream, []), model.expects(name)
            if not model.reset:
                assert got == want
            got = [event for event in got if event[0] not in (RESET, DATA)]
            assert got == [event for event in want if event[0] != DATA][: len(got)]
            assert play.pair.ends[name].queued(stream) == 0


@pairs
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(_STEP, min_size=8, max_size=30))
def test_nothing_is_left_over(client: str, server: str, steps: list[tuple]) -> None:  # type: ignore[type-arg]
    """After whatever has happened, the connection still carries as many bytes as it could at first."""
    play = Play(client, server)
    play.run(steps)
    pair = play.pair
    for turn in range(3):
        stream = pair.client.request(request(b"PUT"), False)
        pair.client.data(stream, bytes(60_000), True)
        pair.settle()
        pair.server.respond(stream, 200, b"", False)
        pair.server.data(stream, bytes(60_000), True)
        pair.settle()
        assert pair.client.queued(stream) == pair.server.queued(stream) == 0
        for name in ("client", "server"):
            sizes = [len(v) for k, s, v, _ in pair.told[name] if (k, s) == (DATA, stream)]  # type: ignore[arg-type]
            assert sum(sizes) == 60_000, (name, turn)
    pair.server.goaway(NO_ERROR)
    pair.settle()
    assert pair.client.request(request(), True) == 0


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(_STEP, min_size=8, max_size=25))
def test_engines_agree(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    """Each engine, joined to itself, tells the same of each stream that was not reset."""
    told = []
    for name in NAMES:
        play = Play(name, name)
        play.run(steps)
        told.append(
            [
                {
                    stream: [event for event in events if event[0] != DATA or not play.streams[stream].reset]
                    for stream, events in arrived(play.pair.told[end]).items()
                }
                for end in ("client", "server")
            ]
        )
    assert told[0] == told[1]
