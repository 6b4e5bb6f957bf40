"""Which container is next: order, restarts, delays."""

import pytest

from mesh_local.kubelet.lifecycle import (
    Backoff,
    decide,
    due_at,
    duration,
    is_backing_off,
    is_initialized,
    next_backoff,
    stop_order,
)
from mesh_local.kubelet.records import Ended, Record, Role, Running, Waiting
from tests.support.local_kubelet import MOMENT

BACKOFF = Backoff()
RUNNING = Running("id", MOMENT)
DONE = Ended(0, "Completed")
FAILED = Ended(1, "Error")


def record(name: str, role: Role = "main", state: object = None, **more: object) -> Record:
    found = Record(name, role, {"name": name}, **more)  # type: ignore[arg-type]
    if state is not None:
        found.state = state  # type: ignore[assignment]
        found.attempt = max(found.attempt, 0)
    return found


def names(records: list[Record], policy: str = "Always", now: float = 1000.0) -> list[str]:
    return [r.name for r in decide(records, policy, BACKOFF, now).start]


def test_init_containers_run_one_after_another() -> None:
    setup, mesh, late, app = (
        record("setup", "init"),
        record("mesh", "sidecar"),
        record("late", "init"),
        record("app"),
    )
    pod = [setup, mesh, late, app]
    assert names(pod) == ["setup"]
    setup.state, setup.attempt = RUNNING, 0
    assert names(pod) == []
    setup.state = DONE
    assert names(pod) == ["mesh"]
    mesh.state, mesh.attempt = RUNNING, 0
    assert names(pod) == []  # its startup probe has not passed
    mesh.started = True
    assert names(pod) == ["late"]
    late.state, late.attempt = DONE, 0
    assert is_initialized(pod)
    assert names(pod) == ["app"]


def test_a_sidecar_is_restarted_while_a_later_init_container_runs() -> None:
    pod = [record("mesh", "sidecar", FAILED), record("late", "init", RUNNING), record("app")]
    assert names(pod) == ["mesh"]
    pod[1].state = DONE
    # What comes after a sidecar that is down waits for it again.
    assert names(pod) == ["mesh"]


def test_a_sidecar_is_restarted_whatever_the_policy_and_without_stopping_the_rest() -> None:
    pod = [record("mesh", "sidecar", DONE), record("app", state=RUNNING)]
    assert names(pod, "Never") == ["mesh"]


@pytest.mark.parametrize(
    ("policy", "state", "started", "finished"),
    [
        ("Always", DONE, True, False),
        ("Always", FAILED, True, False),
        ("OnFailure", FAILED, True, False),
        ("OnFailure", DONE, False, True),
        ("Never", FAILED, False, True),
    ],
)
def test_the_restart_policy(policy: str, state: Ended, started: bool, finished: bool) -> None:
    plan = decide([record("app", state=state)], policy, BACKOFF, 1000.0)
    assert (bool(plan.start), plan.finish) == (started, finished)


def test_a_pod_goes_on_until_its_last_container_has_ended() -> None:
    pod = [record("a", state=DONE), record("b", state=RUNNING)]
    assert decide(pod, "Never", BACKOFF, 0).finish is False
    pod[1].state = FAILED
    assert decide(pod, "Never", BACKOFF, 0).finish is True


def test_a_failed_init_container_ends_a_pod_that_never_restarts() -> None:
    pod = [record("setup", "init", FAILED), record("app")]
    assert decide(pod, "Never", BACKOFF, 1000.0).finish is True
    assert names(pod, "OnFailure") == ["setup"]


def test_the_first_restart_is_free_and_the_delays_double_up_to_five_minutes() -> None:
    app = record("app", state=FAILED, ended_mono=100.0, started_mono=99.0)
    assert due_at(app, BACKOFF) == 100.0
    delays = []
    for _ in range(7):
        app.backoff_s = next_backoff(app, BACKOFF)
        delays.append(app.backoff_s)
    assert delays == [10, 20, 40, 80, 160, 300, 300]
    assert due_at(app, BACKOFF) == 400.0
    assert is_backing_off(app, "Always", BACKOFF, 399.0)
    assert not is_backing_off(app, "Never", BACKOFF, 399.0)
    plan = decide([app], "Always", BACKOFF, 399.0)
    assert (plan.start, plan.wake_at) == ((), 400.0)


def test_ten_minutes_of_life_clear_the_delay() -> None:
    app = record("app", state=FAILED, started_mono=100.0, ended_mono=701.0, backoff_s=160.0)
    assert due_at(app, BACKOFF) == 701.0
    assert next_backoff(app, BACKOFF) == 10.0


def test_a_start_that_was_refused_is_tried_again_later() -> None:
    app = record("app", state=Waiting("CreateContainerConfigError"), retry_mono=50.0)
    plan = decide([app], "Always", BACKOFF, 40.0)
    assert (plan.start, plan.wake_at) == ((), 50.0)


def test_sidecars_stop_last_in_reverse() -> None:
    pod = [record("one", "sidecar", RUNNING), record("two", "sidecar", RUNNING), record("app", state=RUNNING)]
    assert [[r.name for r in group] for group in stop_order(pod)] == [["app"], ["two"], ["one"]]


@pytest.mark.parametrize(("seconds", "text"), [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")])
def test_durations_as_go_prints_them(seconds: int, text: str) -> None:
    assert duration(seconds) == text
