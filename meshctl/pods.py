"""What commands ask of a Pod object (pure)."""

from collections.abc import Iterable, Iterator
from typing import Any

from manifests.names import INJECT_LABEL
from mesh_api.names import PROXY_CONTAINER

Object = dict[str, Any]

_ENDED = ("Succeeded", "Failed")


def named(obj: Object) -> str:
    return f"{obj['metadata'].get('namespace', '')}/{obj['metadata']['name']}"


def has_sidecar(pod: Object) -> bool:
    spec = pod["spec"]
    containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    return any(container["name"] == PROXY_CONTAINER for container in containers)


def lacks_sidecar(pod: Object) -> bool:
    """Whether a pod of a labelled namespace should have a sidecar and has none."""
    metadata, spec = pod["metadata"], pod["spec"]
    if has_sidecar(pod) or spec.get("hostNetwork") or metadata.get("deletionTimestamp"):
        return False
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if "false" in (labels.get(INJECT_LABEL), annotations.get(INJECT_LABEL)):
        return False
    return (pod.get("status") or {}).get("phase") not in _ENDED


def restart_commands(pods: Iterable[Object]) -> Iterator[str]:
    """The kubectl commands that start pods anew, each workload once."""
    seen: set[str] = set()
    for pod in pods:
        command = _restart(pod)
        if command not in seen:
            seen.add(command)
            yield command


def _restart(pod: Object) -> str:
    metadata = pod["metadata"]
    namespace = metadata["namespace"]
    owner: Object = next((o for o in metadata.get("ownerReferences") or [] if o.get("controller")), {})
    kind, name = owner.get("kind", ""), owner.get("name", "")
    hashed = (metadata.get("labels") or {}).get("pod-template-hash", "")
    if kind == "ReplicaSet" and hashed and name.endswith(f"-{hashed}"):
        kind, name = "Deployment", name.removesuffix(f"-{hashed}")
    if kind in ("Deployment", "StatefulSet", "DaemonSet"):
        return f"kubectl -n {namespace} rollout restart {kind.lower()}/{name}"
    if kind:
        return f"kubectl -n {namespace} delete pod {metadata['name']}  # {kind} {name} makes a new one"
    return f"kubectl -n {namespace} delete pod {metadata['name']}  # and create it again: nobody else will"
