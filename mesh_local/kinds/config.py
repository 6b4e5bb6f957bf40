"""core/v1 ConfigMap and Secret."""

import base64
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from mesh_local.kinds import columns
from mesh_local.kinds.age import age_of
from mesh_local.kinds.base import Kind
from mesh_local.kinds.hooks import field
from mesh_local.machinery import names
from mesh_local.machinery.errors import (
    FieldError,
    forbidden_field,
    invalid_value,
    required,
    too_long_value,
)
from mesh_local.machinery.objects import Object, annotations_of, name_of

MAX_SIZE = 1024 * 1024
_FROZEN = "field is immutable when `immutable` is set"
_SERVICE_ACCOUNT = "kubernetes.io/service-account.name"
# type -> keys that must be there (basic-auth, where one of two is enough, apart)
_REQUIRED_KEYS = {
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}


def _bad_keys(keys: Iterable[str], path: str) -> list[FieldError]:
    return [invalid_value(f"{path}[{k}]", k, m) for k in sorted(keys) for m in names.config_key(k)]


def _decoded_size(data: Mapping[str, str]) -> int:
    return sum(len(base64.b64decode(v)) for v in data.values())


def _frozen(new: Object, old: Object, keys: Iterable[str]) -> list[FieldError]:
    """What an object with `immutable: true` may not change."""
    if not old.get("immutable"):
        return []
    errors = [] if new.get("immutable") else [forbidden_field("immutable", _FROZEN)]
    changed = [k for k in keys if (new.get(k) or {}) != (old.get(k) or {})]
    return errors + [forbidden_field(k, _FROZEN) for k in changed]


def _validate_config_map(obj: Object) -> list[FieldError]:
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    errors = _bad_keys(data, "data")
    errors += [
        invalid_value(f"data[{k}]", k, "duplicate of key present in binaryData")
        for k in sorted(data.keys() & binary.keys())
    ]
    errors += _bad_keys(binary, "binaryData")
    if sum(len(v.encode()) for v in data.values()) + _decoded_size(binary) > MAX_SIZE:
        errors.append(too_long_value("", MAX_SIZE))
    return errors


def _update_config_map(new: Object, old: Object) -> list[FieldError]:
    return _frozen(new, old, ("data", "binaryData")) + _validate_config_map(new)


def _config_map_row(obj: Object, now: datetime) -> list[Any]:
    size = len(obj.get("data") or {}) + len(obj.get("binaryData") or {})
    return [name_of(obj), size, age_of(obj, now)]


def _default_secret(obj: Object) -> None:
    obj["type"] = obj.get("type") or "Opaque"
    if given := obj.pop("stringData", None):
        encoded = {k: base64.b64encode(v.encode()).decode() for k, v in given.items()}
        obj["data"] = {**(obj.get("data") or {}), **encoded}


def _update_type(new: Object, old: Object) -> None:
    new["type"] = new.get("type") or old.get("type")


def _validate_secret(obj: Object) -> list[FieldError]:
    data = obj.get("data") or {}
    errors = _bad_keys(data, "data")
    if _decoded_size(data) > MAX_SIZE:
        errors.append(too_long_value("data", MAX_SIZE))
    kind = obj.get("type") or ""
    if kind == "kubernetes.io/service-account-token":
        if not annotations_of(obj).get(_SERVICE_ACCOUNT):
            errors.append(required(f"metadata.annotations[{_SERVICE_ACCOUNT}]"))
    elif kind == "kubernetes.io/basic-auth":
        if not {"username", "password"} & data.keys():
            errors += [required("data[username]"), required("data[password]")]
    else:
        errors += [required(f"data[{k}]") for k in _REQUIRED_KEYS.get(kind, ()) if k not in data]
    return errors


def _update_secret(new: Object, old: Object) -> list[FieldError]:
    errors = []
    if new.get("type") != old.get("type"):
        errors.append(invalid_value("type", new.get("type"), "field is immutable"))
    return errors + _frozen(new, old, ("data",)) + _validate_secret(new)


def _secret_row(obj: Object, now: datetime) -> list[Any]:
    return [name_of(obj), obj.get("type") or "", len(obj.get("data") or {}), age_of(obj, now)]


CONFIG_MAP = Kind(
    kind="ConfigMap",
    plural="configmaps",
    singular="configmap",
    short_names=("cm",),
    definition="io.k8s.api.core.v1.ConfigMap",
    validate=_validate_config_map,
    validate_update=_update_config_map,
    name_rule=names.dns_subdomain,
    spec_fields=(),
    columns=columns.CONFIG_MAP,
    row=_config_map_row,
)
SECRET = Kind(
    kind="Secret",
    plural="secrets",
    singular="secret",
    definition="io.k8s.api.core.v1.Secret",
    default=_default_secret,
    prepare_update=_update_type,
    validate=_validate_secret,
    validate_update=_update_secret,
    name_rule=names.dns_subdomain,
    spec_fields=(),
    columns=columns.SECRET,
    row=_secret_row,
    fields={"type": field("type")},
)

KINDS = (CONFIG_MAP, SECRET)
