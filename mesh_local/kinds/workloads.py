"""apps/v1 Deployment and ReplicaSet."""

from datetime import datetime
from typing import Any

from mesh_local.kinds import columns
from mesh_local.kinds.age import age_of
from mesh_local.kinds.base import Kind, ScalePaths, Subresource
from mesh_local.kinds.hooks import (
    field,
    keep_all_but_status,
    keep_status,
    reset_status,
    status_subresource,
)
from mesh_local.kinds.pod_defaults import default_template
from mesh_local.kinds.template import selector_text, template_cells, template_warnings
from mesh_local.kinds.workload_validation import (
    update_deployment,
    update_replica_set,
    validate_deployment,
    validate_replica_set,
)
from mesh_local.machinery import names
from mesh_local.machinery.objects import Object, dig, name_of

_SCALE = Subresource("scale", "Scale", ("get", "patch", "update"), "autoscaling", "v1")
_STEP = "25%"


def _default_replicas(spec: Object) -> None:
    if spec.get("replicas") is None:
        spec["replicas"] = 1


def _default_deployment(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _default_replicas(spec)
    default_template(spec.setdefault("template", {}))
    strategy = spec.setdefault("strategy", {})
    strategy["type"] = strategy.get("type") or "RollingUpdate"
    if strategy["type"] == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        for key in ("maxUnavailable", "maxSurge"):
            rolling.setdefault(key, _STEP)
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)


def _default_replica_set(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _default_replicas(spec)
    default_template(spec.setdefault("template", {}))


def _deployment_row(obj: Object, now: datetime) -> list[Any]:
    status = obj.get("status") or {}
    return [
        name_of(obj),
        f"{status.get('readyReplicas') or 0}/{dig(obj, 'spec', 'replicas', default=0)}",
        status.get("updatedReplicas") or 0,
        status.get("availableReplicas") or 0,
        age_of(obj, now),
        *template_cells(obj),
        selector_text(obj),
    ]


def _replica_set_row(obj: Object, now: datetime) -> list[Any]:
    status = obj.get("status") or {}
    return [
        name_of(obj),
        dig(obj, "spec", "replicas", default=0),
        status.get("replicas") or 0,
        status.get("readyReplicas") or 0,
        age_of(obj, now),
        *template_cells(obj),
        selector_text(obj) or "<none>",
    ]


DEPLOYMENT = Kind(
    kind="Deployment",
    plural="deployments",
    singular="deployment",
    group="apps",
    short_names=("deploy",),
    categories=("all",),
    subresources=(_SCALE, status_subresource("Deployment")),
    definition="io.k8s.api.apps.v1.Deployment",
    default=_default_deployment,
    prepare_create=reset_status({}),
    prepare_update=keep_status,
    prepare_status=keep_all_but_status,
    validate=validate_deployment,
    validate_update=update_deployment,
    name_rule=names.dns_subdomain,
    columns=columns.DEPLOYMENT,
    row=_deployment_row,
    warnings=template_warnings,
    scale=ScalePaths(),
)
REPLICA_SET = Kind(
    kind="ReplicaSet",
    plural="replicasets",
    singular="replicaset",
    group="apps",
    short_names=("rs",),
    categories=("all",),
    subresources=(_SCALE, status_subresource("ReplicaSet")),
    definition="io.k8s.api.apps.v1.ReplicaSet",
    default=_default_replica_set,
    prepare_create=reset_status({"replicas": 0}),
    prepare_update=keep_status,
    prepare_status=keep_all_but_status,
    validate=validate_replica_set,
    validate_update=update_replica_set,
    name_rule=names.dns_subdomain,
    columns=columns.REPLICA_SET,
    row=_replica_set_row,
    fields={"status.replicas": field("status", "replicas", default="0")},
    warnings=template_warnings,
    scale=ScalePaths(),
)

KINDS = (DEPLOYMENT, REPLICA_SET)
