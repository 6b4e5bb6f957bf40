"""Records what happened to an object as core/v1 Events, the way client-go does.

An event that repeats raises the count of the one that is there. A source may record 25 events about one
object at once, then one in five minutes. Whoever records never waits and never fails.
"""

import logging
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import trio

from mesh_local.client import Client
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, meta, name_of, namespace_of, rfc3339, rfc3339_micro, uid_of

logger = logging.getLogger(__name__)

EventType = Literal["Normal", "Warning"]

QUEUE_SIZE = 1000
CACHE_SIZE = 4096
WRITE_DEADLINE_S = 15.0
# client-go's EventSourceObjectSpamFilter.
BURST = 25
REFILL_S = 300.0
MESSAGE_LIMIT = 1024


@dataclass(slots=True)
class _Seen:
    name: str
    count: int


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: datetime


class Recorder:
    """Records events as one component.

    Args:
        client: may create and patch events.
        component: the source, such as `replicaset-controller`.
        host: the node that the component runs on; '' for a component of the whole cluster.
        now: the time of day.
        rng: keeps the names of two components apart.
    """

    def __init__(
        self,
        client: Client,
        component: str,
        *,
        host: str = "",
        now: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        self._client = client
        self._component = component
        self._host = host
        self._now = now
        self._rng = rng
        self._stamp = 0
        self._send, self._receive = trio.open_memory_channel[Object](QUEUE_SIZE)
        self._seen: OrderedDict[tuple[str, ...], _Seen] = OrderedDict()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def event(
        self,
        obj: Object,
        type: EventType,
        reason: str,
        message: str,
        *,
        field_path: str = "",
        action: str = "",
    ) -> None:
        """Record an event about `obj`, which must carry kind and apiVersion.

        Args:
            field_path: which part of the object, such as `spec.containers{app}`.
            action: what was tried; given, the event has the newer form (eventTime and series rather than
                count), which the scheduler writes.
        """
        body = self._body(obj, type, reason, message[:MESSAGE_LIMIT], field_path)
        if action:
            body |= {
                "source": {},
                "firstTimestamp": None,
                "lastTimestamp": None,
                "eventTime": rfc3339_micro(self._now()),
                "action": action,
                "reportingInstance": f"{self._component}-{self._host}",
            }
            del body["count"]
        try:
            self._send.send_nowait(body)
        except trio.WouldBlock:
            logger.warning("Too many events wait; dropped %s about %s", reason, name_of(obj))

    async def run(self) -> None:
        """Write what was recorded until cancelled."""
        async for body in self._receive:
            try:
                with trio.fail_after(WRITE_DEADLINE_S):
                    await self._write(body)
            except ApiError as exc:
                # A namespace that is going away takes no new objects.
                level = logging.DEBUG if exc.code in (403, 404) else logging.WARNING
                logger.log(level, "Event %s was not recorded: %s", body["reason"], exc.message)
            except Exception:
                logger.exception("Event %s was not recorded", body["reason"])

    def _body(self, obj: Object, type: EventType, reason: str, message: str, field_path: str) -> Object:
        moment = self._now()
        # Nanoseconds, which tell apart what one component records at once.
        nanoseconds = int(moment.timestamp() * 1_000_000) * 1000 + self._rng.randrange(1000)
        self._stamp = nanoseconds = max(nanoseconds, self._stamp + 1)
        involved = {
            "kind": obj["kind"],
            "namespace": namespace_of(obj),
            "name": name_of(obj),
            "uid": uid_of(obj),
            "apiVersion": obj["apiVersion"],
            "resourceVersion": str(meta(obj).get("resourceVersion") or ""),
            "fieldPath": field_path,
        }
        source = {"component": self._component}
        if self._host:
            source["host"] = self._host
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{name_of(obj)}.{nanoseconds:016x}",
                "namespace": namespace_of(obj) or "default",
            },
            "involvedObject": {k: v for k, v in involved.items() if v},
            "reason": reason,
            "message": message,
            "source": source,
            "firstTimestamp": rfc3339(moment),
            "lastTimestamp": rfc3339(moment),
            "count": 1,
            "type": type,
            "reportingComponent": self._component,
            "reportingInstance": self._host,
        }

    async def _write(self, body: Object) -> None:
        involved = body["involvedObject"]
        if not self._admit(involved.get("uid", "") + involved["name"]):
            return
        key = (
            body["metadata"]["namespace"],
            involved["kind"],
            involved["name"],
            involved.get("uid", ""),
            involved.get("fieldPath", ""),
            body["type"],
            body["reason"],
            body["message"],
        )
        seen = self._seen.get(key)
        if seen is not None:
            self._seen.move_to_end(key)
            seen.count += 1
            if await self._raise_count(seen, body):
                return
        namespace = body["metadata"]["namespace"]
        created = await self._client.create("events", body, namespace)
        self._seen[key] = _Seen(name_of(created), 1)
        if len(self._seen) > CACHE_SIZE:
            self._seen.popitem(last=False)

    async def _raise_count(self, seen: _Seen, body: Object) -> bool:
        """Count a repetition on the event that is there; False where it has gone."""
        if "count" in body:
            patch: Object = {
                "count": seen.count,
                "lastTimestamp": body["lastTimestamp"],
                "message": body["message"],
            }
        else:
            patch = {"series": {"count": seen.count, "lastObservedTime": body["eventTime"]}}
        try:
            await self._client.patch("events", seen.name, body["metadata"]["namespace"], patch)
        except ApiError as exc:
            if exc.code == 404:
                return False
            raise
        return True

    def _admit(self, about: str) -> bool:
        """Whether the token bucket of one object lets another event through."""
        now = self._now().astimezone(UTC)
        bucket = self._buckets.get(about)
        if bucket is None:
            bucket = self._buckets[about] = _Bucket(BURST, now)
            if len(self._buckets) > CACHE_SIZE:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(about)
        gained = (now - bucket.filled_at).total_seconds() / REFILL_S
        bucket.tokens = min(float(BURST), bucket.tokens + max(gained, 0.0))
        bucket.filled_at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True
