"""Which keys this sidecar wants, and how many: bounded, and limited in how fast it grows.

A program that scans a network must grow neither its sidecar nor the control plane: addresses outside the mesh
are kept in an LRU, and new ones are asked for at a limited rate. Pure; `now` is passed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from mesh_api.discovery import WORKLOAD_KEY, address_key, pod_key
from mesh_proxy.net.addr import Addr

MAX_UNKNOWN = 4096
"""Addresses that are not in the mesh, or not answered yet."""
MAX_KNOWN = 2048
"""Addresses of destinations and pods."""
MAX_PEERS = 1024
"""Callers whose address was asked about."""
NEW_PER_S = 100.0
NEW_BURST = 400.0


class Bucket:
    """A token bucket."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Take one token if there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Demand:
    """The subscriptions that this sidecar wants, and the difference to what it has said."""

    def __init__(self) -> None:
        self._unknown: OrderedDict[str, None] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._peers: OrderedDict[str, None] = OrderedDict()
        self._changes: dict[str, bool] = {WORKLOAD_KEY: True}
        """Keys to subscribe (true) or to unsubscribe."""
        self._addresses = Bucket(NEW_PER_S, NEW_BURST)
        self._callers = Bucket(NEW_PER_S, NEW_BURST)

    def __len__(self) -> int:
        return 1 + len(self._unknown) + len(self._known) + len(self._peers)

    def wants(self, key: str) -> bool:
        """Whether a key is subscribed."""
        return key in self._known or key in self._unknown or key in self._peers or key == WORKLOAD_KEY

    def address(self, addr: Addr, now: float) -> bool:
        """Want an address; False if too many are new at once."""
        key = address_key(*addr)
        if not self.use(key):
            if not self._addresses.take(now):
                return False
            self._unknown[key] = None
            self._changes[key] = True
        return True

    def peer(self, ip: str, now: float) -> bool:
        """Want to know whether a caller has a sidecar; False if too many are new at once."""
        key = pod_key(ip)
        if key in self._peers:
            self._peers.move_to_end(key)
            return True
        if not self._callers.take(now):
            return False
        self._peers[key] = None
        self._changes[key] = True
        return True

    def use(self, key: str) -> bool:
        """Note that an address is in use; False if it is not wanted."""
        for kept in (self._known, self._unknown):
            if key in kept:
                kept.move_to_end(key)
                return True
        return False

    def learnt(self, addr: Addr, known: bool) -> None:
        """An address is, or is no longer, one of the mesh."""
        key = address_key(*addr)
        here, there = (self._known, self._unknown) if known else (self._unknown, self._known)
        if key in there:
            del there[key]
            here[key] = None

    def again(self, key: str) -> None:
        """Ask once more for a key that is wanted."""
        if self.wants(key):
            self._changes[key] = True

    def evict(self) -> list[str]:
        """Give up what is above the bounds, least recently used first."""
        evicted = []
        for kept, most in ((self._unknown, MAX_UNKNOWN), (self._known, MAX_KNOWN), (self._peers, MAX_PEERS)):
            while len(kept) > most:
                key, _ = kept.popitem(last=False)
                self._changes[key] = False
                evicted.append(key)
        return evicted

    @property
    def changed(self) -> bool:
        """Whether there is something to say."""
        return bool(self._changes)

    def take(self) -> tuple[list[str], list[str]]:
        """What to subscribe and what to unsubscribe since the last call."""
        changes, self._changes = self._changes, {}
        return [key for key, on in changes.items() if on], [key for key, on in changes.items() if not on]

    def everything(self) -> Iterator[str]:
        """Every wanted key, for a new stream; nothing is left to say then."""
        self._changes = {}
        yield WORKLOAD_KEY
        yield from self._known
        yield from self._peers
        yield from self._unknown

    def counts(self) -> dict[str, int]:
        """How many keys are wanted, by kind."""
        return {"mesh": len(self._known), "outside": len(self._unknown), "callers": len(self._peers)}
