"""Three-way merge of an object: what we said last, what we say now, and what is there (pure).

Fields that others have set stay; fields that we said and no longer say go. A few lists are merged by the name
of their items, all others are taken as they are said now.
"""

import json
from typing import Any

Object = dict[str, Any]

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""Where kubectl keeps the same thing, so that `kubectl apply -k` and `meshctl` can take turns."""
_BY_NAME = frozenset({"containers", "env", "ports", "volumes", "webhooks", "versions"})


def _said(obj: Object) -> Object:
    annotations = {k: v for k, v in (obj["metadata"].get("annotations") or {}).items() if k != LAST_APPLIED}
    return {**obj, "metadata": {**obj["metadata"], "annotations": annotations}}


def last_applied(live: Object) -> Object:
    """What was said last about a live object; nothing where it was not made by apply."""
    text = (live["metadata"].get("annotations") or {}).get(LAST_APPLIED, "")
    try:
        said = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(said, dict) or not isinstance(said.get("metadata"), dict):
        return {}
    return _said(said)


def annotated(desired: Object) -> Object:
    """`desired` with the annotation that remembers it."""
    said = _said(desired)
    text = json.dumps(said, separators=(",", ":"), sort_keys=True) + "\n"
    annotations = {**said["metadata"]["annotations"], LAST_APPLIED: text}
    return {**desired, "metadata": {**desired["metadata"], "annotations": annotations}}


def merged(desired: Object, live: Object) -> Object:
    """The object to write; equal to `live` where nothing is to do."""
    said = last_applied(live)
    saying = _said(desired)
    result: Object = _merge(said, saying, live)
    if result == live and said == saying:
        return live
    remembered: Object = _merge({}, annotated(desired), result)
    return remembered


def _merge(said: Any, desired: Any, live: Any, field: str = "") -> Any:
    if isinstance(desired, dict) and isinstance(live, dict):
        old = said if isinstance(said, dict) else {}
        result = {k: v for k, v in live.items() if k in desired or k not in old}
        for key, value in desired.items():
            result[key] = _merge(old.get(key), value, live[key], key) if key in live else value
        return result
    if field in _BY_NAME and isinstance(live, list):
        return _merge_by_name(said if isinstance(said, list) else [], desired, live)
    return desired


def _merge_by_name(said: list[Object], desired: list[Object], live: list[Object]) -> list[Object]:
    old = {item["name"]: item for item in said}
    there = {item["name"]: item for item in live}
    ours = [_merge(old.get(item["name"]), item, there.get(item["name"])) for item in desired]
    named = {item["name"] for item in desired}
    return ours + [item for item in live if item["name"] not in named and item["name"] not in old]
