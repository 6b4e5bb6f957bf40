"""Jobs: counting, ending, and the pods to make."""

from datetime import UTC, datetime, timedelta

import pytest

from mesh_local.controllers.decisions import job_indexes, jobs
from mesh_local.machinery.objects import condition, name_of, rfc3339

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job(**spec):
    return {
        "metadata": {"name": "j", "namespace": "t", "uid": "j"},
        "spec": {"parallelism": 1, "completions": 1, "backoffLimit": 6, "template": {}, **spec},
        "status": {},
    }


def pod(uid, phase="Running", *, tracked=True, deleting=False, ended=0.0, code=1):
    metadata = {"name": uid, "namespace": "t", "uid": uid}
    if tracked:
        metadata["finalizers"] = [jobs.FINALIZER]
    if deleting:
        metadata["deletionTimestamp"] = rfc3339(NOW)
    status = {"phase": phase}
    if phase in ("Succeeded", "Failed"):
        finished = rfc3339(NOW + timedelta(seconds=ended))
        exit_code = 0 if phase == "Succeeded" else code
        terminated = {"exitCode": exit_code, "finishedAt": finished}
        status["containerStatuses"] = [{"name": "work", "state": {"terminated": terminated}}]
    return {"metadata": metadata, "spec": {}, "status": status}


def observed(j, owned, at=NOW):
    return {**j, "status": jobs.observed_status(j, owned, at)}


def test_new_job_starts_its_clock_and_its_pods():
    j = observed(job(parallelism=3, completions=2), [])
    assert j["status"] == {
        "startTime": rfc3339(NOW),
        "terminating": 0,
        "uncountedTerminatedPods": {},
        "ready": 0,
    }
    assert jobs.plan_pods(j, [], NOW).create == 2


def test_success_is_counted_once_over_two_writes():
    done = pod("p", "Succeeded")
    j = observed(job(), [done])
    assert j["status"]["uncountedTerminatedPods"] == {"succeeded": ["p"]}
    assert condition(j, "SuccessCriteriaMet")["reason"] == "CompletionsReached"
    assert jobs.to_release(j, [done]) == [done]
    waiting = jobs.settled_status(j, {"p"}, NOW)
    assert waiting == j["status"]
    j["status"] = jobs.settled_status(j, set(), NOW)
    assert (j["status"]["succeeded"], j["status"]["uncountedTerminatedPods"]) == (1, {})
    assert [c["type"] for c in j["status"]["conditions"]] == ["SuccessCriteriaMet", "Complete"]
    assert jobs.is_finished(j)
    done["metadata"].pop("finalizers")
    again = jobs.observed_status(j, [done], NOW + timedelta(seconds=5))
    assert again == j["status"]


def test_backoff_limit():
    j = job(backoffLimit=1)
    j = observed(j, [pod("a", "Failed")])
    assert condition(j, "FailureTarget") is None
    j["status"] = jobs.settled_status(j, set(), NOW)
    j = observed(j, [pod("a", "Failed", tracked=False), pod("b", "Failed")])
    found = condition(j, "FailureTarget")
    assert (found["reason"], found["message"]) == (
        "BackoffLimitExceeded",
        "Job has reached the specified backoff limit",
    )
    j["status"] = jobs.settled_status(j, set(), NOW)
    assert j["status"]["failed"] == 2
    assert condition(j, "Failed")["status"] == "True"


def test_failed_job_waits_for_its_running_pods():
    j = observed(job(parallelism=2, completions=2, backoffLimit=0), [pod("a", "Failed"), pod("b")])
    assert [name_of(p) for p in jobs.plan_pods(j, [pod("b")], NOW).delete] == ["b"]
    j["status"] = jobs.settled_status(j, set(), NOW)
    assert condition(j, "Failed") is None


@pytest.mark.parametrize(("failures", "wait"), [(1, 10), (2, 20), (3, 40), (12, 600)])
def test_next_pod_waits_longer_after_each_failure(failures, wait):
    owned = [pod(str(i), "Failed", tracked=False, ended=i) for i in range(failures)]
    at = NOW + timedelta(seconds=failures - 1)
    plan = jobs.plan_pods(observed(job(backoffLimit=99), owned, at), owned, at)
    assert (plan.create, plan.again_s) == (0, wait)
    later = at + timedelta(seconds=wait)
    assert jobs.plan_pods(observed(job(backoffLimit=99), owned, later), owned, later).create == 1


def test_success_ends_the_backoff():
    owned = [pod("a", "Failed", tracked=False), pod("b", "Succeeded", tracked=False, ended=1)]
    j = job(completions=3)
    j["status"] = {"succeeded": 1, "failed": 1}
    assert jobs.plan_pods(observed(j, owned), owned, NOW).create == 1


def test_deleted_pod_counts_as_failed_at_once_unless_told_to_wait():
    going = pod("a", deleting=True)
    assert observed(job(), [going])["status"]["uncountedTerminatedPods"] == {"failed": ["a"]}
    waits = job(podReplacementPolicy="Failed")
    found = observed(waits, [going])
    assert found["status"]["uncountedTerminatedPods"] == {}
    assert jobs.plan_pods(found, [going], NOW).create == 0


def test_deadline():
    j = observed(job(activeDeadlineSeconds=30), [])
    assert jobs.plan_pods(j, [pod("a")], NOW).again_s == 30
    late = observed(j, [pod("a")], NOW + timedelta(seconds=30))
    found = condition(late, "FailureTarget")
    assert (found["reason"], found["message"]) == (
        "DeadlineExceeded",
        "Job was active longer than specified deadline",
    )


def test_without_completions_one_success_ends_it_when_all_have_ended():
    j = job(parallelism=2)
    del j["spec"]["completions"]
    still = observed(j, [pod("a", "Succeeded"), pod("b")])
    assert condition(still, "SuccessCriteriaMet") is None
    assert jobs.plan_pods(still, [pod("b")], NOW).create == 0
    done = observed(j, [pod("a", "Succeeded"), pod("b", "Succeeded")])
    assert condition(done, "SuccessCriteriaMet") is not None


def test_suspended_job_gives_up_its_pods_and_its_clock():
    j = job(suspend=True)
    j["status"] = {"startTime": rfc3339(NOW)}
    found = observed(j, [pod("a")])
    assert "startTime" not in found["status"]
    assert condition(found, "Suspended")["reason"] == "JobSuspended"
    assert len(jobs.plan_pods(found, [pod("a")], NOW).delete) == 1
    found["spec"]["suspend"] = False
    resumed = observed(found, [])
    assert condition(resumed, "Suspended")["status"] == "False"
    assert resumed["status"]["startTime"] == rfc3339(NOW)


def test_pod_failure_policy_ends_or_ignores():
    rules = [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    j = job(podFailurePolicy={"rules": rules})
    found = condition(observed(j, [pod("a", "Failed", code=42)]), "FailureTarget")
    assert (found["reason"], found["message"]) == (
        "PodFailurePolicy",
        "Container work for pod t/a failed with exit code 42 matching FailJob rule at index 0",
    )
    disrupted = pod("b", "Failed")
    disrupted["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True"}]
    ignored = observed(j, [disrupted])
    assert ignored["status"]["uncountedTerminatedPods"] == {}
    assert jobs.to_release(ignored, [disrupted]) == [disrupted]


def test_restarts_count_with_restart_policy_on_failure():
    j = job(backoffLimit=2, template={"spec": {"restartPolicy": "OnFailure"}})
    running = pod("a")
    running["status"]["containerStatuses"] = [{"name": "work", "restartCount": 1}]
    assert condition(observed(j, [running]), "FailureTarget") is None
    running["status"]["containerStatuses"][0]["restartCount"] = 2
    assert condition(observed(j, [running]), "FailureTarget") is not None


def test_expiry():
    j = job(ttlSecondsAfterFinished=60)
    assert jobs.seconds_to_expiry(j, NOW) is None
    j["status"]["conditions"] = [{"type": "Complete", "status": "True", "lastTransitionTime": rfc3339(NOW)}]
    assert jobs.seconds_to_expiry(j, NOW + timedelta(seconds=20)) == 40


@pytest.mark.parametrize(
    ("text", "indexes"), [("", set()), ("0", {0}), ("0,1", {0, 1}), ("0-2,5,7-9", {0, 1, 2, 5, 7, 8, 9})]
)
def test_completed_indexes_are_written_and_read(text, indexes):
    assert job_indexes.compact(indexes) == text
    assert job_indexes.parse(text) == indexes


def with_index(p, index):
    p["metadata"]["annotations"] = {job_indexes.INDEX: str(index)}
    return p


def test_indexed_job_replaces_the_index_that_failed():
    j = job(completionMode="Indexed", parallelism=3, completions=3)
    owned = [
        with_index(pod("a", "Succeeded"), 0),
        with_index(pod("b", "Failed", ended=-60), 1),
        with_index(pod("c"), 2),
    ]
    j = observed(j, owned)
    assert (j["status"]["completedIndexes"], j["status"]["succeeded"]) == ("0", 1)
    assert j["status"]["uncountedTerminatedPods"] == {"failed": ["b"]}
    assert jobs.plan_pods(j, owned, NOW).indexes == (1,)


def test_indexed_job_gives_up_a_repeated_index():
    j = job(completionMode="Indexed", parallelism=2, completions=2)
    owned = [with_index(pod("a"), 0), with_index(pod("b"), 0)]
    assert [name_of(p) for p in jobs.plan_pods(observed(j, owned), owned, NOW).delete] == ["b"]
