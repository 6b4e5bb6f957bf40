"""What to do next with the containers of a pod. Pure: the worker carries it out.

The order is Kubernetes' (KEP-753 for sidecars): init containers one after another, a sidecar counting as done
once it has started; then the ordinary containers; the pod ends when these have ended for good.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mesh_local.kubelet.records import Ended, Record, Running, Waiting

BACKOFF_FIRST_S = 10.0
BACKOFF_MAX_S = 300.0
# A container that ran this long starts with a clean slate.
BACKOFF_RESET_S = 2 * BACKOFF_MAX_S


@dataclass(frozen=True, slots=True)
class Backoff:
    """The delays between restarts; tests make them short."""

    first_s: float = BACKOFF_FIRST_S
    max_s: float = BACKOFF_MAX_S
    reset_s: float = BACKOFF_RESET_S


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step.

    Attributes:
        start: containers to start now, one after another.
        finish: the pod has run to its end: stop what still runs.
        wake_at: when to decide again, though nothing has happened; None for never.
    """

    start: tuple[Record, ...] = ()
    finish: bool = False
    wake_at: float | None = None


def will_restart(record: Record, policy: str) -> bool:
    """Whether a container that has ended is to run again."""
    if not isinstance(record.state, Ended):
        return True
    if record.role == "sidecar":
        return True
    if record.role == "init":
        return record.state.code != 0 and policy != "Never"
    return policy == "Always" or (policy == "OnFailure" and record.state.code != 0)


def backoff_ended(record: Record, backoff: Backoff) -> bool:
    """Whether the delays start anew, because the container has run long enough."""
    return record.backoff_s == 0 or record.ended_mono - record.started_mono > backoff.reset_s


def due_at(record: Record, backoff: Backoff) -> float:
    """When a container that does not run may be started."""
    if isinstance(record.state, Waiting):
        return record.retry_mono
    return record.ended_mono + (0 if backoff_ended(record, backoff) else record.backoff_s)


def next_backoff(record: Record, backoff: Backoff) -> float:
    """The delay that a restart now leaves behind for the one after it; the first restart is free."""
    if not isinstance(record.state, Ended):
        return record.backoff_s
    if backoff_ended(record, backoff):
        return backoff.first_s
    return min(record.backoff_s * 2, backoff.max_s)


def is_backing_off(record: Record, policy: str, backoff: Backoff, now: float) -> bool:
    """Whether a restart is waiting for its delay (CrashLoopBackOff)."""
    return isinstance(record.state, Ended) and will_restart(record, policy) and due_at(record, backoff) > now


def is_done(record: Record) -> bool:
    """Whether an init container lets the next one start."""
    if record.role == "sidecar":
        return isinstance(record.state, Running) and record.started
    return isinstance(record.state, Ended) and record.state.code == 0


def is_initialized(records: Sequence[Record]) -> bool:
    """Whether the ordinary containers may run; stays so once one of them was started."""
    if any(r.role == "main" and r.attempt >= 0 for r in records):
        return True
    return all(is_done(r) for r in records if r.role != "main")


def init_failed(records: Sequence[Record], policy: str) -> bool:
    return any(
        r.role == "init" and isinstance(r.state, Ended) and r.state.code != 0 and not will_restart(r, policy)
        for r in records
    )


def is_finished(records: Sequence[Record], policy: str) -> bool:
    """Whether the pod has run to its end, sidecars aside."""
    mains = [r for r in records if r.role == "main"]
    ended = all(isinstance(r.state, Ended) and not will_restart(r, policy) for r in mains)
    return ended or init_failed(records, policy)


def decide(records: Sequence[Record], policy: str, backoff: Backoff, now: float) -> Plan:
    """The next step for a pod that is to run.

    Args:
        records: as from `records_of`.
        policy: the pod's restartPolicy.
        now: by the clock of the event loop.
    """
    if is_finished(records, policy):
        return Plan(finish=True)
    wanted = [r for r in _wanted(records, policy) if not isinstance(r.state, Running)]
    waiting = [due_at(r, backoff) for r in wanted if due_at(r, backoff) > now]
    return Plan(
        start=tuple(r for r in wanted if due_at(r, backoff) <= now),
        wake_at=min(waiting, default=None),
    )


def _wanted(records: Sequence[Record], policy: str) -> list[Record]:
    """The containers that should run now, in the order in which to start them."""
    inits = [r for r in records if r.role != "main"]
    sidecars = [r for r in inits if r.role == "sidecar"]
    if is_initialized(records):
        return sidecars + [r for r in records if r.role == "main" and will_restart(r, policy)]
    reached = max((at for at, r in enumerate(inits) if r.attempt >= 0), default=-1)
    wanted = []
    for at, record in enumerate(inits):
        if record.role == "sidecar" and at < reached:
            wanted.append(record)  # a restart does not hold up the init container that is at work
        elif not is_done(record):
            return [*wanted, record]
        elif record.role == "sidecar":
            wanted.append(record)
    return wanted


def stop_order(records: Sequence[Record]) -> list[list[Record]]:
    """Running containers in groups, in the order in which these get their stop signal (KEP-753)."""
    groups = [[r for r in records if r.role != "sidecar"]]
    groups += [[r] for r in reversed(records) if r.role == "sidecar"]
    return [group for group in groups if group]


def duration(seconds: float) -> str:
    """Whole seconds as Go prints a time.Duration: 10s, 1m20s, 5m0s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
