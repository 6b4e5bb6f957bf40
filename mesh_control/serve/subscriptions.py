"""What each sidecar has asked for, what it was told, and so what it must be told next. Pure.

A reverse index leads from a key to the sessions that it matters to, so that a change costs as much as there
are sidecars that use it. A session keeps a set of keys to look at again, never a queue of messages: a slow
sidecar gets the latest content of each key once.

An address brings the destination or pod that it belongs to; a destination that is asked for, or so brought,
brings those that its routes lead to, and they bring nothing. What is brought goes out with what brings it.

An address without content has no answer: its sidecar holds connections to it. "Nobody owns this address" is
an answer, and is told late: only after it has been so for `SETTLE_S`, and only while the source is current. A
watch that is late by less than that never makes a sidecar treat a new pod as outside the mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from mesh_api.discovery import (
    MAX_FRAME_BYTES,
    MAX_KEYS,
    WORKLOAD_KEY,
    AddressAnswer,
    Content,
    Held,
    Resource,
    brought_by,
    check_key,
    encode_content,
    split_address,
    version_of,
)
from mesh_api.sidecar import Destination
from mesh_control.serve.encoder import Encoder

SETTLE_S = 0.25
MAX_BODY_BYTES = MAX_FRAME_BYTES - 64 * 1024
NOBODY = AddressAnswer()
_NOBODY_VERSION = version_of(encode_content(NOBODY))
ALL_ADDRESSES = "address/"
"""Stands for every address, among changed keys."""
_GONE = "gone"
_ONE_WORKLOAD = f"{WORKLOAD_KEY}/"


class PodRef(NamedTuple):
    """The pod that a sidecar serves."""

    namespace: str
    name: str


Lookup = Callable[[str, PodRef], Content | None]


class TooManyKeys(Exception):
    """A sidecar asks for more than `MAX_KEYS`."""


class Group(NamedTuple):
    """What one key leads to; never split over two updates."""

    key: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...]

    @property
    def size(self) -> int:
        """About as many bytes as on the wire."""
        return sum(len(r.body) + len(r.key) + 64 for r in self.resources) + sum(map(len, self.removed)) + 16


class Session:
    """One sidecar's subscriptions. `wake` is called when there is something to look at."""

    __slots__ = (
        "alone",
        "asked",
        "brings",
        "brought",
        "changed_at",
        "dirty",
        "led",
        "pod",
        "told",
        "wake",
        "withheld",
    )

    def __init__(self, pod: PodRef, wake: Callable[[], None]) -> None:
        self.pod = pod
        self.wake = wake
        self.asked: set[str] = set()
        self.told: dict[str, str] = {}
        """Versions that the sidecar has been sent, or says it has; `_GONE` for a content that is no more."""
        self.brings: dict[str, tuple[str, ...]] = {}
        """What an asked address brings, and what a destination that is asked or so brought leads to."""
        self.brought: dict[str, int] = {}
        """How many asked addresses bring a content."""
        self.led: dict[str, int] = {}
        """How many destinations lead to one; from there it leads no further."""
        self.dirty: dict[str, None] = {}
        self.alone: set[str] = set()
        """Keys that were in a refused update of several: each is tried by itself."""
        self.withheld: dict[str, float] = {}
        """Addresses that nobody owns, and when that may be said."""
        self.changed_at: float | None = None
        """Since when a change waits to be sent."""


class Subscriptions:
    """All sessions of this replica, by key."""

    def __init__(
        self, lookup: Lookup, on_too_large: Callable[[str, int], None], settle_s: float = SETTLE_S
    ) -> None:
        """`on_too_large` is told of a content that no frame can carry; it is not sent."""
        self._lookup = lookup
        self._on_too_large = on_too_large
        self._settle_s = settle_s
        self._encoder = Encoder()
        self._sessions: dict[str, set[Session]] = {}
        self._by_ip: dict[str, set[str]] = {}
        """Asked addresses, by IP: a pod that comes or goes matters to all of its ports."""

    def __len__(self) -> int:
        """Keys that somebody uses."""
        return len(self._sessions)

    def subscribe(self, session: Session, keys: Iterable[Held], holds: Iterable[Held]) -> None:
        """Add keys and compare them, with what they bring. Raises TooManyKeys, or ValueError for no key."""
        have = {held.key: held.version for held in holds}
        wanted = {held.key: held.version for held in keys}
        if len(have) > MAX_KEYS or len(session.asked | wanted.keys()) > MAX_KEYS:
            raise TooManyKeys(f"expected at most {MAX_KEYS} keys")
        for key, version in wanted.items():
            if key not in session.asked:
                check_key(key)
                session.asked.add(key)
                self._link(session, key)
            session.told[key] = version
            session.dirty[key] = None
            for content in self._bring(session, key):
                session.told[content] = have.get(content, "")
        session.wake()

    def unsubscribe(self, session: Session, keys: Iterable[str]) -> None:
        """Drop keys and what only they brought."""
        for key in keys:
            if key not in session.asked:
                continue
            session.asked.discard(key)
            session.withheld.pop(key, None)
            self._release(session, key)

    def forget(self, session: Session) -> None:
        """The session has ended."""
        for key in {*session.asked, *session.brought, *session.led}:
            self._unlink(session, key)
        for used in (session.asked, session.brought, session.led, session.brings):
            used.clear()

    def changed(self, keys: Iterable[str], now: float) -> None:
        """Contents of these keys have changed: wake whom it matters to."""
        for key in keys:
            if key == ALL_ADDRESSES:
                for address in [address for some in self._by_ip.values() for address in some]:
                    self._touch(address, now, address)
                continue
            if key.startswith(_ONE_WORKLOAD):
                self._touch(key, now, WORKLOAD_KEY)
                continue
            self._touch(key, now, key)
            if key.startswith("pod/"):
                for address in self._by_ip.get(key[4:], ()):
                    self._touch(address, now, address)

    def recompare(self, session: Session) -> None:
        """Look at every key again, in case a change was lost on its way."""
        session.dirty.update(dict.fromkeys((*session.asked, *session.brought, *session.led)))
        session.wake()

    def refused(self, session: Session, keys: Collection[str]) -> None:
        """The sidecar refused an update of these groups.

        Each is tried alone; one that was alone is sent again when its content changes.
        """
        if len(keys) < 2:
            return
        for key in keys:
            for content in (key, *self._with(session, key)):
                session.told[content] = ""
                session.dirty[content] = None  # the key may bring another until it is looked at
            session.alone.add(key)
        session.wake()

    def collect(self, session: Session, now: float, current: bool) -> list[Group]:
        """What the session must be told now. It counts as told from here on."""
        dirty, session.dirty = session.dirty, {}
        if current:
            dirty.update((key, None) for key, due in session.withheld.items() if due <= now)
        groups = []
        for key in dirty:
            if key in session.asked:
                group = self._asked(session, key, now, current)
            elif key in session.brought:
                group = self._group(session, key, (key, *self._bring(session, key)))
            elif key in session.led:
                group = self._group(session, key, (key,))
            else:
                continue
            if group is not None:
                groups.append(group)
        return groups

    def due(self, session: Session, now: float) -> float | None:
        """When to collect although nothing has changed; None for never."""
        if session.dirty:
            return now
        return min(session.withheld.values()) if session.withheld else None

    # -- one key -------------------------------------------------------------------------------------------

    def _asked(self, session: Session, key: str, now: float, current: bool) -> Group | None:
        if key == WORKLOAD_KEY and self._lookup(key, session.pod) is None:
            return None  # a pod that is gone keeps what it had until it ends
        if key.startswith("address/"):
            answer = self._lookup(key, session.pod)
            if answer == NOBODY and session.told.get(key) != _NOBODY_VERSION:
                due = session.withheld.setdefault(key, now + self._settle_s)
                if now < due or not current:
                    return None
            session.withheld.pop(key, None)
        return self._group(session, key, (key, *self._bring(session, key)))

    def _group(self, session: Session, key: str, members: tuple[str, ...]) -> Group | None:
        """The members whose content differs from what was told."""
        resources, removed, size = [], [], 0
        for member in members:
            content = self._lookup(member, session.pod)
            if content is None:
                if session.told.get(member) != _GONE:
                    session.told[member] = _GONE
                    removed.append(member)
                continue
            resource = self._encoder.encoded(member, content).resource
            if session.told.get(member) == resource.version:
                continue
            if len(resource.body) > MAX_BODY_BYTES:
                self._on_too_large(member, len(resource.body))
                continue
            size += len(resource.body)
            if size > MAX_BODY_BYTES:
                session.dirty[member] = None  # more than a frame holds: this one goes by itself
                continue
            session.told[member] = resource.version
            resources.append(resource)
        return Group(key, tuple(resources), tuple(removed)) if resources or removed else None

    def _bring(self, session: Session, key: str) -> tuple[str, ...]:
        """Learn what an asked or brought key brings, before it is compared."""
        content: Content | None = None
        if key.startswith(("address/", "destination/")):
            content = self._lookup(key, session.pod)
        if isinstance(content, Destination):
            self._rebring(session, key, self._encoder.encoded(key, content).led_to)
        elif isinstance(content, AddressAnswer):
            self._rebring(session, key, brought_by(content))
            for brought in session.brings.get(key, ()):
                self._bring(session, brought)
        else:
            self._rebring(session, key, ())
        return self._with(session, key)

    def _with(self, session: Session, key: str) -> tuple[str, ...]:
        """Every content that goes with a key, as far as is known."""
        brought = session.brings.get(key, ())
        if not key.startswith("address/"):
            return brought
        return (*brought, *(led for content in brought for led in session.brings.get(content, ())))

    def _rebring(self, session: Session, key: str, contents: tuple[str, ...]) -> None:
        before = session.brings.get(key, ())
        if before == contents:
            return
        users = session.brought if key.startswith("address/") else session.led
        for content in contents:
            users[content] = users.get(content, 0) + 1
            self._link(session, content)
        if contents:
            session.brings[key] = contents
        else:
            del session.brings[key]
        for content in before:
            users[content] -= 1
            if not users[content]:
                del users[content]
                self._release(session, content)

    # -- the reverse index ---------------------------------------------------------------------------------

    def _touch(self, index: str, now: float, key: str) -> None:
        for session in self._sessions.get(index, ()):
            session.dirty[key] = None
            if session.changed_at is None:
                session.changed_at = now
            session.wake()

    def _link(self, session: Session, key: str) -> None:
        sessions = self._sessions.get(key)
        if sessions is None:
            sessions = self._sessions[key] = set()
            if key.startswith("address/"):
                self._by_ip.setdefault(split_address(key)[0], set()).add(key)
        sessions.add(session)
        if key == WORKLOAD_KEY:
            self._link(session, _own(session.pod))

    def _release(self, session: Session, key: str) -> None:
        """Drop what a key brings, and the key, unless it is still asked or brought; or led to."""
        if key in session.asked or key in session.brought:
            return
        self._rebring(session, key, ())
        if key in session.led:
            return
        session.told.pop(key, None)
        session.alone.discard(key)
        self._unlink(session, key)

    def _unlink(self, session: Session, key: str) -> None:
        if key == WORKLOAD_KEY:
            self._unlink(session, _own(session.pod))
        sessions = self._sessions[key]
        sessions.discard(session)
        if sessions:
            return
        del self._sessions[key]
        if key.startswith("address/"):
            ip = split_address(key)[0]
            self._by_ip[ip].discard(key)
            if not self._by_ip[ip]:
                del self._by_ip[ip]


def pack(groups: Iterable[Group], alone: set[str], most: int) -> Iterator[list[Group]]:
    """Groups in as few updates as fit in about `most` bytes each; those in `alone` by themselves."""
    batch: list[Group] = []
    size = 0
    for group in groups:
        if group.key in alone:
            alone.discard(group.key)
            yield [group]
            continue
        if batch and size + group.size > most:
            yield batch
            batch, size = [], 0
        batch.append(group)
        size += group.size
    if batch:
        yield batch


def _own(pod: PodRef) -> str:
    return f"{_ONE_WORKLOAD}{pod.namespace}/{pod.name}"
