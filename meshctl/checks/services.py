"""Services: ports that say what they speak."""

from typing import Any

from manifests.names import INJECTION_LABEL
from mesh_api.sidecar import Protocol
from mesh_control.index.declared import protocol_of
from meshctl.checks.model import Check, Result, Target, passed, warning
from meshctl.pods import named

_LINES = 50


def _names(target: Target) -> Result:
    silent: list[str] = []
    seen = 0
    for namespace in target.kube.items("v1", "Namespace", labels=f"{INJECTION_LABEL}=enabled"):
        for service in target.kube.items("v1", "Service", namespace["metadata"]["name"]):
            for port in service["spec"].get("ports") or []:
                seen += 1
                if not declared(port):
                    silent.append(f"{named(service)}: port {port['port']} {port.get('name', '')}".rstrip())
    if silent:
        text = (
            f"{len(silent)} of {seen} ports do not say what they speak; the sidecar looks at the first bytes"
        )
        return warning(text, silent[:_LINES])
    return passed(f"{seen} ports")


def declared(port: dict[str, Any]) -> bool:
    """Whether a Service's port says its protocol; what is not TCP is not ours."""
    if port.get("protocol", "TCP") != "TCP" or port.get("appProtocol"):
        return True
    return protocol_of(None, port.get("name") or "") is not Protocol.AUTO


NAMES = Check(
    "port-names",
    "Service ports say what they speak",
    "set appProtocol, or begin the port's name with it: http, grpc, tcp, ...",
    _names,
)
