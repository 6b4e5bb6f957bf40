"""Where in a manifest the pod is: of every kind that has a template of pods. Pure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

from injector.decision import Object
from meshctl.manifests_io import ManifestError

_TEMPLATE: Final = ("spec", "template")
_PATHS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("", "Pod"): (),
    ("", "ReplicationController"): _TEMPLATE,
    ("apps", "DaemonSet"): _TEMPLATE,
    ("apps", "Deployment"): _TEMPLATE,
    ("apps", "ReplicaSet"): _TEMPLATE,
    ("apps", "StatefulSet"): _TEMPLATE,
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
    ("batch", "Job"): _TEMPLATE,
}
"""By API group and kind."""

Change = Callable[[Object, str, str | None], Object]
"""Gets a pod or template, its object's title and namespace; returns the same pod to change nothing."""


def with_pods(document: Any, change: Change, where: str) -> Any:
    """`document` with its pod, or those of its items, changed; itself if there is nothing to change.

    Args:
        document: anything that YAML can hold.
        change: what is done to each pod.
        where: for messages.

    Raises:
        ManifestError: an object of a kind that has pods, without one.
    """
    if not isinstance(document, dict):
        return document
    kind, version = document.get("kind"), document.get("apiVersion")
    if kind == "List" and version == "v1":
        return _with_items(document, change, where)
    group = version.rpartition("/")[0] if isinstance(version, str) else None
    path = _PATHS.get((group, kind)) if isinstance(group, str) and isinstance(kind, str) else None
    if path is None:
        return document
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        raise ManifestError(f"{where}: {kind}: metadata: expected a mapping")
    title = f"{str(kind).lower()}/{metadata.get('name') or metadata.get('generateName') or '?'}"
    pod = _at(document, path, f"{where}: {title}")
    new = change(pod, title, metadata.get("namespace"))
    return document if new is pod else _replaced(document, path, new)


def _with_items(document: Object, change: Change, where: str) -> Object:
    items = document.get("items")
    if not isinstance(items, list):
        raise ManifestError(f"{where}: List: items: expected a list")
    new = [with_pods(item, change, f"{where}: items[{place}]") for place, item in enumerate(items)]
    if all(after is before for after, before in zip(new, items, strict=True)):
        return document
    return {**document, "items": new}


def _at(document: Object, path: tuple[str, ...], where: str) -> Object:
    found: Any = document
    for place, key in enumerate(path):
        found = found.get(key)
        if not isinstance(found, dict):
            raise ManifestError(f"{where}: {'.'.join(path[: place + 1])}: expected a mapping")
    pod: Object = found
    return pod


def _replaced(document: Object, path: tuple[str, ...], pod: Object) -> Object:
    if not path:
        return pod
    new = copy.copy(document)
    new[path[0]] = _replaced(document[path[0]], path[1:], pod)
    return new
