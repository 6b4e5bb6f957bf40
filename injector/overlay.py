"""Lay what the injector writes over what is there. Pure.

The API server fills in defaults, and other webhooks add mounts and variables to every container, ours
included. Laid over, the injector's fields win and the others stay, so that a second run finds nothing to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from injector.decision import Object

_KEYS: Final = {"env": "name", "volumeMounts": "mountPath"}
"""Lists that are merged, and the member that tells their items apart."""
_WHOLE: Final = frozenset({"capabilities", "httpGet"})
"""Objects that are replaced: what somebody adds there is not theirs to add."""
_OWN_VARIABLE: Final = "TRIOMESH_"


def overlay(there: Object, ours: Object) -> Object:
    """`there` with everything that `ours` says."""
    merged = dict(there)
    for key, value in ours.items():
        before = there.get(key)
        if key in _KEYS:
            merged[key] = _merged_list(before or [], value, _KEYS[key])
            if not merged[key]:
                # The API server drops an empty list, and the next run would add it again.
                del merged[key]
        elif isinstance(before, dict) and isinstance(value, dict) and key not in _WHOLE:
            merged[key] = overlay(before, value)
        else:
            merged[key] = value
    return merged


def _merged_list(there: Sequence[Any], ours: Sequence[Object], key: str) -> list[Object]:
    mine = {item[key] for item in ours}
    # A variable of ours that is not written any more is an older version's.
    others = [
        item
        for item in there
        if item[key] not in mine and not (key == "name" and item[key].startswith(_OWN_VARIABLE))
    ]
    return [*ours, *others]
