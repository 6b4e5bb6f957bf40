"""The annotations by which Prometheus finds a pod's metrics, led to the sidecar. Pure.

Prometheus is not in the mesh, so a STRICT port would refuse it. The sidecar answers for both: with its own
metrics, and those of the application that the annotations named before.
"""

from __future__ import annotations

from typing import Final, Literal

from injector.decision import METRICS_PORT, PROXY_PORTS, Object
from injector.pod import Pod
from mesh_api.application import AppMetrics, MetricsTarget

_PREFIX: Final = "prometheus.io/"
_OURS: Final = {"scrape": "true", "port": str(METRICS_PORT), "path": "/stats/prometheus", "scheme": "http"}


def merge(annotations: Object, before: AppMetrics | None, pod: Pod) -> tuple[AppMetrics | None, list[str]]:
    """Point `annotations` (changed in place) to the sidecar, unless they say that nothing is to be scraped.

    Args:
        annotations: of the pod.
        before: what an earlier run returned.
        pod: for the ports of its containers.

    Returns:
        What they said before, None if they were left alone; and warnings.
    """
    said = {name: annotations[_PREFIX + name] for name in _OURS if _PREFIX + name in annotations}
    if said == _OURS and before is not None:
        return before, []
    if said.get("scrape", "true") != "true":
        return None, []
    target = None
    if "scrape" in said:
        port = _port(said.get("port"), pod)
        scheme: Literal["http", "https"] = "https" if said.get("scheme") == "https" else "http"
        if port is None:
            shown = repr(said["port"]) if "port" in said else "none, and no container has one"
            return None, [
                f"annotation {_PREFIX}port: expected a port of the application, got {shown}; "
                "the application's metrics are left alone"
            ]
        target = MetricsTarget(port, said.get("path") or "/metrics", scheme)
    annotations.update({_PREFIX + name: value for name, value in _OURS.items()})
    return AppMetrics(said, target), []


def restore(annotations: Object, before: AppMetrics | None) -> None:
    """Undo `merge` on `annotations`, in place."""
    if before is None:
        return
    for name, value in _OURS.items():
        if annotations.get(_PREFIX + name) == value:
            del annotations[_PREFIX + name]
    annotations.update({_PREFIX + name: value for name, value in before.annotations.items()})


def _port(text: str | None, pod: Pod) -> int | None:
    if text is not None:
        number = int(text) if text.isdecimal() and text.isascii() else 0
        return number if 1 <= number <= 65535 and number not in PROXY_PORTS else None
    ports = [port for container in pod.spec.containers for port in container.ports or ()]
    return next((port.container_port for port in ports if port.protocol in (None, "", "TCP")), None)
