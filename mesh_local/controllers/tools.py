"""What every controller is given, and the few moves that several make."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from mesh_local.client import Client
from mesh_local.controllers.events import Recorder
from mesh_local.controllers.informer import Informer, Informers
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, controller_of, name_of, namespace_of, owner_reference, uid_of

# Informer indexes: by the uid of the controlling owner; by namespace, of those that nobody controls.
CONTROLLER = "controller"
ORPHAN = "orphan"


@dataclass(frozen=True, slots=True)
class Tools:
    """A controller's own client and recorder, and the copies that all controllers share."""

    client: Client
    recorder: Recorder
    informers: Informers
    now: Callable[[], datetime]


def index_owners(informer: Informer) -> None:
    """Let `informer` answer for `CONTROLLER` and `ORPHAN`."""
    informer.add_index(CONTROLLER, _controller_uid)
    informer.add_index(ORPHAN, lambda obj: () if controller_of(obj) else (namespace_of(obj),))


def _controller_uid(obj: Object) -> Iterable[str]:
    found = controller_of(obj)
    return (str(found.get("uid")),) if found else ()


def controlled_by(informer: Informer, owner: Object) -> list[Object]:
    """What `owner` controls, and what nobody controls in its namespace."""
    return [
        *informer.by_index(CONTROLLER, uid_of(owner)),
        *informer.by_index(ORPHAN, namespace_of(owner)),
    ]


async def adopt(client: Client, informer: Informer, owner: Object, obj: Object) -> Object:
    """Make `owner` the controller of `obj`.

    Raises:
        ApiError: 409 where `obj` is another object by now, 422 where it got another controller.
    """
    metadata = {"uid": uid_of(obj), "ownerReferences": [owner_reference(owner)]}
    return await _patch(client, informer, obj, metadata)


async def release(client: Client, informer: Informer, owner: Object, obj: Object) -> None:
    """Take the owner reference to `owner` from `obj`, which may be gone."""
    reference = {"$patch": "delete", "uid": uid_of(owner)}
    try:
        await _patch(client, informer, obj, {"uid": uid_of(obj), "ownerReferences": [reference]})
    except ApiError as exc:
        if exc.code not in (404, 422):
            raise


async def _patch(client: Client, informer: Informer, obj: Object, metadata: Object) -> Object:
    patch = {"metadata": metadata}
    found = await client.patch(informer.resource, name_of(obj), namespace_of(obj), patch, type="strategic")
    informer.wrote(found)
    return found


async def delete_quietly(client: Client, informer: Informer, obj: Object) -> bool:
    """Delete `obj`; False where it, or the object that had its name, is gone already."""
    try:
        answer = await client.delete(
            informer.resource, name_of(obj), namespace_of(obj), propagation="Background", uid=uid_of(obj)
        )
    except ApiError as exc:
        if exc.code in (404, 409):
            return False
        raise
    if answer.get("kind") == obj.get("kind"):
        informer.wrote(answer)
    return True
