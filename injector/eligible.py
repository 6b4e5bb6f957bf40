"""Whether a pod gets a sidecar, and if not, why. Pure."""

from __future__ import annotations

from injector.decision import (
    ENFORCE,
    GID,
    INJECT,
    INJECTION,
    OURS,
    PROXY,
    PROXY_PORTS,
    UID,
    Namespace,
    Reason,
    Refuse,
    Skip,
)
from injector.pod import Container, Pod
from injector.values import Values
from mesh_api.names import INJECTED

MIRROR = "kubernetes.io/config.mirror"
FOREIGN = {
    "istio-proxy": "Istio",
    "istio-init": "Istio",
    "istio-validation": "Istio",
    "linkerd-proxy": "Linkerd",
    "linkerd-init": "Linkerd",
    "linkerd-network-validator": "Linkerd",
    "kuma-sidecar": "Kuma",
    "kuma-init": "Kuma",
    "consul-dataplane": "Consul",
    "consul-connect-inject-init": "Consul",
    "osm-init": "Open Service Mesh",
}
"""Containers of other meshes: their rules and ours would take each other's connections."""


def injected_by_us(pod: Pod) -> bool:
    """Whether the containers named as ours are the injector's work, to be brought up to date."""
    inits = {container.name for container in pod.spec.init_containers or ()}
    return INJECTED in pod.annotations and PROXY in inits


def obstacle(pod: Pod, namespace: Namespace, values: Values) -> Skip | Refuse | None:
    """Why `pod` gets no sidecar; None if it gets one. What the user wants comes before what is possible."""
    return _unwanted(pod, namespace, values) or _impossible(pod, namespace)


def _unwanted(pod: Pod, namespace: Namespace, values: Values) -> Skip | Refuse | None:
    if namespace.name in values.excluded_namespaces:
        return Skip(Reason.EXCLUDED_NAMESPACE, f"namespace {namespace.name} is never injected")
    label = pod.labels.get(INJECT)
    annotation = pod.annotations.get(INJECT)
    for what, value in (("label", label), ("annotation", annotation)):
        if value not in (None, "true", "false"):
            return Refuse(
                Reason.INVALID_ANNOTATION, f"{what} {INJECT}: expected true or false, got {value!r}"
            )
        if value == "false":
            return Skip(Reason.OPTED_OUT, f"the pod's {what} {INJECT} is false")
    wish = namespace.labels.get(INJECTION)
    if wish == "disabled":
        return Skip(Reason.OPTED_OUT, f"the label {INJECTION} of namespace {namespace.name} is disabled")
    if wish != "enabled" and label != "true":
        return Skip(
            Reason.NOT_LABELLED,
            f"neither has namespace {namespace.name} the label {INJECTION}=enabled, "
            f"nor the pod the label {INJECT}=true",
        )
    return None


def _impossible(pod: Pod, namespace: Namespace) -> Skip | None:
    if MIRROR in pod.annotations:
        return Skip(Reason.MIRROR_POD, "the kubelet runs this pod from a file; the API cannot change it")
    if pod.spec.host_network:
        return Skip(
            Reason.HOST_NETWORK, "hostNetwork: the rules would take the connections of the whole node"
        )
    selector = pod.spec.node_selector or {}
    system = (pod.spec.os and pod.spec.os.name) or selector.get("kubernetes.io/os") or "linux"
    if system != "linux":
        return Skip(Reason.NOT_LINUX, f"the pod runs on {system}; the sidecar needs Linux")
    return _foreign(pod) or _uses_ours(pod) or _pod_security(namespace)


def _foreign(pod: Pod) -> Skip | None:
    names = [container.name for container in pod.spec.all_containers]
    ours = sorted(OURS.intersection(names))
    in_containers = OURS.intersection(container.name for container in pod.spec.containers)
    if ours and (in_containers or not injected_by_us(pod)):
        return Skip(
            Reason.ALREADY_INJECTED,
            f"the pod has a container {ours[0]} that is not the injector's work "
            f"(no annotation {INJECTED}, or not an init container)",
        )
    for name in names:
        if name in FOREIGN:
            return Skip(Reason.FOREIGN_MESH, f"container {name}: the pod has a sidecar of {FOREIGN[name]}")
    return None


def _uses_ours(pod: Pod) -> Skip | None:
    for container in pod.spec.all_containers:
        if container.name in OURS:
            continue
        user, group = _owner(container, pod)
        if user == UID or group == GID:
            what = f"runAsUser {UID}" if user == UID else f"runAsGroup {GID}"
            return Skip(
                Reason.USES_PROXY_UID,
                f"container {container.name}: {what} is the sidecar's, whose connections go around the mesh; "
                "choose another",
            )
        for port in container.ports or ():
            if port.container_port in PROXY_PORTS and port.protocol in (None, "", "TCP"):
                return Skip(
                    Reason.USES_PROXY_PORT,
                    f"container {container.name}: port {port.container_port} is the sidecar's "
                    f"({PROXY_PORTS[port.container_port]}); choose another",
                )
    return None


def _owner(container: Container, pod: Pod) -> tuple[int | None, int | None]:
    user = group = None
    for security in (pod.spec.security_context, container.security_context):
        if security is not None:
            user = user if security.run_as_user is None else security.run_as_user
            group = group if security.run_as_group is None else security.run_as_group
    return user, group


def _pod_security(namespace: Namespace) -> Skip | None:
    level = namespace.labels.get(ENFORCE, "privileged")
    if level == "privileged":
        return None
    return Skip(
        Reason.POD_SECURITY,
        f"namespace {namespace.name} enforces Pod Security {level!r}, which forbids NET_ADMIN and NET_RAW of "
        f"triomesh-init; label it {ENFORCE}=privileged, or move the pod to a namespace that is",
    )
