"""What of the cluster's addresses is known to be its own, so that an owner nobody told of is waited for."""

import pytest

from mesh_api.discovery import AddressAnswer
from mesh_control.compile.content import address, destination
from mesh_control.index.objects import ServiceCIDR
from mesh_control.index.ranges import Ranges
from tests.support.control_objects import (
    Cluster,
    endpoint,
    node,
    pod,
    read,
    service,
    service_cidr,
    slice_of,
)

OUTSIDE = AddressAnswer()


def held(cluster: Cluster, ip: str) -> bool:
    """Nobody has the address; whether it is the cluster's."""
    answer = address(cluster.index, ip, 80)
    assert answer in (None, OUTSIDE)
    return answer is None


def test_the_range_of_services_is_what_service_cidrs_say():
    cluster = Cluster()
    assert not held(cluster, "10.96.7.7")
    assert cluster.put("ServiceCIDR", service_cidr("kubernetes", "10.96.0.0/20", "fd10::/112")).networks
    cluster.put("Service", service("kubernetes", "10.96.0.1"))
    assert held(cluster, "10.96.7.7")
    assert held(cluster, "fd10::99")
    assert not held(cluster, "10.96.16.1"), "beyond the range nothing is concluded from the cluster IP"
    assert cluster.put("ServiceCIDR", service_cidr("more", "10.97.0.0/24")).networks
    assert held(cluster, "10.97.0.9")
    assert cluster.index.delete("ServiceCIDR", "", "more").networks
    assert not held(cluster, "10.97.0.9")
    assert cluster.index.delete("ServiceCIDR", "", "kubernetes").networks
    assert held(cluster, "10.96.16.1"), "now by the cluster IP"


@pytest.mark.parametrize(
    ("vip", "own", "other"),
    [
        ("10.96.0.1", "10.96.255.254", "10.97.0.1"),
        ("34.118.224.1", "34.118.239.254", "34.118.240.1"),
        ("fd10:96::1", "fd10:96::f:1", "fd10:96::10:1"),
    ],
)
def test_without_service_cidrs_blocks_around_cluster_ips_are_the_clusters(vip, own, other):
    cluster = Cluster()
    assert not held(cluster, own)
    assert cluster.put("Service", service("kubernetes", vip)).networks
    assert held(cluster, own)
    assert not held(cluster, other)
    assert not cluster.put("Service", service("second", own)).networks
    cluster.index.delete("Service", "shop", "second")
    assert cluster.index.delete("Service", "shop", "kubernetes").networks
    assert not held(cluster, own)


def test_who_gives_the_range_of_services_says_where_it_ends():
    cluster = Cluster(networks=("10.0.0.0/24",))
    assert not cluster.put("Service", service("kubernetes", "10.0.0.1")).networks
    assert held(cluster, "10.0.0.9")
    assert not held(cluster, "10.0.1.9")


def test_addresses_that_are_not_allocated_by_the_cluster_conclude_nothing():
    cluster = Cluster()
    cluster.put("Service", service("web", externalIPs=["192.168.7.1"], ingress=[{"ip": "203.0.113.1"}]))
    assert not held(cluster, "192.168.7.2")
    assert not held(cluster, "203.0.113.2")


@pytest.mark.parametrize(
    ("ip", "own", "other"),
    [("10.244.1.5", "10.244.1.77", "10.244.2.5"), ("fd11::5", "fd11::ffff:1", "fd11:0:0:1::5")],
)
def test_blocks_around_pods_are_the_clusters(ip, own, other):
    cluster = Cluster()
    cluster.put("Node", node("n1", ips=("192.168.1.1", "fd12::1")))
    assert cluster.put("Pod", pod("p", ip)).networks
    assert held(cluster, own)
    assert not held(cluster, other)
    assert not cluster.put("Pod", pod("q", own)).networks
    assert not cluster.put("Pod", pod("q", own, account="db")).networks
    cluster.index.delete("Pod", "shop", "p")
    assert held(cluster, ip)
    assert cluster.index.delete("Pod", "shop", "q").networks
    assert not held(cluster, own)


def test_pods_without_an_address_of_their_own_conclude_nothing():
    cluster = Cluster()
    cluster.put("Pod", pod("p", "10.244.1.5", host_network=True), pod("q", "10.244.2.5", phase="Succeeded"))
    assert not held(cluster, "10.244.1.6")
    assert not held(cluster, "10.244.2.6")


@pytest.mark.parametrize(
    ("at", "ip", "beside"),
    [
        ("10.0.3.17", "10.0.200.5", "10.0.200.6"),
        ("2001:db8:0:1::17", "2001:db8:0:1:a::5", "2001:db8:0:1:a::6"),
    ],
)
def test_beside_pods_in_the_nodes_network_there_may_be_databases(at, ip, beside):
    cluster = Cluster()
    cluster.put("Pod", pod("p", ip))
    assert held(cluster, beside)
    assert cluster.put("Node", node("n1", ips=(at,))).networks
    assert not held(cluster, beside)
    assert not cluster.put("Pod", pod("q", beside)).networks
    assert cluster.index.delete("Node", "", "n1").networks
    cluster.index.delete("Pod", "shop", "q")
    assert held(cluster, beside)


def test_an_endpoint_beside_pods_in_the_nodes_network_gets_its_connections():
    cluster = Cluster()
    cluster.put("Node", node("n1", ips=("10.0.3.17",)))
    cluster.put("Pod", pod("p", "10.0.5.5"))
    cluster.put("Service", service("db", "172.20.0.9", selector=None))
    cluster.put("EndpointSlice", slice_of("db", endpoint("10.0.5.200")))
    assert [one.address for one in destination(cluster.index, "shop/db:80").endpoints] == ["10.0.5.200"]


def test_a_range_of_services_in_the_nodes_network_has_to_be_said():
    cluster = Cluster()
    cluster.put("Node", node("n1", ips=("10.0.3.17",)))
    cluster.put("Service", service("kubernetes", "10.0.128.1"))
    assert not held(cluster, "10.0.128.9")
    cluster.put("ServiceCIDR", service_cidr("kubernetes", "10.0.128.0/20"))
    assert held(cluster, "10.0.128.9")


def test_pod_cidrs_say_exactly_which_addresses_are_pods():
    cluster = Cluster()
    cluster.put("Pod", pod("p", "10.244.1.5"))
    assert held(cluster, "10.244.1.200")
    assert cluster.put("Node", node("n1", "10.244.1.0/26")).networks
    assert held(cluster, "10.244.1.6")
    assert not held(cluster, "10.244.1.200")


def test_pods_within_a_known_range_change_no_networks():
    cluster = Cluster()
    cluster.put("Node", node("n1", "10.244.1.0/24"))
    assert not cluster.put("Pod", pod("p", "10.244.1.5")).networks
    assert not cluster.index.delete("Pod", "shop", "p").networks


def test_a_node_is_never_held():
    cluster = Cluster(networks=("10.0.0.0/8",))
    cluster.put("Node", node("n1", ips=("10.0.3.17",)))
    assert not held(cluster, "10.0.3.17")
    assert held(cluster, "10.0.3.18")


def test_a_range_that_cannot_be_read_is_a_problem_and_the_other_counts():
    found = read("ServiceCIDR", service_cidr("kubernetes", "10.96.0.0/20", "rubbish"))
    assert isinstance(found, ServiceCIDR)
    assert found.cidrs == ("10.96.0.0/20",)
    assert found.problems == ("spec.cidrs: expected a network, got 'rubbish'",)
    ranges = Ranges(())
    ranges.service_cidr(found, 1)
    assert ranges.settle()
    assert not ranges.settle()
