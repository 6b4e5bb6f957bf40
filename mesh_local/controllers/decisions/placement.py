"""Where a pod may run: the scheduler's filters, and Kubernetes' words for what does not fit."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mesh_local.machinery.objects import Object, dig, labels_of, name_of
from mesh_local.machinery.quantity import parse
from mesh_local.machinery.selectors import LabelRequirement

RESOURCES = ("cpu", "memory", "ephemeral-storage", "pods")
UNSCHEDULABLE_TAINT = "node.kubernetes.io/unschedulable"
AFFINITY = "node(s) didn't match Pod's node affinity/selector"
TAINTED = "node(s) had untolerated taint(s)"
UNSCHEDULABLE = "node(s) were unschedulable"
PORTS = "node(s) didn't have free ports for the requested pod ports"
_OPERATORS = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "!", "Gt": "gt", "Lt": "lt"}


@dataclass(slots=True)
class Usage:
    """What the pods of one node have asked for. Amounts are in thousandths."""

    requests: Counter[str] = field(default_factory=Counter)
    ports: Counter[tuple[int, str]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Demand:
    """What one pod asks for."""

    requests: Mapping[str, int]
    ports: tuple[tuple[int, str], ...] = ()


class Ledger:
    """What is in use on each node, kept as pods come and go."""

    def __init__(self) -> None:
        self._nodes: dict[str, Usage] = {}
        self._pods: dict[str, tuple[str, Demand]] = {}

    def assign(self, uid: str, node: str, demand: Demand) -> None:
        if uid in self._pods:
            return
        self._pods[uid] = (node, demand)
        usage = self._nodes.setdefault(node, Usage())
        usage.requests.update(demand.requests)
        usage.ports.update(demand.ports)

    def release(self, uid: str) -> bool:
        """Give back what a pod had; False for a pod that had nothing."""
        found = self._pods.pop(uid, None)
        if found is None:
            return False
        node, demand = found
        self._nodes[node].requests.subtract(demand.requests)
        self._nodes[node].ports.subtract(demand.ports)
        return True

    def holds(self, uid: str) -> bool:
        """Whether the pod has a node already."""
        return uid in self._pods

    def of(self, node: str) -> Usage:
        return self._nodes.get(node) or Usage()


def demand_of(pod: Object) -> Demand:
    """A pod's effective requests: its containers and sidecars together, or the largest init container with
    the sidecars before it, whichever is more (KEP-753), and its overhead."""
    running: Counter[str] = Counter()
    sidecars: Counter[str] = Counter()
    peak: Counter[str] = Counter()
    for container in dig(pod, "spec", "initContainers", default=[]):
        asked = _requests(container)
        if container.get("restartPolicy") == "Always":
            sidecars.update(asked)
            peak |= sidecars
        else:
            peak |= sidecars + asked
    for container in dig(pod, "spec", "containers", default=[]):
        running.update(_requests(container))
    wanted = (running + sidecars) | peak
    for name, amount in dig(pod, "spec", "overhead", default={}).items():
        wanted[name] += parse(amount).milli()
    wanted["pods"] = 1000
    ports = tuple(
        (int(port["hostPort"]), str(port.get("protocol", "TCP")))
        for container in dig(pod, "spec", "containers", default=[])
        for port in container.get("ports") or ()
        if port.get("hostPort")
    )
    return Demand(wanted, ports)


def _requests(container: Object) -> Counter[str]:
    resources = container.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return Counter({name: parse(amount).milli() for name, amount in asked.items()})


def objections(pod: Object, demand: Demand, node: Object, usage: Usage) -> list[str]:
    """Why the pod cannot run on the node; empty where it can. The first filter that objects speaks."""
    spec = dig(pod, "spec", default={})
    if spec.get("nodeName") and spec["nodeName"] != name_of(node):
        return ["node(s) didn't match the requested node name"]
    tolerations = spec.get("tolerations") or ()
    unschedulable = {"key": UNSCHEDULABLE_TAINT, "value": "", "effect": "NoSchedule"}
    if dig(node, "spec", "unschedulable", default=False) and not _tolerated(unschedulable, tolerations):
        return [UNSCHEDULABLE]
    for taint in dig(node, "spec", "taints", default=[]):
        if taint.get("effect") in ("NoSchedule", "NoExecute") and not _tolerated(taint, tolerations):
            return [TAINTED]
    if not _matches_node(spec, node):
        return [AFFINITY]
    if any(usage.ports[port] > 0 for port in demand.ports):
        return [PORTS]
    return _too_little(demand, node, usage)


def _too_little(demand: Demand, node: Object, usage: Usage) -> list[str]:
    allocatable = dig(node, "status", "allocatable", default={})
    found = []
    names = ["pods", *(n for n in demand.requests if n != "pods")]
    for name in names:
        amount = demand.requests[name]
        room = parse(allocatable.get(name, "0")).milli() if name in allocatable else None
        if room is None and name in RESOURCES:
            continue
        if amount and amount + usage.requests[name] > (room or 0):
            found.append("Too many pods" if name == "pods" else f"Insufficient {name}")
    return found


def _tolerated(taint: Object, tolerations: Iterable[Object]) -> bool:
    for toleration in tolerations:
        if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
            continue
        if toleration.get("key") and toleration["key"] != taint.get("key"):
            continue
        exists = toleration.get("operator") == "Exists"
        if exists or (toleration.get("key") and toleration.get("value", "") == taint.get("value", "")):
            return True
    return False


def _matches_node(spec: Object, node: Object) -> bool:
    labels = labels_of(node)
    if any(labels.get(k) != v for k, v in (spec.get("nodeSelector") or {}).items()):
        return False
    required = dig(spec, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(_matches_term(term, node) for term in required.get("nodeSelectorTerms") or ())


def _matches_term(term: Object, node: Object) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False
    named = {"metadata.name": name_of(node)}
    return all(_matches(e, labels_of(node)) for e in expressions) and all(_matches(f, named) for f in fields)


def _matches(expression: Object, values: Mapping[str, str]) -> bool:
    operator = _OPERATORS[expression["operator"]]
    return LabelRequirement(expression["key"], operator, tuple(expression.get("values") or ())).matches(
        values
    )


def unschedulable_message(reasons: Sequence[Sequence[str]]) -> str:
    """`0/1 nodes are available: ...` for the objections of each node."""
    count = len(reasons)
    if not count:
        return "no nodes available to schedule pods"
    tally = Counter(reason for found in reasons for reason in found)
    listed = ", ".join(sorted(f"{n} {reason}" for reason, n in tally.items()))
    resources = sum(any(r.startswith(("Insufficient", "Too many")) for r in found) for found in reasons)
    parts = []
    if resources:
        parts.append(f"{resources} No preemption victims found for incoming pod")
    if count > resources:
        parts.append(f"{count - resources} Preemption is not helpful for scheduling")
    return (
        f"0/{count} nodes are available: {listed}. no new claims to deallocate, "
        f"preemption: 0/{count} nodes are available: {', '.join(parts)}."
    )
