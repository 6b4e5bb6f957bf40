"""The objects that every cluster has from its first moment, besides the default roles and its DNS."""

from mesh_local.machinery.objects import Object
from mesh_local.network.addressing import Family

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
API_PORT = 6443
_NAME = "kubernetes"


def namespaces() -> list[Object]:
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in NAMESPACES]


def api_ip(family: Family) -> str:
    """The address of the Service `kubernetes`: the first of the range, by convention."""
    return str(family.services[1])


def api_service(families: tuple[Family, ...]) -> Object:
    """Through it pods reach the API server; it has no selector, for no pod is behind it."""
    ips = [api_ip(family) for family in families]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": _NAME,
            "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": ips[0],
            "clusterIPs": ips,
            "ipFamilies": [f"IPv{family.version}" for family in families],
            "ipFamilyPolicy": "SingleStack" if len(families) == 1 else "RequireDualStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": API_PORT}],
        },
    }


def service_cidr(families: tuple[Family, ...]) -> Object:
    """Which addresses Services get (KEP-1880)."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": _NAME},
        "spec": {"cidrs": [str(family.services) for family in families]},
    }


def api_endpoint_slice(family: Family) -> Object:
    """The node's address of one family, where the API server listens."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": _NAME if family.version == 4 else f"{_NAME}-ipv6",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": _NAME},
        },
        "addressType": f"IPv{family.version}",
        "endpoints": [{"addresses": [family.node], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": API_PORT, "protocol": "TCP"}],
    }
