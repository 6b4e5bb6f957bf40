"""Contents as they go out: encoded once for all sidecars."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from mesh_api.discovery import WORKLOAD_KEY, Content, Resource, encode_content, led_to, version_of
from mesh_api.sidecar import Destination

MAX_CACHED = 16_384


class Encoded(NamedTuple):
    """A content, the resource that carries it, and the keys of the others that it leads to."""

    content: Content
    resource: Resource
    led_to: tuple[str, ...]


class Encoder:
    """Bodies and versions of contents, encoded once for all sidecars."""

    def __init__(self, most: int = MAX_CACHED) -> None:
        self._most = most
        self._cache: OrderedDict[str, Encoded] = OrderedDict()

    def encoded(self, key: str, content: Content) -> Encoded:
        """What carries `content`."""
        cached = self._cache.get(key)
        if cached is not None and (cached.content is content or cached.content == content):
            self._cache.move_to_end(key)
            return cached
        body = encode_content(content)
        led = led_to(content) if isinstance(content, Destination) else ()
        found = Encoded(content, Resource(key, version_of(body), body), tuple(k for k in led if k != key))
        if key != WORKLOAD_KEY:  # that one differs from pod to pod
            self._cache[key] = found
            if len(self._cache) > self._most:
                self._cache.popitem(last=False)
        return found
