"""Services: defaulting, what is refused, and the row."""

from datetime import UTC, datetime
from typing import Any

import pytest

from mesh_local.kinds.service import SERVICE
from mesh_local.machinery.objects import Object

NOW = datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)


def service(**spec: Any) -> Object:
    obj: Object = {
        "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"ports": [{"port": 80}], **spec},
    }
    SERVICE.default(obj)
    return obj


def test_a_cluster_ip_service() -> None:
    obj = service()
    SERVICE.prepare_create(obj)
    assert obj["spec"] == {
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
        "type": "ClusterIP",
        "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster",
    }
    assert obj["status"] == {"loadBalancer": {}}


def test_what_a_type_brings() -> None:
    assert service(type="NodePort")["spec"]["externalTrafficPolicy"] == "Cluster"
    assert service(type="LoadBalancer")["spec"]["allocateLoadBalancerNodePorts"] is True
    named = service(type="ExternalName", externalName="a.example.com", ports=[])["spec"]
    assert "internalTrafficPolicy" not in named
    sticky = service(sessionAffinity="ClientIP")["spec"]
    assert sticky["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}


@pytest.mark.parametrize(
    ("spec", "messages"),
    [
        ({"ports": []}, ["spec.ports: Required value"]),
        (
            {"ports": [{"port": 1}, {"port": 2}]},
            ["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"],
        ),
        (
            {"ports": [{"port": 0}]},
            [
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ],
        ),
        (
            {"ports": [{"port": 1, "protocol": "http"}]},
            ['spec.ports[0].protocol: Unsupported value: "http": supported values: "SCTP", "TCP", "UDP"'],
        ),
        (
            {"type": "Magic"},
            [
                'spec.type: Unsupported value: "Magic": supported values: '
                '"ClusterIP", "ExternalName", "LoadBalancer", "NodePort"'
            ],
        ),
        (
            {"ports": [{"port": 1, "nodePort": 30000}]},
            ["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
        ),
        ({"type": "ExternalName", "ports": []}, ["spec.externalName: Required value"]),
        (
            {"type": "NodePort", "clusterIP": "None"},
            ["spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"],
        ),
        (
            {"ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]},
            ['spec.ports[1].name: Duplicate value: "a"'],
        ),
    ],
)
def test_what_is_refused(spec: Object, messages: list[str]) -> None:
    assert [str(e) for e in SERVICE.validate(service(**spec))] == messages


def test_headless_services_may_have_no_ports() -> None:
    assert SERVICE.validate(service(clusterIP="None", clusterIPs=["None"], ports=[])) == []


def test_the_address_of_a_service_does_not_change() -> None:
    old = service(clusterIP="10.96.0.5", clusterIPs=["10.96.0.5"])
    new = service(clusterIP="10.96.0.6", clusterIPs=["10.96.0.6"])
    [error] = SERVICE.validate_update(new, old)
    assert str(error) == 'spec.clusterIPs[0]: Invalid value: ["10.96.0.6"]: may not change once set'


def test_a_change_of_type_gives_up_what_the_old_type_had() -> None:
    old = service(type="NodePort", ports=[{"port": 80, "nodePort": 30001}])
    new = service(type="ClusterIP", ports=[{"port": 80, "nodePort": 30001}], externalTrafficPolicy="Cluster")
    SERVICE.prepare_update(new, old)
    assert "nodePort" not in new["spec"]["ports"][0]
    assert "externalTrafficPolicy" not in new["spec"]
    assert SERVICE.validate_update(new, old) == []


@pytest.mark.parametrize(
    ("spec", "cells"),
    [
        (
            {"clusterIPs": ["10.96.0.5"], "selector": {"b": "2", "a": "1"}},
            ["ClusterIP", "10.96.0.5", "<none>", "80/TCP", "5s", "a=1,b=2"],
        ),
        (
            {"type": "ExternalName", "externalName": "a.example.com", "ports": []},
            ["ExternalName", "<none>", "a.example.com", "<none>", "5s", "<none>"],
        ),
        (
            {"type": "LoadBalancer", "clusterIPs": ["10.96.0.5"], "ports": [{"port": 80, "nodePort": 30147}]},
            ["LoadBalancer", "10.96.0.5", "<pending>", "80:30147/TCP", "5s", "<none>"],
        ),
    ],
)
def test_the_row(spec: Object, cells: list[str]) -> None:
    assert SERVICE.row(service(**spec), NOW)[1:] == cells
