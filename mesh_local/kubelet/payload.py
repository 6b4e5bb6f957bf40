"""The files of configMap, secret, downwardAPI and projected volumes. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mesh_local.kubelet.atomic import File
from mesh_local.kubelet.environment import Lookup, decoded, missing
from mesh_local.kubelet.fields import Node, field_value, resource_value
from mesh_local.kubelet.types import ConfigError, VolumeError
from mesh_local.machinery.objects import Object, dig

DEFAULT_MODE = 0o644
KINDS = ("configMap", "secret", "downwardAPI", "projected")
# The token of a serviceAccountToken source.
Token = Callable[[Object], str]


@dataclass(frozen=True, slots=True)
class Context:
    """What the files are made from."""

    pod: Object
    node: Node
    pod_ips: Sequence[str]
    lookup: Lookup
    token: Token


def files_of(volume: Object, context: Context) -> dict[str, File]:
    """The files of a volume of one of `KINDS`, by relative path.

    Raises:
        VolumeError: something that is not optional is missing.
    """
    if "configMap" in volume:
        source = volume["configMap"]
        return _keys("ConfigMap", source, source["name"], _mode(source), context.lookup)
    if "secret" in volume:
        source = volume["secret"]
        return _keys("Secret", source, source["secretName"], _mode(source), context.lookup)
    if "downwardAPI" in volume:
        return _downward(volume["downwardAPI"], _mode(volume["downwardAPI"]), context)
    projected = volume["projected"]
    found: dict[str, File] = {}
    for source in projected.get("sources") or ():
        found |= _projection(source, _mode(projected), context)
    return found


def _mode(source: Object) -> int:
    mode = source.get("defaultMode")
    return DEFAULT_MODE if mode is None else int(mode)


def _projection(source: Object, mode: int, context: Context) -> dict[str, File]:
    if "configMap" in source:
        return _keys("ConfigMap", source["configMap"], source["configMap"]["name"], mode, context.lookup)
    if "secret" in source:
        return _keys("Secret", source["secret"], source["secret"]["name"], mode, context.lookup)
    if "downwardAPI" in source:
        return _downward(source["downwardAPI"], mode, context)
    if "serviceAccountToken" in source:
        token = source["serviceAccountToken"]
        owner = common_user(context.pod)
        group = dig(context.pod, "spec", "securityContext", "fsGroup")
        private = owner is not None or group is not None
        file = File(context.token(token).encode(), 0o600 if private else mode, owner or 0)
        return {str(token["path"]): file}
    raise VolumeError(f"the local cluster does not support the volume source {', '.join(source)}")


def common_user(pod: Object) -> int | None:
    """The user that all containers run as, if it is one and the same and set (KEP-2451)."""
    general = dig(pod, "spec", "securityContext", "runAsUser")
    specs = [*dig(pod, "spec", "initContainers", default=[]), *dig(pod, "spec", "containers", default=[])]
    users = {dig(spec, "securityContext", "runAsUser", default=general) for spec in specs}
    only = users.pop() if len(users) == 1 else None
    return None if only is None else int(only)


def _keys(
    kind: Literal["ConfigMap", "Secret"], source: Object, name: str, mode: int, lookup: Lookup
) -> dict[str, File]:
    optional = bool(source.get("optional"))
    obj = lookup(kind, name)
    if obj is None:
        if optional:
            return {}
        raise VolumeError(missing(kind, name))
    content: Mapping[str, bytes] = decoded({"kind": kind} | obj)
    items = source.get("items")
    if not items:
        return {key: File(value, mode) for key, value in content.items()}
    found = {}
    for item in items:
        if item["key"] in content:
            found[str(item["path"])] = File(content[item["key"]], _item_mode(item, mode))
        elif not optional:
            word = "config" if kind == "ConfigMap" else "secret"
            raise VolumeError(f"references non-existent {word} key: {item['key']}")
    return found


def _item_mode(item: Object, mode: int) -> int:
    return mode if item.get("mode") is None else int(item["mode"])


def _downward(source: Object, mode: int, context: Context) -> dict[str, File]:
    found = {}
    for item in source.get("items") or ():
        try:
            if item.get("fieldRef"):
                text = field_value(item["fieldRef"]["fieldPath"], context.pod, context.node, context.pod_ips)
            else:
                text = resource_value(item["resourceFieldRef"], context.pod, "", context.node)
        except ConfigError as exc:
            raise VolumeError(str(exc)) from exc
        found[str(item["path"])] = File(text.encode(), _item_mode(item, mode))
    return found
