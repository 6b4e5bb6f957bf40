"""ReplicaSets, ownership, placement and namespace conditions."""

from datetime import UTC, datetime, timedelta

import pytest

from mesh_local.controllers.decisions import pods, replicas
from mesh_local.controllers.decisions.namespaces import Remaining, deletion_conditions
from mesh_local.controllers.decisions.ownership import claim
from mesh_local.controllers.decisions.placement import (
    Ledger,
    demand_of,
    objections,
    unschedulable_message,
)
from mesh_local.machinery.objects import name_of, rfc3339
from mesh_local.machinery.selectors import LabelSelector

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def pod(name, phase="Running", *, ready=None, node="n", labels=None, deleting=False, **metadata):
    found = {
        "metadata": {"name": name, "uid": name, "labels": labels or {"app": "w"}, **metadata},
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase},
    }
    if deleting:
        found["metadata"]["deletionTimestamp"] = rfc3339(NOW)
    if ready is not None:
        since = rfc3339(NOW - timedelta(seconds=ready))
        found["status"]["conditions"] = [{"type": "Ready", "status": "True", "lastTransitionTime": since}]
    return found


def owned(name, uid="rs", **kwargs):
    ref = {"kind": "ReplicaSet", "name": "rs", "uid": uid, "controller": True}
    return pod(name, ownerReferences=[ref], **kwargs)


def replica_set(count=3, **spec):
    template = {"metadata": {"labels": {"app": "w"}}, "spec": {}}
    return {
        "metadata": {"name": "rs", "uid": "rs", "generation": 2},
        "spec": {"replicas": count, "template": template, **spec},
    }


def test_least_loss_is_deleted_first():
    created = rfc3339(NOW - timedelta(hours=1))
    order = [
        pod("unassigned", "Pending", node=""),
        pod("pending", "Pending"),
        pod("not-ready"),
        pod("cheap", ready=100, annotations={pods.DELETION_COST: "-1"}),
        pod("short", ready=5),
        pod("restarted", ready=50, creationTimestamp=rfc3339(NOW)),
        pod("younger", ready=50, creationTimestamp=rfc3339(NOW)),
        pod("older", ready=50, creationTimestamp=created),
    ]
    order[5]["status"]["containerStatuses"] = [{"restartCount": 3}]
    found = pods.by_deletion_order(list(reversed(order)))
    assert [name_of(p) for p in found] == [name_of(p) for p in order]


def test_replica_set_status_counts():
    owned_pods = [
        pod("a", ready=60),
        pod("b", ready=5),
        pod("c", labels={"other": "x"}),
        pod("d", ready=60, deleting=True),
        pod("e", "Succeeded"),
    ]
    status = replicas.replica_set_status(replica_set(minReadySeconds=10), owned_pods, None, NOW)
    assert status == {
        "replicas": 3,
        "fullyLabeledReplicas": 2,
        "readyReplicas": 2,
        "availableReplicas": 1,
        "terminatingReplicas": 1,
        "observedGeneration": 2,
    }
    assert replicas.next_available(replica_set(minReadySeconds=10), owned_pods, NOW) == 5


def test_replica_failure_comes_and_goes():
    rs = replica_set()
    rs["status"] = replicas.replica_set_status(rs, [], ("FailedCreate", "no"), NOW)
    assert rs["status"]["conditions"][0]["message"] == "no"
    again = replicas.replica_set_status(rs, [], ("FailedCreate", "still no"), NOW)
    assert again == rs["status"]
    assert "conditions" not in replicas.replica_set_status(rs, [], None, NOW)


def test_slow_start():
    assert replicas.batches(10) == [1, 2, 4, 3]
    assert replicas.batches(0) == []
    assert replicas.difference(replica_set(9999), 0) == 500


def test_claim_sorts_owned_free_and_strange():
    selector = LabelSelector.from_labels({"app": "w"})
    candidates = [
        owned("mine"),
        owned("changed", labels={"app": "x"}),
        owned("other", uid="someone"),
        pod("free"),
        pod("unrelated", labels={"app": "x"}),
        pod("going", deleting=True),
    ]
    found = claim(replica_set(), selector, candidates)
    assert [name_of(p) for p in found.owned] == ["mine"]
    assert [name_of(p) for p in found.release] == ["changed"]
    assert [name_of(p) for p in found.adopt] == ["free"]
    going = replica_set()
    going["metadata"]["deletionTimestamp"] = rfc3339(NOW)
    found = claim(going, selector, candidates)
    assert (len(found.owned), found.adopt, found.release) == (2, [], [])


def node(**spec):
    allocatable = {"cpu": "2", "memory": "1Gi", "pods": "2"}
    return {
        "metadata": {"name": "n", "labels": {"zone": "a", "size": "5"}},
        "spec": spec,
        "status": {"allocatable": allocatable},
    }


def asking(cpu="0", memory="0", **spec):
    requests = {"cpu": cpu, "memory": memory}
    containers = [{"name": "c", "resources": {"requests": requests}}]
    return {"metadata": {"name": "p", "uid": "p"}, "spec": {"containers": containers, **spec}}


def refused(p, n=None, ledger=None):
    return objections(p, demand_of(p), n or node(), (ledger or Ledger()).of("n"))


def terms(*expressions):
    selected = {"nodeSelectorTerms": [{"matchExpressions": list(expressions)}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": selected}}


TAINT = {"key": "k", "value": "v", "effect": "NoSchedule"}
MISMATCH = ["node(s) didn't match Pod's node affinity/selector"]
TAINTED = ["node(s) had untolerated taint(s)"]


@pytest.mark.parametrize(
    ("p", "n", "expected"),
    [
        (asking(), node(), []),
        (asking(cpu="2"), node(), []),
        (asking(cpu="2001m"), node(), ["Insufficient cpu"]),
        (asking(cpu="3", memory="2Gi"), node(), ["Insufficient cpu", "Insufficient memory"]),
        (asking(nodeSelector={"zone": "a"}), node(), []),
        (asking(nodeSelector={"zone": "b"}), node(), MISMATCH),
        (asking(affinity=terms({"key": "size", "operator": "Gt", "values": ["4"]})), node(), []),
        (asking(affinity=terms({"key": "zone", "operator": "NotIn", "values": ["a"]})), node(), MISMATCH),
        (asking(), node(unschedulable=True), ["node(s) were unschedulable"]),
        (asking(), node(taints=[TAINT]), TAINTED),
        (asking(tolerations=[{"key": "k", "value": "v"}]), node(taints=[TAINT]), []),
        (asking(tolerations=[{"key": "k", "value": "x"}]), node(taints=[TAINT]), TAINTED),
        (asking(tolerations=[{"operator": "Exists"}]), node(taints=[TAINT]), []),
        (asking(), node(taints=[{**TAINT, "effect": "PreferNoSchedule"}]), []),
    ],
)
def test_filters(p, n, expected):
    assert refused(p, n) == expected


def test_ledger_keeps_what_is_in_use():
    ledger = Ledger()
    ledger.assign("a", "n", demand_of(asking(cpu="1500m")))
    ledger.assign("a", "n", demand_of(asking(cpu="1500m")))
    assert refused(asking(cpu="1"), ledger=ledger) == ["Insufficient cpu"]
    assert refused(asking(cpu="500m"), ledger=ledger) == []
    ledger.assign("b", "n", demand_of(asking()))
    assert refused(asking(), ledger=ledger) == ["Too many pods"]
    assert ledger.release("a")
    assert not ledger.release("a")
    assert refused(asking(cpu="2"), ledger=ledger) == []


def test_host_ports_are_taken_once():
    ledger = Ledger()
    p = asking()
    p["spec"]["containers"][0]["ports"] = [{"containerPort": 80, "hostPort": 80}]
    ledger.assign("a", "n", demand_of(p))
    assert refused(p, ledger=ledger) == ["node(s) didn't have free ports for the requested pod ports"]


def test_init_containers_and_sidecars_count_as_they_run():
    def c(cpu, **more):
        return {"name": "c", "resources": {"requests": {"cpu": cpu}}, **more}

    p = {"spec": {"initContainers": [c("1", restartPolicy="Always"), c("3")], "containers": [c("2")]}}
    assert demand_of(p).requests["cpu"] == 4000
    p["spec"]["containers"].append(c("2"))
    assert demand_of(p).requests["cpu"] == 5000


def test_message_for_resources():
    assert unschedulable_message([["Insufficient cpu"]]) == (
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, "
        "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    )
    assert unschedulable_message([]) == "no nodes available to schedule pods"


def test_namespace_conditions_keep_their_times():
    first = deletion_conditions({}, Remaining(failures=["a", "b"]), NOW)
    later = NOW + timedelta(seconds=5)
    second = deletion_conditions({"status": {"conditions": first}}, Remaining(), later)
    failure = next(c for c in first if c["type"] == "NamespaceDeletionContentFailure")
    assert failure["message"] == "Failed to delete all resource types, 2 remaining: [a, b]"
    times = {c["type"]: c["lastTransitionTime"] for c in second}
    assert times.pop("NamespaceDeletionContentFailure") == rfc3339(later)
    assert set(times.values()) == {rfc3339(NOW)}
