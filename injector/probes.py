"""Probes and lifecycle hooks of the application, led through the sidecar. Pure.

The kubelet is not in the mesh, so a STRICT port would refuse it. Its HTTP, HTTPS, TCP and gRPC checks
become an HTTP request to the sidecar's metrics port, which is never captured; the sidecar makes the original
check against the pod's own address, as the kubelet would. Commands are left alone, and so is a check that
names a host or a port of the sidecar.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from injector.decision import METRICS_PORT, OURS, PROXY_PORTS, Object
from mesh_api.application import AppCheck

Originals = dict[str, AppCheck]
"""What the checks that go through the sidecar were, by path."""

_PROBES: Final = {"readinessProbe": "readyz", "livenessProbe": "livez", "startupProbe": "startupz"}
_HOOKS: Final = {"postStart": "poststartz", "preStop": "prestopz"}
_PROBE_HANDLERS: Final = ("httpGet", "tcpSocket", "grpc")
# A hook with tcpSocket never works: the kubelet refuses to run it.
_HOOK_HANDLERS: Final = ("httpGet",)
_KUBELET_TIMEOUT_S: Final = 1
_GRACE_S: Final = 30


class _Check(NamedTuple):
    """One probe or hook of one container; `holder` is the object whose member the handler is."""

    container: Object
    holder: Object
    path: str
    handlers: tuple[str, ...]
    timeout_s: int


def rewrite(spec: Object, before: Originals) -> tuple[Originals, list[str]]:
    """Point the checks of `spec` (changed in place) to the sidecar.

    Args:
        spec: of a pod whose shape has been looked at.
        before: what an earlier run returned; of it, checks that still point to the sidecar are kept.

    Returns:
        The originals, and warnings.
    """
    found: Originals = {}
    warnings: list[str] = []
    for check in _checks(spec):
        name = check.container["name"]
        if _points_here(check):
            if check.path in before:
                found[check.path] = before[check.path]
            else:
                warnings.append(
                    f"container {name}: a check goes to the sidecar's {check.path}, but what it was is not "
                    "known; write the original check"
                )
            continue
        kind = next((kind for kind in check.handlers if check.holder.get(kind) is not None), None)
        if kind is None or check.holder[kind].get("host"):
            continue
        port = _number(check.holder[kind]["port"], check.container)
        if port is None:
            warnings.append(
                f"container {name}: a check names port {check.holder[kind]['port']!r}, which is not a TCP "
                "port of the container; the check is left alone"
            )
            continue
        if port in PROXY_PORTS:
            continue
        found[check.path] = AppCheck({kind: check.holder.pop(kind)}, port, check.timeout_s)
        check.holder["httpGet"] = {"path": check.path, "port": METRICS_PORT, "scheme": "HTTP"}
    return found, warnings


def restore(spec: Object, before: Originals) -> None:
    """Undo `rewrite` on `spec`, in place."""
    for check in _checks(spec):
        if _points_here(check) and check.path in before:
            del check.holder["httpGet"]
            check.holder.update(before[check.path].handler)


def _checks(spec: Object) -> Iterator[_Check]:
    hook_timeout = max(spec.get("terminationGracePeriodSeconds") or _GRACE_S, 1)
    for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
        name = container["name"]
        if name in OURS:
            continue
        for member, page in _PROBES.items():
            if probe := container.get(member):
                timeout = max(probe.get("timeoutSeconds") or _KUBELET_TIMEOUT_S, 1)
                yield _Check(container, probe, f"/app-health/{name}/{page}", _PROBE_HANDLERS, timeout)
        for member, page in _HOOKS.items():
            if hook := (container.get("lifecycle") or {}).get(member):
                path = f"/app-lifecycle/{name}/{page}"
                yield _Check(container, hook, path, _HOOK_HANDLERS, hook_timeout)


def _points_here(check: _Check) -> bool:
    get = check.holder.get("httpGet")
    return get is not None and get.get("port") == METRICS_PORT and get.get("path") == check.path


def _number(port: Any, container: Object) -> int | None:
    """The port as the kubelet finds it: a number, else the name of a port of the container, else digits."""
    if isinstance(port, str):
        named = [one for one in container.get("ports") or () if one.get("name") == port]
        tcp = [one["containerPort"] for one in named if one.get("protocol") in (None, "", "TCP")]
        port = tcp[0] if tcp else int(port) if port.isdecimal() and port.isascii() else 0
    return port if 1 <= port <= 65535 else None
