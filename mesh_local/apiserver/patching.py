"""Patch: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch."""

from typing import Any

from mesh_local.apiserver.core import Core, Target, WriteOptions, Written
from mesh_local.apiserver.decode import Body, decode
from mesh_local.apiserver.subresources import SCALE, edit_scale
from mesh_local.apiserver.types import User
from mesh_local.apiserver.write import edit
from mesh_local.client import PatchType
from mesh_local.kinds.base import Kind
from mesh_local.machinery import errors
from mesh_local.machinery.objects import Object
from mesh_local.machinery.patch import json_patch, merge_patch
from mesh_local.machinery.strategic import strategic_merge


async def patch(
    core: Core, user: User, target: Target, body: Body, type_: PatchType, options: WriteOptions
) -> Written:
    """Change an object, its status or its scale."""
    kind = SCALE if target.subresource == "scale" else target.kind

    def change(old: Object) -> tuple[Object, list[str]]:
        patched = Body(_apply(kind, type_, old, body.data), body.problems)
        return decode(kind, patched, options.field_validation)

    if kind is SCALE:
        return await edit_scale(core, user, target, change, options)
    return await edit(core, user, target, change, options.as_object("UpdateOptions"), options)


def _apply(kind: Kind, type_: PatchType, old: Object, patch: Any) -> Any:
    match type_:
        case "json":
            return json_patch(old, patch)
        case "merge":
            return merge_patch(old, patch)
    if not kind.definition:
        raise no_strategic()
    return strategic_merge(kind.definition, old, patch)


def no_strategic() -> errors.ApiError:
    """415: a custom resource has no merge keys."""
    return errors.failure(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: "
        "application/json-patch+json, application/merge-patch+json",
    )
