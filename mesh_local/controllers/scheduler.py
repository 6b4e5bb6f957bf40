"""The scheduler: gives each pending pod a node that it fits on, and says why where there is none."""

from mesh_local.controllers.decisions import pods
from mesh_local.controllers.decisions.placement import (
    Ledger,
    demand_of,
    objections,
    unschedulable_message,
)
from mesh_local.controllers.informer import Key, key_of
from mesh_local.controllers.queue import WorkQueue
from mesh_local.controllers.runner import Controller
from mesh_local.controllers.tools import Tools
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import (
    Object,
    condition,
    dig,
    is_deleting,
    labels_of,
    meta,
    name_of,
    namespace_of,
    rfc3339,
    uid_of,
)

NAME = "default-scheduler"
# An unschedulable pod is tried again after this time even where nothing has changed.
FLUSH_S = 300.0


class Scheduler:
    """Binds pods through `pods/binding`."""

    def __init__(self, tools: Tools) -> None:
        self._client = tools.client
        self._recorder = tools.recorder
        self._now = tools.now
        self._pods = tools.informers.of("pods")
        self._nodes = tools.informers.of("nodes")
        self._ledger = Ledger()
        self._waiting: set[Key] = set()
        self._queue: WorkQueue[Key] = WorkQueue(
            lambda: [key_of(p) for p in self._pods.list() if _is_pending(p)]
        )
        self._pods.on_change(self._pod_changed)
        self._nodes.on_change(self._node_changed)

    def controller(self) -> Controller:
        informers = (self._pods, self._nodes)
        # One worker: each decision counts on those before it.
        return Controller("kube-scheduler", self._queue, self._reconcile, informers, workers=1)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        pod = new or old or {}
        if new is None or pods.is_finished(new):
            self._waiting.discard(key_of(pod))
            if self._ledger.release(uid_of(pod)):
                self._retry()
            return
        if node := dig(new, "spec", "nodeName"):
            self._waiting.discard(key_of(new))
            self._ledger.assign(uid_of(new), node, demand_of(new))
        elif _is_pending(new) and (old is None or old.get("spec") != new.get("spec")):
            self._queue.add(key_of(new))

    def _node_changed(self, old: Object | None, new: Object | None) -> None:
        if old is None or new is None or _facts(old) != _facts(new):
            self._retry()

    def _retry(self) -> None:
        for key in self._waiting:
            self._queue.add(key)

    async def _reconcile(self, key: Key) -> float | None:
        namespace, name = key
        pod = self._pods.get(name, namespace)
        if pod is None or not _is_pending(pod) or self._ledger.holds(uid_of(pod)):
            self._waiting.discard(key)
            return None
        demand = demand_of(pod)
        nodes = self._nodes.list()
        reasons = []
        for node in nodes:
            found = objections(pod, demand, node, self._ledger.of(name_of(node)))
            if not found:
                await self._bind(pod, name_of(node))
                self._ledger.assign(uid_of(pod), name_of(node), demand)
                self._waiting.discard(key)
                return None
            reasons.append(found)
        self._waiting.add(key)
        await self._refuse(pod, unschedulable_message(reasons))
        return FLUSH_S

    async def _bind(self, pod: Object, node: str) -> None:
        names = {"name": name_of(pod), "namespace": namespace_of(pod), "uid": uid_of(pod)}
        binding: Object = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": names,
            "target": {"kind": "Node", "name": node},
        }
        await self._client.create("pods", binding, namespace_of(pod), subresource="binding")
        message = f"Successfully assigned {namespace_of(pod)}/{name_of(pod)} to {node}"
        self._recorder.event(pod, "Normal", "Scheduled", message, action="Binding")

    async def _refuse(self, pod: Object, message: str) -> None:
        self._recorder.event(pod, "Warning", "FailedScheduling", message, action="Scheduling")
        present = condition(pod, "PodScheduled")
        if present is not None and (present.get("status"), present.get("message")) == ("False", message):
            return
        said = {
            "type": "PodScheduled",
            "observedGeneration": meta(pod).get("generation", 1),
            "status": "False",
            "lastProbeTime": None,
            "lastTransitionTime": rfc3339(self._now()),
            "reason": "Unschedulable",
            "message": message,
        }
        if present is not None and present.get("status") == "False":
            said["lastTransitionTime"] = present.get("lastTransitionTime")
        patch = {"metadata": {"uid": uid_of(pod)}, "status": {"conditions": [said]}}
        try:
            written = await self._client.patch(
                "pods", name_of(pod), namespace_of(pod), patch, type="strategic", subresource="status"
            )
        except ApiError as exc:
            if exc.code not in (404, 409):
                raise
            return
        self._pods.wrote(written)


def _is_pending(pod: Object) -> bool:
    """Whether the pod waits for this scheduler."""
    return (
        not dig(pod, "spec", "nodeName")
        and not is_deleting(pod)
        and not pods.is_finished(pod)
        and not dig(pod, "spec", "schedulingGates")
        and dig(pod, "spec", "schedulerName", default=NAME) == NAME
    )


def _facts(node: Object) -> tuple[object, ...]:
    """What of a node decides about pods; its heartbeats do not."""
    return labels_of(node), node.get("spec"), dig(node, "status", "allocatable")
