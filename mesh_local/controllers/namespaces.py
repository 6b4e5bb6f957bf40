"""The namespace controller: empties a namespace that is being deleted, then lets it go."""

from collections import Counter

from mesh_local.controllers.decisions.namespaces import Remaining, deletion_conditions
from mesh_local.controllers.everything import Everything
from mesh_local.controllers.queue import WorkQueue
from mesh_local.controllers.runner import Controller
from mesh_local.controllers.tools import Tools
from mesh_local.kinds.base import Kind
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, dig, is_deleting, meta, name_of, namespace_of

FINALIZER = "kubernetes"
# Objects that go wake the controller; together, as many go at once.
BATCH_S = 0.1
# In case something stays that shows no change when it may go.
AGAIN_S = 10.0


class NamespaceController:
    """Deletes all content, pods first (KEP-5080), reports what remains, and removes the finalizer."""

    def __init__(self, tools: Tools, everything: Everything) -> None:
        self._client = tools.client
        self._now = tools.now
        self._everything = everything
        self._namespaces = tools.informers.of("namespaces")
        self._queue: WorkQueue[str] = WorkQueue(lambda: map(name_of, self._namespaces.list()))
        self._namespaces.on_change(self._namespace_changed)
        everything.on_change(self._content_changed)

    def controller(self) -> Controller:
        return Controller("namespace-controller", self._queue, self._reconcile, (self._namespaces,))

    def _namespace_changed(self, _old: Object | None, new: Object | None) -> None:
        if new is not None and is_deleting(new):
            self._queue.add(name_of(new))

    def _content_changed(self, _resource: str, old: Object | None, new: Object | None) -> None:
        if new is not None or old is None:
            return
        namespace = self._namespaces.get(namespace_of(old))
        if namespace is not None and is_deleting(namespace):
            self._queue.add_after(name_of(namespace), BATCH_S)

    async def _reconcile(self, name: str) -> float | None:
        namespace = self._namespaces.get(name)
        if namespace is None or not is_deleting(namespace):
            return None
        finalizers = dig(namespace, "spec", "finalizers", default=[])
        if FINALIZER not in finalizers:
            return None
        remaining = await self._empty(name)
        conditions = deletion_conditions(namespace, remaining, self._now())
        status = {**(namespace.get("status") or {}), "conditions": conditions}
        try:
            if status != namespace.get("status"):
                wanted = {**namespace, "status": status}
                namespace = await self._client.update("namespaces", wanted, subresource="status")
                self._namespaces.wrote(namespace)
            if not remaining.empty:
                return AGAIN_S
            spec = {**namespace["spec"], "finalizers": [f for f in finalizers if f != FINALIZER]}
            await self._client.update("namespaces", {**namespace, "spec": spec}, subresource="finalize")
        except ApiError as exc:
            if exc.code != 404:
                raise
        return None

    async def _empty(self, name: str) -> Remaining:
        kinds = self._everything.resources(namespaced=True)
        remaining = Remaining()
        for kind in (k for k in kinds if k.resource == "pods"):
            if await self._delete_all(kind, name):
                remaining.failures.append(
                    f"unexpected items still remain in namespace: {name} for gvr: /v1, Resource=pods"
                )
        if remaining.failures:
            return remaining
        held: Counter[str] = Counter()
        for kind in (k for k in kinds if k.resource != "pods"):
            try:
                left = await self._delete_all(kind, name)
            except ApiError as exc:
                remaining.failures.append(exc.message)
                continue
            if left:
                remaining.instances[f"{kind.plural}.{kind.group}"] = len(left)
                held.update(f for obj in left for f in meta(obj).get("finalizers") or ())
        remaining.finalizers = dict(held)
        return remaining

    async def _delete_all(self, kind: Kind, namespace: str) -> list[Object]:
        """Delete every object of a kind; returns what is still there."""
        found = await self._client.list(kind.resource, namespace)
        if not found.items:
            return []
        for obj in found.items:
            if not is_deleting(obj):
                await self._delete(kind.resource, obj)
        return (await self._client.list(kind.resource, namespace)).items

    async def _delete(self, resource: str, obj: Object) -> None:
        try:
            await self._client.delete(resource, name_of(obj), namespace_of(obj), propagation="Background")
        except ApiError as exc:
            if exc.code != 404:
                raise
