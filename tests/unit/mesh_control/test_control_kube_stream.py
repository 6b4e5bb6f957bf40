"""Watches of a server that misbehaves, played by a script; time jumps."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from mesh_control.kube import watch
from mesh_control.kube.errors import KubeError
from mesh_control.kube.resources import CONFIG_MAPS
from mesh_control.kube.watch import Health, Source, _lines, list_then_watch

HANG = object()


def event(kind: str, name: str = "", version: str = "1", **annotations: str) -> bytes:
    metadata: dict[str, Any] = {"name": name, "resourceVersion": version}
    if annotations:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return json.dumps({"type": kind, "object": {"metadata": metadata}}).encode() + b"\n"


def failure(code: int, reason: str) -> bytes:
    status = {"kind": "Status", "code": code, "reason": reason, "message": f"{reason} it is"}
    return json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"


END = event("BOOKMARK", version="10", end="true")


class Scripted:
    """A client whose streams and pages are given; the queries are noted."""

    def __init__(self, streams: Sequence[Any], pages: Sequence[Any] = ()) -> None:
        self.streams = list(streams)
        self.pages = list(pages)
        self.asked: list[dict[str, str]] = []
        self.at: list[float] = []

    @asynccontextmanager
    async def stream(self, path: str, query: dict[str, str], *, deadline_s: float):
        self.asked.append(query)
        self.at.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if not self.streams:
            await trio.sleep_forever()
        script = self.streams.pop(0)
        if isinstance(script, KubeError):
            raise script

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in script:
                if chunk is HANG:
                    await trio.sleep_forever()
                yield chunk

        found = chunks()
        try:
            yield found
        finally:
            await found.aclose()

    async def list_page(self, resource: Any, namespace: str = "", **query: Any) -> bytes:
        self.asked.append({"page": query["token"]})
        await trio.lowlevel.checkpoint()
        page = self.pages.pop(0)
        if isinstance(page, KubeError):
            raise page
        return page


def page(names: Sequence[str], version: str = "20", token: str = "") -> bytes:
    items = [{"metadata": {"name": name}} for name in names]
    return json.dumps({"metadata": {"resourceVersion": version, "continue": token}, "items": items}).encode()


class Heard:
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.notes: list[tuple[str, dict]] = []

    def names(self, found: list[dict]) -> None:
        self.calls.append([one["metadata"]["name"] for one in found])

    def event(self, change: str, obj: dict) -> None:
        self.calls.append((change, obj["metadata"]["name"]))


def play(streams: Sequence[Any], pages: Sequence[Any] = (), seconds: float = 20) -> tuple[Heard, Scripted]:
    """What a cache hears of a script within some time of a jumping clock."""
    heard, client = Heard(), Scripted(streams, pages)

    async def main() -> None:
        with trio.move_on_after(seconds):
            await list_then_watch(
                client,
                Source(CONFIG_MAPS, msgspec.json.Decoder(dict[str, Any]).decode),
                on_replace=heard.names,
                on_event=heard.event,
                on_synced=lambda: heard.calls.append("synced"),
                rng=random.Random(1),
                on_note=lambda name, fields: heard.notes.append((name, dict(fields))),
            )

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return heard, client


def test_bookmarks_move_the_version_on():
    heard, client = play(
        [
            [event("ADDED", "a"), END, event("MODIFIED", "a", "12"), event("BOOKMARK", version="99")],
            [event("ADDED", "b", "100")],
        ]
    )
    assert heard.calls == [["a"], "synced", ("MODIFIED", "a"), ("ADDED", "b")]
    assert client.asked[0]["sendInitialEvents"] == "true"
    assert client.asked[0]["allowWatchBookmarks"] == "true"
    assert [query.get("resourceVersion") for query in client.asked] == [None, "99", "100"]
    assert 300 <= int(client.asked[0]["timeoutSeconds"]) <= 600
    assert heard.notes == []


@pytest.mark.parametrize(
    "script",
    [
        [event("ADDED", "a")],  # ends without the mark
        [event("ADDED", "a"), HANG],  # goes on as a plain watch
        KubeError(422, "Invalid", "sendInitialEvents is forbidden"),
        KubeError(400, "BadRequest", "unknown"),
    ],
)
def test_a_server_without_streaming_lists_is_asked_in_pages(script):
    heard, client = play([script], [page(["a"], token="t"), page(["b"])], 200)
    assert heard.calls == [["a", "b"], "synced"]
    assert client.asked[1:3] == [{"page": ""}, {"page": "t"}]
    assert client.asked[3]["resourceVersion"] == "20"


def test_a_continue_token_too_old_begins_anew():
    no = KubeError(422, "Invalid", "no")
    old = KubeError(410, "Expired", "too old")
    heard, _ = play([no], [page(["a"], token="t"), old, page(["b"])])
    assert heard.calls == [["b"], "synced"]
    assert heard.notes == []


def test_too_old_as_an_event_or_as_an_answer():
    for script in ([failure(410, "Expired")], KubeError(410, "Gone", "gone")):
        heard, client = play([[END], script, [event("ADDED", "x"), END]])
        assert heard.calls == [[], "synced", ["x"], "synced"]
        assert "resourceVersion" not in client.asked[2]


def test_other_failures_keep_the_version_and_wait_longer_each_time():
    away = [KubeError(0, "Unreachable", "refused")] * 6
    heard, client = play([[END], *away, [event("ADDED", "b", "11")]], seconds=60)
    assert heard.calls == [[], "synced", ("ADDED", "b")]
    assert {query["resourceVersion"] for query in client.asked[1:8]} == {"10"}
    failed = [fields for name, fields in heard.notes if name == "kube.watch.failed"]
    waits = [fields["retry_in_s"] for fields in failed]
    assert len(waits) == 6
    assert waits[-1] > 2
    assert max(waits) <= 8
    assert ("kube.watch.restored", {"resource": "configmaps"}) in heard.notes


def test_a_server_that_says_when_is_asked_then():
    busy = KubeError(429, "TooManyRequests", "later", 15.0)
    _, client = play([[END], busy, [HANG]], seconds=30)
    assert client.at[2] - client.at[1] >= 15


def test_a_version_that_the_server_does_not_know_is_given_up():
    broken = [KubeError(504, "Timeout", "Too large resource version: 10, current: 3")] * 5
    heard, client = play([[END], *broken, [event("ADDED", "new"), END]], seconds=60)
    assert heard.calls == [[], "synced", ["new"], "synced"]
    assert "resourceVersion" not in client.asked[6]


@pytest.mark.parametrize(
    "garbage", [b"{\n", b"[]\n", b'{"type": "ADDED"}\n', b"\xff\n", b'{"type":1,"object":{}}\n']
)
def test_what_is_no_event_ends_the_watch_and_is_reported(garbage):
    heard, client = play([[END, garbage, event("ADDED", "lost")], [event("ADDED", "b", "11")]])
    assert heard.calls == [[], "synced", ("ADDED", "b")]
    assert "expected a watch event" in heard.notes[0][1]["error"]
    assert client.asked[1]["resourceVersion"] == "10"


def test_an_endless_line_is_not_gathered(monkeypatch):
    monkeypatch.setattr(watch, "MAX_LINE_BYTES", 1000)
    heard, _ = play([[END, *[b"x" * 100] * 20], [HANG]])
    assert "expected events of at most 1000 bytes" in heard.notes[0][1]["error"]


def test_a_silent_watch_is_taken_up_again():
    _, client = play([[END, HANG], [HANG]], seconds=800)
    assert len(client.asked) >= 2
    assert client.at[1] - client.at[0] <= 600 + watch.FIRST_ANSWER_S + 1
    assert client.asked[1]["resourceVersion"] == "10"


@given(
    st.lists(st.binary(min_size=1, max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=8), st.data()
)
def test_lines_are_found_however_the_bytes_are_cut(lines, data):
    whole = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    async def main() -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        assert [line async for line in _lines(chunks())] == [line for line in lines if line]

    trio.run(main)


def test_a_callers_own_error_ends_the_watch():
    class Bug(Exception):
        pass

    def broken(found: list[Any]) -> None:
        raise Bug

    async def main() -> None:
        await list_then_watch(
            Scripted([[END]]),
            Source(CONFIG_MAPS, msgspec.json.Decoder(dict[str, Any]).decode),
            on_replace=broken,
            on_event=lambda *_: None,
            on_synced=lambda: None,
            rng=random.Random(1),
        )

    with pytest.raises(Bug):
        trio.run(main)


def test_a_watch_is_current_once_it_is_complete_or_has_been_quiet():
    health = Health()
    seen: list[tuple[float, bool]] = []

    async def look() -> None:
        while True:
            await trio.sleep(0.5)
            seen.append((trio.current_time(), health.current()))

    async def main() -> None:
        client = Scripted([[END], KubeError(0, "Unreachable", "away", 3.0), [HANG]])
        with trio.move_on_after(8):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look)
                await list_then_watch(
                    client,
                    Source(CONFIG_MAPS, msgspec.json.Decoder(dict[str, Any]).decode),
                    on_replace=lambda _: None,
                    on_event=lambda *_: None,
                    on_synced=lambda: None,
                    rng=random.Random(1),
                    health=health,
                )
        again = client.at[2]
        assert again >= 3
        assert not any(good for when, good in seen if when < again + watch.SETTLE_S)
        assert all(good for when, good in seen if when > again + watch.SETTLE_S)
        assert (health.synced, health.failures) == (True, 1)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
