"""The store: every object in memory and in SQLite, one rising version for all, and the recent changes.

It stands where etcd and the watch cache stand in Kubernetes. All calls are synchronous and belong to the
thread that runs trio. Objects handed out are shared: nobody changes them.
"""

import sqlite3
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from mesh_local.machinery import errors
from mesh_local.machinery.objects import Object

SCHEMA = "mesh_local/1"
# Versions that clients use as "long ago" (1...) are too old from the beginning.
FIRST = 100
HISTORY = 10_000
HISTORY_S = 300.0
HISTORY_BYTES = 64 * 1024 * 1024
WATCH_QUEUE = 1_000


class StoreError(Exception):
    """The database cannot be used; the text says which file and why."""


class Exists(Exception):
    """Create: the key is taken."""


class Stale(Exception):
    """Update or delete: the object is gone or has another version than expected."""


class TooOld(Exception):
    """The version asked for is before what the store remembers.

    Attributes:
        oldest: the oldest version from which a watch can go on.
    """

    def __init__(self, oldest: int) -> None:
        super().__init__(oldest)
        self.oldest = oldest


@dataclass(frozen=True, slots=True)
class Change:
    """One write; `object` carries the version of the change, also for DELETED."""

    version: int
    type: str
    key: str
    object: Object
    previous: Object | None


@dataclass(frozen=True, slots=True)
class _Past:
    """A change that is remembered: when it was made, and how many bytes its object took."""

    moment: float
    resource: str
    change: Change
    size: int


@dataclass(slots=True)
class _Table:
    """The objects of one resource, the keys in the order of etcd (bytewise)."""

    objects: dict[str, Object] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    watchers: set["Subscription"] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Subscription:
    """The changes of one resource from some version on. Use as a context manager.

    Args:
        backlog: the changes that happened before the subscription.
        live: the later ones; it ends when the subscriber was too slow or the store closed.
    """

    backlog: Sequence[Change]
    live: trio.MemoryReceiveChannel[Change]
    _send: trio.MemorySendChannel[Change]
    _table: _Table

    def __enter__(self) -> "Subscription":
        return self

    def __exit__(self, *_: object) -> None:
        self._table.watchers.discard(self)
        self._send.close()
        self.live.close()

    def deliver(self, change: Change) -> None:
        """Queue `change`; a subscriber whose queue is full is ended, as the real server does."""
        try:
            self._send.send_nowait(change)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self.end()

    def end(self) -> None:
        """Let the subscriber drain its queue and finish."""
        self._table.watchers.discard(self)
        self._send.close()


def key_of(obj: Object) -> str:
    """`namespace/name`, or `name`: the tail of the etcd key."""
    metadata = obj["metadata"]
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])


class Store:
    """Objects by resource (`pods`, `deployments.apps`) and key.

    Args:
        path: the database file; it is created where it is missing.
        clock: monotonic seconds, for the age of changes.
        history, history_s, history_bytes: how many changes are remembered, how long, and how large all their
            objects are as JSON.

    Raises:
        StoreError: locked by another process, damaged, or not ours.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = trio.current_time,
        history: int = HISTORY,
        history_s: float = HISTORY_S,
        history_bytes: int = HISTORY_BYTES,
    ) -> None:
        self._clock = clock
        self._history_size = history
        self._history_s = history_s
        self._history_bytes = history_bytes
        self._history: deque[_Past] = deque()
        self._remembered = 0
        self._tables: dict[str, _Table] = {}
        self._observers: list[Callable[[str, Change], None]] = []
        self._path = path
        self._db = _open(path)
        try:
            self.version = self._load()
        except BaseException:
            self._db.close()
            raise
        self._oldest = self.version

    def end_watches(self, resource: str = "") -> None:
        """Let the watchers of a resource, or all, drain their queues and finish."""
        for table in [self._table(resource)] if resource else list(self._tables.values()):
            for watcher in list(table.watchers):
                watcher.end()

    def close(self) -> None:
        """End every watch and close the database."""
        self.end_watches()
        self._db.close()

    # Reads

    def get(self, resource: str, name: str, namespace: str = "") -> Object | None:
        return self._table(resource).objects.get(f"{namespace}/{name}" if namespace else name)

    def list(self, resource: str, namespace: str = "") -> Sequence[Object]:
        table = self._table(resource)
        return [table.objects[key] for key in _range(table.keys, namespace)]

    def list_at(self, resource: str, namespace: str, version: int) -> Sequence[Object]:
        """The objects as they were at `version`.

        Raises:
            TooOld: that state is no longer known.
        """
        if version >= self.version:
            return self.list(resource, namespace)
        if version < self.oldest:
            raise TooOld(self.oldest)
        objects = dict(self._table(resource).objects)
        for past in reversed(self._history):
            change = past.change
            if change.version <= version:
                break
            if past.resource != resource:
                continue
            if change.previous is None:
                del objects[change.key]
            else:
                objects[change.key] = change.previous
        return [objects[key] for key in _range(sorted(objects), namespace)]

    @property
    def oldest(self) -> int:
        """The oldest version from which changes are known."""
        self._forget()
        return self._oldest

    # Writes

    def create(self, resource: str, obj: Object) -> Object:
        """Store a new object and return it with its resourceVersion.

        Raises:
            Exists: the key is taken.
            ApiError: 500, from every write: the database cannot be written.
        """
        table = self._table(resource)
        key = key_of(obj)
        if key in table.objects:
            raise Exists(key)
        return self._write(table, resource, key, "ADDED", obj, None)

    def update(self, resource: str, obj: Object, expected: Object) -> Object:
        """Replace `expected`, which must be what is stored now.

        Raises:
            Stale: it is not.
        """
        table = self._table(resource)
        key = key_of(obj)
        if table.objects.get(key) is not expected:
            raise Stale(key)
        return self._write(table, resource, key, "MODIFIED", obj, expected)

    def delete(self, resource: str, expected: Object) -> Object:
        """Remove `expected`, which must be what is stored now; returns its last state.

        Raises:
            Stale: it is not.
        """
        table = self._table(resource)
        key = key_of(expected)
        if table.objects.get(key) is not expected:
            raise Stale(key)
        return self._write(table, resource, key, "DELETED", expected, expected)

    def _write(
        self, table: _Table, resource: str, key: str, type_: str, obj: Object, previous: Object | None
    ) -> Object:
        version = self.version + 1
        stored = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(version)}}
        size = self._save(resource, key, None if type_ == "DELETED" else stored, version)
        self.version = version
        if type_ == "DELETED":
            del table.objects[key]
            del table.keys[bisect_left(table.keys, key)]
        else:
            if type_ == "ADDED":
                insort(table.keys, key)
            table.objects[key] = stored
        change = Change(version, type_, key, stored, previous)
        self._history.append(_Past(self._clock(), resource, change, size))
        self._remembered += size
        self._forget()
        for watcher in list(table.watchers):
            watcher.deliver(change)
        for observer in self._observers:
            observer(resource, change)
        return stored

    def _save(self, resource: str, key: str, obj: Object | None, version: int) -> int:
        """Make one write lasting; returns its size in bytes. Raises ApiError 500, and nothing is written."""
        body = b"" if obj is None else msgspec.json.encode(obj)
        try:
            with self._db:
                if obj is None:
                    self._db.execute("DELETE FROM objects WHERE resource = ? AND key = ?", (resource, key))
                else:
                    self._db.execute(
                        "INSERT INTO objects VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
                        (resource, key, body),
                    )
                self._db.execute("UPDATE state SET value = ? WHERE name = 'version'", (str(version),))
        except sqlite3.Error as error:
            raise errors.internal(f"{self._path}: cannot be written: {error}") from error
        return len(body)

    # Watches

    def observe(self, observer: Callable[[str, Change], None]) -> None:
        """Call `observer` with the resource and the change right after every write, for as long as we live.

        It may write in turn.
        """
        self._observers.append(observer)

    def subscribe(self, resource: str, since: int, *, queue: int = WATCH_QUEUE) -> Subscription:
        """The changes after version `since`.

        Raises:
            TooOld: some of them are forgotten.
        """
        if since < self.oldest:
            raise TooOld(self._oldest)
        backlog = [
            past.change for past in self._history if past.resource == resource and past.change.version > since
        ]
        send, receive = trio.open_memory_channel[Change](queue)
        table = self._table(resource)
        subscription = Subscription(backlog, receive, send, table)
        table.watchers.add(subscription)
        return subscription

    def watchers(self, resource: str) -> int:
        """How many subscriptions to a resource are open."""
        return len(self._table(resource).watchers)

    def _forget(self) -> None:
        """Drop the changes beyond the bounds in number and age."""
        limit = self._clock() - self._history_s
        while self._history and (
            len(self._history) > self._history_size
            or self._remembered > self._history_bytes
            or self._history[0].moment < limit
        ):
            past = self._history.popleft()
            self._remembered -= past.size
            self._oldest = past.change.version

    def _table(self, resource: str) -> _Table:
        return self._tables.setdefault(resource, _Table())

    def _load(self) -> int:
        """Read everything; returns the version."""
        try:
            rows = self._db.execute("SELECT resource, key, body FROM objects ORDER BY resource, key")
            for resource, key, body in rows:
                table = self._table(resource)
                table.objects[key] = msgspec.json.decode(body)
                table.keys.append(key)
            (version,) = self._db.execute("SELECT value FROM state WHERE name = 'version'").fetchone()
            return int(version)
        except (sqlite3.DatabaseError, msgspec.DecodeError, TypeError, ValueError) as error:
            raise StoreError(f"{self._path}: the database is damaged: {error}") from error


def _range(keys: Sequence[str], namespace: str) -> Sequence[str]:
    """The keys of one namespace, or all."""
    if not namespace:
        return keys
    # '0' is the character after '/'.
    return keys[bisect_left(keys, namespace + "/") : bisect_left(keys, namespace + "0")]


def _open(path: Path) -> sqlite3.Connection:
    """Open the database for this process alone, creating its tables where the file is new."""
    db = sqlite3.connect(path, timeout=0)
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        with db:
            db.execute("BEGIN IMMEDIATE")
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                db.execute("CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
                db.execute(
                    "CREATE TABLE objects (resource TEXT, key TEXT, body BLOB NOT NULL,"
                    " PRIMARY KEY (resource, key)) WITHOUT ROWID"
                )
                db.execute("INSERT INTO state VALUES ('schema', ?), ('version', ?)", (SCHEMA, str(FIRST)))
            elif tables != {"state", "objects"}:
                raise StoreError(f"{path}: not a database of mesh_local")
            (schema,) = db.execute("SELECT value FROM state WHERE name = 'schema'").fetchone() or ("",)
        if schema != SCHEMA:
            raise StoreError(f"{path}: written by another version ({schema or 'unknown'}, expected {SCHEMA})")
    except sqlite3.OperationalError as error:
        db.close()
        if "locked" in str(error):
            raise StoreError(f"{path}: in use by another process") from error
        raise StoreError(f"{path}: cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        db.close()
        raise StoreError(f"{path}: the database is damaged: {error}") from error
    except StoreError:
        db.close()
        raise
    return db
