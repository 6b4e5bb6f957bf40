"""The two containers and two volumes that a pod gets. Pure."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from injector.decision import (
    BUNDLE_DIRECTORY,
    BUNDLE_VOLUME,
    GID,
    HEALTH_PORT,
    INIT,
    PROXY,
    TOKEN_DIRECTORY,
    TOKEN_VOLUME,
    UID,
    Object,
)
from injector.pod import Pod, PodError
from injector.values import Capture, Values
from mesh_api.application import METRICS_VARIABLE, PROBES_VARIABLE
from mesh_api.limits import changed

_Form = TypeVar("_Form")


def init_container(values: Values) -> Object:
    """The network init. Root with two capabilities, and nothing else."""
    return {
        "name": INIT,
        "image": values.image,
        "imagePullPolicy": values.image_pull_policy,
        "command": list(values.netinit_command),
        "env": _capture_environment(values.capture),
        "resources": _resources(values),
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            # The legacy iptables locks a file under /run.
            "readOnlyRootFilesystem": False,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
        },
    }


def proxy_container(values: Values, volumes: dict[str, str], probes: str, metrics: str) -> Object:
    """The sidecar, as a native one: it starts before every other container and stops after the last.

    Args:
        volumes: names of the volumes, by the directory where each is mounted.
        probes: the original probes of the application, as JSON; empty for none.
        metrics: the application's own metrics, as JSON; empty for none.
    """
    ready = {"path": "/healthz/ready", "port": HEALTH_PORT, "scheme": "HTTP"}
    times = values.probes
    return {
        "name": PROXY,
        "image": values.image,
        "imagePullPolicy": values.image_pull_policy,
        "command": list(values.proxy_command),
        "restartPolicy": "Always",
        "env": _proxy_environment(values, probes, metrics),
        "resources": _resources(values),
        "securityContext": {
            "runAsUser": UID,
            "runAsGroup": GID,
            "runAsNonRoot": True,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "startupProbe": {
            "httpGet": ready,
            "periodSeconds": 1,
            "timeoutSeconds": times.timeout_seconds,
            "failureThreshold": times.startup_seconds,
            "successThreshold": 1,
        },
        "readinessProbe": {
            "httpGet": ready,
            "periodSeconds": times.period_seconds,
            "timeoutSeconds": times.timeout_seconds,
            "failureThreshold": times.failures,
            "successThreshold": 1,
        },
        "volumeMounts": [
            {"name": name, "mountPath": path, "readOnly": True} for path, name in volumes.items()
        ],
    }


def volumes(values: Values, names: dict[str, str]) -> list[Object]:
    """The sidecar's token and the bundle, under the names given for their directories.

    The token is readable for everybody who has it mounted, which is the sidecar alone: the kubelet gives a
    file to one user only where all containers of the pod run as that one (the network init never does), and
    to a group only with the pod's fsGroup, which the sidecar then has too.
    """
    token = {
        "audience": values.token_audience,
        "expirationSeconds": values.token_seconds,
        "path": "token",
    }
    return [
        {
            "name": names[TOKEN_DIRECTORY],
            "projected": {"sources": [{"serviceAccountToken": token}], "defaultMode": 0o644},
        },
        {
            "name": names[BUNDLE_DIRECTORY],
            "configMap": {"name": values.bundle_config_map, "optional": True, "defaultMode": 0o644},
        },
    ]


def volume_names(pod: Pod, ours: bool) -> dict[str, str]:
    """Names for our volumes by directory: those in use already, else some that the pod does not use.

    Args:
        ours: whether the pod has our containers already.
    """
    mounted: dict[str, str] = {}
    for container in pod.spec.init_containers or ():
        if ours and container.name == PROXY:
            mounted = {mount.mount_path: mount.name for mount in container.volume_mounts or ()}
    taken = {volume.name for volume in pod.spec.volumes or ()}
    return {
        directory: mounted.get(directory) or _free(name, taken)
        for directory, name in ((TOKEN_DIRECTORY, TOKEN_VOLUME), (BUNDLE_DIRECTORY, BUNDLE_VOLUME))
    }


def _free(name: str, taken: set[str]) -> str:
    number = 1
    found = name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def _resources(values: Values) -> Object:
    resources = values.resources
    wanted = {
        "requests": {"cpu": resources.cpu_request, "memory": resources.memory_request},
        "limits": {"cpu": resources.cpu_limit, "memory": resources.memory_limit},
    }
    told = {what: {name: text for name, text in some.items() if text} for what, some in wanted.items()}
    return {what: some for what, some in told.items() if some}


_NETINIT_DEFAULTS = Capture()


def _capture_environment(capture: Capture) -> list[Object]:
    """What differs from the defaults of netinit."""
    environment = []
    for name in Capture.__struct_fields__:
        value = getattr(capture, name)
        if value != getattr(_NETINIT_DEFAULTS, name):
            text = str(value).lower() if isinstance(value, bool) else value
            environment.append(_variable("TRIOMESH_" + name.upper(), text))
    return environment


def _proxy_environment(values: Values, probes: str, metrics: str) -> list[Object]:
    environment = [
        _field("TRIOMESH_POD_NAME", "metadata.name"),
        _field("TRIOMESH_POD_NAMESPACE", "metadata.namespace"),
        _field("TRIOMESH_POD_IPS", "status.podIPs"),
        _field("TRIOMESH_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        _variable("TRIOMESH_TRUST_DOMAIN", values.trust_domain),
        _variable("TRIOMESH_CONTROL_ADDRESS", values.control_address),
        _variable("TRIOMESH_CONTROL_IDENTITY", values.control_identity),
        _variable("TRIOMESH_CA_ADDRESS", values.ca_address),
        _variable("TRIOMESH_LOG_LEVEL", values.log_level),
        _variable("TRIOMESH_DRAIN_SECONDS", str(values.drain_seconds)),
        *(_variable(name, text) for name, text in changed(values.limits).items()),
    ]
    if values.trust_bundle:
        environment.append(_variable("TRIOMESH_TRUST_BUNDLE", values.trust_bundle))
    if probes:
        environment.append(_variable(PROBES_VARIABLE, probes))
    if metrics:
        environment.append(_variable(METRICS_VARIABLE, metrics))
    return environment


def _field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _variable(name: str, text: str) -> Object:
    # The kubelet expands $(NAME); a doubled dollar stands for itself.
    return {"name": name, "value": text.replace("$", "$$")}


def remembered(pod: Pod, variable: str, form: type[_Form]) -> _Form | None:
    """What an earlier run left in a variable of the sidecar, if it did. Raises PodError."""
    for container in pod.spec.init_containers or ():
        for env in container.env or ():
            if container.name == PROXY and env.name == variable and env.value:
                try:
                    return msgspec.json.decode(env.value.replace("$$", "$"), type=form)
                except msgspec.DecodeError as exc:
                    raise PodError(f"variable {variable} of {PROXY}: {exc}") from None
    return None
