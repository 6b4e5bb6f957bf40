"""Watch: past and live changes of a kind, seen through selectors (the watch cache of apiserver)."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import trio

from mesh_local.apiserver.core import Core, Target, version_number
from mesh_local.apiserver.listing import ListOptions, Match, matcher, too_large
from mesh_local.apiserver.store import Change, Subscription, TooOld
from mesh_local.client import WatchEvent
from mesh_local.kinds.base import Kind
from mesh_local.machinery import errors
from mesh_local.machinery.objects import Object

BOOKMARK_EVERY_S = 60.0
BOOKMARK_BEFORE_END_S = 2.0
INITIAL_END = "k8s.io/initial-events-end"


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a watch begins: with these objects as ADDED, then the changes after `version`."""

    version: int
    initial: bool
    mark_end: bool


@asynccontextmanager
async def watch(core: Core, target: Target, options: ListOptions) -> AsyncIterator[AsyncIterator[WatchEvent]]:
    """Events until the timeout, or until the server closes or the reader is too slow.

    Raises:
        ApiError: on entering: 410 for a version too old, 400, 422, 504.
    """
    match = matcher(target.kind, options)
    start = _start(core, options)
    try:
        subscription = core.store.subscribe(target.kind.stored_as, start.version)
    except TooOld as error:
        raise errors.expired(f"too old resource version: {start.version} ({error.oldest})") from None
    with subscription:
        first = _first(core, target, match, start)
        async with aclosing(_events(core, target, options, match, first, subscription)) as events:
            yield events


def _start(core: Core, options: ListOptions) -> _Start:
    """The watch rules: no version or 0 begins with what is there now; so does sendInitialEvents."""
    _check_options(options)
    text = options.resource_version
    wanted = _version(text)
    if wanted > core.store.version:
        raise too_large(wanted, core.store.version)
    initial = wanted == 0 if options.send_initial_events is None else options.send_initial_events
    streaming = options.send_initial_events or (options.send_initial_events is None and not text)
    if initial or not wanted:
        wanted = core.store.version
    return _Start(wanted, initial, bool(initial and streaming and options.allow_bookmarks))


def _first(core: Core, target: Target, match: Match | None, start: _Start) -> list[WatchEvent]:
    """The events for what is there when the watch begins."""
    kind, events = target.kind, []
    if start.initial:
        present = map(kind.from_stored, core.store.list(kind.stored_as, target.namespace))
        events = [WatchEvent("ADDED", obj) for obj in present if match is None or match(obj)]
    if start.mark_end:
        events.append(bookmark(kind, start.version, initial_end=True))
    return events


async def _events(
    core: Core,
    target: Target,
    options: ListOptions,
    match: Match | None,
    first: Sequence[WatchEvent],
    subscription: Subscription,
) -> AsyncGenerator[WatchEvent, None]:
    kind = target.kind
    ends = trio.current_time() + options.timeout_s if options.timeout_s is not None else float("inf")
    for event in first:
        yield event
    for change in subscription.backlog:
        if (seen := _seen(kind, target.namespace, change, match)) is not None:
            yield seen
    mark_at = _next_mark(options, ends)
    while True:
        received: Change | None = None
        with trio.move_on_at(min(mark_at, ends)):
            try:
                received = await subscription.live.receive()
            except trio.EndOfChannel:
                return
        if received is None:
            if trio.current_time() >= ends:
                return
            try:
                received = subscription.live.receive_nowait()
            except trio.EndOfChannel:
                return
            except trio.WouldBlock:
                # Nothing waits, and nothing can come before we yield: all changes up to now were delivered.
                yield bookmark(kind, core.store.version)
                mark_at = _next_mark(options, ends)
                continue
        if (seen := _seen(kind, target.namespace, received, match)) is not None:
            yield seen


def _next_mark(options: ListOptions, ends: float) -> float:
    """When the next bookmark is due: about every minute, and shortly before the end."""
    if not options.allow_bookmarks:
        return float("inf")
    now = trio.current_time()
    last = ends - BOOKMARK_BEFORE_END_S
    due = now + BOOKMARK_EVERY_S
    if now < last:
        return min(due, last)
    return float("inf")


def _seen(kind: Kind, namespace: str, change: Change, match: Match | None) -> WatchEvent | None:
    """The change as the watcher's selection sees it: entering is ADDED, leaving is DELETED."""
    if namespace and not change.key.startswith(namespace + "/"):
        return None
    obj = kind.from_stored(change.object)
    if match is None:
        return WatchEvent(change.type, obj)
    before = change.previous is not None and match(kind.from_stored(change.previous))
    after = change.type != "DELETED" and match(obj)
    if before and after:
        return WatchEvent("MODIFIED", obj)
    if after:
        return WatchEvent("ADDED", obj)
    if before and change.previous is not None:
        return WatchEvent("DELETED", _last_matching(kind, change))
    return None


def _last_matching(kind: Kind, change: Change) -> Object:
    """What a watcher is told of an object that left its selection: the state before, at this version."""
    previous = kind.from_stored(change.previous or change.object)
    version = change.object["metadata"]["resourceVersion"]
    return {**previous, "metadata": {**previous["metadata"], "resourceVersion": version}}


def bookmark(kind: Kind, version: int, *, initial_end: bool = False) -> WatchEvent:
    """An object of the kind with only a resourceVersion."""
    metadata: Object = {"resourceVersion": str(version)}
    if initial_end:
        metadata["annotations"] = {INITIAL_END: "true"}
    return WatchEvent("BOOKMARK", {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata})


def _version(text: str) -> int:
    """A resourceVersion parameter of watch; unlike for a list, garbage is a 500."""
    if not text:
        return 0
    try:
        return version_number(text)
    except ValueError as error:
        raise errors.failure(500, "", str(error)) from None


def _check_options(options: ListOptions) -> None:
    """apimachinery's ValidateListOptions for a watch."""
    field = "resourceVersionMatch"
    problems = []
    match = options.resource_version_match
    if options.send_initial_events is not None and match != "NotOlderThan":
        problems.append(
            errors.forbidden_field(
                field,
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )
        )
    elif match and options.send_initial_events is None:
        problems.append(
            errors.forbidden_field(
                field, f"{field} is forbidden for watch unless sendInitialEvents is provided"
            )
        )
    if problems:
        raise errors.invalid("ListOptions", "meta.k8s.io", "", problems)
