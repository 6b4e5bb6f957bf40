"""The STATUS words, READY and RESTARTS of `kubectl get pods`."""

from datetime import UTC, datetime
from typing import Any

from mesh_local.kinds.pod_columns import row
from mesh_local.machinery.objects import Object

NOW = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
RUNNING = {"running": {}}
DONE = {"terminated": {"exitCode": 0, "reason": "Completed"}}


def waiting(reason: str) -> Object:
    return {"waiting": {"reason": reason}}


def failed(code: int, reason: str = "Error") -> Object:
    return {"terminated": {"exitCode": code, "reason": reason}}


def status(name: str, state: Object, **more: Any) -> Object:
    return {"name": name, "state": state, "restartCount": 0, "ready": False, **more}


def shown(
    *main: Object,
    init: tuple[Object, ...] = (),
    sidecars: tuple[str, ...] = (),
    phase: str = "Running",
    **more: Any,
) -> list[Any]:
    """READY, STATUS and RESTARTS of a Pod with these container statuses."""
    metadata = {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z", **more.pop("metadata", {})}
    containers = [
        {"name": s["name"], **({"restartPolicy": "Always"} if s["name"] in sidecars else {})} for s in init
    ]
    pod: Object = {
        "metadata": metadata,
        "spec": {"initContainers": containers, "containers": [{"name": s["name"]} for s in main]},
        "status": {
            "phase": phase,
            "initContainerStatuses": list(init),
            "containerStatuses": list(main),
            **more,
        },
    }
    return row(pod, NOW)[1:4]


def test_a_running_pod() -> None:
    assert shown(status("c", RUNNING, ready=True)) == ["1/1", "Running", "0"]


def test_a_new_pod_has_no_addresses() -> None:
    pod: Object = {"metadata": {"name": "p"}, "spec": {"containers": [{}]}, "status": {"phase": "Pending"}}
    assert row(pod, NOW) == ["p", "0/1", "Pending", "0", "<unknown>", "<none>", "<none>", "<none>", "<none>"]


def test_init_containers_count_up_and_then_fail() -> None:
    main = status("c", waiting("PodInitializing"))
    first, second = status("a", RUNNING), status("b", waiting("PodInitializing"))
    assert shown(main, init=(first, second), phase="Pending")[1] == "Init:0/2"
    assert shown(main, init=(status("a", DONE), second), phase="Pending")[1] == "Init:1/2"
    assert shown(main, init=(status("a", failed(1)), second), phase="Pending")[1] == "Init:Error"
    crash = status("a", waiting("CrashLoopBackOff"))
    assert shown(main, init=(crash, second), phase="Pending")[1] == "Init:CrashLoopBackOff"
    assert shown(main, init=(status("a", DONE), status("b", DONE)), phase="Pending")[1] == "PodInitializing"


def test_a_sidecar_counts_in_ready_and_restarts() -> None:
    sidecar = status(
        "mesh",
        RUNNING,
        ready=True,
        started=True,
        restartCount=2,
        lastState={"terminated": {"finishedAt": "2026-01-01T00:00:55Z"}},
    )
    main = status("c", RUNNING, ready=True)
    assert shown(main, init=(sidecar,), sidecars=("mesh",)) == ["2/2", "Running", "2 (5s ago)"]
    late = status("late", RUNNING)
    starting = shown(main, init=(sidecar, late), sidecars=("mesh",), phase="Pending")
    assert starting[:2] == ["1/2", "Init:1/2"]


def test_crashes_show_when_the_last_one_was() -> None:
    crash = status(
        "c",
        waiting("CrashLoopBackOff"),
        restartCount=1,
        lastState={"terminated": {"finishedAt": "2026-01-01T00:00:58Z"}},
    )
    assert shown(crash) == ["0/1", "CrashLoopBackOff", "1 (2s ago)"]


def test_ended_containers() -> None:
    assert shown(status("c", DONE), phase="Succeeded")[1] == "Completed"
    assert shown(status("c", failed(3)), phase="Failed")[1] == "Error"
    assert shown(status("c", failed(3, "")), phase="Failed")[1] == "ExitCode:3"
    signalled = {"terminated": {"exitCode": 137, "signal": 9}}
    assert shown(status("c", signalled), phase="Failed")[1] == "Signal:9"


def test_one_of_two_containers_completed() -> None:
    pair = (status("a", DONE), status("b", RUNNING, ready=True))
    assert shown(*pair, conditions=[{"type": "Ready", "status": "True"}])[1] == "Running"
    assert shown(*pair, conditions=[{"type": "Ready", "status": "False"}])[1] == "NotReady"


def test_deletion_shows_unless_the_pod_has_ended() -> None:
    deleted = {"deletionTimestamp": "2026-01-01T00:00:59Z"}
    assert shown(status("c", RUNNING, ready=True), metadata=deleted)[1] == "Terminating"
    assert shown(status("c", DONE), phase="Succeeded", metadata=deleted)[1] == "Completed"
    assert shown(status("c", RUNNING), metadata=deleted, reason="NodeLost")[1] == "Unknown"


def test_a_reason_takes_the_place_of_the_phase() -> None:
    assert shown(phase="Failed", reason="Evicted")[1] == "Evicted"


def test_readiness_gates_are_counted() -> None:
    pod: Object = {
        "metadata": {"name": "p"},
        "spec": {"containers": [], "readinessGates": [{"conditionType": "a/b"}, {"conditionType": "a/c"}]},
        "status": {"conditions": [{"type": "a/b", "status": "True"}], "podIPs": [{"ip": "10.0.0.9"}]},
    }
    assert row(pod, NOW)[5:] == ["10.0.0.9", "<none>", "<none>", "1/2"]
