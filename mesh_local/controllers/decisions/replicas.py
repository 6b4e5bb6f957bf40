"""ReplicaSets (apps/v1): how many pods to create or delete, and the status."""

from datetime import datetime

from mesh_local.controllers.decisions import conditions, pods
from mesh_local.machinery.objects import Object, dig, labels_of, meta, rfc3339
from mesh_local.machinery.selectors import LabelSelector

# What one reconcile creates or deletes at most, and the first batch of creations, which doubles while all
# goes well: a template that cannot work fails once, not hundreds of times.
BURST = 500
FIRST_BATCH = 1


def desired(replica_set: Object) -> int:
    return int(dig(replica_set, "spec", "replicas", default=1))


def difference(replica_set: Object, active: int) -> int:
    """How many pods to create (positive) or to delete (negative)."""
    return max(-BURST, min(BURST, desired(replica_set) - active))


def batches(count: int) -> list[int]:
    """The sizes of the batches in which `count` pods are created: 1, 2, 4..."""
    sizes, size = [], FIRST_BATCH
    while count > 0:
        sizes.append(min(size, count))
        count -= sizes[-1]
        size *= 2
    return sizes


def replica_set_status(
    replica_set: Object, owned: list[Object], failure: tuple[str, str] | None, now: datetime
) -> Object:
    """The status to write.

    Args:
        owned: all pods that the ReplicaSet controls.
        failure: reason and message of a creation or deletion that failed just now.
    """
    min_ready = int(dig(replica_set, "spec", "minReadySeconds", default=0))
    template = LabelSelector.from_object(
        {"matchLabels": labels_of(dig(replica_set, "spec", "template", default={}))}
    )
    active = [pod for pod in owned if pods.is_active(pod)]
    counts = {
        "fullyLabeledReplicas": sum(template.matches(labels_of(pod)) for pod in active),
        "readyReplicas": sum(map(pods.is_ready, active)),
        "availableReplicas": sum(pods.is_available(pod, min_ready, now) for pod in active),
    }
    status: Object = {"replicas": len(active), **{k: v for k, v in counts.items() if v}}
    status["terminatingReplicas"] = sum(map(pods.is_terminating, owned))
    status["observedGeneration"] = meta(replica_set).get("generation", 0)
    present: list[Object] = dig(replica_set, "status", "conditions", default=[])
    if failure is None:
        present = conditions.without(present, "ReplicaFailure")
    elif conditions.find(present, "ReplicaFailure") is None:
        reason, message = failure
        new = {
            "type": "ReplicaFailure",
            "status": "True",
            "lastTransitionTime": rfc3339(now),
            "reason": reason,
            "message": message,
        }
        present = [*present, new]
    if present:
        status["conditions"] = present
    return status


def next_available(replica_set: Object, owned: list[Object], now: datetime) -> float | None:
    """Seconds until the next ready pod has been ready for minReadySeconds; None where none waits."""
    min_ready = int(dig(replica_set, "spec", "minReadySeconds", default=0))
    waits = [w for pod in owned if pods.is_active(pod) and (w := pods.available_in(pod, min_ready, now))]
    return min(waits, default=None)
