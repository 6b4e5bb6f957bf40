"""Caches that follow the API server: streaming lists, pages, gaps, restarts."""

import random
from typing import Any

import msgspec
import trio

from mesh_control.kube.client import Client
from mesh_control.kube.resources import CONFIG_MAPS, PODS, Resource
from mesh_control.kube.watch import Health, Source, list_then_watch
from tests.support.control_api import ControlApi, run_api, until


class Metadata(msgspec.Struct):
    name: str
    namespace: str = ""


class Thing(msgspec.Struct):
    metadata: Metadata
    data: dict[str, str] | None = None


DECODE = msgspec.json.Decoder(Thing).decode


class Cache:
    """What a caller makes of the callbacks."""

    def __init__(self) -> None:
        self.things: dict[str, Any] = {}
        self.health = Health()
        self.replaced = 0
        self.synced = 0
        self.events: list[tuple[str, str]] = []
        self.notes: list[tuple[str, dict]] = []

    def replace(self, found: list[Thing]) -> None:
        self.things = {one.metadata.name: one.data for one in found}
        self.replaced += 1

    def event(self, change: str, thing: Thing) -> None:
        self.events.append((change, thing.metadata.name))
        if change == "DELETED":
            self.things.pop(thing.metadata.name, None)
        else:
            self.things[thing.metadata.name] = thing.data

    def sync(self) -> None:
        self.synced += 1

    async def follow(self, client: Client, source: Source[Thing]) -> None:
        await list_then_watch(
            client,
            source,
            on_replace=self.replace,
            on_event=self.event,
            on_synced=self.sync,
            rng=random.Random(1),
            on_note=lambda name, fields: self.notes.append((name, dict(fields))),
            health=self.health,
        )

    def noted(self, name: str) -> list[dict]:
        return [fields for found, fields in self.notes if found == name]


MAPS = Source(CONFIG_MAPS, DECODE, namespace="default")


async def put(api: ControlApi, name: str, value: str = "1", namespace: str = "default") -> None:
    data = {"data": {"v": value}}
    if value == "1":
        await api.local.client.create("configmaps", {"metadata": {"name": name}, **data}, namespace)
    else:
        await api.local.client.patch("configmaps", name, namespace, data)


def watching(tmp_path, test, source: Source[Thing] = MAPS, before=None) -> None:
    """Run `test(api, cache)` with a cache that follows `source`."""

    async def main(api: ControlApi) -> None:
        if before:
            await before(api)
        cache = Cache()
        async with api.admin() as client, trio.open_nursery() as nursery:
            nursery.start_soon(cache.follow, client, source)
            await test(api, cache)
            nursery.cancel_scope.cancel()

    run_api(tmp_path, main)


async def three(api: ControlApi) -> None:
    for name in ("a", "b", "c"):
        await put(api, name)


def test_first_all_then_every_change(tmp_path):
    async def test(api: ControlApi, cache: Cache) -> None:
        await until(lambda: cache.synced)
        assert sorted(cache.things) == ["a", "b", "c"]
        assert cache.events == []
        await put(api, "d")
        await put(api, "a", "2")
        await api.local.client.delete("configmaps", "b", "default")
        await put(api, "elsewhere", namespace="triomesh-system")
        await put(api, "e")
        await until(lambda: "e" in cache.things)
        assert cache.events == [("ADDED", "d"), ("MODIFIED", "a"), ("DELETED", "b"), ("ADDED", "e")]
        assert cache.things["a"] == {"v": "2"}
        assert cache.replaced == 1

    watching(tmp_path, test, before=three)


class NoStreaming(Client):
    """Asks as if the server did not know streaming lists (the gate WatchList is off)."""

    pages = 0

    async def list_page(self, *args: Any, **kwargs: Any) -> bytes:
        self.pages += 1
        kwargs["limit"] = 2
        return await super().list_page(*args, **kwargs)

    def stream(self, path, query, *, deadline_s):
        if "sendInitialEvents" in query:
            query = {**query, "resourceVersionMatch": "Exact"}  # is answered 422
        return super().stream(path, query, deadline_s=deadline_s)


def test_pages_where_streaming_lists_are_not_offered(tmp_path):
    async def test(api: ControlApi) -> None:
        await three(api)
        cache = Cache()
        async with NoStreaming(api.admin().access) as client, trio.open_nursery() as nursery:
            nursery.start_soon(cache.follow, client, MAPS)
            await until(lambda: cache.synced)
            assert client.pages == 2
            assert sorted(cache.things) == ["a", "b", "c"]
            await put(api, "d")
            await until(lambda: "d" in cache.things)
            assert cache.noted("kube.watch.failed") == []
            nursery.cancel_scope.cancel()

    run_api(tmp_path, test)


def test_the_server_is_away_and_comes_back(tmp_path):
    async def test(api: ControlApi, cache: Cache) -> None:
        await until(lambda: cache.synced)
        await until(cache.health.current)
        await api.stop()
        await until(lambda: not cache.health.current())
        await put(api, "while-away")
        await api.local.client.delete("configmaps", "a", "default")
        await until(lambda: len(cache.noted("kube.watch.failed")) >= 2)
        assert sorted(cache.things) == ["a", "b", "c"]
        await api.start()
        await until(lambda: sorted(cache.things) == ["b", "c", "while-away"])
        assert cache.noted("kube.watch.failed")[0]["reason"] == "Unreachable"
        await until(lambda: cache.noted("kube.watch.restored"))
        assert cache.health.current()
        assert cache.health.failures >= 2
        assert cache.replaced == 1, "the watch was taken up where it was"

    watching(tmp_path, test, before=three)


def test_a_version_too_old_is_a_new_list(tmp_path):
    async def test(api: ControlApi, cache: Cache) -> None:
        await until(lambda: cache.synced)
        await api.stop()
        await api.local.client.delete("configmaps", "a", "default")
        await put(api, "new")
        store = api.local.store
        size, store._history_size = store._history_size, 0
        assert store.oldest == store.version
        store._history_size = size
        await api.start()
        await until(lambda: cache.replaced == 2)
        assert sorted(cache.things) == ["b", "c", "new"]
        assert ("DELETED", "a") not in cache.events
        await put(api, "after")
        await until(lambda: "after" in cache.things)

    watching(tmp_path, test, before=three)


def test_what_cannot_be_decoded_is_reported_and_left_out(tmp_path):
    class Strict(msgspec.Struct):
        metadata: Metadata
        data: dict[str, int] | None = None

    async def test(api: ControlApi, cache: Cache) -> None:
        await until(lambda: cache.synced)
        assert cache.things == {}
        await api.local.client.create("configmaps", {"metadata": {"name": "good"}}, "default")
        await until(lambda: "good" in cache.things)
        assert len(cache.noted("kube.undecodable")) == 3
        assert "$.data[...]" in cache.noted("kube.undecodable")[0]["error"]

    watching(tmp_path, test, Source(CONFIG_MAPS, msgspec.json.Decoder(Strict).decode, "default"), three)


def test_selectors(tmp_path):
    async def before(api: ControlApi) -> None:
        await three(api)

    async def test(api: ControlApi, cache: Cache) -> None:
        await until(lambda: cache.synced)
        assert list(cache.things) == ["b"]
        await put(api, "a", "2")
        await put(api, "b", "2")
        await until(lambda: cache.events)
        assert cache.events == [("MODIFIED", "b")]

    watching(tmp_path, test, Source(CONFIG_MAPS, DECODE, fields="metadata.name=b"), before)


def test_a_kind_that_is_not_installed(tmp_path):
    absent = Resource("triomesh.dev", "v1", "nothings", "Nothing")

    async def optional(api: ControlApi, cache: Cache) -> None:
        await until(lambda: cache.synced)
        assert cache.things == {}
        assert cache.notes == [("kube.watch.absent", {"resource": "nothings.triomesh.dev"})]

    async def needed(api: ControlApi, cache: Cache) -> None:
        await until(lambda: cache.noted("kube.watch.failed"))
        assert cache.synced == 0
        assert cache.noted("kube.watch.failed")[0]["reason"] == "NotFound"

    watching(tmp_path, optional, Source(absent, DECODE, optional=True))
    (tmp_path / "2").mkdir()
    watching(tmp_path / "2", needed, Source(absent, DECODE))


def test_no_permission_to_watch_says_so(tmp_path):
    async def test(api: ControlApi) -> None:
        await api.account("bot", "default")
        token = await api.token("bot", "default", audience=api.api_audience)
        cache = Cache()
        async with api.user(token) as client, trio.open_nursery() as nursery:
            nursery.start_soon(cache.follow, client, Source(PODS, DECODE))
            await until(lambda: cache.noted("kube.watch.failed"))
            nursery.cancel_scope.cancel()
        failed = cache.noted("kube.watch.failed")[0]
        assert failed["reason"] == "Forbidden"
        assert 'cannot watch resource "pods"' in failed["error"]

    run_api(tmp_path, test)
