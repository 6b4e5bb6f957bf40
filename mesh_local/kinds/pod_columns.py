"""How a Pod is printed: the STATUS word, READY and RESTARTS (kubectl get pods)."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mesh_local.kinds.age import age_of, since
from mesh_local.machinery.objects import Object, condition, dig, is_deleting, name_of

NONE = "<none>"
_TERMINAL = ("Succeeded", "Failed")


@dataclass(slots=True)
class _Restarts:
    """How often containers restarted, and when the last one that did ended."""

    count: int = 0
    last: str = ""

    def add(self, status: Object) -> None:
        self.count += status.get("restartCount") or 0
        ended = dig(status, "lastState", "terminated", "finishedAt", default="")
        self.last = max(self.last, ended)

    def text(self, now: datetime) -> str:
        if not self.count or not self.last:
            return str(self.count)
        return f"{self.count} ({since(self.last, now)} ago)"


def is_sidecar(container: Object) -> bool:
    """An init container that runs along with the others (KEP-753)."""
    return container.get("restartPolicy") == "Always"


def row(pod: Object, now: datetime) -> list[Any]:
    ready, word, restarts = _summary(pod)
    total = len(dig(pod, "spec", "containers", default=[]))
    total += sum(is_sidecar(c) for c in dig(pod, "spec", "initContainers", default=[]))
    return [
        name_of(pod),
        f"{ready}/{total}",
        word,
        restarts.text(now),
        age_of(pod, now),
        dig(pod, "status", "podIPs", 0, "ip") or NONE,
        dig(pod, "spec", "nodeName") or NONE,
        dig(pod, "status", "nominatedNodeName") or NONE,
        _readiness_gates(pod),
    ]


def _summary(pod: Object) -> tuple[int, str, _Restarts]:
    """How many containers are ready, the STATUS word and the restarts."""
    phase = dig(pod, "status", "phase", default="")
    word = dig(pod, "status", "reason") or phase
    if dig(condition(pod, "PodScheduled") or {}, "reason") == "SchedulingGated":
        word = "SchedulingGated"
    ready, init_word, restarts, sidecar_restarts = _init(pod)
    word = init_word or word
    if not init_word or dig(condition(pod, "Initialized") or {}, "status") == "True":
        restarts = sidecar_restarts
        more, word = _main(pod, word, restarts)
        ready += more
    if is_deleting(pod):
        if dig(pod, "status", "reason") == "NodeLost":
            word = "Unknown"
        elif phase not in _TERMINAL:
            word = "Terminating"
    return ready, word, restarts


def _init(pod: Object) -> tuple[int, str, _Restarts, _Restarts]:
    """Ready sidecars, the word of the first init container that is not done ('' for none), and restarts."""
    containers = dig(pod, "spec", "initContainers", default=[])
    sidecars = {c["name"] for c in containers if is_sidecar(c)}
    ready, restarts, sidecar_restarts = 0, _Restarts(), _Restarts()
    for i, status in enumerate(dig(pod, "status", "initContainerStatuses", default=[])):
        sidecar = status.get("name") in sidecars
        restarts.add(status)
        if sidecar:
            sidecar_restarts.add(status)
        ended, waiting = dig(status, "state", "terminated"), dig(status, "state", "waiting", "reason")
        if ended is not None and not ended.get("exitCode"):
            continue
        if sidecar and status.get("started"):
            ready += bool(status.get("ready"))
            continue
        if ended is not None:
            word = _ended_word(ended)
        elif waiting and waiting != "PodInitializing":
            word = waiting
        else:
            word = f"{i}/{len(containers)}"
        return ready, f"Init:{word}", restarts, sidecar_restarts
    return ready, "", restarts, sidecar_restarts


def _main(pod: Object, word: str, restarts: _Restarts) -> tuple[int, str]:
    """Ready containers and the word; the first container that has something to say wins."""
    ready = 0
    for status in reversed(dig(pod, "status", "containerStatuses", default=[])):
        restarts.add(status)
        state = status.get("state") or {}
        if reason := dig(state, "waiting", "reason"):
            word = reason
        elif state.get("terminated") is not None:
            word = _ended_word(state["terminated"])
        elif status.get("ready") and state.get("running") is not None:
            ready += 1
    if word == "Completed" and ready:
        is_ready = dig(condition(pod, "Ready") or {}, "status") == "True"
        word = "Running" if is_ready else "NotReady"
    return ready, word


def _ended_word(ended: Object) -> str:
    if ended.get("reason"):
        return str(ended["reason"])
    if ended.get("signal"):
        return f"Signal:{ended['signal']}"
    return f"ExitCode:{ended.get('exitCode') or 0}"


def _readiness_gates(pod: Object) -> str:
    gates = dig(pod, "spec", "readinessGates", default=[])
    if not gates:
        return NONE
    true = sum(dig(condition(pod, g["conditionType"]) or {}, "status") == "True" for g in gates)
    return f"{true}/{len(gates)}"
