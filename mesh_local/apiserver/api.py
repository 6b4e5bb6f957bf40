"""The verbs of the API in process; the callers, the HTTP face and `LocalClient`, authorise first."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from mesh_local.apiserver import delete, listing, patching, subresources, watching, write
from mesh_local.apiserver.core import Core, Target, WriteOptions, Written
from mesh_local.apiserver.decode import Body
from mesh_local.apiserver.definitions import Definitions
from mesh_local.apiserver.delete import Deleted, DeleteOptions
from mesh_local.apiserver.listing import ListOptions, Page
from mesh_local.apiserver.types import Endpoint, User
from mesh_local.client import PatchType, WatchEvent
from mesh_local.kinds.base import Kind
from mesh_local.machinery import errors
from mesh_local.machinery.objects import Object


class Api:
    """Every verb of every kind and subresource.

    All methods raise ApiError. What they return is shared with the store: nobody changes it.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self._definitions = Definitions(core)
        for (resource, name), endpoint in subresources.own_endpoints(core).items():
            self.register(resource, name, endpoint)

    def register(self, resource: str, subresource: str, endpoint: Endpoint) -> None:
        """Let `endpoint` serve the creates of a subresource, or of a virtual kind (subresource '')."""
        self.core.endpoints[resource, subresource] = endpoint

    def authorize(
        self,
        user: User,
        verb: str,
        resource: str,
        namespace: str = "",
        name: str = "",
        subresource: str = "",
    ) -> Target:
        """The target of a request that `user` may make.

        Args:
            resource: `pods`, `deployments.apps`.

        Raises:
            ApiError: 403; 404 for an unknown resource or subresource, 405 for a verb that it does not have.
        """
        kind = self.core.registry.by_name(resource)
        if kind is None:
            raise unknown_resource()
        target = Target(kind, namespace, name, subresource)
        self.core.authorize(user, verb, target)
        if verb not in verbs_of(kind, subresource):
            raise method_not_allowed()
        return target

    async def get(self, target: Target, resource_version: str = "") -> Object:
        if target.subresource == "scale":
            return subresources.get_scale(self.core, target)
        return listing.read(self.core, target, resource_version)

    async def list(self, target: Target, options: ListOptions) -> Page:
        return listing.list_objects(self.core, target, options)

    def watch(
        self, target: Target, options: ListOptions
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchEvent]]:
        return watching.watch(self.core, target, options)

    async def create(
        self,
        user: User,
        target: Target,
        body: Body,
        options: WriteOptions,
        query: Mapping[str, str] | None = None,
    ) -> Written:
        if (target.kind.resource, target.subresource) in self.core.endpoints:
            return await subresources.call(self.core, user, target, body, options, query or {})
        if target.subresource or "get" not in target.kind.verbs:
            raise method_not_allowed()
        return await write.create(self.core, user, target, body, options)

    async def update(self, user: User, target: Target, body: Body, options: WriteOptions) -> Written:
        if target.subresource == "scale":
            return await subresources.update_scale(self.core, user, target, body, options)
        return await write.update(self.core, user, target, body, options)

    async def patch(
        self, user: User, target: Target, body: Body, type_: PatchType, options: WriteOptions
    ) -> Written:
        return await patching.patch(self.core, user, target, body, type_, options)

    async def delete(self, user: User, target: Target, options: DeleteOptions) -> Deleted:
        return await delete.delete(self.core, user, target, options)

    async def delete_collection(
        self, user: User, target: Target, selected: ListOptions, options: DeleteOptions
    ) -> Page:
        """Delete what a list with `selected` would show; returns that list."""
        return await delete.delete_collection(self.core, user, target, selected, options)


def verbs_of(kind: Kind, subresource: str) -> Sequence[str]:
    """The verbs of a kind or of one of its subresources. Raises ApiError 404."""
    if not subresource:
        return kind.verbs
    found = kind.subresource(subresource)
    if found is None:
        raise unknown_resource()
    return found.verbs


def unknown_resource() -> errors.ApiError:
    return errors.failure(404, "NotFound", "the server could not find the requested resource", {})


def method_not_allowed() -> errors.ApiError:
    return errors.failure(
        405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {}
    )
