"""Jobs (batch/v1): status, pods to create and to delete.

A pod that has ended is counted once, with a finalizer as its mark (KEP-2307): its uid goes to
`uncountedTerminatedPods`, then its finalizer is removed, then the uid becomes part of the count.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from mesh_local.controllers.decisions import conditions, job_indexes, pods
from mesh_local.controllers.decisions.job_failures import Failure, failed_pods, failure_of
from mesh_local.machinery.objects import (
    Object,
    condition,
    copy,
    dig,
    is_deleting,
    meta,
    parse_time,
    rfc3339,
    uid_of,
)

FINALIZER = "batch.kubernetes.io/job-tracking"
# The status in the order in which Kubernetes writes it.
FIELDS = (
    "conditions",
    "startTime",
    "completionTime",
    "active",
    "succeeded",
    "failed",
    "terminating",
    "completedIndexes",
    "uncountedTerminatedPods",
    "ready",
)
SHOWN_AT_ZERO = ("terminating", "uncountedTerminatedPods", "ready")
BACKOFF_FIRST_S = 10.0
BACKOFF_MAX_S = 600.0
REACHED = Failure("CompletionsReached", "Reached expected number of succeeded pods")


def is_finished(job: Object) -> bool:
    found = dig(job, "status", "conditions", default=[])
    return conditions.is_true(found, "Complete") or conditions.is_true(found, "Failed")


def is_suspended(job: Object) -> bool:
    return bool(dig(job, "spec", "suspend", default=False))


def is_tracked(pod: Object) -> bool:
    return FINALIZER in (meta(pod).get("finalizers") or ())


def ending(job: Object) -> Object | None:
    """The condition by which the Job will end, once its pods have: SuccessCriteriaMet or FailureTarget."""
    found: list[Object] = dig(job, "status", "conditions", default=[])
    return next(
        (c for c in found if c["type"] in ("SuccessCriteriaMet", "FailureTarget") and c["status"] == "True"),
        None,
    )


def observed_status(job: Object, owned: Sequence[Object], now: datetime) -> Object:
    """The status with the pods as they are now: the first write of a reconcile."""
    status: Object = copy(dig(job, "status", default={}))
    uncounted = _uncounted(job, owned)
    found = _suspension(job, status.get("conditions") or [], now)
    if not status.get("startTime") and not is_suspended(job):
        status["startTime"] = rfc3339(now)
    if is_suspended(job):
        status.pop("startTime", None)
    if job_indexes.is_indexed(job):
        done = job_indexes.completed(job, owned)
        status |= {"completedIndexes": job_indexes.compact(done), "succeeded": len(done)}
    counted = {k: int(status.get(k, 0)) + len(uncounted.get(k, ())) for k in ("succeeded", "failed")}
    if ending(job) is None:
        found = _decide(job, owned, found, status, counted, now)
    active = [p for p in owned if pods.is_active(p)]
    status |= {
        "conditions": found,
        "active": len(active),
        "terminating": sum(map(pods.is_terminating, owned)),
        "uncountedTerminatedPods": uncounted,
        "ready": sum(map(pods.is_ready, active)),
    }
    return {field: status[field] for field in FIELDS if status.get(field) or field in SHOWN_AT_ZERO}


def settled_status(job: Object, tracked: Collection[str], now: datetime) -> Object:
    """The status after finalizers were removed: uids become counts, and the Job may be finished.

    Args:
        job: with `observed_status` written.
        tracked: the uids of the pods that still have their finalizer.
    """
    status: Object = copy(dig(job, "status", default={}))
    uncounted = status.get("uncountedTerminatedPods") or {}
    kept: dict[str, list[str]] = {}
    for field in ("succeeded", "failed"):
        uids = uncounted.get(field) or []
        left = [uid for uid in uids if uid in tracked]
        if left:
            kept[field] = left
        if len(left) < len(uids):
            status[field] = int(status.get(field, 0)) + len(uids) - len(left)
    status["uncountedTerminatedPods"] = kept
    by = ending(job)
    waits = kept or status.get("active") or status.get("terminating")
    if by is not None and not waits and not is_finished(job):
        type_ = "Complete" if by["type"] == "SuccessCriteriaMet" else "Failed"
        status["conditions"].append(_condition(type_, Failure(by["reason"], by["message"]), now))
        if type_ == "Complete":
            status["completionTime"] = rfc3339(now)
    return {field: status[field] for field in FIELDS if field in status}


def to_release(job: Object, owned: Sequence[Object]) -> list[Object]:
    """The pods whose finalizer has served: counted ones, and failures that podFailurePolicy ignores.

    Args:
        job: with `observed_status` written.
    """
    uncounted = dig(job, "status", "uncountedTerminatedPods", default={})
    noted = {uid for field in ("succeeded", "failed") for uid in uncounted.get(field) or ()}
    return [p for p in owned if is_tracked(p) and (pods.is_finished(p) or uid_of(p) in noted)]


@dataclass(frozen=True, slots=True)
class Pods:
    """How many pods to create, which to delete, and after how many seconds to look again.

    Args:
        indexes: of the pods to create, for an Indexed Job.
    """

    create: int = 0
    indexes: tuple[int, ...] = ()
    delete: tuple[Object, ...] = ()
    again_s: float | None = None


def plan_pods(job: Object, owned: Sequence[Object], now: datetime) -> Pods:
    """What is missing to the parallelism and the completions of a Job whose status is current."""
    active = [p for p in owned if pods.is_active(p)]
    if ending(job) is not None or is_suspended(job):
        return Pods(delete=tuple(active))
    parallelism = int(dig(job, "spec", "parallelism", default=1))
    completions = dig(job, "spec", "completions")
    status = dig(job, "status", default={})
    succeeded = int(status.get("succeeded", 0))
    succeeded += len(dig(status, "uncountedTerminatedPods", "succeeded", default=[]))
    if completions is None:
        wanted = len(active) if succeeded else parallelism
        wanted = min(wanted, parallelism)
    else:
        wanted = min(parallelism, max(0, completions - succeeded))
    again = _deadline(job, now)
    repeated = job_indexes.surplus(active) if job_indexes.is_indexed(job) else []
    if repeated or len(active) > wanted:
        delete = repeated or pods.by_deletion_order(active)[: len(active) - wanted]
        return Pods(delete=tuple(delete), again_s=again)
    missing = wanted - len(active)
    if dig(job, "spec", "podReplacementPolicy", default="") == "Failed":
        missing = max(0, missing - int(status.get("terminating", 0)))
    wait = _backoff(owned, now) if missing else 0.0
    if wait > 0:
        return Pods(again_s=min(wait, again or wait))
    if job_indexes.is_indexed(job):
        indexes = job_indexes.next_indexes(job, owned, missing)
        return Pods(create=len(indexes), indexes=tuple(indexes), again_s=again)
    return Pods(create=missing, again_s=again)


def seconds_to_expiry(job: Object, now: datetime) -> float | None:
    """Seconds until a finished Job is to be deleted (ttlSecondsAfterFinished); None for never."""
    ttl = dig(job, "spec", "ttlSecondsAfterFinished")
    if ttl is None or not is_finished(job):
        return None
    found = dig(job, "status", "conditions", default=[])
    ended = next(c for c in found if c["type"] in ("Complete", "Failed") and c["status"] == "True")
    return float(ttl) - (now - parse_time(ended["lastTransitionTime"])).total_seconds()


def _uncounted(job: Object, owned: Sequence[Object]) -> dict[str, list[str]]:
    present = dig(job, "status", "uncountedTerminatedPods", default={})
    found = {k: list(present.get(k) or []) for k in ("succeeded", "failed")}
    known = {uid for uids in found.values() for uid in uids}
    failed = {uid_of(p) for p in failed_pods(job, owned)}
    for pod in owned:
        uid = uid_of(pod)
        if not is_tracked(pod) or uid in known:
            continue
        if pods.phase_of(pod) == "Succeeded":
            # An index can succeed but once: completedIndexes is the count.
            if not job_indexes.is_indexed(job):
                found["succeeded"].append(uid)
        elif uid in failed or (pods.is_finished(pod) and ending(job) is not None):
            found["failed"].append(uid)
    return {k: uids for k, uids in found.items() if uids}


def _decide(
    job: Object,
    owned: Sequence[Object],
    found: list[Object],
    status: Object,
    counted: dict[str, int],
    now: datetime,
) -> list[Object]:
    """The conditions, with the one by which the Job is to end where that is decided."""
    failure = failure_of(job, owned, counted["failed"])
    if failure is None and (left := _deadline({**job, "status": status}, now)) is not None and left <= 0:
        failure = Failure("DeadlineExceeded", "Job was active longer than specified deadline")
    if failure is not None:
        return [*found, _condition("FailureTarget", failure, now)]
    completions = dig(job, "spec", "completions")
    active = any(pods.is_active(p) for p in owned)
    if completions is None:
        reached = counted["succeeded"] > 0 and not active
    else:
        reached = counted["succeeded"] >= completions
    if reached and not is_suspended(job):
        return [*found, _condition("SuccessCriteriaMet", REACHED, now)]
    return found


def _suspension(job: Object, found: list[Object], now: datetime) -> list[Object]:
    noted = conditions.is_true(found, "Suspended")
    if is_suspended(job) == noted or is_finished(job):
        return found
    said = Failure("JobSuspended", "Job suspended") if not noted else Failure("JobResumed", "Job resumed")
    return [
        *conditions.without(found, "Suspended"),
        _condition("Suspended", said, now, "False" if noted else "True"),
    ]


def _condition(type_: str, said: Failure, now: datetime, status: str = "True") -> Object:
    return {
        "type": type_,
        "status": status,
        "lastProbeTime": rfc3339(now),
        "lastTransitionTime": rfc3339(now),
        "reason": said.reason,
        "message": said.message,
    }


def _deadline(job: Object, now: datetime) -> float | None:
    """Seconds until activeDeadlineSeconds have passed."""
    limit, started = dig(job, "spec", "activeDeadlineSeconds"), dig(job, "status", "startTime")
    if limit is None or not started or is_suspended(job):
        return None
    return float(limit) - (now - parse_time(started)).total_seconds()


def _backoff(owned: Sequence[Object], now: datetime) -> float:
    """Seconds to wait before the next pod: 10 s after a failure, doubled for each further one in a row."""
    ended = sorted((_ended_at(p, now), pods.phase_of(p) == "Succeeded") for p in owned if _has_ended(p))
    row = 0
    for _, succeeded in ended:
        row = 0 if succeeded else row + 1
    if not row:
        return 0.0
    wait: float = min(BACKOFF_FIRST_S * 2.0 ** min(row - 1, 16), BACKOFF_MAX_S)
    return wait - (now - ended[-1][0]).total_seconds()


def _has_ended(pod: Object) -> bool:
    return pods.is_finished(pod) or is_deleting(pod)


def _ended_at(pod: Object, now: datetime) -> datetime:
    times = [
        parse_time(at)
        for s in dig(pod, "status", "containerStatuses", default=[])
        if (at := dig(s, "state", "terminated", "finishedAt"))
    ]
    if times:
        return max(times)
    changed = (condition(pod, "Ready") or {}).get("lastTransitionTime")
    deleted = meta(pod).get("deletionTimestamp")
    return parse_time(changed or deleted or rfc3339(now))
