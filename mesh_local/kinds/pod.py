"""core/v1 Pod."""

from mesh_local.kinds import columns, pod_columns
from mesh_local.kinds.base import Kind, Subresource
from mesh_local.kinds.hooks import field, keep_status, status_subresource
from mesh_local.kinds.pod_defaults import default_pod, qos_class
from mesh_local.kinds.pod_validation import pod_warnings, validate_pod, validate_pod_update
from mesh_local.machinery import names
from mesh_local.machinery.objects import Object, copy, dig, meta


def _default(pod: Object) -> None:
    """API defaulting; and the times of conditions, which are null where nobody has set them."""
    default_pod(pod)
    pod.setdefault("status", {})
    for condition in dig(pod, "status", "conditions", default=[]):
        condition.setdefault("lastProbeTime", None)
        condition.setdefault("lastTransitionTime", None)


def _prepare_create(pod: Object) -> None:
    pod["status"] = {"phase": "Pending", "qosClass": qos_class(pod["spec"])}
    if pod["spec"].get("schedulingGates"):
        pod["status"]["conditions"] = [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }
        ]


def _prepare_status(new: Object, old: Object) -> None:
    """A write to `status` may also set labels and annotations; the QoS class never changes."""
    new["spec"] = copy(old.get("spec") or {})
    status = new.setdefault("status", {})
    status["qosClass"] = status.get("qosClass") or (old.get("status") or {}).get("qosClass")
    owners = meta(old).get("ownerReferences")
    if owners:
        meta(new)["ownerReferences"] = copy(owners)
    else:
        meta(new).pop("ownerReferences", None)


def _warnings(pod: Object) -> list[str]:
    return pod_warnings(pod.get("spec") or {}, "spec")


POD = Kind(
    kind="Pod",
    plural="pods",
    singular="pod",
    short_names=("po",),
    categories=("all",),
    subresources=(
        Subresource("binding", "Binding", ("create",)),
        Subresource("eviction", "Eviction", ("create",), "policy", "v1"),
        Subresource("log", "Pod", ("get",)),
        status_subresource("Pod"),
    ),
    definition="io.k8s.api.core.v1.Pod",
    default=_default,
    prepare_create=_prepare_create,
    prepare_update=keep_status,
    prepare_status=_prepare_status,
    validate=validate_pod,
    validate_update=validate_pod_update,
    name_rule=names.dns_subdomain,
    columns=columns.POD,
    row=pod_columns.row,
    fields={
        "spec.nodeName": field("spec", "nodeName"),
        "spec.restartPolicy": field("spec", "restartPolicy"),
        "spec.schedulerName": field("spec", "schedulerName"),
        "spec.serviceAccountName": field("spec", "serviceAccountName"),
        "spec.hostNetwork": field("spec", "hostNetwork", default="false"),
        "status.phase": field("status", "phase"),
        "status.podIP": field("status", "podIP"),
        "status.nominatedNodeName": field("status", "nominatedNodeName"),
    },
    warnings=_warnings,
    graceful=True,
    delete_returns_object=True,
)

KINDS = (POD,)
