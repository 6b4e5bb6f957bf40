"""Events go an hour after they were last seen."""

from datetime import UTC, datetime, timedelta

import pytest
import trio
from trio.testing import MockClock

from mesh_local.apiserver.expiry import EVENT_TTL, expire_events
from mesh_local.machinery.objects import Object, name_of, rfc3339, rfc3339_micro
from tests.support.local_api import local_api

START = datetime(2026, 1, 1, tzinfo=UTC)
OLD = START - EVENT_TTL - timedelta(minutes=1)


def event(name: str, created: datetime = OLD, **fields: object) -> Object:
    metadata = {"name": name, "namespace": "ns", "creationTimestamp": rfc3339(created)}
    return {"apiVersion": "v1", "kind": "Event", "metadata": metadata, **fields}


@pytest.fixture
def clock() -> MockClock:
    return MockClock(autojump_threshold=0)


def test_old_events_go_and_those_seen_again_stay(tmp_path, clock: MockClock) -> None:
    events = [
        event("old"),
        event("old-series", series={"count": 2, "lastObservedTime": rfc3339_micro(OLD)}),
        event("from-the-future", lastTimestamp=rfc3339(START + timedelta(days=1))),
        event("new", START),
        event("again", lastTimestamp=rfc3339(START)),
        event("series", series={"count": 2, "lastObservedTime": rfc3339_micro(START)}),
        event("noted", eventTime=rfc3339_micro(START)),
    ]

    async def main() -> None:
        async with local_api(tmp_path) as local, trio.open_nursery() as nursery:
            for obj in events:
                local.store.create("events", obj)
            local.store.create("configmaps", {"metadata": {"name": "c", "creationTimestamp": rfc3339(OLD)}})
            began = trio.current_time()
            nursery.start_soon(
                expire_events, local.store, lambda: START + timedelta(seconds=trio.current_time() - began)
            )
            await trio.sleep(1)
            assert sorted(map(name_of, local.store.list("events"))) == ["again", "new", "noted", "series"]
            assert len(local.store.list("configmaps")) == 1
            await trio.sleep(EVENT_TTL.total_seconds() + 60)
            assert local.store.list("events") == []
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)
