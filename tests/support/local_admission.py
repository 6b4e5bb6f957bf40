"""Objects for admission plugins to read, and requests for them to judge."""

from collections.abc import Sequence

from mesh_local.apiserver.types import Admission, User
from mesh_local.kinds.builtin import BUILTIN
from mesh_local.machinery.objects import Object, name_of, namespace_of

KINDS = {kind.resource: kind for kind in BUILTIN}


class Objects:
    """A `Reader` over a dict that a test fills."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str, str], Object] = {}

    def add(self, resource: str, obj: Object) -> Object:
        self.stored[resource, namespace_of(obj), name_of(obj)] = obj
        return obj

    def namespace(self, name: str, phase: str = "Active", **labels: str) -> Object:
        metadata = {"name": name, "labels": {k.replace("_", "-"): v for k, v in labels.items()}}
        return self.add("namespaces", {"metadata": metadata, "status": {"phase": phase}})

    def get(self, resource: str, name: str, namespace: str = "") -> Object | None:
        return self.stored.get((resource, namespace, name))

    def list(self, resource: str, namespace: str = "") -> Sequence[Object]:
        return [o for (r, ns, _), o in sorted(self.stored.items()) if r == resource and namespace in ("", ns)]


def create(resource: str, obj: Object, *, dry_run: bool = False) -> Admission:
    """A create as admission sees it, after defaulting."""
    kind = KINDS[resource]
    kind.default(obj)
    namespace = namespace_of(obj)
    return Admission("CREATE", kind, name_of(obj), namespace, "", obj, None, {}, User("u"), dry_run)


def update(resource: str, obj: Object, old: Object) -> Admission:
    kind = KINDS[resource]
    kind.default(obj)
    return Admission("UPDATE", kind, name_of(obj), namespace_of(obj), "", obj, old, {}, User("u"))


def delete(resource: str, name: str, namespace: str = "") -> Admission:
    return Admission("DELETE", KINDS[resource], name, namespace, "", None, None, {}, User("u"))
