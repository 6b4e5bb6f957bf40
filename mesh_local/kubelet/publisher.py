"""Writes the status of one pod: only when it differs, and over what others wrote meanwhile."""

import logging
from collections.abc import Callable
from typing import Any

import trio

from mesh_local.client import Client
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, meta, name_of, namespace_of, uid_of

logger = logging.getLogger(__name__)

WRITE_DEADLINE_S = 30.0
CONFLICT_RETRIES = 8


class PodGone(Exception):
    """The pod is not there any more, or another has its name."""


def version(obj: Object) -> int:
    """resourceVersion as a number; our server counts."""
    text = str(meta(obj).get("resourceVersion") or "0")
    return int(text) if text.isdigit() else 0


def without_nulls(value: Any) -> Any:
    """What is the same whether a field is null or absent."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


async def publish(client: Client, pod: Object, build: Callable[[Object], Object]) -> Object:
    """Write `build(pod)` as the pod's status; the pod as it is then.

    Raises:
        PodGone: it has been removed.
        ApiError, trio.TooSlowError: it could not be written.
    """
    with trio.fail_after(WRITE_DEADLINE_S):
        for _ in range(CONFLICT_RETRIES):
            status = build(pod)
            if without_nulls(status) == without_nulls(pod.get("status")):
                return pod
            try:
                return await client.update("pods", {**pod, "status": status}, subresource="status")
            except ApiError as exc:
                if exc.code == 404:
                    raise PodGone from exc
                if exc.code != 409:
                    raise
            pod = await _fresh(client, pod)
    raise trio.TooSlowError(f"the status of pod {name_of(pod)} was in conflict {CONFLICT_RETRIES} times")


async def _fresh(client: Client, pod: Object) -> Object:
    try:
        found = await client.get("pods", name_of(pod), namespace_of(pod))
    except ApiError as exc:
        if exc.code == 404:
            raise PodGone from exc
        raise
    if uid_of(found) != uid_of(pod):
        raise PodGone
    return found


async def remove(client: Client, pod: Object) -> None:
    """Remove the pod from the API, now that nothing of it is left on the node. Raises ApiError."""
    try:
        with trio.fail_after(WRITE_DEADLINE_S):
            await client.delete("pods", name_of(pod), namespace_of(pod), grace_s=0, uid=uid_of(pod))
    except ApiError as exc:
        if exc.code not in (404, 409):  # 409: another pod has the name now
            raise
