"""The in-process client: what controllers and the kubelet use."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mesh_local.apiserver.api import Api
from mesh_local.apiserver.core import Target, WriteOptions
from mesh_local.apiserver.decode import Body
from mesh_local.apiserver.delete import DeleteOptions, answer
from mesh_local.apiserver.listing import ListOptions
from mesh_local.apiserver.types import User
from mesh_local.client import ObjectList, PatchType, Propagation, WatchEvent
from mesh_local.machinery.objects import Object, name_of, namespace_of

# A component that writes a field nobody knows has a defect: refuse it.
_STRICT = WriteOptions(field_validation="Strict")


class LocalClient:
    """Implements `mesh_local.client.Client` as `user`."""

    def __init__(self, api: Api, user: User) -> None:
        self._api = api
        self._user = user

    def _allowed(
        self, verb: str, resource: str, namespace: str = "", name: str = "", subresource: str = ""
    ) -> Target:
        return self._api.authorize(self._user, verb, resource, namespace, name, subresource)

    async def get(self, resource: str, name: str, namespace: str = "") -> Object:
        return await self._api.get(self._allowed("get", resource, namespace, name))

    async def list(
        self, resource: str, namespace: str = "", *, labels: str = "", fields: str = ""
    ) -> ObjectList:
        target = self._allowed("list", resource, namespace)
        page = await self._api.list(target, ListOptions(labels=labels, fields=fields))
        return ObjectList(list(page.items), page.metadata["resourceVersion"])

    async def create(
        self, resource: str, obj: Object, namespace: str = "", *, subresource: str = ""
    ) -> Object:
        namespace = namespace or namespace_of(obj)
        name = name_of(obj) if subresource else ""
        target = self._allowed("create", resource, namespace, name, subresource)
        return (await self._api.create(self._user, target, Body(obj), _STRICT)).object

    async def update(self, resource: str, obj: Object, *, subresource: str = "") -> Object:
        target = self._allowed("update", resource, namespace_of(obj), name_of(obj), subresource)
        return (await self._api.update(self._user, target, Body(obj), _STRICT)).object

    async def patch(
        self,
        resource: str,
        name: str,
        namespace: str,
        patch: Any,
        *,
        type: PatchType = "merge",
        subresource: str = "",
    ) -> Object:
        target = self._allowed("patch", resource, namespace, name, subresource)
        return (await self._api.patch(self._user, target, Body(patch), type, _STRICT)).object

    async def delete(
        self,
        resource: str,
        name: str,
        namespace: str = "",
        *,
        grace_s: int | None = None,
        propagation: Propagation | None = None,
        uid: str = "",
        resource_version: str = "",
    ) -> Object:
        target = self._allowed("delete", resource, namespace, name)
        options = DeleteOptions(
            grace_s=grace_s, propagation=propagation or "", uid=uid, resource_version=resource_version
        )
        return answer(target, await self._api.delete(self._user, target, options))

    @asynccontextmanager
    async def watch(
        self,
        resource: str,
        namespace: str = "",
        *,
        resource_version: str = "",
        labels: str = "",
        fields: str = "",
    ) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        target = self._allowed("watch", resource, namespace)
        options = ListOptions(labels=labels, fields=fields, resource_version=resource_version)
        async with self._api.watch(target, options) as events:
            yield events
