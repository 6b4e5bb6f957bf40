"""The OpenAPI v3 documents that kubectl reads: one for each group version, and their index.

kubectl validates on the server where the patch operation of a kind takes `fieldValidation`, makes strategic
merge patches by the extensions of the schemas, and `kubectl explain` prints descriptions.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from mesh_local.machinery import schema
from mesh_local.machinery.objects import Object

if TYPE_CHECKING:
    from mesh_local.kinds.base import Kind, Subresource

META = "io.k8s.apimachinery.pkg.apis.meta.v1."
COMPONENTS = "#/components/schemas/"
INFO = {"title": "Kubernetes", "version": "1.36"}
_JSON = "application/json"
_PATCHES = ("application/json-patch+json", "application/merge-patch+json")
_STRATEGIC = "application/strategic-merge-patch+json"
_ANSWERS = (_JSON, "application/yaml")
# The words of operation ids, by verb.
_WORDS = {
    "list": "list",
    "create": "create",
    "deletecollection": "deleteCollection",
    "get": "read",
    "update": "replace",
    "patch": "patch",
    "delete": "delete",
}
# HTTP method and x-kubernetes-action, by verb.
_METHODS = {
    "list": ("get", "list"),
    "create": ("post", "post"),
    "deletecollection": ("delete", "deletecollection"),
    "get": ("get", "get"),
    "update": ("put", "put"),
    "patch": ("patch", "patch"),
    "delete": ("delete", "delete"),
}
_COLLECTION = ("list", "create", "deletecollection")
_ITEM = ("get", "update", "patch", "delete")
_DRY_RUN = "When present, indicates that modifications should not be persisted. Valid values are: All."
_MANAGER = "The name of the actor or entity that is making these changes: at most 128 printable characters."
_VALIDATION = (
    "How to treat unknown or duplicate fields in the body: Ignore drops them, Warn drops them and sends a "
    "warning for each, Strict refuses the request."
)


def group_path(group: str, version: str) -> str:
    """`api/v1` or `apis/apps/v1`."""
    return f"apis/{group}/{version}" if group else f"api/{version}"


def index(kinds: Iterable["Kind"]) -> Object:
    """The answer to GET /openapi/v3: a document for each group version, with the hash of its content."""
    found: dict[tuple[str, str], list[Kind]] = {}
    for kind in kinds:
        found.setdefault((kind.group, kind.version), []).append(kind)
    paths = {}
    for (group, version), members in sorted(found.items()):
        path = group_path(group, version)
        hash_ = digest(group, version, members)
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={hash_}"}
    return {"paths": paths}


def digest(group: str, version: str, kinds: Sequence["Kind"]) -> str:
    """A hash that changes with the document: of what it is made from, which is cheaper than making it."""
    parts = [
        (
            kind.kind,
            kind.plural,
            kind.namespaced,
            kind.verbs,
            kind.definition,
            [(s.name, s.kind, s.verbs, s.group, s.version) for s in kind.subresources],
            kind.openapi,
        )
        for kind in _members(group, version, kinds)
    ]
    encoded = msgspec.json.encode((group, version, parts), order="deterministic")
    return hashlib.sha512(encoded).hexdigest().upper()


def document(group: str, version: str, kinds: Sequence["Kind"]) -> Object:
    """The OpenAPI document of one group version; kinds of others are passed over."""
    paths, schemas = parts(_members(group, version, kinds))
    return {
        "openapi": "3.0.0",
        "info": INFO,
        "paths": paths,
        "components": {"schemas": schemas},
    }


def parts(kinds: Iterable["Kind"]) -> tuple[Object, Object]:
    """The paths of kinds, and every schema that these refer to."""
    paths: Object = {}
    schemas: Object = {}
    wanted = [f"{META}Status", f"{META}DeleteOptions"]
    for kind in kinds:
        for path, item in _paths(kind):
            paths[path] = item
        if kind.definition:
            wanted += [kind.definition, f"{kind.definition}List"]
        else:
            schemas.update(_custom(kind))
            wanted += [f"{META}ObjectMeta", f"{META}ListMeta"]
        wanted += [schema.definition_of(*_subresource_kind(kind, s)) for s in kind.subresources]
    schemas.update(_reachable(wanted))
    return paths, schemas


def _members(group: str, version: str, kinds: Iterable["Kind"]) -> list["Kind"]:
    found = [k for k in kinds if (k.group, k.version) == (group, version)]
    return sorted(found, key=lambda k: k.plural)


def _gvk(group: str, version: str, kind: str) -> Object:
    return {"group": group, "version": version, "kind": kind}


def _subresource_kind(kind: "Kind", subresource: "Subresource") -> tuple[str, str, str]:
    """Group, version and kind of what a subresource reads and writes."""
    if subresource.version:
        return subresource.group, subresource.version, subresource.kind
    return kind.group, kind.version, subresource.kind


def _paths(kind: "Kind") -> Iterator[tuple[str, Object]]:
    root = f"/{group_path(kind.group, kind.version)}"
    own = (kind.group, kind.version, kind.kind)
    home = f"{root}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"{root}/{kind.plural}"
    collection = [v for v in _COLLECTION if v in kind.verbs]
    item = [v for v in _ITEM if v in kind.verbs]
    if kind.namespaced and "list" in collection:
        yield f"{root}/{kind.plural}", _item(kind, own, ["list"], suffix="ForAllNamespaces", namespaced=False)
    if collection:
        yield home, _item(kind, own, collection)
    if item:
        yield f"{home}/{{name}}", _item(kind, own, item, named=True)
    for subresource in kind.subresources:
        verbs = [v for v in (*_ITEM, "create") if v in subresource.verbs]
        if verbs:
            suffix = "".join(part.capitalize() for part in subresource.name.split("/"))
            gvk = _subresource_kind(kind, subresource)
            path = f"{home}/{{name}}/{subresource.name}"
            yield path, _item(kind, gvk, verbs, suffix=suffix, named=True)


def _item(
    kind: "Kind",
    gvk: tuple[str, str, str],
    verbs: Sequence[str],
    *,
    suffix: str = "",
    named: bool = False,
    namespaced: bool | None = None,
) -> Object:
    """A path item: one operation for each verb, and the parameters of the path."""
    scoped = kind.namespaced if namespaced is None else namespaced
    parameters = []
    if named:
        parameters.append(_path_parameter("name", f"name of the {kind.kind}"))
    if scoped:
        parameters.append(_path_parameter("namespace", "object name and auth scope"))
    item: Object = {"parameters": parameters} if parameters else {}
    for verb in verbs:
        method, _ = _METHODS[verb]
        item[method] = _operation(kind, gvk, verb, suffix, scoped)
    return item


def _operation(kind: "Kind", gvk: tuple[str, str, str], verb: str, suffix: str, scoped: bool) -> Object:
    group_word = (kind.group.split(".", 1)[0] or "core").capitalize()
    scope = "Namespaced" if scoped else ""
    name = f"{_WORDS[verb]}{group_word}{kind.version.capitalize()}{scope}{kind.kind}{suffix}"
    reference = {"$ref": COMPONENTS + _component(kind, gvk, verb)}
    operation: Object = {
        "tags": [f"{group_word.lower()}_{kind.version}"],
        "description": f"{_WORDS[verb]} {kind.kind} {suffix}".strip(),
        "operationId": name,
        "parameters": _query(verb),
        "responses": {
            "200": {"description": "OK", "content": {t: {"schema": reference} for t in _ANSWERS}},
            "401": {"description": "Unauthorized"},
        },
        "x-kubernetes-action": _METHODS[verb][1],
        "x-kubernetes-group-version-kind": _gvk(*gvk),
    }
    if body := _body(kind, gvk, verb):
        operation["requestBody"] = {"content": body}
    return operation


def _body(kind: "Kind", gvk: tuple[str, str, str], verb: str) -> Object:
    """What the operation reads, by media type."""
    if verb == "patch":
        types = (*_PATCHES, _STRATEGIC) if kind.definition else _PATCHES
        return {t: {"schema": {"$ref": f"{COMPONENTS}{META}Patch"}} for t in types}
    if verb in ("delete", "deletecollection"):
        return {"*/*": {"schema": {"$ref": f"{COMPONENTS}{META}DeleteOptions"}}}
    if verb in ("create", "update"):
        return {"*/*": {"schema": {"$ref": COMPONENTS + _component(kind, gvk, verb)}}}
    return {}


def _component(kind: "Kind", gvk: tuple[str, str, str], verb: str) -> str:
    """The schema that an operation answers with."""
    if verb in ("delete", "deletecollection"):
        return f"{META}Status"
    if gvk != (kind.group, kind.version, kind.kind):
        return schema.definition_of(*gvk) or f"{META}Status"
    name = kind.definition or _custom_name(kind)
    return f"{name}List" if verb == "list" else name


def _query(verb: str) -> list[Object]:
    if verb in ("get", "list"):
        return []
    names = {"dryRun": _DRY_RUN}
    if verb in ("create", "update", "patch"):
        names |= {"fieldManager": _MANAGER, "fieldValidation": _VALIDATION}
    return [
        {"name": k, "in": "query", "description": v, "schema": {"type": "string", "uniqueItems": True}}
        for k, v in names.items()
    ]


def _path_parameter(name: str, text: str) -> Object:
    return {
        "name": name,
        "in": "path",
        "description": text,
        "required": True,
        "schema": {"type": "string", "uniqueItems": True},
    }


def _custom_name(kind: "Kind") -> str:
    """`demo.example.com/v1 Widget` is published as `com.example.demo.v1.Widget`."""
    return ".".join([*reversed(kind.group.split(".")), kind.version, kind.kind])


def _custom(kind: "Kind") -> Object:
    """The schemas of a custom resource and of its list."""
    name = _custom_name(kind)
    own: Object = {"type": "object", **(kind.openapi or {"x-kubernetes-preserve-unknown-fields": True})}
    own = _with_embedded(own)
    own["properties"] = {**(own.get("properties") or {}), **_resource_fields()}
    own["x-kubernetes-group-version-kind"] = [_gvk(kind.group, kind.version, kind.kind)]
    items = {"type": "array", "items": {"$ref": COMPONENTS + name}, "description": f"List of {kind.plural}."}
    listed = {
        "description": f"{kind.kind}List is a list of {kind.kind}",
        "type": "object",
        "required": ["items"],
        "properties": {
            **_type_meta(),
            "items": items,
            "metadata": {"allOf": [{"$ref": f"{COMPONENTS}{META}ListMeta"}]},
        },
        "x-kubernetes-group-version-kind": [_gvk(kind.group, kind.version, f"{kind.kind}List")],
    }
    return {name: own, f"{name}List": listed}


def _with_embedded(value: Mapping[str, Any]) -> Object:
    """A schema in which every embedded resource has the fields of a resource."""
    made: Object = dict(value)
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), Mapping):
            made[key] = _with_embedded(made[key])
    if made.get("properties"):
        made["properties"] = {k: _with_embedded(v) for k, v in made["properties"].items()}
    if made.get("x-kubernetes-embedded-resource"):
        made["properties"] = {**(made.get("properties") or {}), **_resource_fields()}
        made["required"] = sorted({*(made.get("required") or ()), "apiVersion", "kind"})
    return made


def _resource_fields() -> Object:
    meta = schema.definition(f"{META}ObjectMeta")["description"]
    metadata = {"allOf": [{"$ref": f"{COMPONENTS}{META}ObjectMeta"}], "description": meta}
    return {**_type_meta(), "metadata": metadata}


def _type_meta() -> Object:
    properties = schema.definition(f"{META}Status")["properties"]
    return {key: _converted(properties[key], key) for key in ("apiVersion", "kind")}


def _reachable(names: Iterable[str]) -> Object:
    """Definitions and all that they refer to, as OpenAPI v3 schemas."""
    found: Object = {}
    waiting = [f"{META}Patch", *names]
    known = schema.definitions()
    while waiting:
        name = waiting.pop()
        if name in found or name not in known:
            continue
        found[name] = _converted(known[name])
        waiting += _references(known[name])
    return dict(sorted(found.items()))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield schema.ref_name(value)
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _converted(value: Mapping[str, Any], name: str = "") -> Object:
    """A schema of the package as Kubernetes publishes it: no `null` types, references into components."""
    made: Object = {}
    for key, inner in value.items():
        if key == "type":
            made[key] = schema.type_of(value)
        elif key == "enum" and name in ("apiVersion", "kind"):
            continue  # added by the package
        elif key == "properties":
            made[key] = {k: _converted(v, k) for k, v in inner.items()}
        elif key in ("items", "additionalProperties") and isinstance(inner, dict):
            made[key] = _converted(inner)
        elif key == "oneOf":
            made[key] = [_converted(v) for v in inner]
        elif key == "$ref":
            target = {"$ref": COMPONENTS + schema.ref_name(value)}
            # beside a reference nothing else counts, so that what else there is needs allOf
            made |= target if len(value) == 1 else {"allOf": [target]}
        else:
            made[key] = inner
    return made
