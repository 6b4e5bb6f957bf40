"""From a request body to an object of a kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mesh_local.kinds.base import Kind
from mesh_local.machinery import errors, schema
from mesh_local.machinery.objects import Object, copy

OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


@dataclass(frozen=True, slots=True)
class Body:
    """The data of a request body, and what its text already did wrong (duplicate fields)."""

    data: Any
    problems: Sequence[str] = ()


def decode(kind: Kind, body: Body, validation: str, *, definition: str = "") -> tuple[Object, list[str]]:
    """The object that `body` holds, which is ours to change, and warnings about what it should not hold.

    Args:
        validation: Strict, Warn or Ignore: what unknown and duplicate fields lead to.
        definition: of a subresource's own kind, where the body is one.

    Raises:
        ApiError: 400 for a body that is not such an object.
    """
    _check_kind(kind, body.data)
    definition = definition or kind.definition
    if definition:
        decoded = schema.decode(definition, body.data, kind=kind.kind, version=kind.version)
        obj, problems = decoded.object, [*body.problems, *decoded.unknown]
    else:
        obj, problems = _custom(kind, body)
    obj["kind"], obj["apiVersion"] = kind.kind, kind.api_version
    obj.setdefault("metadata", {})
    if problems and validation == "Strict":
        raise schema.strict_error(kind.kind, kind.version, problems)
    return obj, problems if validation == "Warn" else []


def _custom(kind: Kind, body: Body) -> tuple[Object, list[str]]:
    """A custom resource: metadata as for every object, the rest by its structural schema."""
    data = body.data
    obj: Object = copy(data)
    metadata = data.get("metadata")
    decoded = schema.decode(
        OBJECT_META, {} if metadata is None else metadata, kind=kind.kind, version=kind.version
    )
    obj["metadata"] = decoded.object
    problems = [*body.problems, *(p.replace('"', '"metadata.', 1) for p in decoded.unknown)]
    if kind.prune is not None:
        problems += [f'unknown field "{path}"' for path in kind.prune(obj)]
    return obj, problems


def _check_kind(kind: Kind, data: Any) -> None:
    """Refuse an object of another kind; kind and apiVersion may be absent."""
    if not isinstance(data, dict):
        raise schema.unrecognised(
            kind.kind,
            "json: cannot unmarshal into Go value of type struct { APIVersion string "
            '"json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }',
            b"",
        )
    found, version = data.get("kind") or kind.kind, data.get("apiVersion") or kind.api_version
    if found == kind.kind and version == kind.api_version:
        return
    if found == kind.kind:
        raise errors.bad_request(
            f"the API version in the data ({version}) does not match the expected API version "
            f"({kind.api_version})"
        )
    short = str(version).rpartition("/")[2]
    group = (kind.group.partition(".")[0]) or "core"
    raise errors.bad_request(
        f'{found} in version "{short}" cannot be handled as a {kind.kind}: '
        f"converting ({short}.{found}) to ({group}.{kind.kind}): unknown conversion"
    )
