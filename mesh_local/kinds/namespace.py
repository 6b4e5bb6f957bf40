"""core/v1 Namespace."""

from datetime import datetime
from typing import Any

from mesh_local.kinds import columns
from mesh_local.kinds.age import age_of
from mesh_local.kinds.base import ALL_VERBS, Kind, Subresource
from mesh_local.kinds.hooks import field, keep_all_but_status, status_subresource
from mesh_local.machinery import names
from mesh_local.machinery.errors import FieldError, invalid_value
from mesh_local.machinery.objects import Object, copy, dig, labels_of, meta, name_of

NAME_LABEL = "kubernetes.io/metadata.name"
FINALIZER = "kubernetes"


def _default(obj: Object) -> None:
    """Every namespace carries its own name as a label (KEP-2161), also after an update that dropped it."""
    obj.setdefault("spec", {})
    if name_of(obj):
        meta(obj)["labels"] = {**labels_of(obj), NAME_LABEL: name_of(obj)}


def _prepare_create(obj: Object) -> None:
    _default(obj)  # the server may have generated the name since
    obj["status"] = {"phase": "Active"}
    spec = obj["spec"]
    finalizers = [f for f in spec.get("finalizers") or [] if f != FINALIZER]
    spec["finalizers"] = [*finalizers, FINALIZER]


def _prepare_update(new: Object, old: Object) -> None:
    new["spec"] = copy(old.get("spec") or {})
    new["status"] = copy(old.get("status") or {})


def _validate(obj: Object) -> list[FieldError]:
    finalizers = dig(obj, "spec", "finalizers", default=[])
    return [
        invalid_value("spec.finalizers", text, message)
        for text in finalizers
        if text != FINALIZER
        for message in names.qualified_name(text)
    ]


def _validate_update(new: Object, _old: Object) -> list[FieldError]:
    return _validate(new)


def _row(obj: Object, now: datetime) -> list[Any]:
    return [name_of(obj), dig(obj, "status", "phase", default=""), age_of(obj, now)]


NAMESPACE = Kind(
    kind="Namespace",
    plural="namespaces",
    singular="namespace",
    namespaced=False,
    short_names=("ns",),
    verbs=tuple(v for v in ALL_VERBS if v != "deletecollection"),
    subresources=(Subresource("finalize", "Namespace", ("update",)), status_subresource("Namespace")),
    definition="io.k8s.api.core.v1.Namespace",
    default=_default,
    prepare_create=_prepare_create,
    prepare_update=_prepare_update,
    prepare_status=keep_all_but_status,
    validate=_validate,
    validate_update=_validate_update,
    name_rule=names.dns_label,
    spec_fields=(),
    columns=columns.NAMESPACE,
    row=_row,
    fields={"status.phase": field("status", "phase")},
    delete_returns_object=True,
)

KINDS = (NAMESPACE,)
