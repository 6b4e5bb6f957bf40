"""What users declare on objects: protocols, port lists, names of workloads."""

from __future__ import annotations

import re

from mesh_api.names import MAX_LISTED_PORTS
from mesh_api.sidecar import Protocol
from mesh_control.index.objects import PortRanges

_TCP = frozenset(
    ("tcp", "tls", "https", "wss", "mongo", "mysql", "redis", "postgres", "amqp", "mqtt", "kubernetes.io/wss")
)
_HTTP = frozenset(("http", "ws", "kubernetes.io/ws"))
# Spoken over HTTP/2 as a rule, which the sidecar recognises by its preface: left to detection.
_HTTP2 = frozenset(("http2", "h2c", "grpc", "grpc-web", "kubernetes.io/h2c"))

_RANGE = re.compile(r"([0-9]{1,5})(?:[-:]([0-9]{1,5}))?", re.ASCII)
_SCHEDULED = re.compile(r"(.+)-[0-9]{8,10}", re.ASCII)


def protocol_of(app_protocol: str | None, port_name: str) -> Protocol:
    """What a Service's port speaks: appProtocol, else the name's part before the first dash."""
    if app_protocol:
        return _protocol(app_protocol.lower())
    return _protocol(port_name.partition("-")[0])


def _protocol(text: str) -> Protocol:
    if text in _HTTP:
        return Protocol.HTTP
    if text in _TCP:
        return Protocol.TCP
    return Protocol.AUTO


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
