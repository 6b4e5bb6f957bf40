"""core/v1 ServiceAccount."""

from datetime import datetime
from typing import Any

from mesh_local.kinds import columns
from mesh_local.kinds.age import age_of
from mesh_local.kinds.base import Kind, Subresource
from mesh_local.machinery import names
from mesh_local.machinery.objects import Object, name_of


def _row(obj: Object, now: datetime) -> list[Any]:
    return [name_of(obj), age_of(obj, now)]


SERVICE_ACCOUNT = Kind(
    kind="ServiceAccount",
    plural="serviceaccounts",
    singular="serviceaccount",
    short_names=("sa",),
    subresources=(Subresource("token", "TokenRequest", ("create",), "authentication.k8s.io", "v1"),),
    definition="io.k8s.api.core.v1.ServiceAccount",
    name_rule=names.dns_subdomain,
    spec_fields=(),
    columns=columns.SERVICE_ACCOUNT,
    row=_row,
    delete_returns_object=True,
)

KINDS = (SERVICE_ACCOUNT,)
