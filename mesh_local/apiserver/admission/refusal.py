"""How a built-in plugin refuses a request."""

from mesh_local.apiserver.types import Admission
from mesh_local.machinery.errors import ApiError, forbidden
from mesh_local.machinery.objects import meta


def refused(request: Admission, detail: str) -> ApiError:
    """403 for the object of the request."""
    return forbidden(request.kind.plural, request.kind.group, shown_name(request), detail)


def shown_name(request: Admission) -> str:
    """The name, or the generateName of an object whose name is not chosen yet."""
    metadata = meta(request.object or {})
    return request.name or metadata.get("name") or metadata.get("generateName") or "Unknown!"
