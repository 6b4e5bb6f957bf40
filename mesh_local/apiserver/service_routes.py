"""Where a Service leads: a ready endpoint, by the number or the name of a port."""

import random

from mesh_local.apiserver.egress import Address, EgressError
from mesh_local.apiserver.types import Reader
from mesh_local.machinery.objects import Object, dig, labels_of
from mesh_local.network.types import Dialer


class ServiceResolver:
    """Finds ready endpoints of Services, which are dialled from the node.

    Args:
        rng: chooses among the endpoints.
    """

    def __init__(self, reader: Reader, node: Dialer, rng: random.Random) -> None:
        self._reader = reader
        self._node = node
        self._rng = rng

    def address(self, ip: str, port: int) -> Address:
        """An address in the cluster's network."""
        return Address(self._node, ip, port)

    def by_port_number(self, namespace: str, name: str, port: int) -> Address:
        """A ready endpoint behind the Service's port with this number.

        Raises:
            EgressError: no such Service or port, or no endpoint.
        """
        service = self._reader.get("services", name, namespace)
        if service is None:
            raise EgressError(f'service "{name}" not found')
        kind = dig(service, "spec", "type", default="ClusterIP")
        if kind == "ExternalName":
            raise EgressError(f'unsupported service type "{kind}"')
        named = port_named(service, port)
        if named is None:
            raise EgressError(f'no service port {port} found for service "{name}"')
        found = self.by_port_name(namespace, name, named)
        if found is None:
            raise EgressError(f'no endpoints available for service "{name}"')
        return found

    def by_port_name(
        self, namespace: str, name: str, port_name: str, *, only_pods: bool = False
    ) -> Address | None:
        """A ready endpoint of the EndpointSlice port with this name, if there is one.

        Args:
            only_pods: leave out addresses that are not those of a Pod of the namespace. Who may write
                EndpointSlices could otherwise send the API server anywhere (as in Kubernetes).
        """
        found: list[tuple[str, int]] = []
        for part in self._reader.list("endpointslices.discovery.k8s.io", namespace):
            if labels_of(part).get("kubernetes.io/service-name") != name:
                continue
            ports = [p.get("port") for p in part.get("ports") or () if (p.get("name") or "") == port_name]
            for endpoint in part.get("endpoints") or ():
                if not dig(endpoint, "conditions", "ready", default=True) or not endpoint.get("addresses"):
                    continue
                if not only_pods or self._is_pod(endpoint, namespace):
                    found += [(endpoint["addresses"][0], port) for port in ports if port]
        if not found:
            return None
        ip, port = self._rng.choice(found)
        return Address(self._node, ip, port)

    def _is_pod(self, endpoint: Object, namespace: str) -> bool:
        """Whether the first address of an endpoint is that of the Pod it names."""
        ref = endpoint.get("targetRef") or {}
        if ref.get("kind") != "Pod" or ref.get("namespace", namespace) != namespace:
            return False
        pod = self._reader.get("pods", ref.get("name") or "", namespace)
        ips: list[Object] = dig(pod or {}, "status", "podIPs", default=[])
        return any(entry.get("ip") == endpoint["addresses"][0] for entry in ips)


def port_named(service: Object, number: int) -> str | None:
    """The name of the Service's port with this number ('' for an unnamed one), if there is one."""
    ports: list[Object] = dig(service, "spec", "ports", default=[])
    return next((p.get("name") or "" for p in ports if p.get("port") == number), None)
