"""The garbage collector: objects follow their owners (`metadata.ownerReferences`).

Background: a dependent whose owners are all gone is deleted. Foreground: an owner with the finalizer
`foregroundDeletion` goes after its blocking dependents. Orphan: an owner with the finalizer `orphan` goes
after its dependents have lost their reference to it.
"""

from typing import NamedTuple

from mesh_local.client import Propagation
from mesh_local.controllers.everything import Everything
from mesh_local.controllers.queue import WorkQueue
from mesh_local.controllers.runner import Controller
from mesh_local.controllers.tools import Tools
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, is_deleting, meta, name_of, namespace_of, uid_of

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
# About an hour; then the object is left until it, or its owner, changes.
ATTEMPTS = 70


class Item(NamedTuple):
    """An object, by what names it and by its uid."""

    resource: str
    namespace: str
    name: str
    uid: str


def owners_of(obj: Object) -> list[Object]:
    return meta(obj).get("ownerReferences") or []


def finalizers_of(obj: Object) -> list[str]:
    return meta(obj).get("finalizers") or []


class GarbageCollector:
    """Keeps the graph of owners and dependents, and acts where an owner is gone or on its way."""

    def __init__(self, tools: Tools, everything: Everything) -> None:
        self._client = tools.client
        self._everything = everything
        self._present: dict[str, Item] = {}
        self._dependents: dict[str, set[str]] = {}
        self._queue: WorkQueue[Item] = WorkQueue(lambda: list(self._present.values()))
        everything.on_change(self._changed)

    def controller(self) -> Controller:
        informers = self._everything.informers()
        return Controller(
            "generic-garbage-collector", self._queue, self._reconcile, informers, attempts=ATTEMPTS
        )

    # The graph

    def _changed(self, resource: str, old: Object | None, new: Object | None) -> None:
        before = {ref["uid"] for ref in owners_of(old)} if old else set()
        after = {ref["uid"] for ref in owners_of(new)} if new else set()
        obj = new or old or {}
        uid = uid_of(obj)
        for owner in before - after:
            self._unlink(owner, uid)
        if new is None:
            self._gone(uid, before)
            return
        item = self._present[uid] = Item(resource, namespace_of(new), name_of(new), uid)
        for owner in after - before:
            self._dependents.setdefault(owner, set()).add(uid)
        if after != before and any(self._is_absent_or_going(owner) for owner in after):
            self._queue.add(item)
        if is_deleting(new) and {FOREGROUND, ORPHAN} & set(finalizers_of(new)):
            self._queue.add(item)

    def _gone(self, uid: str, owners: set[str]) -> None:
        self._present.pop(uid, None)
        for dependent in self._dependents.get(uid, ()):
            if dependent in self._present:
                self._queue.add(self._present[dependent])
        for owner in owners:
            self._look_at_if_going(owner)

    def _unlink(self, owner: str, dependent: str) -> None:
        linked = self._dependents.get(owner, set())
        linked.discard(dependent)
        if not linked:
            self._dependents.pop(owner, None)
        self._look_at_if_going(owner)

    def _look_at_if_going(self, uid: str) -> None:
        item = self._present.get(uid)
        if item is not None and self._is_absent_or_going(uid):
            self._queue.add(item)

    def _is_absent_or_going(self, uid: str) -> bool:
        owner = self._object(uid)
        return owner is None or (is_deleting(owner) and FOREGROUND in finalizers_of(owner))

    def _object(self, uid: str) -> Object | None:
        """The object with this uid, as far as the copies know."""
        item = self._present.get(uid)
        found = self._everything.get(item.resource, item.name, item.namespace) if item else None
        return found if found is not None and uid_of(found) == uid else None

    # Acting on it

    async def _reconcile(self, item: Item) -> None:
        obj = await self._live(item)
        if obj is None:
            return
        if is_deleting(obj):
            if ORPHAN in finalizers_of(obj):
                await self._orphan(item, obj)
            elif FOREGROUND in finalizers_of(obj):
                await self._delete_dependents(item, obj)
            return
        states = [(ref, await self._owner_state(item, ref)) for ref in owners_of(obj)]
        solid = [ref for ref, state in states if state == "solid"]
        if solid:
            if len(solid) < len(states):
                await self._set_owners(item, obj, solid)
        elif any(state == "going" for _, state in states) and self._dependents.get(item.uid):
            await self._delete(item, obj, "Foreground")
        elif states:
            kept = finalizers_of(obj)
            policy: Propagation = "Orphan" if ORPHAN in kept else "Background"
            await self._delete(item, obj, "Foreground" if FOREGROUND in kept else policy)

    async def _live(self, item: Item) -> Object | None:
        """The object as it is stored now, if it is still the same one."""
        try:
            found = await self._client.get(item.resource, item.name, item.namespace)
        except ApiError as exc:
            if exc.code == 404:
                return None
            raise
        return found if uid_of(found) == item.uid else None

    async def _owner_state(self, item: Item, ref: Object) -> str:
        """`solid`; `going`: waits for its dependents; `gone`.

        An owner of a kind that is not served, or that cannot own the object, counts as solid: nothing is
        deleted on a guess.
        """
        owner = self._object(ref["uid"])
        if owner is None or namespace_of(owner) not in ("", item.namespace):
            kind = self._everything.kind_of(ref["apiVersion"], ref["kind"])
            if kind is None or (kind.namespaced and not item.namespace):
                return "solid"
            namespace = item.namespace if kind.namespaced else ""
            owner = await self._live(Item(kind.resource, namespace, ref["name"], ref["uid"]))
            if owner is None:
                return "gone"
        waits = is_deleting(owner) and FOREGROUND in finalizers_of(owner)
        return "going" if waits else "solid"

    async def _orphan(self, item: Item, owner: Object) -> None:
        for dependent in [self._present[uid] for uid in self._dependents.get(item.uid, ())]:
            obj = await self._live(dependent)
            if obj is not None:
                rest = [ref for ref in owners_of(obj) if ref["uid"] != item.uid]
                if rest != owners_of(obj):
                    await self._set_owners(dependent, obj, rest)
        await self._remove_finalizer(item, owner, ORPHAN)

    async def _delete_dependents(self, item: Item, owner: Object) -> None:
        """Delete the dependents; the last blocking one that goes brings us here again."""
        blocked = False
        for uid in list(self._dependents.get(item.uid, ())):
            dependent = self._object(uid)
            if dependent is None:
                continue
            blocked = blocked or any(
                ref["uid"] == item.uid and ref.get("blockOwnerDeletion") for ref in owners_of(dependent)
            )
            if not is_deleting(dependent):
                self._queue.add(self._present[uid])
        if not blocked:
            await self._remove_finalizer(item, owner, FOREGROUND)

    async def _delete(self, item: Item, obj: Object, policy: Propagation) -> None:
        try:
            await self._client.delete(
                item.resource,
                item.name,
                item.namespace,
                propagation=policy,
                uid=item.uid,
                resource_version=str(meta(obj)["resourceVersion"]),
            )
        except ApiError as exc:
            if exc.code != 404:
                raise

    async def _set_owners(self, item: Item, obj: Object, owners: list[Object]) -> None:
        await self._patch(item, obj, {"ownerReferences": owners or None})

    async def _remove_finalizer(self, item: Item, obj: Object, finalizer: str) -> None:
        rest = [f for f in finalizers_of(obj) if f != finalizer]
        await self._patch(item, obj, {"finalizers": rest or None})

    async def _patch(self, item: Item, obj: Object, metadata: Object) -> None:
        patch = {"metadata": {"resourceVersion": meta(obj)["resourceVersion"], **metadata}}
        try:
            await self._client.patch(item.resource, item.name, item.namespace, patch)
        except ApiError as exc:
            if exc.code != 404:
                raise
