"""Manifests of the demo application, for any image that has Python."""

from pathlib import Path
from typing import Any

from tests.cluster.app import AGENT_PORT, ECHO_PORT, HEALTH_PORT

APP = Path(__file__).with_name("app.py").read_text()
Object = dict[str, Any]

PROBES: dict[str, Object] = {
    "http": {"httpGet": {"path": "/ready", "port": ECHO_PORT}},
    "tcp": {"tcpSocket": {"port": ECHO_PORT}},
    "grpc": {"grpc": {"port": HEALTH_PORT}},
    "exec": {"exec": {"command": ["test", "-d", "/proc"]}},
}


def namespace(name: str, meshed: bool = True) -> Object:
    labels = {"pod-security.kubernetes.io/enforce": "privileged"}  # netinit needs NET_ADMIN
    if meshed:
        labels["triomesh.dev/injection"] = "enabled"
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def container(image: str, *arguments: str, **more: Any) -> Object:
    """The application, or with a URL as argument: one call of it."""
    return {
        "name": "app",
        "image": image,
        "command": ["python3", "-c", APP, *arguments],
        # Not the image's own user: that is the sidecar's.
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000},
        **more,
    }


def template(name: str, containers: list[Object], **spec: Any) -> Object:
    """The agent's port is left out of the mesh, so that it answers the API server whatever the mode."""
    annotations = {"triomesh.dev/exclude-inbound-ports": str(AGENT_PORT)}
    return {
        "metadata": {"labels": {"app": name}, "annotations": annotations},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": containers, **spec},
    }


def deployment(
    where: str, name: str, image: str, *, replicas: int = 1, probe: str = "http", **spec: Any
) -> Object:
    check = {**PROBES[probe], "periodSeconds": 1, "timeoutSeconds": 2}
    app = container(image, readinessProbe=check, livenessProbe={**check, "failureThreshold": 5})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": where},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": template(name, [app], **spec),
        },
    }


def service(where: str, name: str, app: str = "") -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": where},
        "spec": {
            "selector": {"app": app or name},
            "ports": [{"name": "http", "port": 80, "targetPort": ECHO_PORT}],
        },
    }


def job(where: str, name: str, image: str, url: str) -> Object:
    """A Job whose init container calls `url` too."""
    early = {**container(image, url), "name": "early"}
    made = template(name, [container(image, url)], restartPolicy="Never", initContainers=[early])
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": where},
        "spec": {"template": made, "backoffLimit": 0},
    }


def strict(where: str) -> Object:
    """A namespace whose pods accept nothing but mTLS."""
    return {
        "apiVersion": "triomesh.dev/v1alpha1",
        "kind": "MeshPolicy",
        "metadata": {"name": "strict", "namespace": where},
        "spec": {"defaults": {"mtls": {"mode": "STRICT"}}},
    }
