"""The pod garbage collector: pods of a node that is gone, and ended pods beyond a number."""

from collections.abc import Iterable

import trio

from mesh_local.controllers.decisions import conditions, pods
from mesh_local.controllers.queue import WorkQueue
from mesh_local.controllers.runner import Controller
from mesh_local.controllers.tools import Tools, delete_quietly
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, dig, meta, name_of, namespace_of, rfc3339, uid_of

# How many ended pods are kept.
ENDED_LIMIT = 1000
# A node may register again: its pods are given up after this time.
QUARANTINE_S = 40.0
BATCH_S = 1.0
NODE_GONE = "PodGC: node no longer exists"


class PodGarbageCollector:
    """Looks at all pods when one has ended or a node has gone."""

    def __init__(self, tools: Tools) -> None:
        self._client = tools.client
        self._now = tools.now
        self._pods = tools.informers.of("pods")
        self._nodes = tools.informers.of("nodes")
        self._absent_since: dict[str, float] = {}
        self._queue: WorkQueue[str] = WorkQueue(lambda: ("",))
        self._pods.on_change(self._pod_changed)
        self._nodes.on_change(self._node_changed)

    def controller(self) -> Controller:
        informers = (self._pods, self._nodes)
        return Controller("pod-garbage-collector", self._queue, self._reconcile, informers, workers=1)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if new is None:
            return
        node = dig(new, "spec", "nodeName")
        ended = pods.is_finished(new) and not (old and pods.is_finished(old))
        if ended or (node and self._nodes.get(node) is None):
            self._queue.add_after("", BATCH_S)

    def _node_changed(self, _old: Object | None, new: Object | None) -> None:
        if new is None:
            self._queue.add("")

    async def _reconcile(self, _key: str) -> float | None:
        found = self._pods.list()
        await self._limit_ended([p for p in found if pods.is_finished(p)])
        return await self._remove_orphans(found)

    async def _limit_ended(self, ended: list[Object]) -> None:
        surplus = len(ended) - ENDED_LIMIT
        if surplus > 0:
            ended.sort(key=lambda p: str(meta(p).get("creationTimestamp")))
            for pod in ended[:surplus]:
                await delete_quietly(self._client, self._pods, pod)

    async def _remove_orphans(self, found: Iterable[Object]) -> float | None:
        """Remove the pods of absent nodes; returns when to look at those in quarantine."""
        now = trio.current_time()
        by_node: dict[str, list[Object]] = {}
        for pod in found:
            node = dig(pod, "spec", "nodeName")
            if node and self._nodes.get(node) is None:
                by_node.setdefault(node, []).append(pod)
        self._absent_since = {node: self._absent_since.get(node, now) for node in by_node}
        again = None
        for node, orphans in by_node.items():
            left = self._absent_since[node] + QUARANTINE_S - now
            if left > 0:
                again = min(left, again or left)
                continue
            for pod in orphans:
                await self._remove(pod)
        return again

    async def _remove(self, pod: Object) -> None:
        """Note why the pod failed, then remove it at once: no kubelet will."""
        try:
            if not pods.is_finished(pod):
                said = {
                    "type": "DisruptionTarget",
                    "status": "True",
                    "lastTransitionTime": rfc3339(self._now()),
                    "reason": "DeletionByPodGC",
                    "message": NODE_GONE,
                }
                present = dig(pod, "status", "conditions", default=[])
                status = {"phase": "Failed", "conditions": conditions.replaced(present, said)}
                patch = {"metadata": {"uid": uid_of(pod)}, "status": status}
                await self._client.patch("pods", name_of(pod), namespace_of(pod), patch, subresource="status")
            await self._client.delete("pods", name_of(pod), namespace_of(pod), grace_s=0, uid=uid_of(pod))
        except ApiError as exc:
            if exc.code not in (404, 409):
                raise
