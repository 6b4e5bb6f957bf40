"""networking.k8s.io/v1 ServiceCIDR (KEP-1880): which addresses Services get, for others to read.

Services of the local cluster get theirs from its own range, which the object `kubernetes` shows; others that
somebody creates have no effect.
"""

import ipaddress
from datetime import datetime
from typing import Any

from mesh_local.kinds import columns
from mesh_local.kinds.age import age_of
from mesh_local.kinds.base import Kind
from mesh_local.kinds.hooks import keep_all_but_status, status_subresource
from mesh_local.machinery import names
from mesh_local.machinery.errors import FieldError, invalid_value, required
from mesh_local.machinery.objects import Object, dig, name_of

_PATH = "spec.cidrs"


def _default(obj: Object) -> None:
    obj.setdefault("spec", {})
    obj.setdefault("status", {})


def _version(cidr: str) -> int:
    """The IP version; 0 for what is no network."""
    try:
        return ipaddress.ip_network(cidr).version if "/" in cidr else 0
    except ValueError:
        return 0


def _validate(obj: Object) -> list[FieldError]:
    spec = obj.get("spec") or {}
    cidrs = spec.get("cidrs") or []
    versions = [_version(cidr or "") for cidr in cidrs]
    if not cidrs:
        return [required(_PATH, "at least one CIDR required")]
    if len(cidrs) > 2:
        return [invalid_value(_PATH, spec, "may only hold up to 2 values")]
    if len(cidrs) == 2 and sorted(versions) != [4, 6]:
        message = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"
        return [invalid_value(_PATH, spec, message)]
    message = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
    return [
        invalid_value(f"{_PATH}[{i}]", cidr, message)
        for i, (cidr, version) in enumerate(zip(cidrs, versions, strict=True))
        if not version
    ]


def _validate_update(new: Object, old: Object) -> list[FieldError]:
    cidrs = dig(new, "spec", "cidrs", default=[])
    if cidrs != dig(old, "spec", "cidrs", default=[]):
        return [invalid_value(_PATH, cidrs, "field is immutable")]
    return []


def _row(obj: Object, now: datetime) -> list[Any]:
    cidrs = dig(obj, "spec", "cidrs", default=[])
    return [name_of(obj), ",".join(cidr or "" for cidr in cidrs), age_of(obj, now)]


SERVICE_CIDR = Kind(
    kind="ServiceCIDR",
    plural="servicecidrs",
    singular="servicecidr",
    group="networking.k8s.io",
    namespaced=False,
    subresources=(status_subresource("ServiceCIDR"),),
    definition="io.k8s.api.networking.v1.ServiceCIDR",
    default=_default,
    prepare_status=keep_all_but_status,
    validate=_validate,
    validate_update=_validate_update,
    name_rule=names.dns_subdomain,
    spec_fields=(),
    columns=columns.SERVICE_CIDR,
    row=_row,
)

KINDS = (SERVICE_CIDR,)
