"""Services, slices and pods in a few words, and a source of objects that tests change by hand."""

from collections.abc import Callable
from typing import Any

import trio

from mesh_local.machinery.objects import Object
from mesh_local.network.endpoints import SERVICE_LABEL


def service(
    name: str, *ips: str, namespace: str = "shop", ports: Any = ((80, "TCP", ""),), **spec: Any
) -> Object:
    """A Service with cluster IPs, or with spec given in full; a port is (number, protocol, name)."""
    addresses = {"clusterIP": ips[0], "clusterIPs": list(ips)} if ips else {}
    entries = [{"port": p, "protocol": protocol, **({"name": n} if n else {})} for p, protocol, n in ports]
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"type": "ClusterIP", **addresses, "ports": entries, **spec},
    }


def end(ip: str, *, ready: bool | None = True, hostname: str = "", **conditions: bool) -> Object:
    return {
        "addresses": [ip],
        "conditions": {**({} if ready is None else {"ready": ready}), **conditions},
        **({"hostname": hostname} if hostname else {}),
    }


def slice_of(
    name: str,
    *endpoints: Object,
    namespace: str = "shop",
    ports: Any = ((8080, "TCP", ""),),
    version: int = 4,
) -> Object:
    """An EndpointSlice of the Service `name`."""
    return {
        "metadata": {
            "name": f"{name}-ipv{version}",
            "namespace": namespace,
            "labels": {SERVICE_LABEL: name},
        },
        "addressType": f"IPv{version}",
        "endpoints": list(endpoints),
        "ports": [{"port": p, "protocol": protocol, "name": n} for p, protocol, n in ports],
    }


def pod(name: str, *ips: str, namespace: str = "shop", phase: str = "Running") -> Object:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {},
        "status": {"phase": phase, "podIPs": [{"ip": ip} for ip in ips]},
    }


class Objects:
    """An `ObjectSource`: complete from the start unless told otherwise."""

    def __init__(self, *objects: Object, synced: bool = True) -> None:
        self.synced = trio.Event()
        if synced:
            self.synced.set()
        self._objects = list(objects)
        self._callbacks: list[Callable[[Object | None, Object | None], None]] = []

    def list(self) -> list[Object]:
        return list(self._objects)

    def on_change(self, callback: Callable[[Object | None, Object | None], None]) -> None:
        self._callbacks.append(callback)

    def put(self, *objects: Object) -> None:
        """Hold these objects instead."""
        self._objects = list(objects)
        for callback in self._callbacks:
            callback(None, None)
