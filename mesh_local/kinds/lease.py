"""coordination.k8s.io/v1 Lease."""

from datetime import datetime
from typing import Any

from mesh_local.kinds import columns
from mesh_local.kinds.age import age_of
from mesh_local.kinds.base import Kind
from mesh_local.machinery import names
from mesh_local.machinery.errors import FieldError, forbidden_field, invalid_value
from mesh_local.machinery.objects import Object, dig, name_of


def _default(obj: Object) -> None:
    obj.setdefault("spec", {})


def _validate(obj: Object) -> list[FieldError]:
    spec = obj.get("spec") or {}
    errors = []
    duration, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if duration is not None and duration <= 0:
        errors.append(invalid_value("spec.leaseDurationSeconds", duration, "must be greater than 0"))
    if transitions is not None and transitions < 0:
        errors.append(
            invalid_value("spec.leaseTransitions", transitions, "must be greater than or equal to 0")
        )
    if spec.get("preferredHolder") and not spec.get("strategy"):
        errors.append(
            forbidden_field("spec.preferredHolder", "may only be specified if `strategy` is defined")
        )
    return errors


def _validate_update(new: Object, _old: Object) -> list[FieldError]:
    return _validate(new)


def _row(obj: Object, now: datetime) -> list[Any]:
    return [name_of(obj), dig(obj, "spec", "holderIdentity", default=""), age_of(obj, now)]


LEASE = Kind(
    kind="Lease",
    plural="leases",
    singular="lease",
    group="coordination.k8s.io",
    definition="io.k8s.api.coordination.v1.Lease",
    default=_default,
    validate=_validate,
    validate_update=_validate_update,
    name_rule=names.dns_subdomain,
    spec_fields=(),
    columns=columns.LEASE,
    row=_row,
    unconditional_update=False,
    create_on_update=True,
)

KINDS = (LEASE,)
