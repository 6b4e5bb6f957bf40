"""A local, current copy of one resource: list, then watch, for as long as it runs."""

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import trio

from mesh_local.client import Client, WatchEvent
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, meta, name_of, namespace_of, uid_of

logger = logging.getLogger(__name__)

# client-go's reflector: 800 ms, doubled, at most 30 s, jittered.
BACKOFF_FIRST_S = 0.8
BACKOFF_MAX_S = 30.0
# A watch that lasted this long was not at fault when it ended.
HEALTHY_S = 5.0
LIST_DEADLINE_S = 60.0

Key = tuple[str, str]
OnChange = Callable[[Object | None, Object | None], None]
IndexFunction = Callable[[Object], Iterable[str]]


def key_of(obj: Object) -> Key:
    """`(namespace, name)`, which names an object within its resource."""
    return namespace_of(obj), name_of(obj)


class Informer:
    """The newest known objects of one resource.

    What it hands out is shared and must not be changed. Callbacks run synchronously and must be quick:
    they add a key to a queue.

    Args:
        client: whom the list and the watch are done for.
        resource: such as `pods` or `deployments.apps`.
        namespace: '' for all.
        labels, fields: selectors in their text form.
        indexes: by name, what an object is found under with `by_index`.
        rng: spreads the retries.

    Attributes:
        synced: set once the first list has been taken over.
    """

    def __init__(
        self,
        client: Client,
        resource: str,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        indexes: Mapping[str, IndexFunction] | None = None,
        rng: random.Random,
    ) -> None:
        self.resource = resource
        self.synced = trio.Event()
        self._client = client
        self._namespace = namespace
        self._labels = labels
        self._fields = fields
        self._rng = rng
        self._objects: dict[Key, Object] = {}
        self._seen = 0
        self._callbacks: list[OnChange] = []
        self._functions: dict[str, IndexFunction] = {"namespace": lambda obj: (namespace_of(obj),)}
        self._indexes: dict[str, dict[str, dict[Key, Object]]] = {"namespace": {}}
        for name, function in (indexes or {}).items():
            self.add_index(name, function)

    def add_index(self, name: str, function: IndexFunction) -> None:
        """Find objects by what `function` returns for them. A name is given one meaning only."""
        if name in self._functions:
            return
        self._functions[name] = function
        self._indexes[name] = {}
        for key, obj in self._objects.items():
            for value in function(obj):
                self._indexes[name].setdefault(value, {})[key] = obj

    def on_change(self, callback: OnChange) -> None:
        """Call back with `(old, new)`: no old for a new object, no new for one that is gone."""
        self._callbacks.append(callback)
        for obj in self._objects.values():
            callback(None, obj)

    def get(self, name: str, namespace: str = "") -> Object | None:
        return self._objects.get((namespace, name))

    def list(self, namespace: str = "") -> Sequence[Object]:
        """All objects, or those of one namespace."""
        return self.by_index("namespace", namespace) if namespace else list(self._objects.values())

    def by_index(self, index: str, value: str) -> Sequence[Object]:
        return list(self._indexes[index].get(value, {}).values())

    def wrote(self, obj: Object) -> None:
        """Take over what a write has returned, so that its writer does not act on what was before.

        Versions are decimal and comparable (KEP-5504). The watch repeats the change later; where it has
        come past it already, the copy knows better than the answer.
        """
        if _version(obj) > self._seen:
            self._put(key_of(obj), obj)

    async def run(self) -> None:
        """Keep the copy current until cancelled."""
        backoff = BACKOFF_FIRST_S
        version = ""
        while True:
            started = trio.current_time()
            failed = ""
            try:
                version = version or await self._list()
                version = await self._watch(version)
            except ApiError as exc:
                failed = exc.message
            except Exception as exc:
                logger.debug("Watching %s failed", self.resource, exc_info=True)
                failed = repr(exc)
            if failed:
                version = ""
                logger.warning("Watching %s failed, listing it again: %s", self.resource, failed)
            if trio.current_time() - started >= HEALTHY_S:
                backoff = BACKOFF_FIRST_S
                continue
            await trio.sleep(backoff / 2 * (1 + self._rng.random()))
            backoff = min(backoff * 2, BACKOFF_MAX_S)

    async def _watch(self, version: str) -> str:
        """Follow the changes after `version` until the server ends the watch or calls the version too old."""
        try:
            async with self._client.watch(
                self.resource,
                self._namespace,
                resource_version=version,
                labels=self._labels,
                fields=self._fields,
            ) as events:
                async for event in events:
                    version = self._take(event)
        except ApiError as exc:
            if exc.code != 410:
                raise
            return ""
        return version

    async def _list(self) -> str:
        with trio.fail_after(LIST_DEADLINE_S):
            found = await self._client.list(
                self.resource, self._namespace, labels=self._labels, fields=self._fields
            )
        self._seen = int(found.resource_version)
        fresh = {key_of(obj): obj for obj in found.items}
        # What was written while the list was on its way is newer than the list.
        gone = [k for k, obj in self._objects.items() if k not in fresh and _version(obj) <= self._seen]
        for key in gone:
            self._put(key, None)
        for key, obj in fresh.items():
            self._put(key, obj)
        self.synced.set()
        return found.resource_version

    def _take(self, event: WatchEvent) -> str:
        """Apply one event; the answer is the version from which a new watch continues."""
        version = _version(event.object)
        self._seen = max(self._seen, version)
        if event.type != "BOOKMARK":
            key = key_of(event.object)
            known = self._objects.get(key)
            if known is None or _version(known) <= version:
                self._put(key, None if event.type == "DELETED" else event.object)
        return str(version)

    def _put(self, key: Key, new: Object | None) -> None:
        old = self._objects.get(key)
        if old is None and new is None:
            return
        if old is not None and new is not None and _version(old) >= _version(new):
            return
        if old is not None:
            self._index(key, old, "remove")
        if new is None:
            del self._objects[key]
        else:
            self._objects[key] = new
            self._index(key, new, "add")
        if old is not None and new is not None and uid_of(old) != uid_of(new):
            self._notify(old, None)
            old = None
        self._notify(old, new)

    def _notify(self, old: Object | None, new: Object | None) -> None:
        for callback in self._callbacks:
            try:
                callback(old, new)
            except Exception:
                logger.exception("A callback for %s failed on %s", self.resource, key_of(new or old or {}))

    def _index(self, key: Key, obj: Object, action: Literal["add", "remove"]) -> None:
        for name, function in self._functions.items():
            buckets = self._indexes[name]
            for value in function(obj):
                if action == "add":
                    buckets.setdefault(value, {})[key] = obj
                    continue
                bucket = buckets[value]
                bucket.pop(key, None)
                if not bucket:
                    del buckets[value]


def _version(obj: Object) -> int:
    return int(meta(obj).get("resourceVersion") or 0)


class Informers:
    """One informer for each resource, shared by all controllers, so that each resource is watched once."""

    def __init__(self, client: Client, rng: random.Random) -> None:
        self._client = client
        self._rng = rng
        self._shared: dict[str, Informer] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None

    def of(self, resource: str) -> Informer:
        """The informer of a resource, which is started where it is new."""
        found = self._shared.get(resource)
        if found is None:
            found = self._shared[resource] = Informer(self._client, resource, rng=self._rng)
            self._start(found)
        return found

    def drop(self, resource: str) -> None:
        """Stop watching a resource that is served no longer."""
        self._shared.pop(resource, None)
        scope = self._scopes.pop(resource, None)
        if scope is not None:
            scope.cancel()

    async def run(self) -> None:
        """Run every informer, also those asked for later, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for informer in self._shared.values():
                self._start(informer)
            await trio.sleep_forever()

    async def synced(self) -> None:
        """Wait until every present informer has its first list."""
        for informer in list(self._shared.values()):
            await informer.synced.wait()

    def _start(self, informer: Informer) -> None:
        if self._nursery is not None:
            scope = self._scopes[informer.resource] = trio.CancelScope()
            self._nursery.start_soon(_run_within, scope, informer)


async def _run_within(scope: trio.CancelScope, informer: Informer) -> None:
    with scope:
        await informer.run()
