"""Kubernetes objects as the API server sends them, short to write, and read by the index."""

from __future__ import annotations

import json
from typing import Any

from mesh_control.index.objects import Kind, Object, Refused
from mesh_control.index.wire import decode

Json = dict[str, Any]
CREATED = "2026-01-01T00:00:00Z"


def raw(obj: Json) -> bytes:
    """The object's JSON."""
    return json.dumps(obj).encode()


def read(kind: Kind, obj: Json) -> Object | Refused:
    """The object as the index gets it."""
    return decode(kind, raw(obj))


def meta(name: str, namespace: str = "shop", **more: Any) -> Json:
    """Object metadata, with parts that nobody reads."""
    found: Json = {"name": name, "uid": "u", "resourceVersion": "7", "creationTimestamp": CREATED}
    if namespace:
        found["namespace"] = namespace
    return {**found, **more}


def pod(
    name: str,
    *ips: str,
    namespace: str = "shop",
    sidecar: bool = True,
    account: str = "web",
    phase: str = "Running",
    node: str = "n1",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    env: dict[str, str] | None = None,
    **more: Any,
) -> Json:
    """A pod; `more` is metadata, but for `host_network`."""
    spec: Json = {"containers": [{"name": "app", "image": "x"}], "nodeName": node}
    spec["serviceAccountName"] = account
    if more.pop("host_network", False):
        spec["hostNetwork"] = True
    said = dict(annotations or {})
    if sidecar:
        said["triomesh.dev/injected"] = "0.1.0"
        variables = [{"name": key, "value": value} for key, value in (env or {}).items()]
        init: Json = {"name": "triomesh-init", "image": "x", "env": variables}
        proxy: Json = {"name": "triomesh-proxy", "image": "x", "restartPolicy": "Always"}
        spec["initContainers"] = [init, proxy] if env is not None else [proxy]
    return {
        "metadata": meta(name, namespace, labels=labels or {"app": "web"}, annotations=said, **more),
        "spec": spec,
        "status": {"phase": phase, "podIP": ips[0] if ips else "", "podIPs": [{"ip": ip} for ip in ips]},
    }


def service(
    name: str,
    *ips: str,
    namespace: str = "shop",
    ports: list[Json] | None = None,
    annotations: dict[str, str] | None = None,
    created: str = CREATED,
    ingress: list[Json] | None = None,
    **spec: Any,
) -> Json:
    """A Service; without addresses a headless one."""
    families = ["IPv6" if ":" in ip else "IPv4" for ip in ips] or ["IPv4"]
    return {
        "metadata": meta(name, namespace, annotations=annotations, creationTimestamp=created),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ips[0] if ips else "None",
            "clusterIPs": list(ips) or ["None"],
            "ipFamilies": families,
            "selector": {"app": name},
            "ports": ports or [{"name": "", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster",
            **spec,
        },
        "status": {"loadBalancer": {"ingress": ingress} if ingress else {}},
    }


def endpoint(address: str, pod: str | None = None, **more: Any) -> Json:
    """One endpoint of a slice; `ready`, `serving` and `terminating` are its conditions."""
    conditions = {key: more.pop(key) for key in ("ready", "serving", "terminating") if key in more}
    found: Json = {"addresses": [address], "conditions": conditions, **more}
    if pod:
        found["targetRef"] = {"kind": "Pod", "namespace": "shop", "name": pod, "uid": "u"}
    return found


def slice_of(
    service: str,
    *endpoints: Json,
    name: str = "",
    port: int = 8080,
    port_name: str = "",
    family: str = "IPv4",
    namespace: str = "shop",
    **more: Any,
) -> Json:
    """An EndpointSlice with one port."""
    labels = {"kubernetes.io/service-name": service}
    return {
        "metadata": meta(name or f"{service}-1", namespace, labels=labels),
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
        **more,
    }


def node(name: str, *cidrs: str, zone: str = "z1", ips: tuple[str, ...] = ()) -> Json:
    """A node."""
    labels = {"topology.kubernetes.io/zone": zone}
    addresses = [{"type": "Hostname", "address": name}]
    addresses += [{"type": "InternalIP", "address": ip} for ip in ips]
    return {
        "metadata": meta(name, "", labels=labels),
        "spec": {"podCIDRs": list(cidrs)},
        "status": {"addresses": addresses, "conditions": []},
    }


def service_cidr(name: str, *cidrs: str) -> Json:
    """A range of Services."""
    return {"metadata": meta(name, ""), "spec": {"cidrs": list(cidrs)}, "status": {}}


def namespace(name: str, **annotations: str) -> Json:
    """A namespace; annotations without prefix, underscores for dashes."""
    said = {f"triomesh.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return {"metadata": meta(name, "", annotations=said), "status": {"phase": "Active"}}


def policy(
    kind: str,
    name: str,
    namespace: str = "shop",
    created: str = CREATED,
    generation: int = 1,
    **spec: Any,
) -> Json:
    """A TrafficPolicy or MeshPolicy."""
    return {
        "apiVersion": "triomesh.dev/v1alpha1",
        "kind": kind,
        "metadata": meta(name, namespace, creationTimestamp=created, generation=generation),
        "spec": spec,
    }


def traffic_policy(name: str, service: str = "web", **more: Any) -> Json:
    """A TrafficPolicy for a Service of its namespace; see `policy`."""
    return policy("TrafficPolicy", name, target={"service": service}, **more)


def mesh_policy(name: str, namespace: str = "triomesh-system", **more: Any) -> Json:
    """A MeshPolicy; see `policy`."""
    return policy("MeshPolicy", name, namespace, **more)


class Cluster:
    """An index, fed with JSON."""

    def __init__(self, trust_domain: str = "cluster.local", networks: tuple[str, ...] = ()) -> None:
        from mesh_control.index.state import Index

        self.index = Index(trust_domain, networks)

    def put(self, kind: Kind, *objects: Json) -> Any:
        """Apply objects of a kind; the changes of all."""
        from mesh_control.index.changes import Changes

        changes = Changes()
        for obj in objects:
            changes |= self.index.apply(read(kind, obj))
        return changes
