"""The status of a pod, in the form recorded on Kubernetes 1.36. Pure."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from mesh_local.kubelet.lifecycle import (
    Backoff,
    duration,
    init_failed,
    is_backing_off,
    is_done,
    is_initialized,
)
from mesh_local.kubelet.records import Ended, Record, Running, Waiting
from mesh_local.machinery import quantity
from mesh_local.machinery.objects import Object, dig, meta, name_of, namespace_of, rfc3339, uid_of
from mesh_local.machinery.quantity import Quantity

OWN_CONDITIONS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
CRASH_LOOP = "CrashLoopBackOff"
_EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class View:
    """What the status is made from, beside the pod.

    Args:
        start_time: when the kubelet took the pod over.
        sandbox: its network is there.
        ended: nothing of it runs, nor will again.
        reason, message: why the kubelet ended it before its time (DeadlineExceeded); makes it Failed.
        now, mono: the time by the wall and by the event loop.
    """

    records: Sequence[Record]
    host_ips: Sequence[str]
    pod_ips: Sequence[str]
    start_time: datetime
    sandbox: bool
    ended: bool
    backoff: Backoff
    now: datetime
    mono: float
    reason: str = ""
    message: str = ""


def build(pod: Object, view: View) -> Object:
    """The whole status of `pod`, keeping the conditions that others wrote."""
    phase = phase_of(pod, view)
    status: Object = {
        "observedGeneration": meta(pod).get("generation", 1),
        "phase": phase,
        "conditions": _conditions(pod, view, phase),
        "hostIP": view.host_ips[0],
        "hostIPs": [{"ip": ip} for ip in view.host_ips],
        "startTime": rfc3339(view.start_time),
    }
    if view.reason:
        status |= {"reason": view.reason, "message": view.message}
    if view.pod_ips:
        status |= {"podIP": view.pod_ips[0], "podIPs": [{"ip": ip} for ip in view.pod_ips]}
    inits = [_container(pod, r, view) for r in view.records if r.role != "main"]
    if inits:
        status["initContainerStatuses"] = inits
    status["containerStatuses"] = [_container(pod, r, view) for r in view.records if r.role == "main"]
    status["qosClass"] = dig(pod, "status", "qosClass", default="BestEffort")
    status |= _pod_resources(pod)
    return status


def phase_of(pod: Object, view: View) -> str:
    """Pending, Running, Succeeded or Failed."""
    policy = str(dig(pod, "spec", "restartPolicy", default="Always"))
    if view.ended:
        return "Failed" if view.reason or _has_failed(view.records, policy) else "Succeeded"
    mains = [r for r in view.records if r.role == "main"]
    if not is_initialized(view.records) or any(
        isinstance(r.state, Waiting) and r.last is None for r in mains
    ):
        return "Pending"
    return "Running"


def _has_failed(records: Sequence[Record], policy: str) -> bool:
    mains = [r for r in records if r.role == "main"]
    return init_failed(records, policy) or any(
        not (isinstance(r.state, Ended) and r.state.code == 0) for r in mains
    )


def _conditions(pod: Object, view: View, phase: str) -> list[Object]:
    old = {c["type"]: c for c in dig(pod, "status", "conditions", default=[])}
    others = [c for type_, c in old.items() if type_ not in OWN_CONDITIONS]
    containers = _containers_ready(view.records, phase)
    wanted = {
        "PodReadyToStartContainers": {"status": _bool(view.sandbox and not view.ended)},
        "Initialized": _initialized(view.records, phase),
        "Ready": _ready(pod, containers, {c["type"]: c for c in others}),
        "ContainersReady": containers,
        "PodScheduled": {"status": "True"},
    }
    generation = meta(pod).get("generation", 1)
    made = []
    for type_, content in wanted.items():
        before = old.get(type_, {})
        same = before.get("status") == content["status"] and before.get("lastTransitionTime")
        made.append(
            {
                "type": type_,
                "observedGeneration": generation,
                "status": content["status"],
                "lastProbeTime": None,
                "lastTransitionTime": same or rfc3339(view.now),
            }
            | {key: content[key] for key in ("reason", "message") if content.get(key)}
        )
    return others + made


def _bool(value: bool) -> str:
    return "True" if value else "False"


def _names(records: Sequence[Record]) -> str:
    return "[" + " ".join(r.name for r in records) + "]"


def _initialized(records: Sequence[Record], phase: str) -> dict[str, str]:
    if phase == "Succeeded":
        return {"status": "True", "reason": "PodCompleted"}
    if is_initialized(records):
        return {"status": "True"}
    missing = [r for r in records if r.role != "main" and not is_done(r)]
    return {
        "status": "False",
        "reason": "ContainersNotInitialized",
        "message": f"containers with incomplete status: {_names(missing)}",
    }


def _containers_ready(records: Sequence[Record], phase: str) -> dict[str, str]:
    if phase == "Succeeded":
        return {"status": "False", "reason": "PodCompleted"}
    if phase == "Failed":
        return {"status": "False", "reason": "PodFailed"}
    missing = [r for r in records if r.role != "init" and not is_ready(r)]
    if not missing:
        return {"status": "True"}
    return {
        "status": "False",
        "reason": "ContainersNotReady",
        "message": f"containers with unready status: {_names(missing)}",
    }


def _ready(pod: Object, containers: dict[str, str], others: dict[str, Object]) -> dict[str, str]:
    if containers["status"] != "True":
        return containers
    problems = []
    for gate in dig(pod, "spec", "readinessGates", default=[]):
        type_ = gate["conditionType"]
        found = others.get(type_)
        if found is None:
            problems.append(f'corresponding condition of pod readiness gate "{type_}" does not exist.')
        elif found.get("status") != "True":
            problems.append(
                f'the status of pod readiness gate "{type_}" is not "True", but {found.get("status")}'
            )
    if not problems:
        return {"status": "True"}
    return {"status": "False", "reason": "ReadinessGatesNotReady", "message": ", ".join(problems)}


def is_ready(record: Record) -> bool:
    return isinstance(record.state, Running) and record.started and record.ready


def image_id(image: str) -> str:
    """No image is pulled: a digest of the image's name stands for its content."""
    return "sha256:" + hashlib.sha256(image.encode()).hexdigest()


def _container(pod: Object, record: Record, view: View) -> Object:
    policy = str(dig(pod, "spec", "restartPolicy", default="Always"))
    state, last = record.state, record.last
    if (
        not view.ended
        and isinstance(state, Ended)
        and is_backing_off(record, policy, view.backoff, view.mono)
    ):
        text = (
            f"back-off {duration(record.backoff_s)} restarting failed container={record.name}"
            f" pod={name_of(pod)}_{namespace_of(pod)}({uid_of(pod)})"
        )
        last = state
        state = Waiting(CRASH_LOOP, text)
    running = isinstance(state, Running)
    done_init = record.role == "init" and isinstance(state, Ended) and state.code == 0
    image = str(record.spec.get("image") or "")
    status: Object = {
        "name": record.name,
        "state": _state(pod, state),
        "lastState": _state(pod, last) if last else {},
        "ready": done_init or (is_ready(record) and record.role != "init"),
        "restartCount": record.restarts,
        "image": image,
        "imageID": "",
        "started": running and record.started,
    }
    container_id = getattr(state, "container_id", "") or (last.container_id if last else "")
    if container_id:
        status |= {"imageID": image_id(image), "containerID": container_id} | _container_resources(
            record.spec
        )
    mounts = [_mount(m) for m in record.spec.get("volumeMounts") or ()]
    if mounts:
        status["volumeMounts"] = mounts
    return status


def _state(pod: Object, state: Waiting | Running | Ended) -> Object:
    if isinstance(state, Running):
        return {"running": {"startedAt": rfc3339(state.started_at)}}
    if isinstance(state, Waiting):
        initial = "PodInitializing" if dig(pod, "spec", "initContainers") else "ContainerCreating"
        waiting = {"reason": state.reason or initial}
        return {"waiting": waiting | ({"message": state.message} if state.message else {})}
    terminated: Object = {"exitCode": state.code, "reason": state.reason}
    if state.message:
        terminated["message"] = state.message
    terminated["startedAt"] = rfc3339(state.started_at) if state.started_at else _missing_time(state)
    terminated["finishedAt"] = rfc3339(state.finished_at) if state.finished_at else None
    if state.container_id:
        terminated["containerID"] = state.container_id
    return {"terminated": terminated}


def _missing_time(state: Ended) -> str | None:
    """A program that never ran has the zero of containerd's clock for its start."""
    return _EPOCH if state.container_id else None


def _mount(mount: Object) -> Object:
    found = {"name": mount["name"], "mountPath": mount["mountPath"]}
    if mount.get("readOnly"):
        found |= {"readOnly": True, "recursiveReadOnly": "Disabled"}
    return found


def _container_resources(spec: Object) -> Object:
    resources: Object = {
        k: v for k, v in (spec.get("resources") or {}).items() if k in ("limits", "requests")
    }
    found: Object = {"resources": resources}
    if resources.get("requests"):
        found["allocatedResources"] = resources["requests"]
    return found


def _pod_resources(pod: Object) -> Object:
    """The sums over the containers; an init container counts where it alone needs more."""
    found: Object = {}
    resources: Object = {}
    for kind in ("requests", "limits"):
        total = _totals(pod, kind)
        if total:
            resources[kind] = total
    if resources.get("requests"):
        found["allocatedResources"] = resources["requests"]
    return found | {"resources": resources}


def _totals(pod: Object, kind: str) -> dict[str, str]:
    sums: dict[str, Quantity] = {}
    peaks: dict[str, Quantity] = {}
    for spec in dig(pod, "spec", "initContainers", default=[]):
        if spec.get("restartPolicy") == "Always":
            sums = _added(sums, spec, kind)
        else:
            peaks = _larger(peaks, _added(sums, spec, kind))
    for spec in dig(pod, "spec", "containers", default=[]):
        sums = _added(sums, spec, kind)
    return {name: str(amount) for name, amount in _larger(sums, peaks).items()}


def _added(sums: dict[str, Quantity], spec: Object, kind: str) -> dict[str, Quantity]:
    found = dict(sums)
    for name, text in dig(spec, "resources", kind, default={}).items():
        amount = quantity.parse(text)
        found[name] = (
            Quantity(found[name].value + amount.value, found[name].style) if name in found else amount
        )
    return found


def _larger(one: dict[str, Quantity], other: dict[str, Quantity]) -> dict[str, Quantity]:
    both = one | other
    return {name: max(one.get(name, amount), other.get(name, amount)) for name, amount in both.items()}
