"""From a method and a path to what is wanted, as apiserver's RequestInfo resolver reads them."""

from collections.abc import Mapping
from dataclasses import dataclass

from mesh_local.apiserver.core import query_flag
from mesh_local.apiserver.types import Attributes

_VERBS = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
_NAMESPACE_SUBRESOURCES = ("status", "finalize")


@dataclass(frozen=True, slots=True)
class Route:
    """A request for a resource, or for a plain path (`attributes.path`).

    Args:
        name: the object in the path; `attributes.name` may also come from a field selector.
        rest: what follows the subresource (`proxy`).
    """

    attributes: Attributes
    name: str = ""
    rest: str = ""


def route(method: str, path: str, query: Mapping[str, str]) -> Route:
    """What the request line asks for."""
    parts = [part for part in path.split("/") if part]
    prefix = {"api": 2, "apis": 3}.get(parts[0] if parts else "", 0)
    if not prefix or len(parts) <= prefix:
        return Route(Attributes(method.lower(), path=path))
    group = parts[1] if prefix == 3 else ""
    version, parts = parts[prefix - 1], parts[prefix:]
    watching = parts[0] == "watch" and len(parts) > 1
    if watching:
        parts = parts[1:]
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 1:
        namespace = parts[1]
        if len(parts) > 2 and parts[2] not in _NAMESPACE_SUBRESOURCES:
            parts = parts[2:]
    resource, name, subresource = [*parts, "", "", ""][:3]
    verb = _VERBS.get(method, "")
    if not name:
        watching = watching or query_flag(query, "watch")
        verb = {"get": "list", "delete": "deletecollection"}.get(verb, verb)
    if watching and verb in ("get", "list"):
        verb = "watch"
    selected = _selected_name(query) if verb in ("list", "watch", "deletecollection") else ""
    attributes = Attributes(verb, group, version, resource, subresource, namespace, name or selected)
    return Route(attributes, name, "/".join(parts[3:]))


def _selected_name(query: Mapping[str, str]) -> str:
    """The one name that a field selector asks for: authorisation by resourceNames counts it."""
    for term in query.get("fieldSelector", "").split(","):
        field, _, value = term.replace("==", "=", 1).partition("=")
        if field == "metadata.name":
            return value
    return ""
