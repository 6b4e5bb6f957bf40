"""Indexed Jobs (batch/v1, KEP-2214): which index each pod has, and which have succeeded."""

from collections.abc import Collection, Sequence

from mesh_local.controllers.decisions import pods
from mesh_local.machinery.objects import Object, annotations_of, dig, name_of

INDEX = "batch.kubernetes.io/job-completion-index"
VARIABLE = "JOB_COMPLETION_INDEX"
# RFC 1123 label, minus what generateName appends.
PREFIX_LIMIT = 58


def is_indexed(job: Object) -> bool:
    return bool(dig(job, "spec", "completionMode", default="") == "Indexed")


def index_of(pod: Object) -> int | None:
    text = annotations_of(pod).get(INDEX, "")
    return int(text) if text.isdecimal() else None


def completed(job: Object, owned: Sequence[Object]) -> set[int]:
    """The indexes that have succeeded, those that the status lists and those that its pods show."""
    found = parse(dig(job, "status", "completedIndexes", default=""))
    found |= {i for pod in owned if pods.phase_of(pod) == "Succeeded" and (i := index_of(pod)) is not None}
    return {i for i in found if i < int(dig(job, "spec", "completions", default=0))}


def next_indexes(job: Object, owned: Sequence[Object], count: int) -> list[int]:
    """The lowest indexes that have neither succeeded nor an active pod."""
    busy = completed(job, owned) | {index_of(pod) for pod in owned if pods.is_active(pod)}
    free = (i for i in range(int(dig(job, "spec", "completions", default=0))) if i not in busy)
    return [i for i, _ in zip(free, range(count), strict=False)]


def surplus(active: Sequence[Object]) -> list[Object]:
    """Active pods whose index another active pod has: they repeat its work."""
    seen: set[int | None] = set()
    found = []
    for pod in active:
        if index_of(pod) in seen:
            found.append(pod)
        seen.add(index_of(pod))
    return found


def parse(text: str) -> set[int]:
    """`0-2,5` -> {0, 1, 2, 5}."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def compact(indexes: Collection[int]) -> str:
    """{0, 1, 2, 5} -> `0-2,5`; two neighbours are written `0,1`."""
    runs: list[list[int]] = []
    for i in sorted(indexes):
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 2 else ",".join(map(str, r)) for r in runs)


def indexed_pod(job: Object, pod: Object, index: int) -> Object:
    """Give a new pod its index: annotation, label, hostname, name and environment."""
    metadata, spec = dict(pod["metadata"]), dict(pod["spec"])
    for field in ("annotations", "labels"):
        metadata[field] = {**(metadata.get(field) or {}), INDEX: str(index)}
    suffix = f"-{index}"
    metadata["generateName"] = f"{name_of(job)[: PREFIX_LIMIT - len(suffix) - 1]}{suffix}-"
    spec["hostname"] = f"{name_of(job)}{suffix}"
    path = f"metadata.annotations['{INDEX}']"
    variable = {"name": VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": path}}}
    for field in ("initContainers", "containers"):
        if spec.get(field):
            spec[field] = [_with_variable(container, variable) for container in spec[field]]
    return {**pod, "metadata": metadata, "spec": spec}


def _with_variable(container: Object, variable: Object) -> Object:
    env = container.get("env") or []
    if any(entry.get("name") == VARIABLE for entry in env):
        return container
    return {**container, "env": [*env, variable]}
