"""CustomResourceDefinitions at work: names granted, kinds served, objects removed with their definition.

What the naming, establishing and finalizing controllers of apiextensions do over time happens here at once,
right after the write that causes it.
"""

from mesh_local.apiserver.core import Core
from mesh_local.apiserver.delete import CRD_CLEANUP, CRDS
from mesh_local.apiserver.store import Change
from mesh_local.kinds.crd import crd_status, is_established, terminating_status
from mesh_local.kinds.custom import compile_crd
from mesh_local.machinery.objects import Object, copy, is_deleting, meta, name_of, rfc3339


class Definitions:
    """Keeps the registry and the status of every definition in step with the store."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._compiled: dict[str, tuple[str, int]] = {}
        self._removing: set[str] = set()
        for crd in core.store.list(CRDS):
            self._refresh(name_of(crd))
        core.store.observe(self._changed)

    def _changed(self, resource: str, change: Change) -> None:
        if resource == CRDS:
            self._refresh(change.key)
        elif change.type == "DELETED" and "." in resource:
            # The name of a definition is that of its resource.
            crd = self._core.store.get(CRDS, resource)
            if crd is not None and is_deleting(crd):
                self._refresh(resource)

    def _refresh(self, name: str) -> None:
        crd = self._core.store.get(CRDS, name)
        if crd is None:
            self._serve(name, None)
            if not self._core.registry.is_builtin_resource(name):
                self._core.store.end_watches(name)
        elif is_deleting(crd):
            self._serve(name, crd)
            self._remove(name, crd)
        else:
            others = self._core.store.list(CRDS)
            crd = self._set_status(crd, crd_status(crd, self._core.now(), others))
            self._serve(name, crd)

    def _serve(self, name: str, crd: Object | None) -> None:
        """Serve the kinds of an established definition; compile only what changed.

        One with the name of a built-in resource is never served, as in Kubernetes: its objects would be those
        of the built-in kind, and past that kind's rules.
        """
        if crd is None or not is_established(crd) or self._core.registry.is_builtin_resource(name):
            self._compiled.pop(name, None)
            self._core.registry.set_custom(name, ())
            return
        state = (crd["metadata"]["uid"], crd["metadata"].get("generation", 0))
        known = self._compiled.get(name)
        if known is None or (known != state and not is_deleting(crd)):
            self._core.registry.set_custom(name, compile_crd(copy(crd)))
            self._compiled[name] = state

    def _set_status(self, crd: Object, status: Object) -> Object:
        if crd.get("status") == status:
            return crd
        return self._core.store.update(CRDS, {**crd, "status": status}, crd)

    def _remove(self, name: str, crd: Object) -> None:
        """Delete the objects of a definition; when none is left, its finalizer goes."""
        if name in self._removing or CRD_CLEANUP not in (meta(crd).get("finalizers") or ()):
            return
        self._removing.add(name)
        own = not self._core.registry.is_builtin_resource(name)
        try:
            for obj in list(self._core.store.list(name)) if own else ():
                self._remove_object(name, obj)
        finally:
            self._removing.discard(name)
        if own and self._core.store.list(name):
            self._set_status(crd, terminating_status(crd, self._core.now(), started=True))
            return
        finalizers = [f for f in crd["metadata"]["finalizers"] if f != CRD_CLEANUP]
        released = copy(crd)
        released["metadata"]["finalizers"] = finalizers
        if finalizers:
            self._core.store.update(CRDS, released, crd)
        else:
            self._core.store.delete(CRDS, crd)

    def _remove_object(self, name: str, obj: Object) -> None:
        if not meta(obj).get("finalizers"):
            self._core.store.delete(name, obj)
        elif not is_deleting(obj):
            marked = copy(obj)
            marked["metadata"]["deletionTimestamp"] = rfc3339(self._core.now())
            marked["metadata"]["deletionGracePeriodSeconds"] = 0
            self._core.store.update(name, marked, obj)
