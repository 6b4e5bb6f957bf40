"""Events do not last: an hour after they were last seen they go, as with kube-apiserver's `--event-ttl`."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import trio

from mesh_local.apiserver.store import Stale, Store
from mesh_local.kinds.event import last_seen
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object

EVENT_TTL = timedelta(hours=1)
LOOK_S = 60.0
_log = logging.getLogger(__name__)


async def expire_events(store: Store, now: Callable[[], datetime]) -> None:
    """Delete Events that are too old until cancelled."""
    while True:
        for event in [*store.list("events")]:
            moment = now()
            if last_seen(event, moment) < moment - EVENT_TTL:
                _delete(store, event)
            await trio.lowlevel.checkpoint()
        await trio.sleep(LOOK_S)


def _delete(store: Store, event: Object) -> None:
    try:
        store.delete("events", event)
    except Stale:  # it has happened again, or somebody else has deleted it
        return
    except ApiError as exc:
        _log.warning("an old event stays for now: %s", exc.message)
