"""Deployments (apps/v1): the status, with Kubernetes' reasons and messages."""

from collections.abc import Sequence
from datetime import datetime

from mesh_local.controllers.decisions import conditions
from mesh_local.controllers.decisions.sizes import (
    counted,
    has_deadline,
    max_unavailable,
    replicas_of,
    total,
)
from mesh_local.machinery.objects import Object, condition, dig, meta, name_of, parse_time, rfc3339

CREATED = "NewReplicaSetCreated"
FOUND = "FoundNewReplicaSet"
AVAILABLE = "NewReplicaSetAvailable"
UPDATED = "ReplicaSetUpdated"
TIMED_OUT = "ProgressDeadlineExceeded"
PAUSED = "DeploymentPaused"
RESUMED = "DeploymentResumed"
CREATE_ERROR = "ReplicaSetCreateError"


def new_condition(type_: str, status: str, reason: str, message: str, now: datetime) -> Object:
    return {
        "type": type_,
        "status": status,
        "lastUpdateTime": rfc3339(now),
        "lastTransitionTime": rfc3339(now),
        "reason": reason,
        "message": message,
    }


def progressing(status: str, reason: str, message: str, now: datetime) -> Object:
    return new_condition("Progressing", status, reason, message, now)


def with_condition(deployment: Object, new: Object) -> Object:
    """The present status with this condition."""
    status = dict(dig(deployment, "status", default={}))
    status["conditions"] = conditions.replaced(status.get("conditions") or [], new)
    return status


def paused_condition(deployment: Object, now: datetime) -> Object | None:
    """What Progressing must say where pausing or resuming has not been noted yet."""
    present = condition(deployment, "Progressing")
    if not has_deadline(deployment) or (present and present.get("reason") == TIMED_OUT):
        return None
    paused = bool(dig(deployment, "spec", "paused", default=False))
    noted = present is not None and present.get("reason") == PAUSED
    if paused and not noted:
        return progressing("Unknown", PAUSED, "Deployment is paused", now)
    if noted and not paused:
        return progressing("Unknown", RESUMED, "Deployment is resumed", now)
    return None


def observed_status(deployment: Object, sets: Sequence[Object], new: Object | None, now: datetime) -> Object:
    """The counts, and whether the Deployment is available."""
    available = counted(sets, "availableReplicas")
    counts = {
        "replicas": counted(sets, "replicas"),
        "updatedReplicas": counted([new], "replicas") if new else 0,
        "readyReplicas": counted(sets, "readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": max(0, total(sets) - available),
    }
    status: Object = {"observedGeneration": meta(deployment).get("generation", 0)}
    status |= {k: v for k, v in counts.items() if v}
    status["terminatingReplicas"] = counted(sets, "terminatingReplicas")
    present: list[Object] = dig(deployment, "status", "conditions", default=[])
    if available >= replicas_of(deployment) - max_unavailable(deployment):
        said = ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    else:
        said = ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    status["conditions"] = conditions.replaced(present, new_condition("Available", *said, now))
    if collisions := dig(deployment, "status", "collisionCount"):
        status["collisionCount"] = collisions
    return status


def is_complete(deployment: Object, status: Object) -> bool:
    """Whether all replicas are of the current template and available, and no others are left."""
    wanted = replicas_of(deployment)
    return all(
        status.get(k, 0) == wanted for k in ("updatedReplicas", "replicas", "availableReplicas")
    ) and status.get("observedGeneration", 0) >= meta(deployment).get("generation", 0)


def rollout_status(deployment: Object, sets: Sequence[Object], new: Object | None, now: datetime) -> Object:
    """The status during and after a rollout: the counts, Available, Progressing and ReplicaFailure."""
    status = observed_status(deployment, sets, new, now)
    found: list[Object] = status["conditions"]
    if not has_deadline(deployment):
        found = conditions.without(found, "Progressing")
    else:
        found = _progress(deployment, status, new, now)
    failure = _replica_failure(sets, new)
    if failure is not None:
        found = conditions.replaced(found, failure)
    else:
        found = conditions.without(found, "ReplicaFailure")
    status["conditions"] = found
    return status


def _progress(deployment: Object, status: Object, new: Object | None, now: datetime) -> list[Object]:
    found: list[Object] = status["conditions"]
    present = conditions.find(found, "Progressing")
    whole = status.get("replicas", 0) == status.get("updatedReplicas", 0)
    if whole and present is not None and present.get("reason") == AVAILABLE:
        return found
    what = f'ReplicaSet "{name_of(new)}"' if new else f'Deployment "{name_of(deployment)}"'
    if is_complete(deployment, status):
        message = f"{what} has successfully progressed."
        return conditions.replaced(found, progressing("True", AVAILABLE, message, now))
    if _has_progressed(dig(deployment, "status", default={}), status):
        moved = progressing("True", UPDATED, f"{what} is progressing.", now)
        if present is not None and present.get("status") == "True":
            moved["lastTransitionTime"] = present.get("lastTransitionTime")
        return [*conditions.without(found, "Progressing"), moved]
    left = seconds_to_deadline(deployment, found, now)
    if left is not None and left < 0:
        message = f"{what} has timed out progressing."
        return conditions.replaced(found, progressing("False", TIMED_OUT, message, now))
    return found


def _has_progressed(before: Object, after: Object) -> bool:
    def old(status: Object) -> int:
        return int(status.get("replicas", 0)) - int(status.get("updatedReplicas", 0))

    grown = ("updatedReplicas", "readyReplicas", "availableReplicas")
    return old(after) < old(before) or any(after.get(k, 0) > before.get(k, 0) for k in grown)


def seconds_to_deadline(deployment: Object, found: list[Object], now: datetime) -> float | None:
    """Seconds until the rollout counts as stuck, negative when it does; None while no clock runs."""
    present = conditions.find(found, "Progressing")
    if present is None or not has_deadline(deployment) or present.get("reason") in (AVAILABLE, PAUSED):
        return None
    deadline = float(deployment["spec"]["progressDeadlineSeconds"])
    return deadline - (now - parse_time(present["lastUpdateTime"])).total_seconds()


def _replica_failure(sets: Sequence[Object], new: Object | None) -> Object | None:
    for candidate in [*([new] if new else []), *sets]:
        found = condition(candidate, "ReplicaFailure")
        if found is not None:
            return {
                "type": "ReplicaFailure",
                "status": found["status"],
                "lastUpdateTime": found.get("lastTransitionTime"),
                "lastTransitionTime": found.get("lastTransitionTime"),
                "reason": found.get("reason", ""),
                "message": found.get("message", ""),
            }
    return None
