"""Jobs (batch/v1): which pods count as failed, and when that ends the Job."""

from collections.abc import Sequence
from dataclasses import dataclass

from mesh_local.controllers.decisions import pods
from mesh_local.machinery.objects import Object, condition, dig, is_deleting, name_of, namespace_of

LIMIT_REACHED = "Job has reached the specified backoff limit"


@dataclass(frozen=True, slots=True)
class Failure:
    """Reason and message of the condition that ends a Job."""

    reason: str
    message: str


def failed_pods(job: Object, owned: Sequence[Object]) -> list[Object]:
    """The pods that count against backoffLimit.

    A pod that is being deleted counts at once unless podReplacementPolicy asks to wait for its end.
    """
    waits = dig(job, "spec", "podReplacementPolicy", default="") == "Failed"
    return [
        pod
        for pod in owned
        if pods.phase_of(pod) == "Failed"
        or (is_deleting(pod) and not waits and pods.phase_of(pod) != "Succeeded")
        if (rule := _matching_rule(job, pod)) is None or rule[1].get("action") != "Ignore"
    ]


def failure_of(job: Object, owned: Sequence[Object], failed: int) -> Failure | None:
    """Why the Job must end, by podFailurePolicy or backoffLimit.

    Args:
        failed: how many pods have failed, counted ones included.
    """
    for pod in owned:
        rule = _matching_rule(job, pod)
        if rule is not None and rule[1].get("action") == "FailJob":
            return Failure("PodFailurePolicy", _policy_message(pod, *rule))
    limit = int(dig(job, "spec", "backoffLimit", default=6))
    if failed > limit:
        return Failure("BackoffLimitExceeded", LIMIT_REACHED)
    if dig(job, "spec", "template", "spec", "restartPolicy", default="") == "OnFailure":
        restarts = sum(_restarts(pod) for pod in owned if pods.is_active(pod))
        if restarts > 0 and restarts >= limit:
            return Failure("BackoffLimitExceeded", LIMIT_REACHED)
    return None


def _restarts(pod: Object) -> int:
    return sum(
        int(status.get("restartCount") or 0)
        for field in ("initContainerStatuses", "containerStatuses")
        for status in dig(pod, "status", field, default=[])
    )


def _matching_rule(job: Object, pod: Object) -> tuple[int, Object] | None:
    """The first rule of podFailurePolicy that a failed pod meets, with its index."""
    if pods.phase_of(pod) != "Failed":
        return None
    for index, rule in enumerate(dig(job, "spec", "podFailurePolicy", "rules", default=[])):
        codes, patterns = rule.get("onExitCodes"), rule.get("onPodConditions")
        if codes is not None and _exit_code(pod, codes) is not None:
            return index, rule
        for pattern in patterns or ():
            found = condition(pod, pattern["type"])
            if found is not None and found.get("status") == pattern.get("status", "True"):
                return index, rule
    return None


def _exit_code(pod: Object, requirement: Object) -> tuple[str, int] | None:
    """The first container whose exit code the requirement asks for, with the code."""
    only, values = requirement.get("containerName"), requirement.get("values") or ()
    for field in ("containerStatuses", "initContainerStatuses"):
        for status in dig(pod, "status", field, default=[]):
            code = dig(status, "state", "terminated", "exitCode")
            if not code or (only and status.get("name") != only):
                continue
            if (code in values) == (requirement.get("operator") == "In"):
                return status["name"], code
    return None


def _policy_message(pod: Object, index: int, rule: Object) -> str:
    where = f"{namespace_of(pod)}/{name_of(pod)}"
    codes = rule.get("onExitCodes")
    if codes is not None and (found := _exit_code(pod, codes)) is not None:
        name, code = found
        return (
            f"Container {name} for pod {where} failed with exit code {code} "
            f"matching {rule['action']} rule at index {index}"
        )
    met = next(p["type"] for p in rule.get("onPodConditions") or () if condition(pod, p["type"]) is not None)
    return f"Pod {where} has condition {met} matching {rule['action']} rule at index {index}"
