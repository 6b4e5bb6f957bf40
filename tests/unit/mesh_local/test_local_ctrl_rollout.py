"""Deployments: sizes, revisions and status, as kube-controller-manager decides them."""

from datetime import UTC, datetime, timedelta

import pytest

from mesh_local.controllers.decisions import deployment_status, revisions
from mesh_local.controllers.decisions.rollout import (
    initial_size,
    is_scaling,
    plan_recreate,
    plan_rollout,
    plan_scale,
)
from mesh_local.controllers.decisions.sizes import max_surge, max_unavailable
from mesh_local.machinery.objects import annotations_of, condition, name_of, rfc3339

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def deployment(replicas=4, surge="25%", unavailable="25%", type_="RollingUpdate", **spec):
    strategy = {"type": type_}
    if type_ == "RollingUpdate":
        strategy["rollingUpdate"] = {"maxSurge": surge, "maxUnavailable": unavailable}
    template = {"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "w", "namespace": "t", "uid": "d", "generation": 1},
        "spec": {
            "replicas": replicas,
            "strategy": strategy,
            "selector": {"matchLabels": {"app": "w"}},
            "template": template,
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 10,
            **spec,
        },
    }


def replica_set(name, replicas, available=None, created=0, **annotations):
    available = replicas if available is None else available
    return {
        "metadata": {
            "name": name,
            "uid": name,
            "creationTimestamp": rfc3339(NOW + timedelta(seconds=created)),
            "annotations": annotations,
        },
        "spec": {"replicas": replicas, "template": {"metadata": {}, "spec": {}}},
        "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available},
    }


def sizes(plan):
    return {name_of(step.set): step.replicas for step in plan}


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "expected"),
    [
        (4, "25%", "25%", (1, 1)),
        (2, "25%", "25%", (1, 0)),
        (10, "30%", "25%", (3, 2)),
        (3, 0, 0, (0, 1)),
        (1, 0, 5, (0, 1)),
        (0, 1, 1, (1, 0)),
    ],
)
def test_bounds(replicas, surge, unavailable, expected):
    d = deployment(replicas, surge, unavailable)
    assert (max_surge(d), max_unavailable(d)) == expected


def test_first_replica_set_has_full_size():
    assert initial_size(deployment(4), []) == 4


def test_new_replica_set_begins_with_the_surge():
    assert initial_size(deployment(4), [replica_set("old", 4)]) == 1


def test_new_set_grows_before_old_ones_shrink():
    old, new = replica_set("old", 4), replica_set("new", 0, created=1)
    assert sizes(plan_rollout(deployment(4), [old, new], new)) == {"new": 1}


def test_old_set_shrinks_by_what_may_be_unavailable():
    old, new = replica_set("old", 4), replica_set("new", 1, available=0, created=1)
    assert sizes(plan_rollout(deployment(4), [old, new], new)) == {"old": 3}


def test_nothing_moves_while_new_pods_are_not_available():
    old, new = replica_set("old", 3), replica_set("new", 2, available=0, created=1)
    assert plan_rollout(deployment(4), [old, new], new) == []


def test_broken_old_pods_go_first():
    broken, old = replica_set("broken", 2, available=0), replica_set("old", 3, created=1)
    new = replica_set("new", 0, created=2)
    d = deployment(4, surge=1, unavailable=1)
    assert sizes(plan_rollout(d, [broken, old, new], new)) == {"broken": 0}


def test_rollout_ends_with_old_sets_empty():
    old, new = replica_set("old", 1), replica_set("new", 4, created=1)
    assert sizes(plan_rollout(deployment(4), [old, new], new)) == {"old": 0}


def test_too_large_new_set_shrinks():
    new = replica_set("new", 6)
    assert sizes(plan_rollout(deployment(4), [new], new)) == {"new": 4}


def test_rollout_always_arrives():
    """Play rollouts to their end, with every pod available at once, and never break the bounds."""
    for replicas, surge, unavailable in ((1, 1, 0), (5, "25%", "25%"), (7, 0, 1), (10, "100%", "50%")):
        d = deployment(replicas, surge, unavailable)
        old, new = replica_set("old", replicas), replica_set("new", 0, created=1)
        for _ in range(50):
            plan = plan_rollout(d, [old, new], new)
            if not plan:
                break
            for step in plan:
                step.set["spec"]["replicas"] = step.replicas
                step.set["status"]["availableReplicas"] = step.replicas
            total = old["spec"]["replicas"] + new["spec"]["replicas"]
            assert replicas - max_unavailable(d) <= total <= replicas + max_surge(d)
        assert (old["spec"]["replicas"], new["spec"]["replicas"]) == (0, replicas)


def test_recreate_empties_old_sets():
    old, new = replica_set("old", 3), replica_set("new", 0, created=1)
    assert sizes(plan_recreate(deployment(type_="Recreate"), [old, new], new)) == {"old": 0}


def test_scaling_is_seen_by_the_annotation():
    changed = replica_set("s", 2, **{revisions.DESIRED: "2"})
    assert is_scaling(deployment(3), [changed])
    assert not is_scaling(deployment(2), [changed])


def test_scale_of_the_only_set():
    only = replica_set("s", 2)
    assert sizes(plan_scale(deployment(5), [only], only)) == {"s": 5}


def test_scale_during_a_rollout_is_proportional():
    """The example of the Kubernetes documentation: 10 to 15 with surge 3 while 8 + 5 pods exist."""
    notes = {revisions.DESIRED: "10", revisions.MAXIMUM: "13"}
    old, new = replica_set("old", 8, **notes), replica_set("new", 5, available=0, created=1, **notes)
    d = deployment(15, surge=3, unavailable=2)
    assert sizes(plan_scale(d, [old, new], new)) == {"old": 11, "new": 7}


def test_scale_to_zero_during_a_rollout():
    old, new = replica_set("old", 3), replica_set("new", 2, created=1)
    assert sizes(plan_scale(deployment(0), [old, new], new)) == {"old": 0, "new": 0}


def test_hash_is_stable_and_in_the_safe_alphabet():
    template = deployment()["spec"]["template"]
    shuffled = {"spec": template["spec"], "metadata": template["metadata"]}
    found = revisions.template_hash(template, 0)
    assert found == revisions.template_hash(shuffled, 0)
    assert found != revisions.template_hash(template, 1)
    assert set(found) <= set("bcdfghjklmnpqrstvwxz2456789")
    assert len(found) <= 10


def test_new_set_carries_hash_selector_and_notes():
    d = deployment(4)
    d["metadata"]["annotations"] = {
        "team": "a",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
        revisions.REVISION: "1",
    }
    made = revisions.new_set(d, [replica_set("old", 4, **{revisions.REVISION: "1"})], 1)
    hash_ = made["metadata"]["labels"]["pod-template-hash"]
    assert made["spec"]["selector"]["matchLabels"] == {"app": "w", "pod-template-hash": hash_}
    assert made["spec"]["template"]["metadata"]["labels"]["pod-template-hash"] == hash_
    assert annotations_of(made) == {
        "team": "a",
        revisions.REVISION: "2",
        revisions.DESIRED: "4",
        revisions.MAXIMUM: "5",
    }
    assert revisions.current_set(d, [made]) is made
    d["spec"]["template"]["spec"]["containers"][0]["image"] = "y"
    assert revisions.current_set(d, [made]) is None


def test_revived_set_keeps_its_revisions_as_history():
    old = [replica_set("b", 2, **{revisions.REVISION: "4"})]
    revived = replica_set("a", 0, **{revisions.REVISION: "3", revisions.HISTORY: "1"})
    found = revisions.current_annotations(deployment(), revived, old)
    assert (found[revisions.REVISION], found[revisions.HISTORY]) == ("5", "1,3")


def test_clean_up_spares_sets_with_pods():
    old = [replica_set(f"s{i}", 0, created=i, **{revisions.REVISION: str(i)}) for i in range(4)]
    old[0] = replica_set("busy", 1, **{revisions.REVISION: "0"})
    found = revisions.to_clean_up(deployment(revisionHistoryLimit=1), old)
    assert [name_of(s) for s in found] == ["s1", "s2"]


def test_status_of_an_unfinished_rollout():
    new = replica_set("w-1", 4, available=1)
    status = deployment_status.rollout_status(deployment(4), [new], new, NOW)
    assert {k: v for k, v in status.items() if k != "conditions"} == {
        "observedGeneration": 1,
        "replicas": 4,
        "updatedReplicas": 4,
        "readyReplicas": 1,
        "availableReplicas": 1,
        "unavailableReplicas": 3,
        "terminatingReplicas": 0,
    }
    found = {c["type"]: (c["status"], c["reason"], c["message"]) for c in status["conditions"]}
    assert found == {
        "Available": (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        ),
        "Progressing": ("True", "ReplicaSetUpdated", 'ReplicaSet "w-1" is progressing.'),
    }


def test_status_does_not_change_by_itself():
    d, new = deployment(4), replica_set("w-1", 4)
    d["status"] = deployment_status.rollout_status(d, [new], new, NOW)
    later = NOW + timedelta(hours=1)
    assert deployment_status.rollout_status(d, [new], new, later) == d["status"]


def test_deadline_passes_only_without_progress():
    d, new = deployment(2), replica_set("w-1", 2, available=0)
    d["status"] = deployment_status.rollout_status(d, [new], new, NOW)
    late = NOW + timedelta(seconds=601)
    stuck = deployment_status.rollout_status(d, [new], new, late)
    found = condition({"status": stuck}, "Progressing")
    assert (found["status"], found["reason"]) == ("False", "ProgressDeadlineExceeded")
    assert found["message"] == 'ReplicaSet "w-1" has timed out progressing.'
    new["status"]["readyReplicas"] = new["status"]["availableReplicas"] = 1
    moved = deployment_status.rollout_status(d, [new], new, late)
    assert condition({"status": moved}, "Progressing")["reason"] == "ReplicaSetUpdated"


def test_pause_is_noted_and_stops_the_clock():
    d = deployment(paused=True)
    noted = deployment_status.paused_condition(d, NOW)
    assert (noted["status"], noted["reason"]) == ("Unknown", "DeploymentPaused")
    d["status"] = deployment_status.with_condition(d, noted)
    assert deployment_status.paused_condition(d, NOW) is None
    assert deployment_status.seconds_to_deadline(d, d["status"]["conditions"], NOW) is None
    d["spec"]["paused"] = False
    assert deployment_status.paused_condition(d, NOW)["reason"] == "DeploymentResumed"


def test_replica_failure_is_shown():
    new = replica_set("w-1", 2, available=0)
    failure = {"type": "ReplicaFailure", "status": "True", "lastTransitionTime": rfc3339(NOW)}
    new["status"]["conditions"] = [failure | {"reason": "FailedCreate", "message": "no"}]
    status = deployment_status.rollout_status(deployment(2), [new], new, NOW)
    assert condition({"status": status}, "ReplicaFailure")["message"] == "no"
