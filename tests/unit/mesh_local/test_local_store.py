"""The store: versions, persistence, history and watches."""

import sqlite3
from pathlib import Path

import pytest
import trio

from mesh_local.apiserver.store import Exists, Stale, Store, StoreError, TooOld
from mesh_local.machinery.errors import ApiError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def thing(name: str, namespace: str = "ns", **fields):
    return {"metadata": {"name": name, "namespace": namespace}, **fields}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    found = Store(tmp_path / "state.db", clock=clock)
    yield found
    found.close()


def names(objects):
    return [o["metadata"]["name"] for o in objects]


def test_every_write_raises_the_one_version(store):
    before = store.version
    first = store.create("things", thing("a"))
    second = store.create("others", thing("a"))
    gone = store.delete("things", first)
    versions = [int(o["metadata"]["resourceVersion"]) for o in (first, second, gone)]
    assert versions == [before + 1, before + 2, before + 3]
    assert store.version == before + 3


def test_lists_are_in_the_order_of_keys_and_by_namespace(store):
    for namespace, name in (("b", "x"), ("a", "z"), ("a", "c"), ("a-b", "y")):
        store.create("things", thing(name, namespace))
    assert names(store.list("things")) == ["y", "c", "z", "x"]  # "a-b/" sorts before "a/"
    assert names(store.list("things", "a")) == ["c", "z"]
    assert store.list("things", "none") == []


def test_a_taken_key_and_a_stale_object_are_refused(store):
    first = store.create("things", thing("a"))
    with pytest.raises(Exists):
        store.create("things", thing("a"))
    second = store.update("things", {**first, "x": 1}, first)
    with pytest.raises(Stale):
        store.update("things", {**first, "x": 2}, first)
    with pytest.raises(Stale):
        store.delete("things", first)
    assert store.get("things", "a", "ns") is second


def test_a_restart_keeps_objects_and_version(tmp_path, clock):
    store = Store(tmp_path / "state.db", clock=clock)
    kept = store.create("things", thing("kept"))
    store.delete("things", store.create("things", thing("gone")))
    version = store.version
    store.close()
    again = Store(tmp_path / "state.db", clock=clock)
    assert again.version == version
    assert again.list("things") == [kept]
    assert int(again.create("things", thing("new"))["metadata"]["resourceVersion"]) == version + 1
    with pytest.raises(TooOld), again.subscribe("things", version - 1):
        pass
    again.close()


def test_an_older_version_is_listed_as_it_was(store):
    first = store.create("things", thing("a"))
    version = store.version
    store.create("things", thing("b"))
    changed = store.update("things", {**first, "x": 1}, first)
    store.delete("things", changed)
    assert store.list_at("things", "", version) == [first]
    assert names(store.list_at("things", "ns", version + 1)) == ["a", "b"]
    assert names(store.list_at("things", "", store.version)) == ["b"]


def test_history_is_bounded_in_number_and_age(tmp_path, clock):
    store = Store(tmp_path / "state.db", clock=clock, history=3, history_s=10)
    start = store.version
    for name in "abcd":
        store.create("things", thing(name))
    assert store.oldest == start + 1
    clock.now = 11
    assert store.oldest == store.version
    with pytest.raises(TooOld):
        store.list_at("things", "", start + 2)
    store.close()


def test_history_is_bounded_in_bytes(tmp_path, clock):
    store = Store(tmp_path / "state.db", clock=clock, history_bytes=3_000)
    first = store.version
    big = [store.create("things", thing(f"c{i}", x="x" * 1_000)) for i in range(3)]
    assert store.oldest == first + 1
    for obj in big:
        store.delete("things", obj)
    assert store.oldest == first + 1  # what is deleted is remembered once
    store.create("things", thing("d", x="x" * 10_000))
    assert store.oldest == store.version
    store.create("things", thing("e"))
    assert names(store.list_at("things", "", store.version - 1)) == ["d"]
    store.close()


def test_a_subscription_gives_the_past_and_then_the_present(store):
    async def main():
        since = store.version
        first = store.create("things", thing("a"))
        store.create("others", thing("x"))
        with store.subscribe("things", since) as subscription:
            store.delete("things", first)
            assert [(c.type, c.key) for c in subscription.backlog] == [("ADDED", "ns/a")]
            change = await subscription.live.receive()
            assert (change.type, change.previous) == ("DELETED", first)
            assert change.object["metadata"]["resourceVersion"] == str(store.version)

    trio.run(main)


def test_a_slow_watcher_is_ended_after_what_its_queue_holds(store):
    async def main():
        with (
            store.subscribe("things", store.version, queue=2) as slow,
            store.subscribe("things", store.version) as quick,
        ):
            for name in "abc":
                store.create("things", thing(name))
            assert [c.key async for c in slow.live] == ["ns/a", "ns/b"]
            assert [(await quick.live.receive()).key for _ in range(3)] == ["ns/a", "ns/b", "ns/c"]

    trio.run(main)


def test_a_closed_subscription_receives_nothing_more(store):
    with store.subscribe("things", store.version) as subscription:
        pass
    store.create("things", thing("a"))
    with pytest.raises(trio.ClosedResourceError):
        subscription.live.receive_nowait()


def test_an_observer_may_write(store):
    def follow(resource, change):
        if resource == "things":
            store.create("shadows", thing(change.object["metadata"]["name"]))

    store.observe(follow)
    store.create("things", thing("a"))
    assert names(store.list("shadows")) == ["a"]


def test_a_second_process_is_told_that_the_database_is_in_use(store, tmp_path):
    with pytest.raises(StoreError, match=r"state\.db: in use by another process"):
        Store(tmp_path / "state.db")


def test_a_full_disk_refuses_the_write_and_changes_nothing(tmp_path, clock):
    store = Store(tmp_path / "state.db", clock=clock)
    kept, version = store.create("things", thing("a")), store.version
    store._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(ApiError, match=r"state\.db: cannot be written: .*full"):
        store.update("things", {**kept, "data": "x" * 100_000}, kept)
    assert (store.get("things", "a", "ns"), store.version, store.list("things")) == (kept, version, [kept])
    store.close()


def damaged(path: Path) -> None:
    path.write_bytes(b"not a database at all, and long enough to have a header" * 40)


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE cats (name TEXT)")
    db.close()


def newer(path: Path) -> None:
    Store(path, clock=Clock()).close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE state SET value = 'mesh_local/99' WHERE name = 'schema'")
    db.close()


def broken_row(path: Path) -> None:
    Store(path, clock=Clock()).close()
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO objects VALUES ('things', 'ns/a', '{')")
    db.close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damaged, "the database is damaged"),
        (foreign, "not a database of mesh_local"),
        (newer, r"written by another version \(mesh_local/99"),
        (broken_row, "the database is damaged"),
    ],
)
def test_an_unusable_database_is_named_with_its_fault(tmp_path, spoil, message):
    path = tmp_path / "state.db"
    spoil(path)
    with pytest.raises(StoreError, match=rf"state\.db: {message}"):
        Store(path, clock=Clock())
