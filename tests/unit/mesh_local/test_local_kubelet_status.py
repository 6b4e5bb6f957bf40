"""The status of pods, in the form recorded on Kubernetes 1.36."""

from datetime import timedelta
from typing import Any

from mesh_local.kubelet.lifecycle import Backoff
from mesh_local.kubelet.records import Ended, Record, Running, Waiting, records_of
from mesh_local.kubelet.status import View, build
from mesh_local.machinery.objects import Object
from tests.support.local_kubelet import MOMENT

TIME = "2026-01-02T03:04:05Z"


def pod(**spec: Any) -> Object:
    containers = spec.pop("containers", [{"name": "c", "image": "i"}])
    return {
        "metadata": {"name": "crash", "namespace": "t8", "uid": "u-1", "generation": 1},
        "spec": {"containers": containers, **spec},
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    }


def status(obj: Object, records: list[Record], **more: Any) -> Object:
    view: dict[str, Any] = {
        "host_ips": ("10.0.0.1",),
        "pod_ips": ("10.1.0.1",),
        "start_time": MOMENT,
        "sandbox": True,
        "ended": False,
        "backoff": Backoff(),
        "now": MOMENT,
        "mono": 0.0,
    }
    return build(obj, View(records=records, **{**view, **more}))


def conditions(found: Object) -> dict[str, tuple[str, str, str]]:
    return {c["type"]: (c["status"], c.get("reason", ""), c.get("message", "")) for c in found["conditions"]}


def with_sidecar() -> Object:
    return pod(
        initContainers=[
            {"name": "setup", "image": "i"},
            {"name": "mesh", "image": "i", "restartPolicy": "Always"},
            {"name": "late", "image": "i"},
        ],
        containers=[
            {"name": "app", "image": "i", "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}
        ],
    )


def test_a_pod_that_has_arrived() -> None:
    obj = with_sidecar()
    found = status(obj, records_of(obj), pod_ips=(), sandbox=False)
    assert found["phase"] == "Pending"
    assert "podIP" not in found
    assert conditions(found) == {
        "PodReadyToStartContainers": ("False", "", ""),
        "Initialized": (
            "False",
            "ContainersNotInitialized",
            "containers with incomplete status: [setup mesh late]",
        ),
        "Ready": ("False", "ContainersNotReady", "containers with unready status: [mesh app]"),
        "ContainersReady": ("False", "ContainersNotReady", "containers with unready status: [mesh app]"),
        "PodScheduled": ("True", "", ""),
    }
    assert found["containerStatuses"] == [
        {
            "name": "app",
            "state": {"waiting": {"reason": "PodInitializing"}},
            "lastState": {},
            "ready": False,
            "restartCount": 0,
            "image": "i",
            "imageID": "",
            "started": False,
        }
    ]
    assert found["allocatedResources"] == {"cpu": "10m", "memory": "16Mi"}
    assert found["resources"] == {"requests": {"cpu": "10m", "memory": "16Mi"}}


def test_a_sidecar_that_runs_is_started_then_ready_while_the_pod_is_pending() -> None:
    obj = with_sidecar()
    records = records_of(obj)
    setup, mesh, _, _ = records
    setup.state, setup.attempt = Ended(0, "Completed", "id", MOMENT, MOMENT), 0
    mesh.state, mesh.attempt, mesh.ready = Running("id", MOMENT), 0, True
    found = status(obj, records)
    assert conditions(found)["Initialized"][2] == "containers with incomplete status: [mesh late]"
    assert [(s["started"], s["ready"]) for s in found["initContainerStatuses"]] == [
        (False, True),
        (False, False),
        (False, False),
    ]
    mesh.started = True
    found = status(obj, records)
    assert conditions(found)["Initialized"][2] == "containers with incomplete status: [late]"
    assert conditions(found)["Ready"][2] == "containers with unready status: [app]"
    assert [(s["started"], s["ready"]) for s in found["initContainerStatuses"]][1] == (True, True)
    assert found["phase"] == "Pending"


def test_a_container_in_back_off() -> None:
    obj = pod()
    (c,) = records = records_of(obj)
    c.state, c.attempt, c.backoff_s = Ended(3, "Error", "triomesh://x", MOMENT, MOMENT), 1, 10.0
    found = status(obj, records, mono=1.0)
    assert found["phase"] == "Running"
    (shown,) = found["containerStatuses"]
    assert shown["state"] == {
        "waiting": {
            "reason": "CrashLoopBackOff",
            "message": "back-off 10s restarting failed container=c pod=crash_t8(u-1)",
        }
    }
    assert shown["lastState"] == {
        "terminated": {
            "exitCode": 3,
            "reason": "Error",
            "startedAt": TIME,
            "finishedAt": TIME,
            "containerID": "triomesh://x",
        }
    }
    assert (shown["restartCount"], shown["resources"]) == (1, {})


def test_a_pod_that_cannot_start_is_pending() -> None:
    obj = pod()
    (c,) = records = records_of(obj)
    c.state = Waiting("ErrImageNeverPull", "no")
    found = status(obj, records)
    assert found["phase"] == "Pending"
    assert found["containerStatuses"][0]["state"]["waiting"] == {
        "reason": "ErrImageNeverPull",
        "message": "no",
    }
    assert conditions(found)["Initialized"] == ("True", "", "")


def test_the_end_of_a_pod() -> None:
    obj = pod(restartPolicy="Never")
    (c,) = records = records_of(obj)
    c.state, c.attempt = Ended(0, "Completed", "id", MOMENT, MOMENT), 0
    good = status(obj, records, ended=True)
    assert good["phase"] == "Succeeded"
    assert conditions(good) == {
        "PodReadyToStartContainers": ("False", "", ""),
        "Initialized": ("True", "PodCompleted", ""),
        "Ready": ("False", "PodCompleted", ""),
        "ContainersReady": ("False", "PodCompleted", ""),
        "PodScheduled": ("True", "", ""),
    }
    c.state = Ended(137, "Error", "id", MOMENT, MOMENT)
    bad = status(obj, records, ended=True)
    assert bad["phase"] == "Failed"
    assert conditions(bad)["Initialized"] == ("True", "", "")
    assert conditions(bad)["Ready"] == ("False", "PodFailed", "")


def test_readiness_gates_and_the_conditions_of_others() -> None:
    obj = pod(readinessGates=[{"conditionType": "x/gate"}])
    (c,) = records = records_of(obj)
    c.state, c.attempt, c.started, c.ready = Running("id", MOMENT), 0, True, True
    found = status(obj, records)
    assert conditions(found)["ContainersReady"][0] == "True"
    assert conditions(found)["Ready"] == (
        "False",
        "ReadinessGatesNotReady",
        'corresponding condition of pod readiness gate "x/gate" does not exist.',
    )
    gate = {"type": "x/gate", "status": "True"}
    later = {**obj, "status": {**found, "conditions": [*found["conditions"], gate]}}
    again = status(later, records, now=MOMENT + timedelta(seconds=9))
    assert again["conditions"][0] == gate
    changed = {c["type"]: c.get("lastTransitionTime") for c in again["conditions"]}
    assert changed["ContainersReady"] == TIME
    assert changed["Ready"] == "2026-01-02T03:04:14Z"


def test_resources_are_summed_over_containers_and_peaks_of_init_containers() -> None:
    obj = pod(
        initContainers=[
            {"name": "big", "resources": {"requests": {"cpu": "1", "memory": "1Mi"}}},
            {"name": "mesh", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
        ],
        containers=[
            {
                "name": "a",
                "resources": {"requests": {"cpu": "250m", "memory": "16Mi"}, "limits": {"cpu": "1"}},
            },
            {"name": "b", "resources": {"requests": {"memory": "16Mi"}}},
        ],
    )
    found = status(obj, records_of(obj))
    assert found["resources"] == {
        "requests": {"cpu": "1", "memory": "32Mi"},
        "limits": {"cpu": "1"},
    }
