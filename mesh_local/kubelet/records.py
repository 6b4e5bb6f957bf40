"""What the kubelet knows of each container of a pod: plain data that decisions and status are made from."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from mesh_local.machinery.objects import Object, dig

# `init` runs to its end before the next; `sidecar` is an init container that restarts always.
Role = Literal["init", "sidecar", "main"]

UNKNOWN_REASON = "ContainerStatusUnknown"
UNKNOWN_MESSAGE = "The container could not be located when the pod was terminated"
UNKNOWN_CODE = 137


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not running. An empty reason means that the container's turn has not come."""

    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    container_id: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Ended:
    """`started_at` and `finished_at` are None for a container that was never seen."""

    code: int
    reason: str
    container_id: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    message: str = ""


@dataclass(slots=True)
class Record:
    """One container of a pod.

    Attributes:
        state: what it does now; `Ended` stays until the next start, also while a restart is backed off.
        last: how the attempt before the present one ended.
        attempt: number of the present attempt, -1 before the first.
        started: its startup probe has passed, or it has none.
        ready: its readiness probe passes.
        started_mono, ended_mono: by the clock of the event loop.
        retry_mono: when a start that could not be tried may be tried again.
        reported_backoff: the attempt after which an event told of the delay.
        backoff_s: how long the next restart waits; 0 before the first restart.
    """

    name: str
    role: Role
    spec: Object
    state: Waiting | Running | Ended = field(default_factory=Waiting)
    last: Ended | None = None
    attempt: int = -1
    started: bool = False
    ready: bool = False
    started_mono: float = 0.0
    ended_mono: float = 0.0
    retry_mono: float = 0.0
    backoff_s: float = 0.0
    reported_backoff: int = -1

    @property
    def restarts(self) -> int:
        return max(self.attempt, 0)


def records_of(pod: Object) -> list[Record]:
    """A record for each container: the init containers first, in their order."""
    found = []
    for spec in dig(pod, "spec", "initContainers", default=[]):
        role: Role = "sidecar" if spec.get("restartPolicy") == "Always" else "init"
        found.append(Record(str(spec["name"]), role, spec))
    return found + [
        Record(str(spec["name"]), "main", spec) for spec in dig(pod, "spec", "containers", default=[])
    ]


def field_path(record: Record) -> str:
    """How events name a container."""
    section = "containers" if record.role == "main" else "initContainers"
    return f"spec.{section}{{{record.name}}}"
