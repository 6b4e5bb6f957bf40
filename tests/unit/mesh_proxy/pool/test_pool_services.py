"""Which connections to a pod's own address are mTLS."""

import random
from types import SimpleNamespace

import pytest

from mesh_api.sidecar import Pod, TlsMode
from mesh_ops.registry import Registry
from mesh_proxy.discovery.store import ConfigStore
from mesh_proxy.net.addr import Addr
from mesh_proxy.pool.services import Services
from mesh_proxy.telemetry.stats import ProxyStats

ID = "spiffe://cluster.local/ns/shop/sa/web"


def identity(port, **more):
    dialer = SimpleNamespace(reactor=SimpleNamespace(now=0.0))
    services = Services(dialer, ProxyStats(Registry()), random.Random(1), ConfigStore(), print)
    pod = Pod(name="p", namespace="shop", addresses=("10.0.0.1",), identity=ID, **more)
    (endpoint,) = services.pod(pod, Addr("10.0.0.1", port)).endpoints()
    return endpoint.peer.identity


@pytest.mark.parametrize(
    ("port", "more", "expected"),
    [
        (80, {}, ID),
        (80, {"plaintext_ports": (80,)}, ""),
        (90, {"plaintext_ports": (80,)}, ID),
        (80, {"captured_ports": (80, 90)}, ID),
        (81, {"captured_ports": (80, 90)}, ""),
        (15020, {}, ""),
        (15021, {"captured_ports": (15021,)}, ""),
        (80, {"tls": TlsMode.NONE}, ""),
    ],
)
def test_a_pods_port_is_mtls_where_its_sidecar_captures_it(port, more, expected):
    assert identity(port, **more) == expected
