"""Priority and DefaultTolerationSeconds: what every Pod gets that its author need not know of."""

from mesh_local.apiserver.admission.refusal import refused
from mesh_local.apiserver.types import Admission
from mesh_local.machinery.objects import Object

_PREEMPTION = "PreemptLowerPriority"
# Without PriorityClass objects only those that Kubernetes itself has are known.
_CLASSES = {"": 0, "system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_TOLERATED_SECONDS = 300


class Priority:
    """Computes `priority` and `preemptionPolicy` from the priority class; clients may not choose them."""

    async def mutate(self, request: Admission) -> None:
        spec = _pod_spec(request)
        if spec is None:
            return
        if request.operation == "UPDATE":
            before = (request.old or {}).get("spec") or {}
            for key in ("priority", "preemptionPolicy"):
                if spec.get(key) is None and before.get(key) is not None:
                    spec[key] = before[key]
            return
        name = spec.get("priorityClassName") or ""
        if name not in _CLASSES:
            raise refused(request, f"no PriorityClass with name {name} was found")
        value = _CLASSES[name]
        if spec.get("priority") not in (None, value):
            raise refused(
                request,
                f"the integer value of priority ({spec['priority']}) must not be provided in pod spec; "
                f"priority admission controller computed {value} from the given PriorityClass name",
            )
        if spec.get("preemptionPolicy") not in (None, _PREEMPTION):
            raise refused(
                request,
                f"the string value of PreemptionPolicy ({spec['preemptionPolicy']}) must not be provided in "
                f"pod spec; priority admission controller computed {_PREEMPTION} from the given "
                "PriorityClass name",
            )
        spec["priority"], spec["preemptionPolicy"] = value, _PREEMPTION

    async def validate(self, request: Admission) -> None: ...


class DefaultTolerations:
    """Lets a Pod stay on a node that is not ready or unreachable for five minutes."""

    async def mutate(self, request: Admission) -> None:
        spec = _pod_spec(request)
        if spec is None:
            return
        tolerations = spec.get("tolerations") or []
        for taint in _TAINTS:
            if not any(_tolerates(t, taint) for t in tolerations):
                tolerations = [
                    *tolerations,
                    {
                        "key": taint,
                        "operator": "Exists",
                        "effect": "NoExecute",
                        "tolerationSeconds": _TOLERATED_SECONDS,
                    },
                ]
        spec["tolerations"] = tolerations

    async def validate(self, request: Admission) -> None: ...


def _pod_spec(request: Admission) -> Object | None:
    """The spec of a Pod that is created or updated itself; None for anything else."""
    if request.kind.resource != "pods" or request.subresource or request.object is None:
        return None
    if request.operation not in ("CREATE", "UPDATE"):
        return None
    spec: Object = request.object.setdefault("spec", {})
    return spec


def _tolerates(toleration: Object, taint: str) -> bool:
    key, effect = toleration.get("key") or "", toleration.get("effect") or ""
    return key in ("", taint) and effect in ("", "NoExecute")
