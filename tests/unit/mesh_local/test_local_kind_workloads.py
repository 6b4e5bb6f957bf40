"""Deployments, ReplicaSets and Jobs: defaulting, what is refused, and the rows."""

from datetime import UTC, datetime
from typing import Any

import pytest

from mesh_local.kinds.job import JOB
from mesh_local.kinds.workloads import DEPLOYMENT, REPLICA_SET
from mesh_local.machinery.objects import Object, copy

NOW = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
CREATED = "2026-01-01T00:00:00Z"
LABELS = {"app": "web"}
SELECTOR = {"matchLabels": LABELS}


def template(labels: Object | None = None, **spec: Any) -> Object:
    pod = {"containers": [{"name": "web", "image": "localhost/base:1"}], **spec}
    return {"metadata": {"labels": labels or LABELS}, "spec": pod}


def deployment(**spec: Any) -> Object:
    obj: Object = {
        "metadata": {"name": "web", "creationTimestamp": CREATED},
        "spec": {"selector": SELECTOR, "template": template(), **spec},
    }
    DEPLOYMENT.default(obj)
    return obj


def job(**spec: Any) -> Object:
    """A Job as it is after `prepare_create`."""
    pod = {"containers": [{"name": "work", "image": "localhost/base:1"}], "restartPolicy": "Never"}
    obj: Object = {
        "metadata": {"name": "j", "uid": "u1", "creationTimestamp": CREATED},
        "spec": {"template": {"spec": pod}, **spec},
    }
    JOB.default(obj)
    JOB.prepare_create(obj)
    return obj


def test_a_deployment_gets_its_defaults() -> None:
    obj = deployment()
    DEPLOYMENT.prepare_create(obj)
    spec = obj["spec"]
    assert {k: v for k, v in spec.items() if k != "template"} == {
        "replicas": 1,
        "selector": SELECTOR,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
        "revisionHistoryLimit": 10,
        "progressDeadlineSeconds": 600,
    }
    # A template does not get what only Pods have.
    assert "enableServiceLinks" not in spec["template"]["spec"]
    assert spec["template"]["spec"]["dnsPolicy"] == "ClusterFirst"
    assert obj["status"] == {}
    assert DEPLOYMENT.validate(obj) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"template": template({"app": "other"})},
            'spec.template.metadata.labels: Invalid value: {"app":"other"}: '
            "`selector` does not match template `labels`",
        ),
        ({"replicas": -1}, "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        (
            {"selector": {}},
            "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
        ),
        (
            {"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}}},
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ),
        (
            {"strategy": {"rollingUpdate": {"maxUnavailable": "101%"}}},
            'spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "101%": '
            "must not be greater than 100%",
        ),
        (
            {"strategy": {"type": "Recreate", "rollingUpdate": {}}},
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            {"progressDeadlineSeconds": 5, "minReadySeconds": 5},
            "spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds",
        ),
        (
            {"template": template(restartPolicy="Never")},
            'spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"',
        ),
    ],
)
def test_a_bad_deployment_is_refused(spec: Object, message: str) -> None:
    assert [str(e) for e in DEPLOYMENT.validate(deployment(**spec))] == [message]


def test_the_selector_is_immutable() -> None:
    other = {"app": "other"}
    new = deployment(selector={"matchLabels": other}, template=template(other))
    [error] = DEPLOYMENT.validate_update(new, deployment())
    assert str(error) == 'spec.selector: Invalid value: {"matchLabels":{"app":"other"}}: field is immutable'


def test_a_write_to_status_leaves_spec_and_labels_alone() -> None:
    old = deployment()
    old["metadata"]["labels"] = {"a": "1"}
    new: Object = {"metadata": {"name": "web", "labels": {}}, "spec": {}, "status": {"replicas": 1}}
    DEPLOYMENT.prepare_status(new, old)
    assert (new["spec"], new["metadata"]["labels"], new["status"]) == (
        old["spec"],
        {"a": "1"},
        {"replicas": 1},
    )


def test_rows_of_deployment_and_replica_set() -> None:
    obj = deployment(replicas=2)
    obj["status"] = {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1, "replicas": 2}
    assert DEPLOYMENT.row(obj, NOW) == ["web", "1/2", 2, 1, "5s", "web", "localhost/base:1", "app=web"]
    assert REPLICA_SET.row(obj, NOW) == ["web", 2, 2, 1, "5s", "web", "localhost/base:1", "app=web"]


def test_a_job_selects_its_pods_by_uid() -> None:
    obj = job(backoffLimit=0)
    labels = {
        "batch.kubernetes.io/controller-uid": "u1",
        "batch.kubernetes.io/job-name": "j",
        "controller-uid": "u1",
        "job-name": "j",
    }
    assert obj["metadata"]["labels"] == labels
    assert obj["spec"]["template"]["metadata"] == {"labels": labels}
    assert {k: v for k, v in obj["spec"].items() if k != "template"} == {
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": 0,
        "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": "u1"}},
        "manualSelector": False,
        "completionMode": "NonIndexed",
        "suspend": False,
        "podReplacementPolicy": "TerminatingOrFailed",
    }
    assert obj["status"] == {}
    assert JOB.validate(obj) == []


def test_a_job_with_parallelism_has_no_completions_of_its_own() -> None:
    assert "completions" not in job(parallelism=3)["spec"]


def test_a_bad_job_is_refused() -> None:
    obj = job(backoffLimit=-1)
    obj["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    assert [str(e) for e in JOB.validate(obj)] == [
        "spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0",
        'spec.template.spec.restartPolicy: Unsupported value: "Always": '
        'supported values: "OnFailure", "Never"',
    ]


def test_the_template_of_a_job_is_immutable() -> None:
    old = job()
    new = copy(old)
    new["spec"]["template"]["spec"]["containers"][0]["image"] = "other:1"
    [error] = JOB.validate_update(new, old)
    assert (error.field, error.detail) == ("spec.template", "field is immutable")
    new = copy(old)
    new["spec"]["parallelism"] = 2
    assert JOB.validate_update(new, old) == []


def test_the_row_of_a_job() -> None:
    obj = job()
    assert JOB.row(obj, NOW)[1:4] == ["Running", "0/1", ""]
    obj["status"] = {
        "startTime": "2026-01-01T00:00:01Z",
        "completionTime": "2026-01-01T00:00:04Z",
        "succeeded": 1,
        "conditions": [{"type": "Complete", "status": "True"}],
    }
    assert JOB.row(obj, NOW) == [
        "j",
        "Complete",
        "1/1",
        "3s",
        "5s",
        "work",
        "localhost/base:1",
        "batch.kubernetes.io/controller-uid=u1",
    ]
