"""Strategic merge patch, driven by the patch strategies and merge keys of the OpenAPI definitions.

Follows apimachinery's `strategicpatch` package: `$patch`, `$retainKeys`, `$setElementOrder/...` and
`$deleteFromPrimitiveList/...`; what a merged list's patch names comes before what only the server has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mesh_local.machinery import schema
from mesh_local.machinery.errors import bad_request, unprocessable, unreasoned
from mesh_local.machinery.objects import Object, copy
from mesh_local.machinery.scalars import json_type

_PATCH = "$patch"
_RETAIN = "$retainKeys"
_DELETE = "$deleteFromPrimitiveList/"
_ORDER = "$setElementOrder/"


def strategic_merge(definition: str, doc: Object, patch: Any) -> Object:
    """The object after a strategic merge patch.

    Args:
        definition: name of the object's OpenAPI definition.

    Raises:
        ApiError: 400 for a malformed patch or directive, 422 for lists of lists, 500 for an item without
            its merge key, each as Kubernetes answers.
    """
    if not isinstance(patch, dict):
        kind = "null" if patch is None else json_type(patch)
        go_type = "map[string]interface {}"
        raise bad_request(
            f"error decoding patch: json: cannot unmarshal {kind} into Go value of type {go_type}"
        )
    merged: Object = copy(_merge_map(doc, patch, _Field(struct=definition)))
    return merged


@dataclass(frozen=True, slots=True)
class _Field:
    """What the definitions say about a field: the struct it holds, and how its list or map is merged."""

    struct: str = ""
    strategies: frozenset[str] = frozenset()
    key: str = ""
    # of a map with free keys, and of a list: its values
    item: "_Field | None" = None

    def child(self, name: str) -> "_Field":
        if not self.struct:
            return self.item or _Field()
        properties = schema.definition(self.struct).get("properties") or {}
        return _field(properties[name]) if name in properties else _Field()


def _field(found: Mapping[str, Any]) -> _Field:
    strategies = frozenset(filter(None, found.get("x-kubernetes-patch-strategy", "").split(",")))
    inner = found.get("items") or found.get("additionalProperties")
    return _Field(
        struct=schema.ref_name(found),
        strategies=strategies,
        key=found.get("x-kubernetes-patch-merge-key", ""),
        item=_field(inner) if isinstance(inner, dict) else None,
    )


def _merge_map(old: Object, patch: Object, field: _Field) -> Object:
    if _PATCH in patch:
        return _directed(patch)
    result = dict(old)
    if _RETAIN in patch:
        result = _retain(result, patch)
    ordered = {k.removeprefix(_ORDER): v for k, v in patch.items() if k.startswith(_ORDER)}
    for key, order in ordered.items():
        lists = [side[key] for side in (result, patch) if key in side]
        if not all(isinstance(v, list) for v in (order, *lists)):
            raise bad_request("invalid patch format of setElementOrder list")
        if lists:
            result[key] = _ordered(result.get(key), patch.get(key), order, field.child(key))
    for key, value in patch.items():
        if key == _RETAIN or key.startswith(_ORDER) or key in ordered:
            continue
        if key.startswith(_DELETE):
            _delete_primitives(result, key.removeprefix(_DELETE), value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = _merge_value(result.get(key), value, field.child(key))
    return result


def _merge_value(old: Any, new: Any, field: _Field) -> Any:
    """`new` merged into `old`, or cleaned of directives where there is nothing to merge with."""
    if isinstance(old, dict) and isinstance(new, dict) and "replace" not in field.strategies:
        return _merge_map(old, new, field)
    if isinstance(old, list) and isinstance(new, list) and "merge" in field.strategies:
        return _merge_list(old, new, field)
    return _clean(new)


def _directed(patch: Object) -> Object:
    """The effect of `$patch` in a map."""
    if patch[_PATCH] == "delete":
        return {}
    if patch[_PATCH] == "replace":
        cleaned: Object = _clean({k: v for k, v in patch.items() if k != _PATCH})
        return cleaned
    raise _unknown_directive(patch)


def _retain(old: Object, patch: Object) -> Object:
    """What is left of `old` under `$retainKeys`, which must name every field that the patch sets."""
    kept = patch[_RETAIN]
    if not isinstance(kept, list) or any(
        k not in kept
        for k, v in patch.items()
        if v is not None and k != _RETAIN and not k.startswith((_DELETE, _ORDER))
    ):
        raise bad_request("invalid patch format of retainKeys")
    return {k: v for k, v in old.items() if k in kept}


def _delete_primitives(result: Object, key: str, gone: Any) -> None:
    if gone is None:
        return
    if not isinstance(gone, list) or any(isinstance(v, dict | list) for v in gone):
        raise bad_request("invalid patch format of primitive list")
    old = result.get(key)
    if isinstance(old, list):
        names = set(gone)
        result[key] = [v for v in old if isinstance(v, dict | list) or v not in names]


def _merge_list(old: list[Any], new: list[Any], field: _Field) -> list[Any]:
    if not old and not new:
        return []
    if _holds_maps(old, new):
        return _merge_maps(old, new, field)
    merged = list(dict.fromkeys([*old, *new]))
    return _arrange(merged, new, old, _itself)


def _merge_maps(old: list[Any], new: list[Any], field: _Field) -> list[Any]:
    if not field.key:
        raise unreasoned("cannot merge lists without merge key for type struct")
    base, added = _directives(old, new, field.key)
    merged = list(base)
    places = {_key_of(v, field.key): i for i, v in reversed(list(enumerate(merged)))}
    item = field.item or _Field()
    for entry in added:
        value = _key_of(entry, field.key)
        if value in places:
            merged[places[value]] = _merge_map(merged[places[value]], entry, item)
        else:
            places[value] = len(merged)
            merged.append(_clean(entry))
    return _arrange(merged, added, base, lambda v: _key_of(v, field.key))


def _directives(old: list[Any], new: list[Any], key: str) -> tuple[list[Any], list[Any]]:
    """The list to merge into and the items to merge, after `$patch: delete` and `$patch: replace` items."""
    added: list[Any] = []
    gone: set[Any] = set()
    replaced = False
    for entry in new:
        directive = entry.get(_PATCH)
        if directive is None:
            added.append(entry)
        elif directive == "delete":
            gone.add(_key_of(entry, key))
        elif directive == "replace":
            replaced = True
        elif directive == "merge":
            raise unreasoned("merging lists cannot yet be specified in the patch")
        else:
            raise _unknown_directive(entry)
    if replaced:
        return [_clean(v) for v in added], []
    return [v for v in old if v.get(key) not in gone], added


def _ordered(old: list[Any] | None, new: list[Any] | None, order: list[Any], field: _Field) -> list[Any]:
    """A list under `$setElementOrder`: what `order` names stands in that order."""
    live = old or []
    if not live and not new:
        return []
    if _holds_maps(live, new or []):
        if not field.key:
            raise unreasoned("cannot merge lists without merge key for type struct")

        def identity(value: Any) -> Any:
            return _key_of(value, field.key)
    else:
        _holds_maps(live, new or [], order)
        identity = _itself

    merged = live if new is None else _merge_value(old, new, field)
    ranks = [identity(v) for v in order]
    rest = iter(ranks)
    for entry in new or ():
        if not (isinstance(entry, dict) and _PATCH in entry) and identity(entry) not in rest:
            wanted = f"{_ORDER[:-1]} list:\n{go_print(order)}\n"
            raise unreasoned(f"The order in patch list:\n{go_print(new)}\n doesn't match {wanted}")
    return _arrange(merged, order, live, identity)


def _itself(value: Any) -> Any:
    return value


def _arrange(
    merged: Sequence[Any], order: Sequence[Any], live: Sequence[Any], identity: Callable[[Any], Any]
) -> list[Any]:
    """Merged items: those that `order` names in its order, the others in the order of the live list.

    Between the two kinds the live order decides where both are live; else what `order` names is first.
    """
    ranks = {identity(v): i for i, v in reversed(list(enumerate(order)))}
    places = {identity(v): i for i, v in reversed(list(enumerate(live)))}
    named = sorted((v for v in merged if identity(v) in ranks), key=lambda v: ranks[identity(v)])
    others = sorted(
        (v for v in merged if identity(v) not in ranks),
        key=lambda v: places.get(identity(v), len(places)),
    )
    result = []
    at = 0
    for value in named:
        place = places.get(identity(value), -1)
        while at < len(others) and places.get(identity(others[at]), place) < place:
            result.append(others[at])
            at += 1
        result.append(value)
    return result + others[at:]


def _holds_maps(*lists: Sequence[Any]) -> bool:
    """Whether lists hold maps, or else scalars. Raises ApiError 422 for lists, 500 for a mixture."""
    items = [v for part in lists for v in part]
    if any(isinstance(v, list) for v in items):
        raise unprocessable()
    kinds = {isinstance(v, dict) for v in items}
    if len(kinds) > 1:
        raise unreasoned("list element types are not identical")
    return True in kinds


def _key_of(entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise unreasoned(f"map: {go_print(entry)} does not contain declared merge key: {key}")
    value = entry[key]
    if isinstance(value, dict | list):
        raise unreasoned(f"map: {go_print(entry)} does not contain declared merge key: {key}")
    return value


def _clean(value: Any) -> Any:
    """A patch value that stands alone: without nulls in maps and without directives."""
    if isinstance(value, dict):
        if value.get(_PATCH) == "delete":
            return {}
        return {k: _clean(v) for k, v in value.items() if v is not None and not _is_directive(k)}
    if isinstance(value, list):
        return [_clean(v) for v in value if not (isinstance(v, dict) and _PATCH in v)]
    return value


def _is_directive(key: str) -> bool:
    return key in (_PATCH, _RETAIN) or key.startswith((_DELETE, _ORDER))


def _unknown_directive(patch: Mapping[str, Any]) -> Exception:
    return unreasoned(f"unknown patch type: {go_print(patch[_PATCH])} in map: {go_print(patch)}")


def go_print(value: Any) -> str:
    """A JSON value as Go's %v prints it."""
    if isinstance(value, dict):
        return "map[" + " ".join(f"{k}:{go_print(v)}" for k, v in sorted(value.items())) + "]"
    if isinstance(value, list):
        return "[" + " ".join(go_print(v) for v in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "<nil>" if value is None else str(value)
