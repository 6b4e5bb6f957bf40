"""Knows every kind that can be listed, watched and deleted, and watches their objects, custom ones too."""

from collections.abc import Callable, Sequence
from functools import partial

from mesh_local.controllers.informer import Informer, Informers
from mesh_local.controllers.queue import WorkQueue
from mesh_local.controllers.runner import Controller
from mesh_local.kinds.base import Kind
from mesh_local.machinery.objects import Object

DEFINITIONS = "customresourcedefinitions.apiextensions.k8s.io"
NEEDED = {"list", "watch", "delete"}
# Many, short-lived and without owners: listed when a namespace is emptied, not watched.
UNWATCHED = {"events"}

OnAnyChange = Callable[[str, Object | None, Object | None], None]


class Everything:
    """An informer for each kind that `kinds` names; follows the CustomResourceDefinitions.

    Args:
        kinds: the kinds that are served now.
    """

    def __init__(self, informers: Informers, kinds: Callable[[], Sequence[Kind]]) -> None:
        self._informers = informers
        self._kinds = kinds
        self._served: dict[str, Kind] = {}
        self._callbacks: list[OnAnyChange] = []
        self._queue: WorkQueue[str] = WorkQueue(lambda: ("",))
        self._definitions: Informer | None = None
        self._follow()

    def controller(self) -> Controller:
        return Controller("resource-discovery", self._queue, self._reconcile, workers=1)

    def on_change(self, callback: OnAnyChange) -> None:
        """Call back with `(resource, old, new)` for every change of every object."""
        self._callbacks.append(callback)

    def resources(self, *, namespaced: bool) -> list[Kind]:
        """The kinds that are served now, each resource once."""
        self._follow()
        return [kind for kind in self._served.values() if kind.namespaced == namespaced]

    def kind_of(self, api_version: str, kind: str) -> Kind | None:
        """The kind that an owner reference names, in whichever version is served."""
        self._follow()
        group = api_version.rpartition("/")[0]
        return next((k for k in self._served.values() if k.kind == kind and k.group == group), None)

    def informers(self) -> list[Informer]:
        """The copies of all kinds that are watched now."""
        return [self._informers.of(r) for r in self._served if r not in UNWATCHED]

    def get(self, resource: str, name: str, namespace: str) -> Object | None:
        """The object, as the copies know it."""
        known = resource in self._served and resource not in UNWATCHED
        return self._informers.of(resource).get(name, namespace) if known else None

    async def _reconcile(self, _key: str) -> None:
        self._follow()

    def _follow(self) -> None:
        """Watch what is served now, and nothing else."""
        served = {k.resource: k for k in reversed(self._kinds()) if _is_watchable(k)}
        for resource in self._served.keys() - served.keys():
            del self._served[resource]
            for obj in self._informers.of(resource).list():
                self._changed(resource, obj, None)
            self._informers.drop(resource)
        for resource, kind in served.items():
            if resource not in self._served and resource not in UNWATCHED:
                self._informers.of(resource).on_change(partial(self._changed, resource))
            self._served[resource] = kind
        if self._definitions is None and DEFINITIONS in served:
            self._definitions = self._informers.of(DEFINITIONS)
            self._definitions.on_change(self._definition_changed)

    def _changed(self, resource: str, old: Object | None, new: Object | None) -> None:
        for callback in self._callbacks:
            callback(resource, old, new)

    def _definition_changed(self, _old: Object | None, _new: Object | None) -> None:
        # The server serves a kind before it tells of its definition.
        self._queue.add("")


def _is_watchable(kind: Kind) -> bool:
    """Another view of what is stored under another name (events.k8s.io) is left out."""
    return set(kind.verbs) >= NEEDED and kind.stored_as == kind.resource
