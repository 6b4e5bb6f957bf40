"""What controllers want to know about a pod (core/v1), and which pods to delete first."""

from datetime import datetime
from functools import cmp_to_key

from mesh_local.machinery.objects import (
    Object,
    annotations_of,
    condition,
    dig,
    is_deleting,
    labels_of,
    meta,
    parse_time,
)

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
PHASE_ORDER = {"Pending": 0, "Unknown": 1, "Running": 2}


def phase_of(pod: Object) -> str:
    return str(dig(pod, "status", "phase", default="Pending"))


def is_finished(pod: Object) -> bool:
    """Whether the pod has ended for good."""
    return phase_of(pod) in ("Succeeded", "Failed")


def is_active(pod: Object) -> bool:
    return not is_finished(pod) and not is_deleting(pod)


def is_terminating(pod: Object) -> bool:
    """Whether the pod is being deleted and has not ended yet."""
    return is_deleting(pod) and not is_finished(pod)


def is_ready(pod: Object) -> bool:
    return (condition(pod, "Ready") or {}).get("status") == "True"


def ready_since(pod: Object) -> datetime | None:
    """When the pod became ready; None for one that is not."""
    found = condition(pod, "Ready")
    if found is None or found.get("status") != "True" or not found.get("lastTransitionTime"):
        return None
    return parse_time(found["lastTransitionTime"])


def available_in(pod: Object, min_ready_s: int, now: datetime) -> float | None:
    """Seconds until a ready pod counts as available, 0 for one that does; None for a pod not ready."""
    if not is_ready(pod):
        return None
    if min_ready_s <= 0:
        return 0.0
    since = ready_since(pod)
    if since is None:
        return None
    return max(0.0, min_ready_s - (now - since).total_seconds())


def is_available(pod: Object, min_ready_s: int, now: datetime) -> bool:
    return available_in(pod, min_ready_s, now) == 0.0


def pod_ips(pod: Object) -> list[str]:
    """All addresses, the primary one first."""
    found = [entry["ip"] for entry in dig(pod, "status", "podIPs", default=[]) if entry.get("ip")]
    primary = dig(pod, "status", "podIP")
    return found or ([primary] if primary else [])


def pod_from_template(template: Object, prefix: str, owner: Object) -> Object:
    """The pod that a controller creates from its template.

    Args:
        prefix: for generateName.
        owner: the owner reference.
    """
    metadata: Object = {"generateName": prefix, "ownerReferences": [owner]}
    if labels_of(template):
        metadata["labels"] = dict(labels_of(template))
    if annotations_of(template):
        metadata["annotations"] = dict(annotations_of(template))
    if meta(template).get("finalizers"):
        metadata["finalizers"] = list(meta(template)["finalizers"])
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template.get("spec") or {}}


def by_deletion_order(pods: list[Object]) -> list[Object]:
    """The pods, those first that are the least loss (kube-controller-manager's ActivePodsWithRanks).

    Not assigned to a node, then by phase, not ready, lower deletion cost, ready for a shorter time, more
    restarts, younger.
    """
    return sorted(pods, key=cmp_to_key(_compare))


def _compare(a: Object, b: Object) -> int:
    for left, right in (
        (bool(dig(a, "spec", "nodeName")), bool(dig(b, "spec", "nodeName"))),
        (PHASE_ORDER.get(phase_of(a), 0), PHASE_ORDER.get(phase_of(b), 0)),
        (is_ready(a), is_ready(b)),
        (_cost(a), _cost(b)),
        (_seconds(ready_since(b)), _seconds(ready_since(a))),
        (-_restarts(a), -_restarts(b)),
        (_created(b), _created(a)),
    ):
        if left != right:
            return -1 if left < right else 1
    return 0


def _cost(pod: Object) -> int:
    try:
        return int(annotations_of(pod).get(DELETION_COST) or 0)
    except ValueError:
        return 0


def _restarts(pod: Object) -> int:
    statuses = dig(pod, "status", "containerStatuses", default=[])
    return max((int(s.get("restartCount") or 0) for s in statuses), default=0)


def _created(pod: Object) -> float:
    created = meta(pod).get("creationTimestamp")
    return _seconds(parse_time(created) if created else None)


def _seconds(moment: datetime | None) -> float:
    return moment.timestamp() if moment else 0.0
