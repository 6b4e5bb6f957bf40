"""What is decided about a pod, and the names that injector, sidecar and control plane share. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from mesh_api.names import PREFIX, PROXY_CONTAINER

Object = dict[str, Any]
"""A Kubernetes object as JSON."""
Operation = dict[str, Any]
"""One operation of RFC 6902."""

INJECT: Final = PREFIX + "inject"
"""Label of a pod (`true`, `false`); as an annotation it can only opt out."""
INJECTION: Final = PREFIX + "injection"
"""Label of a namespace: `enabled` or `disabled`."""
ENFORCE: Final = "pod-security.kubernetes.io/enforce"

INIT: Final = "triomesh-init"
PROXY: Final = PROXY_CONTAINER
OURS: Final = frozenset((INIT, PROXY))
TOKEN_VOLUME: Final = "triomesh-token"
BUNDLE_VOLUME: Final = "triomesh-bundle"
TOKEN_DIRECTORY: Final = "/run/secrets/triomesh"
BUNDLE_DIRECTORY: Final = "/run/triomesh/bundle"

UID: Final = 1337
GID: Final = 1337
METRICS_PORT: Final = 15020
HEALTH_PORT: Final = 15021
PROXY_PORTS: Final = {
    15000: "admin",
    15001: "outbound",
    15002: "the check of the rules",
    15006: "inbound",
    METRICS_PORT: "metrics",
    HEALTH_PORT: "health",
}


class Reason(StrEnum):
    """Why a pod has, or does not get, a sidecar; the label of counters and the reason of Events."""

    INJECTED = "Injected"
    # skipped: the pod runs without a sidecar
    NOT_LABELLED = "NotLabelled"
    OPTED_OUT = "OptedOut"
    EXCLUDED_NAMESPACE = "ExcludedNamespace"
    HOST_NETWORK = "HostNetwork"
    MIRROR_POD = "MirrorPod"
    NOT_LINUX = "NotLinux"
    ALREADY_INJECTED = "AlreadyInjected"
    FOREIGN_MESH = "ForeignMesh"
    USES_PROXY_UID = "UsesProxyUid"
    USES_PROXY_PORT = "UsesProxyPort"
    POD_SECURITY = "PodSecurityForbidsNetInit"
    # refused: the pod is not created
    INVALID_ANNOTATION = "InvalidAnnotation"
    INVALID_POD = "InvalidPod"


@dataclass(frozen=True, slots=True)
class Namespace:
    """What of a pod's namespace counts."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inject:
    """The pod gets a sidecar.

    Args:
        pod: as it shall be.
        patch: what leads there; empty if it is so already.
        warnings: for who creates the pod.
    """

    pod: Object
    patch: list[Operation]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skip:
    """The pod stays as it is."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The pod must not be created: what it asks of the mesh cannot be read, and guessing would fail open."""

    reason: Reason
    message: str


Decision = Inject | Skip | Refuse
