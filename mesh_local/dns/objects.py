"""The Service through which pods reach the DNS, as Kubernetes has it: kube-dns in kube-system."""

from typing import Final

from mesh_local.dns.server import PORT
from mesh_local.machinery.objects import Object
from mesh_local.network.addressing import Family
from mesh_local.network.endpoints import SERVICE_LABEL

NAMESPACE: Final = "kube-system"
NAME: Final = "kube-dns"
_LABELS: Final = {
    "k8s-app": "kube-dns",
    "kubernetes.io/cluster-service": "true",
    "kubernetes.io/name": "CoreDNS",
}
_PORTS: Final = (("dns", "UDP"), ("dns-tcp", "TCP"))


def service(families: tuple[Family, ...]) -> Object:
    """The Service; it has no selector, for no pod is behind it."""
    ips = [family.dns for family in families]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": dict(_LABELS)},
        "spec": {
            "clusterIP": ips[0],
            "clusterIPs": ips,
            "ipFamilies": [f"IPv{family.version}" for family in families],
            "ipFamilyPolicy": "SingleStack" if len(families) == 1 else "RequireDualStack",
            "ports": [
                {"name": name, "port": PORT, "protocol": protocol, "targetPort": PORT}
                for name, protocol in _PORTS
            ],
        },
    }


def endpoint_slice(family: Family) -> Object:
    """The node's address of one family, where the server listens."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{NAME}-ipv{family.version}",
            "namespace": NAMESPACE,
            "labels": {SERVICE_LABEL: NAME, "endpointslice.kubernetes.io/managed-by": "triomesh.local"},
        },
        "addressType": f"IPv{family.version}",
        "endpoints": [{"addresses": [family.node], "conditions": {"ready": True}}],
        "ports": [{"name": name, "port": PORT, "protocol": protocol} for name, protocol in _PORTS],
    }
