"""List, then watch, for ever: what a cache of one kind needs to stay the same as the API server.

A streaming list (KEP-3157) where the server offers it, pages where not; then a watch that is taken up again
from the last version, and a new list when that version is too old. While the server is away nothing is
called: whoever was told stays with what it has.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import msgspec
import trio

from certs.events import OnEvent, ignore_event
from mesh_control.kube.client import PAGE, Client
from mesh_control.kube.errors import KubeError, Status, from_status
from mesh_control.kube.resources import Resource

T = TypeVar("T")
Change = Literal["ADDED", "MODIFIED", "DELETED"]

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Of one event; the API server keeps objects below 3 MiB."""
MAX_OBJECTS = 500_000
FIRST_ANSWER_S = 30.0
INITIAL_S = 120.0
"""For all of a streaming list; after that pages are tried."""
WATCH_S = (300, 600)
"""The server ends a watch after a random time in this range, so that replicas spread."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 8.0
SETTLE_S = 1.0
"""A watch that was taken up again and is silent for so long has nothing to catch up with."""
ABSENT_S = 5.0
"""Between looks for a kind that is not installed."""
_EVENTS_A_TURN = 64
_VERSION_TRIES = 5
_INITIAL_END = "k8s.io/initial-events-end"


class _Meta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    annotations: dict[str, str] | None = None
    continue_: str = msgspec.field(name="continue", default="")


class _Headed(msgspec.Struct):
    metadata: _Meta


class _Page(msgspec.Struct):
    metadata: _Meta
    items: list[msgspec.Raw] | None = None


class _Line(msgspec.Struct):
    type: str
    object: msgspec.Raw


_page = msgspec.json.Decoder(_Page)
_line = msgspec.json.Decoder(_Line)
_headed = msgspec.json.Decoder(_Headed)
_status = msgspec.json.Decoder(Status)


@dataclass(frozen=True)
class Source(Generic[T]):
    """What is watched, and how an object's JSON becomes what the callbacks get.

    Args:
        decode: raises msgspec.MsgspecError for what it cannot read; that object is then left out and
            reported. Items of a list carry neither `kind` nor `apiVersion`.
        optional: the kind, or this version of it, may not be installed (404). That is an empty list at first;
            later what was told stays, for who deletes a kind deletes its objects before. It is looked at
            again now and then.
    """

    resource: Resource
    decode: Callable[[msgspec.Raw], T]
    namespace: str = ""
    labels: str = ""
    fields: str = ""
    optional: bool = False


class Health:
    """Whether what a watch told is the present state, as far as anybody can know.

    Attributes:
        synced: everything was told at least once.
        failures: how often the connection failed.
    """

    def __init__(self) -> None:
        self.synced = False
        self.failures = 0
        self._since = math.inf

    def current(self) -> bool:
        """True while a watch is up. One that was taken up again must have caught up, or been quiet, first."""
        return trio.current_time() >= self._since

    def up(self, settle_s: float = 0.0) -> None:
        """A watch is open, and after `settle_s` seconds has brought what was missed."""
        self._since = min(self._since, trio.current_time() + settle_s)

    def down(self) -> None:
        """There is no watch now."""
        self._since = math.inf


class _Again(Exception):
    """The version is too old: list again."""


class _NoStreaming(Exception):
    """The server does not offer streaming lists."""


async def list_then_watch(
    client: Client,
    source: Source[T],
    *,
    on_replace: Callable[[list[T]], None],
    on_event: Callable[[Change, T], None],
    on_synced: Callable[[], None],
    rng: random.Random,
    on_note: OnEvent = ignore_event,
    health: Health | None = None,
) -> None:
    """Follow a kind until cancelled; `health` says how well.

    Callbacks run in the event loop and must not block; an exception of theirs ends the watch. `on_replace`
    has everything that exists, and comes again after a gap; what it lacks is gone. `on_synced` comes after
    each `on_replace`.

    Notes: `kube.watch.failed` (resource, error, reason, retry_in_s), `kube.watch.restored` (resource),
    `kube.watch.absent` (resource) of an optional kind, `kube.undecodable` (resource, error).
    """
    await _Watch(client, source, on_replace, on_event, on_synced, rng, on_note, health or Health()).run()


class _Watch(Generic[T]):
    def __init__(
        self,
        client: Client,
        source: Source[T],
        on_replace: Callable[[list[T]], None],
        on_event: Callable[[Change, T], None],
        on_synced: Callable[[], None],
        rng: random.Random,
        on_note: OnEvent,
        health: Health,
    ) -> None:
        self._health = health
        self._client = client
        self._source = source
        self._on_replace = on_replace
        self._on_event = on_event
        self._on_synced = on_synced
        self._rng = rng
        self._on_note = on_note
        self._streaming = True
        self._version = ""
        self._failures = 0
        self._absent = False

    async def run(self) -> None:
        while True:
            try:
                if self._version:
                    await self._stream({"resourceVersion": self._version})
                    await self._pause()
                elif self._streaming:
                    await self._stream({"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"})
                else:
                    await self._list()
            except _Again:
                self._version = ""
                await self._pause()
            except _NoStreaming:
                self._streaming = False
            except KubeError as exc:
                await self._failed(exc)

    async def _failed(self, exc: KubeError) -> None:
        if exc.not_found and self._source.optional:
            if not self._absent:
                self._on_note("kube.watch.absent", {"resource": str(self._source.resource)})
            self._absent, self._version = True, ""
            if not self._health.synced:
                self._replace([], "")
            self._health.up()
            await trio.sleep(ABSENT_S * self._rng.uniform(0.5, 1.0))
            return
        wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self._failures, 16))
        wait = max(wait * self._rng.uniform(0.5, 1.0), exc.retry_after_s)
        self._failures += 1
        self._health.failures += 1
        if exc.code >= 500 and self._failures >= _VERSION_TRIES:
            self._version = ""  # the server may have lost what this version was (a restored backup)
        self._on_note(
            "kube.watch.failed",
            {
                "resource": str(self._source.resource),
                "error": exc.message,
                "reason": exc.reason,
                "retry_in_s": round(wait, 3),
            },
        )
        await trio.sleep(wait)

    async def _pause(self) -> None:
        """Between two connections that the server ended in order: short, and never a tight loop."""
        await trio.sleep(self._rng.uniform(0.5, 1.0) * FIRST_WAIT_S)

    def _restored(self) -> None:
        self._absent = False
        if self._failures:
            self._failures = 0
            self._on_note("kube.watch.restored", {"resource": str(self._source.resource)})

    def _selectors(self) -> dict[str, str]:
        found = {"labelSelector": self._source.labels, "fieldSelector": self._source.fields}
        return {key: value for key, value in found.items() if value}

    def _decode(self, raw: msgspec.Raw) -> list[T]:
        try:
            return [self._source.decode(raw)]
        except msgspec.MsgspecError as exc:
            self._on_note(
                "kube.undecodable",
                {
                    "resource": str(self._source.resource),
                    "error": str(exc),
                    "object": bytes(raw)[:200].decode("utf-8", "replace"),
                },
            )
            return []

    def _replace(self, found: list[T], version: str) -> None:
        self._version = version
        self._on_replace(found)
        self._health.synced = True
        self._on_synced()

    async def _list(self) -> None:
        """All pages, consistent with each other: a token that is too old begins anew."""
        found: list[T] = []
        token = ""
        while True:
            try:
                body = await self._client.list_page(
                    self._source.resource,
                    self._source.namespace,
                    labels=self._source.labels,
                    fields=self._source.fields,
                    limit=PAGE,
                    token=token,
                )
                page = _page.decode(body)
            except KubeError as exc:
                raise _Again from None if exc.expired else exc
            except msgspec.MsgspecError as exc:
                raise KubeError(
                    0, "Unreachable", f"{self._source.resource}: expected a list: {exc}"
                ) from None
            for raw in page.items or ():
                found += self._decode(raw)
            _check_count(found)
            token = page.metadata.continue_
            if not token:
                break
        self._restored()
        self._replace(found, page.metadata.resource_version)

    async def _stream(self, query: dict[str, str]) -> None:
        """One watch until the server ends it; it begins with a list where `query` asks for one."""
        listing: list[T] | None = [] if "sendInitialEvents" in query else None
        seconds = self._rng.randint(*WATCH_S)
        full = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
            **query,
            **self._selectors(),
        }
        try:
            with trio.move_on_after(seconds + FIRST_ANSWER_S):
                await self._follow(full, listing)
        except KubeError as exc:
            if listing is not None and exc.code in (400, 422):
                raise _NoStreaming from None
            if exc.expired:
                raise _Again from None
            raise
        finally:
            if self._health.current():
                self._restored()
            self._health.down()

    async def _follow(self, query: dict[str, str], listing: list[T] | None) -> None:
        """Read the events of one watch; the first of them are a list if `listing` is one."""
        path = self._source.resource.path(self._source.namespace)
        initial = trio.CancelScope(deadline=math.inf if listing is None else trio.current_time() + INITIAL_S)
        with initial:
            async with (
                self._client.stream(path, query, deadline_s=FIRST_ANSWER_S) as chunks,
                aclosing(_lines(chunks)) as lines,
            ):
                if listing is None:
                    self._health.up(SETTLE_S)
                count = 0
                async for line in lines:
                    if self._take(line, listing):
                        listing, initial.deadline = None, math.inf
                    if listing is None:
                        self._restored()
                        self._health.up()
                    count += 1
                    if count % _EVENTS_A_TURN == 0:
                        await trio.lowlevel.checkpoint()
        if listing is not None:  # the end, or the deadline, came before the list was complete
            raise _NoStreaming

    def _take(self, line: bytes, listing: list[T] | None) -> bool:
        """Apply one event; True when it completed the list."""
        try:
            event = _line.decode(line)
            if event.type == "ERROR":
                raise from_status(_status.decode(event.object))
            metadata = _headed.decode(event.object).metadata
        except msgspec.MsgspecError as exc:
            raise KubeError(
                0, "Unreachable", f"{self._source.resource}: expected a watch event: {exc}"
            ) from None
        if event.type == "BOOKMARK":
            if listing is not None and (metadata.annotations or {}).get(_INITIAL_END) == "true":
                self._restored()
                self._replace(listing, metadata.resource_version)
                return True
        elif event.type in ("ADDED", "MODIFIED", "DELETED"):
            for found in self._decode(event.object):
                if listing is None:
                    self._on_event(event.type, found)  # type: ignore[arg-type]
                else:
                    listing.append(found)
                    _check_count(listing)
        if listing is None:
            self._version = metadata.resource_version or self._version
        return False


def _check_count(found: list[T]) -> None:
    if len(found) > MAX_OBJECTS:
        raise KubeError(0, "TooLarge", f"expected at most {MAX_OBJECTS} objects of a kind")


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The events of a watch, one a line; the rest of a line that was cut off is dropped."""
    pending = bytearray()
    async for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if pending:
                pending += chunk[start:end]
                line = bytes(pending)
                pending.clear()
            else:
                line = chunk[start:end]
            start = end + 1
            if line:
                yield line
        pending += chunk[start:]
        if len(pending) > MAX_LINE_BYTES:
            raise KubeError(0, "TooLarge", f"expected events of at most {MAX_LINE_BYTES} bytes")
