"""The API as controllers and the kubelet see it; `apiserver.client.LocalClient` serves it in process.

Every call runs the whole pipeline of the server (authorisation, admission, validation) as the client's
user, so that no component can do what it could not do over HTTPS. Kinds are named `pods`,
`deployments.apps`, `plural.group`.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mesh_local.machinery.objects import Object

PatchType = Literal["json", "merge", "strategic"]
Propagation = Literal["Background", "Foreground", "Orphan"]


@dataclass(frozen=True, slots=True)
class ObjectList:
    """Objects and the resourceVersion from which a watch continues. Items carry apiVersion and kind."""

    items: list[Object]
    resource_version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """`ADDED`, `MODIFIED`, `DELETED` or `BOOKMARK`, with the object (shared: do not change it)."""

    type: str
    object: Object


class Client(Protocol):
    """All methods raise `machinery.errors.ApiError`."""

    async def get(self, resource: str, name: str, namespace: str = "") -> Object: ...

    async def list(
        self, resource: str, namespace: str = "", *, labels: str = "", fields: str = ""
    ) -> ObjectList: ...

    async def create(
        self, resource: str, obj: Object, namespace: str = "", *, subresource: str = ""
    ) -> Object:
        """Create `obj`; with a subresource (`token`, `binding`...) `obj` must carry the parent's name."""
        ...

    async def update(self, resource: str, obj: Object, *, subresource: str = "") -> Object: ...

    async def patch(
        self,
        resource: str,
        name: str,
        namespace: str,
        patch: Any,
        *,
        type: PatchType = "merge",
        subresource: str = "",
    ) -> Object: ...

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
    ) -> Object: ...

    def watch(
        self,
        resource: str,
        namespace: str = "",
        *,
        resource_version: str = "",
        labels: str = "",
        fields: str = "",
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchEvent]]:
        """Events after `resource_version`; without one, first an ADDED for each present object.

        The iterator ends when the server ends the watch; a version too old raises ApiError 410 (list again).
        """
        ...
