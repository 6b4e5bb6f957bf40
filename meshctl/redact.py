"""Take out of objects and logs what is nobody's business (pure); what is not known to be harmless goes."""

import re
from typing import Any

from manifests.names import CONTROL
from meshctl.merge import LAST_APPLIED

Object = dict[str, Any]

OURS = ("triomesh-init", "triomesh-proxy", CONTROL)
_KEPT = frozenset(
    (
        *("name", "image", "imagePullPolicy", "ports", "resources", "restartPolicy"),
        *("securityContext", "volumeMounts"),
    )
)
_TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}")
_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def redact_text(text: str) -> str:
    """Without private keys and tokens, wherever they stand."""
    return _TOKEN.sub("(token removed)", _KEY.sub("(private key removed)", text))


def redact(obj: Object) -> Object:
    """An object for a report: no data of Secrets, nothing that a foreign container is told."""
    annotations = obj["metadata"].get("annotations") or {}
    kept = {key: value for key, value in annotations.items() if key != LAST_APPLIED}
    metadata = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    result = {**obj, "metadata": {**metadata, "annotations": kept}}
    if obj["kind"] == "Secret":
        sizes = {key: f"(removed, {len(value)} characters)" for key, value in (obj.get("data") or {}).items()}
        return {k: v for k, v in {**result, "data": sizes}.items() if k != "stringData"}
    if obj["kind"] == "Pod":
        result["spec"] = _pod_spec(obj["spec"])
    elif obj["kind"] in ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job"):
        template = obj["spec"].get("template") or {}
        result["spec"] = {
            **obj["spec"],
            "template": {**template, "spec": _pod_spec(template.get("spec") or {})},
        }
    return result


def _pod_spec(spec: Object) -> Object:
    result = dict(spec)
    for key in ("containers", "initContainers"):
        if key in spec:
            result[key] = [_container(container) for container in spec[key]]
    return result


def _container(container: Object) -> Object:
    if container["name"] in OURS:
        return container
    return {key: value for key, value in container.items() if key in _KEPT}
