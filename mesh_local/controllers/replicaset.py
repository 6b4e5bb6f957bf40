"""ReplicaSets: keep as many pods as `spec.replicas` says."""

from collections.abc import Sequence

import trio

from mesh_local.controllers.decisions import pods, replicas
from mesh_local.controllers.decisions.ownership import claim
from mesh_local.controllers.informer import Key, key_of
from mesh_local.controllers.queue import WorkQueue
from mesh_local.controllers.runner import Controller, is_namespace_ending
from mesh_local.controllers.tools import (
    Tools,
    adopt,
    controlled_by,
    delete_quietly,
    index_owners,
    release,
)
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import (
    Object,
    controller_of,
    dig,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    owner_reference,
)
from mesh_local.machinery.selectors import LabelSelector


class ReplicaSetController:
    """Creates and deletes pods, adopts and releases them, and writes the status."""

    def __init__(self, tools: Tools) -> None:
        self._client = tools.client
        self._recorder = tools.recorder
        self._now = tools.now
        self._sets = tools.informers.of("replicasets.apps")
        self._pods = tools.informers.of("pods")
        index_owners(self._pods)
        self._queue: WorkQueue[Key] = WorkQueue(lambda: map(key_of, self._sets.list()))
        self._sets.on_change(lambda old, new: self._queue.add(key_of(new or old or {})))
        self._pods.on_change(self._pod_changed)

    def controller(self) -> Controller:
        return Controller("replicaset-controller", self._queue, self._reconcile, (self._sets, self._pods))

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        for pod in (old, new):
            owner = controller_of(pod) if pod else None
            if pod is not None and owner is not None and owner.get("kind") == "ReplicaSet":
                self._queue.add((namespace_of(pod), owner["name"]))
        if new is not None and not controller_of(new) and not is_deleting(new) and labels_of(new):
            for candidate in self._sets.list(namespace_of(new)):
                if _selector(candidate).matches(labels_of(new)):
                    self._queue.add(key_of(candidate))

    async def _reconcile(self, key: Key) -> float | None:
        namespace, name = key
        replica_set = self._sets.get(name, namespace)
        if replica_set is None:
            return None
        owned = await self._claim(replica_set)
        failure = None
        error: ApiError | None = None
        if not is_deleting(replica_set):
            try:
                await self._manage(replica_set, owned)
            except ApiError as exc:
                error = exc
                missing = replicas.desired(replica_set) > sum(map(pods.is_active, owned))
                failure = ("FailedCreate" if missing else "FailedDelete", exc.message)
        owned = [p for p in controlled_by(self._pods, replica_set) if controller_of(p)]
        await self._write_status(replica_set, owned, failure)
        if error is not None:
            raise error
        return replicas.next_available(replica_set, owned, self._now())

    async def _claim(self, replica_set: Object) -> list[Object]:
        found = claim(replica_set, _selector(replica_set), controlled_by(self._pods, replica_set))
        for pod in found.release:
            await release(self._client, self._pods, replica_set, pod)
        free = [pod for pod in found.adopt if pods.is_active(pod)]
        return found.owned + [await adopt(self._client, self._pods, replica_set, pod) for pod in free]

    async def _manage(self, replica_set: Object, owned: Sequence[Object]) -> None:
        active = [pod for pod in owned if pods.is_active(pod)]
        difference = replicas.difference(replica_set, len(active))
        if difference > 0:
            for size in replicas.batches(difference):
                await self._create(replica_set, size)
        elif difference < 0:
            for pod in pods.by_deletion_order(active)[:-difference]:
                await self._delete(replica_set, pod)

    async def _create(self, replica_set: Object, count: int) -> None:
        """Create a batch of pods at once.

        Raises:
            ApiError: the first refusal, after the whole batch was tried.
        """
        template = dig(replica_set, "spec", "template", default={})
        refused: list[ApiError] = []

        async def create() -> None:
            pod = pods.pod_from_template(template, f"{name_of(replica_set)}-", owner_reference(replica_set))
            try:
                created = await self._client.create("pods", pod, namespace_of(replica_set))
            except ApiError as exc:
                refused.append(exc)
                if not is_namespace_ending(exc):
                    self._event(replica_set, "FailedCreate", f"Error creating: {exc.message}")
                return
            self._pods.wrote(created)
            self._event(replica_set, "SuccessfulCreate", f"Created pod: {name_of(created)}")

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(create)
        if refused and not is_namespace_ending(refused[0]):
            raise refused[0]

    async def _delete(self, replica_set: Object, pod: Object) -> None:
        try:
            if not await delete_quietly(self._client, self._pods, pod):
                return
        except ApiError as exc:
            self._event(replica_set, "FailedDelete", f"Error deleting: {exc.message}")
            raise
        self._event(replica_set, "SuccessfulDelete", f"Deleted pod: {name_of(pod)}")

    def _event(self, replica_set: Object, reason: str, message: str) -> None:
        failed = reason.startswith("Failed")
        self._recorder.event(replica_set, "Warning" if failed else "Normal", reason, message)

    async def _write_status(
        self, replica_set: Object, owned: list[Object], failure: tuple[str, str] | None
    ) -> None:
        status = replicas.replica_set_status(replica_set, owned, failure, self._now())
        if status == dig(replica_set, "status", default={}):
            return
        try:
            written = await self._client.update(
                "replicasets.apps", {**replica_set, "status": status}, subresource="status"
            )
        except ApiError as exc:
            if exc.code == 404:
                return
            raise
        self._sets.wrote(written)


def _selector(replica_set: Object) -> LabelSelector:
    return LabelSelector.from_object(dig(replica_set, "spec", "selector"))
