"""What users declare on objects: protocols, port lists, names of workloads."""

from __future__ import annotations

import re

from mesh_api.names import MAX_LISTED_PORTS
from mesh_api.sidecar import Protocol
from mesh_control.index.objects import PortRanges

_SPOKEN = {
    # gRPC-Web is for browsers: HTTP of whichever version.
    Protocol.HTTP: ("http", "ws", "grpc-web", "kubernetes.io/ws"),
    Protocol.HTTP2: ("http2", "h2c", "grpc", "kubernetes.io/h2c"),
    # What the application itself encrypts is passed through, whatever is inside.
    Protocol.TCP: (
        *("tcp", "tls", "https", "wss", "kubernetes.io/wss"),
        *("mongo", "mysql", "redis", "postgres", "amqp", "mqtt"),
    ),
}
_PROTOCOLS = {name: protocol for protocol, names in _SPOKEN.items() for name in names}

_RANGE = re.compile(r"([0-9]{1,5})(?:[-:]([0-9]{1,5}))?", re.ASCII)
_SCHEDULED = re.compile(r"(.+)-[0-9]{8,10}", re.ASCII)


def protocol_of(app_protocol: str | None, port_name: str) -> Protocol:
    """What a Service's port speaks: appProtocol, whole; else the name, whole or up to a dash.

    An appProtocol is a name of IANA's registry, whose letters' case does not count (RFC 6335, 5.1), or one of
    Kubernetes' own (KEP-3726); any other says nothing that is known here, and the port's name is not asked
    then. Names of ports have small letters (core/v1 ServicePort).
    """
    if app_protocol:
        return _PROTOCOLS.get(app_protocol.lower(), Protocol.AUTO)
    if port_name.startswith("grpc-web-"):
        port_name = "grpc-web"
    return _PROTOCOLS.get(port_name) or _PROTOCOLS.get(port_name.partition("-")[0], Protocol.AUTO)


def port_ranges(text: str) -> PortRanges:
    """Read `80,443,8000-8010`; empty text and `none` are no port.

    Raises ValueError that says what was expected, also for more than `MAX_LISTED_PORTS` ports.
    """
    text = text.strip()
    if text in ("", "none"):
        return ()
    ranges: list[tuple[int, int]] = []
    for item in text.split(","):
        match = _RANGE.fullmatch(item.strip())
        low = int(match[1]) if match else 0
        high = int(match[2] or low) if match else 0
        if not 0 < low <= high <= 65535:
            raise ValueError(f"expected ports such as 80,443,8000-8010, got {item.strip()[:40]!r}")
        ranges.append((low, high))
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    if sum(high - low + 1 for low, high in merged) > MAX_LISTED_PORTS:
        raise ValueError(f"expected at most {MAX_LISTED_PORTS} ports, got more in {text[:40]!r}")
    return tuple(merged)


def workload_of(pod: str, owner_kind: str, owner: str, template_hash: str) -> tuple[str, str]:
    """Kind and name of the workload that a pod belongs to, by its controller; ('', its name) without one.

    A Deployment's ReplicaSet is called NAME-HASH with the hash of the pod's label; a CronJob's Job ends in
    the minute for which it was scheduled.
    """
    if owner_kind == "ReplicaSet" and template_hash and owner.endswith(f"-{template_hash}"):
        return "Deployment", owner.removesuffix(f"-{template_hash}")
    if owner_kind == "Job" and (match := _SCHEDULED.fullmatch(owner)):
        return "CronJob", match[1]
    return owner_kind, owner or pod
