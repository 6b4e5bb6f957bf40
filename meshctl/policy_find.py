"""What of the cluster a policy command needs: Services, their pods, and the policies that are for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from manifests.names import SYSTEM_NAMESPACE
from mesh_api.policy_types import API_VERSION
from mesh_api.policy_values import listed, meant
from mesh_control.index.declared import workload_of
from meshctl import apply as cluster
from meshctl.errors import KubeError, MeshctlError
from meshctl.kube import Kube, Reader

Object = dict[str, Any]
_SHOWN = 8


def service(kube: Reader, namespace: str, name: str) -> Object:
    """A Service.

    Raises:
        MeshctlError: there is none; names the nearest.
    """
    found = kube.find("v1", "Service", name, namespace)
    if found is not None:
        return found
    if kube.find("v1", "Namespace", namespace) is None:
        others = [each["metadata"]["name"] for each in kube.items("v1", "Namespace")]
        raise MeshctlError(f"there is no namespace {namespace!r}{meant(namespace, others)}")
    there = sorted(each["metadata"]["name"] for each in kube.items("v1", "Service", namespace))
    near = meant(name, there) or (f"; there are {listed(there[:_SHOWN], 'and')}" if there else "")
    raise MeshctlError(f"there is no Service {name!r} in namespace {namespace}{near}")


def pods_of(kube: Reader, of: Object) -> list[Object]:
    """The pods that a Service selects; none where it has no selector."""
    selector = of["spec"].get("selector") or {}
    if not selector:
        return []
    text = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
    found = kube.items("v1", "Pod", of["metadata"]["namespace"], labels=text)
    return [pod for pod in found if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]


def has(pod: Object, labels: Mapping[str, str]) -> bool:
    """Whether a pod carries all of the labels."""
    own = pod["metadata"].get("labels") or {}
    return all(own.get(key) == value for key, value in labels.items())


def policies(kube: Reader, kind: str, namespace: str | None) -> list[Object]:
    """The policies of a kind, oldest first.

    Raises:
        MeshctlError: the server does not know the kind.
    """
    if kube.resource(API_VERSION, kind) is None:
        raise MeshctlError(f"{kube.host} has no {kind} ({API_VERSION}): the mesh is not installed there")
    return sorted(kube.items(API_VERSION, kind, namespace), key=age)


def age(policy: Object) -> tuple[str, str, str]:
    """What tells older from newer, as the control plane does."""
    meta = policy["metadata"]
    return meta.get("creationTimestamp") or "~", meta.get("namespace") or "", meta["name"]


def for_service(found: Iterable[Object], name: str) -> list[Object]:
    """Those TrafficPolicies that are for a Service."""
    return [each for each in found if target(each) == name]


def target(policy: Object) -> str:
    """The Service that a TrafficPolicy is for; '' where it says none."""
    spec = policy.get("spec")
    said = spec.get("target") if isinstance(spec, dict) else None
    return str(said.get("service") or "") if isinstance(said, dict) else ""


def system_namespace(kube: Kube) -> str:
    """The control plane's namespace; its usual one where that cannot be seen."""
    try:
        there = cluster.existing(kube)
    except KubeError as exc:
        if exc.status != 403:
            raise
        there = None
    return there.namespace if there else SYSTEM_NAMESPACE


def workloads(pods: Iterable[Object]) -> list[tuple[str, str]]:
    """Kind and name of what made the pods, each once; pods on their own are left out."""
    found: dict[tuple[str, str], None] = {}
    for pod in pods:
        meta = pod["metadata"]
        owner = next((each for each in meta.get("ownerReferences") or () if each.get("controller")), None)
        if owner is None:
            continue
        template = (meta.get("labels") or {}).get("pod-template-hash", "")
        found[workload_of(meta["name"], str(owner["kind"]), str(owner["name"]), template)] = None
    return list(found)
