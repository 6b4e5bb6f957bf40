"""Addresses, node ports and IP families of Services."""

import ipaddress
import random
from typing import Any

import pytest
import trio

from mesh_local.apiserver.admission.service_ips import ServiceIps
from mesh_local.apiserver.types import Admission
from mesh_local.machinery.errors import ApiError
from mesh_local.machinery.objects import Object, copy
from tests.support.local_admission import Objects, create, update

V4, V6 = "10.96.0.0/16", "fd00:96::/112"


def service(name: str = "web", **spec: Any) -> Object:
    return {"metadata": {"name": name, "namespace": "t"}, "spec": {"ports": [{"port": 80}], **spec}}


class Cluster:
    """A plugin whose Services are stored as soon as they are admitted."""

    def __init__(self, *cidrs: str, ports: tuple[int, int] = (30000, 32767)) -> None:
        self.objects = Objects()
        self.plugin = ServiceIps(self.objects, cidrs or (V4,), ports, random.Random(1))

    def admit(self, request: Admission) -> Object:
        trio.run(self.plugin.mutate, request)
        assert request.object is not None
        return request.object

    def add(self, name: str = "web", **spec: Any) -> Object:
        return self.objects.add("services", self.admit(create("services", service(name, **spec))))

    def refused(self, name: str = "x", **spec: Any) -> str:
        with pytest.raises(ApiError) as refused:
            self.add(name, **spec)
        assert refused.value.code == 422
        return refused.value.message


def test_an_address_is_chosen_from_the_upper_part_of_the_range() -> None:
    spec = Cluster().add()["spec"]
    assert spec["clusterIPs"] == [spec["clusterIP"]]
    assert ipaddress.ip_address(spec["clusterIP"]) in ipaddress.ip_network(V4)
    assert ipaddress.ip_address(spec["clusterIP"]) > ipaddress.ip_address("10.96.1.0")
    assert (spec["ipFamilies"], spec["ipFamilyPolicy"]) == (["IPv4"], "SingleStack")


def test_headless_and_external_services_get_none() -> None:
    cluster = Cluster()
    headless = cluster.add("h", clusterIP="None", selector={"a": "b"})["spec"]
    assert (headless["clusterIPs"], headless["ipFamilies"]) == (["None"], ["IPv4"])
    external = cluster.add("e", type="ExternalName", externalName="a.example.com")["spec"]
    assert not {"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"} & external.keys()


def test_a_headless_service_without_selector_has_both_families() -> None:
    spec = Cluster().add(clusterIP="None")["spec"]
    assert (spec["ipFamilies"], spec["ipFamilyPolicy"]) == (["IPv4", "IPv6"], "RequireDualStack")


def test_a_wanted_address_must_be_in_range_and_free() -> None:
    cluster = Cluster()
    cluster.add("kubernetes", clusterIP="10.96.0.1")
    start = 'Service "x" is invalid: spec.clusterIPs: Invalid value: '
    assert cluster.refused(clusterIP="1.2.3.4") == (
        f'{start}["1.2.3.4"]: failed to allocate IP 1.2.3.4: '
        "the provided network does not match the current range"
    )
    assert cluster.refused(clusterIP="10.96.0.1") == (
        f'{start}["10.96.0.1"]: failed to allocate IP 10.96.0.1: provided IP is already allocated'
    )


def test_both_ways_to_ask_for_an_address_must_agree() -> None:
    assert Cluster().refused(clusterIPs=["10.96.0.7"]) == (
        'Service "x" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.7"]: '
        "first value must match `clusterIP`"
    )


def test_a_full_range_is_an_error_and_a_deleted_service_frees_its_address() -> None:
    cluster = Cluster("10.0.0.0/30")
    assert {cluster.add("a")["spec"]["clusterIP"], cluster.add("b")["spec"]["clusterIP"]} == {
        "10.0.0.1",
        "10.0.0.2",
    }
    with pytest.raises(ApiError, match="range is full"):
        cluster.add("c")
    del cluster.objects.stored["services", "t", "a"]
    # The same Service may come back at once; another one when the promise is forgotten.
    assert cluster.add("a")["spec"]["clusterIP"]


def test_an_address_is_promised_until_its_service_is_stored() -> None:
    cluster = Cluster("10.0.0.0/30")
    one = cluster.admit(create("services", service("a")))["spec"]["clusterIP"]
    two = cluster.admit(create("services", service("b")))["spec"]["clusterIP"]
    assert one != two


def test_a_dry_run_takes_nothing() -> None:
    cluster = Cluster("10.0.0.0/30")
    for _ in range(3):
        cluster.admit(create("services", service("a"), dry_run=True))
    assert cluster.add("b")["spec"]["clusterIP"]
    assert cluster.add("c")["spec"]["clusterIP"]


def test_dual_stack() -> None:
    cluster = Cluster(V4, V6)
    single = cluster.add("one")["spec"]
    assert single["ipFamilies"] == ["IPv4"]
    both = cluster.add("two", ipFamilyPolicy="PreferDualStack")["spec"]
    assert both["ipFamilies"] == ["IPv4", "IPv6"]
    assert [ipaddress.ip_address(ip).version for ip in both["clusterIPs"]] == [4, 6]
    six = cluster.add("six", ipFamilies=["IPv6"])["spec"]
    assert ipaddress.ip_address(six["clusterIP"]) in ipaddress.ip_network(V6)
    assert Cluster(V6).add()["spec"]["ipFamilies"] == ["IPv6"]


def test_families_that_the_cluster_does_not_have() -> None:
    cluster = Cluster()
    assert cluster.refused(ipFamilyPolicy="RequireDualStack") == (
        'Service "x" is invalid: spec.ipFamilyPolicy: Invalid value: "RequireDualStack": '
        "this cluster is not configured for dual-stack services"
    )
    assert cluster.refused(ipFamilies=["IPv6"]) == (
        'Service "x" is invalid: spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster'
    )
    assert cluster.add("y", ipFamilyPolicy="PreferDualStack")["spec"]["ipFamilies"] == ["IPv4"]


def test_a_policy_may_be_changed_later() -> None:
    cluster = Cluster(V4, V6)
    old = cluster.add()
    new = copy(old)
    new["spec"]["ipFamilyPolicy"] = "RequireDualStack"
    grown = cluster.admit(update("services", new, old))
    assert len(grown["spec"]["clusterIPs"]) == 2
    assert grown["spec"]["clusterIPs"][0] == old["spec"]["clusterIP"]
    back = copy(grown)
    back["spec"]["ipFamilyPolicy"] = "SingleStack"
    shrunk = cluster.admit(update("services", back, grown))
    assert shrunk["spec"]["clusterIPs"] == old["spec"]["clusterIPs"]
    assert shrunk["spec"]["ipFamilies"] == ["IPv4"]


def test_an_update_without_the_address_keeps_it() -> None:
    cluster = Cluster()
    old = cluster.add(type="NodePort")
    new = service(type="NodePort", ipFamilies=["IPv4"], ipFamilyPolicy="SingleStack")
    kept = cluster.admit(update("services", new, old))["spec"]
    assert kept["clusterIPs"] == old["spec"]["clusterIPs"]
    assert kept["ports"][0]["nodePort"] == old["spec"]["ports"][0]["nodePort"]


def test_a_changed_address_is_left_for_validation_to_refuse() -> None:
    cluster = Cluster()
    old = cluster.add(clusterIP="10.96.3.1")
    new = copy(old)
    new["spec"]["clusterIP"] = "192.0.2.1"
    assert cluster.admit(update("services", new, old))["spec"]["clusterIPs"] == ["192.0.2.1"]


def test_node_ports() -> None:
    cluster = Cluster(ports=(30000, 30001))
    first = cluster.add("a", type="NodePort")["spec"]["ports"][0]["nodePort"]
    start = 'Service "x" is invalid: spec.ports[0].nodePort: Invalid value: '
    assert cluster.refused(type="NodePort", ports=[{"port": 1, "nodePort": 80}]) == (
        f"{start}80: provided port is not in the valid range. The range of valid ports is 30000-30001"
    )
    assert cluster.refused(type="NodePort", ports=[{"port": 1, "nodePort": first}]) == (
        f"{start}{first}: provided port is already allocated"
    )
    udp = [{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]
    ports = cluster.add("dns", type="NodePort", ports=udp)["spec"]["ports"]
    assert [p["nodePort"] for p in ports] == [30000 + 30001 - first] * 2
    with pytest.raises(ApiError, match="failed to allocate a nodePort: range is full"):
        cluster.add("b", type="NodePort")


def test_a_load_balancer_may_do_without_node_ports() -> None:
    spec = Cluster().add(type="LoadBalancer", allocateLoadBalancerNodePorts=False)["spec"]
    assert "nodePort" not in spec["ports"][0]
    local = Cluster().add(type="LoadBalancer", externalTrafficPolicy="Local")["spec"]
    assert 30000 <= local["healthCheckNodePort"] <= 32767
