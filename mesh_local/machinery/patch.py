"""JSON patch (RFC 6902), merge patch (RFC 7396) and, from its own module, strategic merge patch.

No function changes what it is given.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jsonpatch
import jsonpointer
import msgspec

from mesh_local.machinery import jsontext
from mesh_local.machinery.errors import ApiError, bad_request, too_large, unprocessable
from mesh_local.machinery.objects import copy
from mesh_local.machinery.scalars import json_type
from mesh_local.machinery.strategic import strategic_merge

__all__ = ["JsonPatchError", "apply_json_patch", "json_patch", "merge_patch", "strategic_merge"]

MAX_OPERATIONS = 10_000
# What the `copy` operations of one patch may add; without a limit a short patch can double a document often.
MAX_COPIED_BYTES = 3 * 1024 * 1024
_ARGUMENTS = {
    "add": ("value",),
    "remove": (),
    "replace": ("value",),
    "move": ("from",),
    "copy": ("from",),
    "test": ("value",),
}


class JsonPatchError(Exception):
    """A JSON patch that does not apply; the message says which operation and why."""


def json_patch(doc: Any, operations: Any) -> Any:
    """The document after a client's patch.

    Raises:
        ApiError: 400 for what is not a patch, 413 for too many operations, 422 where it does not apply.
    """
    if not isinstance(operations, list):
        raise _undecodable(operations, "[]handlers.jsonPatchOp")
    for operation in operations:
        if not isinstance(operation, dict):
            raise _undecodable(operation, "handlers.jsonPatchOp")
        for key in ("op", "path", "from"):
            if not isinstance(operation.get(key, ""), str):
                found = json_type(operation[key])
                raise bad_request(
                    f"error decoding patch: json: cannot unmarshal {found} into Go struct field "
                    f"jsonPatchOp.{key} of type string"
                )
    if len(operations) > MAX_OPERATIONS:
        raise too_large(
            f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(operations)}"
        )
    try:
        return apply_json_patch(doc, operations)
    except JsonPatchError:
        raise unprocessable() from None


def apply_json_patch(doc: Any, operations: Sequence[Any]) -> Any:
    """The document after a patch, as webhooks send it too.

    Raises:
        JsonPatchError: an operation is malformed or does not apply.
    """
    if len(operations) > MAX_OPERATIONS:
        raise JsonPatchError(f"more than {MAX_OPERATIONS} operations")
    result = copy(doc)
    copied = 0
    for operation in operations:
        _check_operation(operation)
        try:
            if operation["op"] == "copy":
                source = jsonpointer.resolve_pointer(result, operation["from"])
                copied += len(msgspec.json.encode(source))
                if copied > MAX_COPIED_BYTES:
                    raise JsonPatchError(f"copy operations add more than {MAX_COPIED_BYTES} bytes")
            if not _passes_on_absence(result, operation):
                step = jsonpatch.JsonPatch([_as_kubernetes(result, operation)])
                result = step.apply(result, in_place=True)
        except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, TypeError) as error:
            raise JsonPatchError(_explain(result, operation, str(error))) from None
        except RecursionError:
            raise JsonPatchError("the document nests too deep") from None
    try:
        jsontext.check_depth(result)
    except jsontext.TextError as error:
        raise JsonPatchError(str(error)) from None
    return result


def _absent_key(doc: Any, path: str) -> bool:
    """Whether a path names a key that its object does not have."""
    if not path:
        return False
    holder, key = jsonpointer.JsonPointer(path).to_last(doc)
    return isinstance(holder, dict) and key not in holder


def _passes_on_absence(doc: Any, operation: Mapping[str, Any]) -> bool:
    """To the API server, other than in RFC 6902, an absent key equals null."""
    is_null_test = operation["op"] == "test" and operation["value"] is None
    return is_null_test and _absent_key(doc, operation["path"])


def _as_kubernetes(doc: Any, operation: Mapping[str, Any]) -> Any:
    """A copy of the operation; to the API server, other than in RFC 6902, replacing an absent key adds it."""
    if operation["op"] == "replace" and _absent_key(doc, operation["path"]):
        return {**copy(operation), "op": "add"}
    return copy(operation)


def _check_operation(operation: Any) -> None:
    if not isinstance(operation, dict):
        raise JsonPatchError("an operation must be an object")
    op, path = operation.get("op"), operation.get("path")
    if not isinstance(op, str) or op not in _ARGUMENTS:
        raise JsonPatchError(f"Unexpected kind: {op}")
    if not isinstance(path, str):
        raise JsonPatchError(f"{op} operation: path is missing")
    for argument in _ARGUMENTS[op]:
        if argument not in operation or (argument == "from" and not isinstance(operation["from"], str)):
            raise JsonPatchError(f"{op} operation: {argument} is missing")


def _explain(doc: Any, operation: Mapping[str, Any], detail: str) -> str:
    """What the real API server says of a failed operation, for the common failures."""
    op, path = operation["op"], operation["path"]
    if op == "test":
        return f"testing value {path} failed: test failed"
    parent, _, last = path.rpartition("/")
    try:
        holder = jsonpointer.resolve_pointer(doc, parent)
    except jsonpointer.JsonPointerException:
        holder = None
    if not isinstance(holder, dict | list):
        shown = path if op == "replace" else f'"{path}"'
        return f"{op} operation does not apply: doc is missing path: {shown}: missing value"
    if op == "remove" and isinstance(holder, dict):
        key = jsonpointer.unescape(last)
        return f"error in remove for path: '{path}': Unable to remove nonexistent key: {key}: missing value"
    return f"{op} operation does not apply: {detail}"


def merge_patch(doc: Any, patch: Any) -> Any:
    """The document after a JSON merge patch.

    Raises:
        ApiError: 400, the patch is not an object.
    """
    if not isinstance(patch, dict):
        raise _undecodable(patch, "map[string]interface {}")
    return _merge(doc, patch)


def _merge(doc: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy(patch)
    old = doc if isinstance(doc, dict) else {}
    result = {
        k: _merge(v, patch[k]) if k in patch else copy(v)
        for k, v in old.items()
        if k not in patch or patch[k] is not None
    }
    for key, value in patch.items():
        if value is not None and key not in result:
            result[key] = _merge(None, value)
    return result


def _undecodable(value: Any, go_type: str) -> ApiError:
    kind = "null" if value is None else json_type(value)
    return bad_request(f"error decoding patch: json: cannot unmarshal {kind} into Go value of type {go_type}")
