"""The JSON Patch (RFC 6902) between two JSON values. Pure.

Objects are compared member by member. A list whose length changes is replaced whole, which is
shorter than the moves that put ours in front.
"""

from __future__ import annotations

from typing import Any

from injector.decision import Operation


def diff(old: Any, new: Any, path: str = "") -> list[Operation]:
    """What turns `old` into `new`; empty if they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        return _members(old, new, path)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        found: list[Operation] = []
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            found += diff(before, after, f"{path}/{index}")
        return found
    if type(old) is type(new) and old == new:
        return []
    return [{"op": "replace", "path": path, "value": new}]


def _members(old: dict[str, Any], new: dict[str, Any], path: str) -> list[Operation]:
    gone = [key for key in old if key not in new]
    found: list[Operation] = [{"op": "remove", "path": f"{path}/{_escaped(key)}"} for key in gone]
    for key, value in new.items():
        where = f"{path}/{_escaped(key)}"
        if key in old:
            found += diff(old[key], value, where)
        else:
            found.append({"op": "add", "path": where, "value": value})
    return found


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
