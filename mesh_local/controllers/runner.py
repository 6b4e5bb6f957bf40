"""Runs a controller: workers take keys from its queue and reconcile them, whatever happens."""

import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from mesh_local.controllers.informer import Informer
from mesh_local.controllers.queue import WorkQueue
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import dig

logger = logging.getLogger(__name__)

RECONCILE_DEADLINE_S = 120.0
# These come from acting on a copy that is a moment old, and go away with it.
EXPECTED = frozenset({"Conflict", "NotFound", "AlreadyExists"})


@dataclass(frozen=True, slots=True)
class Controller:
    """What the runner needs of a controller.

    Args:
        name: such as `replicaset-controller`.
        queue: the keys to reconcile.
        reconcile: brings the world nearer to what one key asks for; may return the seconds after which to
            look again. Raises ApiError, which leads to a retry.
        informers: what must be in step before the first key is looked at.
        workers: how many keys are worked on at once.
        attempts: how often a key that the API refuses is tried again before it waits for the next change;
            None: for ever.
    """

    name: str
    queue: WorkQueue[Any]
    reconcile: Callable[[Any], Awaitable[float | None]]
    informers: Sequence[Informer] = field(default=())
    workers: int = 4
    attempts: int | None = None


def is_namespace_ending(error: ApiError) -> bool:
    """Whether an object was refused as its namespace is going away: there is no reason to try again."""
    causes = dig(error.status, "details", "causes", default=[])
    return any(cause.get("reason") == "NamespaceTerminating" for cause in causes)


async def run_controller(controller: Controller) -> None:
    """Run until cancelled; an exception in one reconcile is logged and its key tried again."""
    for informer in controller.informers:
        await informer.synced.wait()
    async with trio.open_nursery() as nursery:
        for _ in range(controller.workers):
            nursery.start_soon(_work, controller)


async def _work(controller: Controller) -> None:
    while True:
        key = await controller.queue.get()
        try:
            await _reconcile(controller, key)
        finally:
            controller.queue.done(key)


async def _reconcile(controller: Controller, key: Hashable) -> None:
    queue = controller.queue
    try:
        with trio.fail_after(RECONCILE_DEADLINE_S):
            again = await controller.reconcile(key)
    except ApiError as exc:
        spent = controller.attempts is not None and queue.failures(key) >= controller.attempts
        if spent or is_namespace_ending(exc):
            logger.info("%s: %s: %s; left alone", controller.name, key, exc.message)
            queue.forget(key)
            return
        delay = queue.add_failed(key)
        level = logging.DEBUG if exc.reason in EXPECTED else logging.WARNING
        logger.log(level, "%s: %s: %s; again in %.3f s", controller.name, key, exc.message, delay)
    except Exception:
        delay = queue.add_failed(key)
        logger.exception("%s: reconciling %s failed; again in %.3f s", controller.name, key, delay)
    else:
        queue.forget(key)
        if again is not None:
            queue.add_after(key, again)
