"""What the discovery stream has brought: answers about addresses, and the destinations and pods they lead to.

An update is decoded and checked whole before anything changes; what it costs is what it changes. A content
lives as long as an answer leads to it or it was asked for itself; so do the destinations that the routes of
such a one lead to, which lead no further. Pure.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from mesh_api.discovery import (
    AddressAnswer,
    Content,
    Held,
    Update,
    WorkloadConfig,
    brought_by,
    check_key,
    led_to,
    read_content,
    split_address,
)
from mesh_api.keys import Family
from mesh_api.sidecar import ConfigError, Destination, Pod, TlsMode
from mesh_proxy.net.addr import Addr


class Absent(enum.Enum):
    """Why a look-up found nothing."""

    NOT_IN_MESH = "not in the mesh"
    NO_ANSWER = "no answer"


Answer = Destination | Pod | Absent
DestinationKey = tuple[str, str, int, Family | None]


def key_of(dest: Destination) -> DestinationKey:
    """What stays the same when a destination's description changes."""
    return dest.namespace, dest.name, dest.port, dest.family


class Changes(NamedTuple):
    """What an update or an unsubscription has changed."""

    destinations: tuple[Destination, ...] = ()
    """New or changed."""
    gone: tuple[DestinationKey, ...] = ()
    own: WorkloadConfig | None = None
    """The sidecar's own configuration, if it has changed."""
    answered: tuple[Addr | str, ...] = ()
    """Addresses, and IPs of peers, whose answer was given or has changed."""
    again: tuple[str, ...] = ()
    """Keys to ask for again: their answer leads to a content that has been dropped meanwhile."""


class Contents:
    """Everything held from the stream. `answers` is the flat table of the hot path."""

    def __init__(self, trust_domain: str, wants: Callable[[str], bool]) -> None:
        """`wants` says whether a key is subscribed."""
        self.answers: dict[Addr, Answer] = {}
        self.peers: dict[str, bool] = {}
        """IPs that were asked about or belong to a held pod: whether a sidecar is there."""
        self.own: WorkloadConfig | None = None
        self._trust_domain = trust_domain
        self._wants = wants
        self._versions: dict[str, str] = {}
        self._address: dict[str, AddressAnswer] = {}
        self._contents: dict[str, Destination | Pod] = {}
        self._users: dict[str, set[str]] = {}
        """Which addresses lead to a content."""
        self._leads: dict[str, tuple[str, ...]] = {}
        """Where the routes of a destination lead that an address leads to, or that was asked for."""
        self._led: dict[str, set[str]] = {}
        """The destinations whose routes lead to a content."""
        self._removed: set[str] = set()
        """Contents that something leads to and that are no more."""
        self._keys: Counter[DestinationKey] = Counter()

    def apply(self, update: Update) -> Changes:
        """Put an update in force. Raises ConfigError, and then nothing has changed."""
        read = [(resource, read_content(resource, self._trust_domain)) for resource in update.resources]
        for key in update.removed:
            _removable(key)
        commit = _Commit(self)
        for resource, content in read:
            commit.put(resource.key, resource.version, content)
        for key in update.removed:
            commit.remove(key)
        return commit.done()

    def drop(self, keys: Iterable[str]) -> Changes:
        """Forget keys that are no longer subscribed, and what only they led to."""
        commit = _Commit(self)
        for key in keys:
            commit.unsubscribe(key)
        return commit.done()

    def version(self, key: str) -> str:
        """The version that is held of a key; empty for none."""
        return self._versions.get(key, "")

    def holds(self) -> tuple[Held, ...]:
        """The contents that addresses and routes lead to."""
        return tuple(
            Held(key, self._versions[key]) for key in self._contents if key in self._users or key in self._led
        )

    def destination(self, name: str) -> Destination | None:
        """The destination of a name (keys.py) that is held."""
        found = self._contents.get(f"destination/{name}")
        return found if isinstance(found, Destination) else None

    def destinations(self) -> tuple[Destination, ...]:
        """Every destination that is held."""
        return tuple(content for content in self._contents.values() if isinstance(content, Destination))

    def pods(self) -> tuple[Pod, ...]:
        """Every pod that is held."""
        return tuple(content for content in self._contents.values() if isinstance(content, Pod))

    def __len__(self) -> int:
        return len(self._versions)


class _Commit:
    """One change under way; everything here has been checked."""

    def __init__(self, contents: Contents) -> None:
        self._of = contents
        self._own: WorkloadConfig | None = None
        self._stale: dict[str, None] = {}
        """Addresses whose answer is to be worked out again."""
        self._loose: dict[str, None] = {}
        """Contents that may have lost their last user, or never had one."""
        self._touched: dict[str, None] = {}
        """Destinations that may lead elsewhere now."""
        self._none: dict[str, None] = {}
        """Contents that are no more, as the control plane says."""
        self._changed: dict[str, Destination] = {}
        self._gone: set[DestinationKey] = set()
        self._answered: list[Addr | str] = []

    def put(self, key: str, version: str, content: Content) -> None:
        of = self._of
        if isinstance(content, WorkloadConfig):
            if content != of.own:
                self._own = of.own = content
        elif isinstance(content, AddressAnswer):
            if not of._wants(key):
                return  # unsubscribed meanwhile
            self._lead(key, content)
            self._stale[key] = None
        elif of._versions.get(key) != version or key not in of._contents:
            self._store(key, content)
        of._versions[key] = version

    def remove(self, key: str) -> None:
        """A content is no more, or an address has no answer any more."""
        if key.startswith("address/"):
            self.unsubscribe(key)
            return
        self._discard(key)
        self._none[key] = None
        self._peer(key, gone=True)

    def unsubscribe(self, key: str) -> None:
        of = self._of
        if not key.startswith("address/"):
            self._loose[key] = self._touched[key] = None
        elif key in of._address:
            self._lead(key, AddressAnswer())
            del of._address[key]
            of._versions.pop(key, None)
            of.answers.pop(Addr(*split_address(key)), None)
            self._stale.pop(key, None)

    def done(self) -> Changes:
        of = self._of
        led = list(self._touched)
        for key in led:
            self._relead(key)
        for key in self._loose:
            if key not in of._users and key not in of._led and not of._wants(key):
                self._discard(key)
                self._none.pop(key, None)
                of._removed.discard(key)
                self._peer(key, gone=False)
        of._removed.update(key for key in self._none if key in of._users or key in of._led)
        again = {key: None for key in self._stale if not self._work_out(key)}
        for key in led:
            again.update(dict.fromkeys(self._lost(key)))
        return Changes(
            tuple(self._changed.values()),
            tuple(key for key in self._gone if not of._keys[key]),
            self._own,
            tuple(self._answered),
            tuple(again),
        )

    def _store(self, key: str, content: Destination | Pod) -> None:
        of = self._of
        if isinstance(content, Destination):
            if key not in of._contents:
                of._keys[key_of(content)] += 1
            self._changed[key] = content
        of._contents[key] = content
        of._removed.discard(key)
        self._stale.update(dict.fromkeys(of._users.get(key, ())))
        self._loose[key] = self._touched[key] = None
        self._peer(key, gone=False)

    def _discard(self, key: str) -> None:
        of = self._of
        content = of._contents.pop(key, None)
        of._versions.pop(key, None)
        self._changed.pop(key, None)
        self._touched[key] = None
        self._stale.update(dict.fromkeys(of._users.get(key, ())))
        if isinstance(content, Destination):
            name = key_of(content)
            of._keys[name] -= 1
            if not of._keys[name]:
                del of._keys[name]
                self._gone.add(name)

    def _lead(self, key: str, answer: AddressAnswer) -> None:
        of = self._of
        for content in brought_by(of._address.get(key, AddressAnswer())):
            users = of._users[content]
            users.discard(key)
            if not users:
                del of._users[content]
                self._loose[content] = self._touched[content] = None
        for content in brought_by(answer):
            of._users.setdefault(content, set()).add(key)
            self._touched[content] = None
        of._address[key] = answer

    def _relead(self, key: str) -> None:
        """Bring `_leads` and `_led` of a destination up to date."""
        of = self._of
        content = of._contents.get(key)
        leads: tuple[str, ...] = ()
        if isinstance(content, Destination) and (key in of._users or of._wants(key)):
            leads = led_to(content)
        before = of._leads.pop(key, ())
        if leads:
            of._leads[key] = leads
        for other in leads:
            of._led.setdefault(other, set()).add(key)
        for other in before:
            if other in leads:
                continue
            of._led[other].discard(key)
            if not of._led[other]:
                del of._led[other]
                self._loose[other] = None

    def _lost(self, key: str) -> Iterable[str]:
        """What to ask for again, as a destination that its routes lead to was dropped here meanwhile."""
        of = self._of
        for other in of._leads.get(key, ()):
            if other not in of._contents and other not in of._removed:
                return (key,) if of._wants(key) else (next(iter(of._users[key])),)
        return ()

    def _peer(self, key: str, *, gone: bool) -> None:
        """Keep `peers` in step with a pod's content; `gone`: the control plane has said that it is none."""
        if not key.startswith("pod/"):
            return
        of, ip = self._of, key[4:]
        content = of._contents.get(key)
        if isinstance(content, Pod):
            of.peers[ip] = content.tls is TlsMode.MESH
        elif gone and of._wants(key):
            of.peers[ip] = False
        else:
            of.peers.pop(ip, None)
        self._answered.append(ip)

    def _work_out(self, key: str) -> bool:
        """Bring the flat table up to date; False if the content that the answer leads to was dropped here."""
        of = self._of
        addr = Addr(*split_address(key))
        answer = of._address.get(key)
        brought = brought_by(answer) if answer is not None else ()
        found: Answer | None = None
        if answer is not None and not brought:
            found = Absent.NOT_IN_MESH
        for content in brought:
            found = of._contents.get(content)
            if found is not None:
                break
        if found is None:
            of.answers.pop(addr, None)
            return any(content in of._removed for content in brought)
        of.answers[addr] = found
        self._answered.append(addr)
        return True


def _removable(key: str) -> None:
    try:
        check_key(key)
        if not key.startswith(("destination/", "pod/", "address/")):
            raise ValueError("expected an address, a destination or a pod to be removed")
    except ValueError as exc:
        raise ConfigError(key[:100], str(exc)) from None
