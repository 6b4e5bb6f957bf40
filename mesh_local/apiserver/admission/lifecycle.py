"""NamespaceLifecycle: nothing is made in a namespace that is missing or going away."""

from mesh_local.apiserver.admission.refusal import refused, shown_name
from mesh_local.apiserver.types import Admission, Reader
from mesh_local.machinery.errors import namespace_terminating, not_found
from mesh_local.machinery.objects import dig

IMMORTAL = frozenset({"default", "kube-system", "kube-public", "kube-node-lease"})
_WRITES = ("CREATE", "UPDATE")
_REVIEWS = "authorization.k8s.io"


class NamespaceLifecycle:
    """Refuses writes into missing namespaces, creates in terminating ones, deletion of immortal ones."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def mutate(self, request: Admission) -> None:
        kind = request.kind
        if kind.resource == "namespaces":
            if request.operation == "DELETE" and request.name in IMMORTAL:
                raise refused(request, "this namespace may not be deleted")
            return
        _check_namespace(self._reader, request)

    async def validate(self, request: Admission) -> None: ...


class NamespaceStays:
    """Looks once more, after the webhooks: nothing is left behind in a namespace that went meanwhile."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def mutate(self, request: Admission) -> None: ...

    async def validate(self, request: Admission) -> None:
        _check_namespace(self._reader, request)


def _check_namespace(reader: Reader, request: Admission) -> None:
    """Raise ApiError 404 or 403 where the namespace of a write is missing, or going away."""
    kind = request.kind
    if kind.resource == "namespaces" or kind.group == _REVIEWS:
        return
    if not request.namespace or request.operation not in _WRITES:
        return
    namespace = reader.get("namespaces", request.namespace)
    if namespace is None:
        raise not_found("namespaces", "", request.namespace)
    if request.operation == "CREATE" and dig(namespace, "status", "phase") == "Terminating":
        raise namespace_terminating(kind.plural, kind.group, shown_name(request), request.namespace)
