"""What may be wrong with the volumes of a Pod or pod template."""

from collections.abc import Sequence

from mesh_local.kinds.checks import dns_label
from mesh_local.kinds.container_validation import (
    descending_path,
    validate_field_ref,
    validate_resource_ref,
)
from mesh_local.machinery import quantity
from mesh_local.machinery.errors import (
    FieldError,
    duplicate,
    forbidden_field,
    invalid_value,
    not_supported,
    required,
)
from mesh_local.machinery.objects import Object

_MODE = "must be a number between 0 and 0777 (octal), both inclusive"
_MODE_MAX = 0o777
_TOKEN_MIN_S = 600
_TOKEN_MAX_S = 1 << 32
_FIELD_PATHS = (
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
)
_PATH_TYPES = (
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
)
_PROJECTIONS = ("secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle")


def validate_volumes(volumes: Sequence[Object], path: str) -> tuple[list[str], list[FieldError]]:
    """The names of the volumes that are valid, and what is wrong with the others."""
    valid: list[str] = []
    errors: list[FieldError] = []
    for i, volume in enumerate(volumes):
        here, name = f"{path}[{i}]", volume.get("name") or ""
        found = _source(volume, here)
        found += dns_label(f"{here}.name", name)
        if name in valid:
            found.append(duplicate(f"{here}.name", name))
        errors += found
        if not found:
            valid.append(name)
    return valid, errors


def _source(volume: Object, path: str) -> list[FieldError]:
    given = [key for key, value in volume.items() if key != "name" and value is not None]
    if not given:
        return [required(path, "must specify a volume type")]
    errors = [forbidden_field(f"{path}.{k}", "may not specify more than 1 volume type") for k in given[1:]]
    source, here = volume[given[0]], f"{path}.{given[0]}"
    match given[0]:
        case "emptyDir":
            errors += _empty_dir(source, here)
        case "hostPath":
            errors += _host_path(source, here)
        case "secret":
            errors += _named(source, "secretName", here) + _mode_and_items(source, here)
        case "configMap":
            errors += _named(source, "name", here) + _mode_and_items(source, here)
        case "downwardAPI":
            errors += _mode(source, "defaultMode", here) + _downward(source, here)
        case "projected":
            errors += _mode(source, "defaultMode", here) + _projected(source, here)
    return errors


def _empty_dir(source: Object, path: str) -> list[FieldError]:
    limit = source.get("sizeLimit")
    if limit is None or quantity.parse(limit).value >= 0:
        return []
    return [forbidden_field(f"{path}.sizeLimit", "SizeLimit field must be a valid resource quantity")]


def _host_path(source: Object, path: str) -> list[FieldError]:
    target = source.get("path") or ""
    errors = [] if target else [required(f"{path}.path")]
    if ".." in target.split("/"):
        errors.append(invalid_value(f"{path}.path", target, "must not contain '..'"))
    kind = source.get("type") or ""
    if kind not in _PATH_TYPES:
        errors.append(not_supported(f"{path}.type", kind, _PATH_TYPES))
    return errors


def _named(source: Object, key: str, path: str) -> list[FieldError]:
    return [] if source.get(key) else [required(f"{path}.{key}")]


def _mode(source: Object, key: str, path: str) -> list[FieldError]:
    mode = source.get(key)
    if mode is None or 0 <= mode <= _MODE_MAX:
        return []
    return [invalid_value(f"{path}.{key}", mode, _MODE)]


def _mode_and_items(source: Object, path: str) -> list[FieldError]:
    return _mode(source, "defaultMode", path) + _items(source, path)


def _items(source: Object, path: str) -> list[FieldError]:
    """Keys projected to paths."""
    errors: list[FieldError] = []
    for i, item in enumerate(source.get("items") or ()):
        here = f"{path}.items[{i}]"
        if not item.get("key"):
            errors.append(required(f"{here}.key"))
        errors += _local_path(item.get("path") or "", f"{here}.path")
        errors += _mode(item, "mode", here)
    return errors


def _local_path(target: str, path: str) -> list[FieldError]:
    """Where a file goes inside the volume; names that start with `..` are the kubelet's own."""
    if not target:
        return [required(path)]
    errors = descending_path(target, path)
    if target.startswith("..") and not target.startswith("../") and target != "..":
        errors.append(invalid_value(path, target, "must not start with '..'"))
    return errors


def _downward(source: Object, path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    for i, item in enumerate(source.get("items") or ()):
        here = f"{path}.items[{i}]"
        errors += _local_path(item.get("path") or "", f"{here}.path")
        field, resource = item.get("fieldRef"), item.get("resourceFieldRef")
        if field is not None:
            errors += validate_field_ref(field, f"{here}.fieldRef", _FIELD_PATHS)
            if resource is not None:
                detail = "fieldRef and resourceFieldRef can not be specified simultaneously"
                errors.append(invalid_value(here, "resource", detail))
        elif resource is not None:
            errors += validate_resource_ref(resource, f"{here}.resourceFieldRef", needs_container=True)
        else:
            errors.append(required(here, "one of fieldRef and resourceFieldRef is required"))
        errors += _mode(item, "mode", here)
    return errors


def _projected(source: Object, path: str) -> list[FieldError]:
    errors: list[FieldError] = []
    paths: set[str] = set()
    for i, projection in enumerate(source.get("sources") or ()):
        here = f"{path}.sources[{i}]"
        given = [key for key in _PROJECTIONS if projection.get(key) is not None]
        if not given:
            errors.append(required(here, "must specify a volume type"))
        errors += [
            forbidden_field(f"{here}.{key}", "may not specify more than 1 volume type per source")
            for key in given[1:]
        ]
        for key in given[:1]:
            errors += _projection(key, projection[key], f"{here}.{key}")
            for target in _targets(key, projection[key]):
                if target in paths:
                    errors.append(invalid_value(f"{here}.{key}", target, "conflicting duplicate paths"))
                paths.add(target)
    return errors


def _projection(key: str, source: Object, path: str) -> list[FieldError]:
    match key:
        case "secret" | "configMap":
            return _named(source, "name", path) + _items(source, path)
        case "downwardAPI":
            return _downward(source, path)
        case "serviceAccountToken":
            return _token(source, path)
    return []


def _targets(key: str, source: Object) -> list[str]:
    if key == "serviceAccountToken":
        return [source.get("path") or ""]
    return [item.get("path") or "" for item in source.get("items") or ()]


def _token(source: Object, path: str) -> list[FieldError]:
    seconds = source.get("expirationSeconds") or 0
    errors = []
    if seconds < _TOKEN_MIN_S:
        errors.append(
            invalid_value(
                f"{path}.expirationSeconds", seconds, "may not specify a duration less than 10 minutes"
            )
        )
    if seconds > _TOKEN_MAX_S:
        errors.append(
            invalid_value(
                f"{path}.expirationSeconds", seconds, "may not specify a duration larger than 2^32 seconds"
            )
        )
    return errors + _local_path(source.get("path") or "", f"{path}.path")
