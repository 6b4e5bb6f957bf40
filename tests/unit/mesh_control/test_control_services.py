"""What kube-proxy gives to callers of a Service, as sidecars are told it: nodes, zones, affinity."""

from typing import Any

import pytest

from mesh_api.discovery import AddressAnswer, Resource, encode_content, read_content
from mesh_api.keys import Family
from mesh_api.sidecar import Destination, TlsMode
from mesh_control.compile import Mesh, address, content, destination, version
from tests.support.control_objects import (
    Cluster,
    endpoint,
    mesh_policy,
    node,
    pod,
    service,
    slice_of,
    traffic_policy,
)

MESH = Mesh(trust_domain="cluster.local", bundle_pem="PEM")
TWO = [pod("a", "10.0.0.1", node="n1"), pod("b", "10.0.0.2", node="n2")]
NODES = [node("n1", zone="z1"), node("n2", zone="z2"), node("n3", zone="z3"), node("n4", zone="z1")]
WEB = "destination/shop/web:80"


def web(*endpoints: Any, pods: Any = TWO, **more: Any) -> Cluster:
    """A cluster with Service web (10.9.0.1:80) and these endpoints."""
    cluster = Cluster()
    cluster.put("Node", *NODES)
    cluster.put("Pod", *pods)
    cluster.put("Service", service("web", "10.9.0.1", **more))
    cluster.put("EndpointSlice", slice_of("web", *endpoints))
    return cluster


def told(cluster: Cluster, name: str = "shop/web:80") -> Destination:
    found = destination(cluster.index, name)
    assert found is not None
    return found


def leads_to(cluster: Cluster, ip: str, from_node: str = "n1") -> str:
    """What a caller on a node is answered about an address."""
    found = address(cluster.index, ip, 80, from_node)
    assert found is not None
    return found.destination


def seen(cluster: Cluster, from_node: str, ip: str = "10.9.0.1") -> list[str]:
    """The endpoints that a caller on a node finds behind an address."""
    return [one.address for one in told(cluster, leads_to(cluster, ip, from_node)).endpoints]


# -- internalTrafficPolicy (KEP-2086) ---------------------------------------


def test_local_leaves_the_callers_node() -> None:
    found = [endpoint("10.0.0.1", "a", nodeName="n1"), endpoint("10.0.0.2", "b", nodeName="n2", ready=False)]
    cluster = web(*found, internalTrafficPolicy="Local")
    assert address(cluster.index, "10.9.0.1", 80, "n1") == AddressAnswer(destination="shop/web:80/ipv4/n1")
    assert (seen(cluster, "n1"), seen(cluster, "n2"), seen(cluster, "n3")) == (["10.0.0.1"], [], [])
    found[1] = endpoint("10.0.0.2", "b", nodeName="n2", ready=False, serving=True, terminating=True)
    changes = cluster.put("EndpointSlice", slice_of("web", *found))
    assert {f"{WEB}/ipv4/n1", f"{WEB}/ipv4/n2"} <= changes.keys
    assert seen(cluster, "n2") == ["10.0.0.2"]


def test_local_says_so_and_only_then() -> None:
    cluster = web(endpoint("10.0.0.1", "a", nodeName="n1"), internalTrafficPolicy="Local")
    assert told(cluster, "shop/web:80/ipv4/n2").local
    cluster.put("Service", service("web", "10.9.0.1"))
    assert not told(cluster).local


def test_local_does_not_look_at_hints() -> None:
    found = [
        endpoint("10.0.0.1", "a", nodeName="n1", hints=hint("z2")),
        endpoint("10.0.0.2", "b", nodeName="n2", hints=hint("z2")),
    ]
    cluster = web(*found, internalTrafficPolicy="Local")
    assert (seen(cluster, "n1"), seen(cluster, "n2")) == (["10.0.0.1"], ["10.0.0.2"])


# -- hints (KEP-2433; trafficDistribution: KEP-4444, KEP-3015) ---------------------------------------


def hint(*zones: str, nodes: tuple[str, ...] = ()) -> Any:
    """What the EndpointSlice controller writes for PreferClose and PreferSameZone, and PreferSameNode."""
    return {"forZones": [{"name": zone} for zone in zones], "forNodes": [{"name": name} for name in nodes]}


@pytest.mark.parametrize("distribution", ["PreferClose", "PreferSameZone", None])
def test_the_hints_for_a_zone(distribution: str | None) -> None:
    """They count whatever the Service says, as kube-proxy has it since 1.31."""
    found = [endpoint("10.0.0.1", "a", hints=hint("z1")), endpoint("10.0.0.2", "b", hints=hint("z2"))]
    cluster = web(*found, trafficDistribution=distribution)
    assert (seen(cluster, "n1"), seen(cluster, "n4")) == (["10.0.0.1"], ["10.0.0.1"])
    assert seen(cluster, "n2") == ["10.0.0.2"]
    assert seen(cluster, "n3") == ["10.0.0.1", "10.0.0.2"], "no endpoint for its zone: all"
    assert seen(cluster, "unknown") == ["10.0.0.1", "10.0.0.2"], "its zone is not known: all"


def test_an_endpoint_without_hint_makes_all_count() -> None:
    cluster = web(endpoint("10.0.0.1", "a", hints=hint("z1")), endpoint("10.0.0.2", "b"))
    assert seen(cluster, "n1") == ["10.0.0.1", "10.0.0.2"]


def test_only_ready_endpoints_are_asked_for_hints() -> None:
    leaving = endpoint("10.0.0.2", "b", ready=False, serving=True, terminating=True)
    cluster = web(endpoint("10.0.0.1", "a", hints=hint("z1")), leaving)
    assert seen(cluster, "n1") == ["10.0.0.1"]
    gone = endpoint("10.0.0.1", "a", hints=hint("z1"), ready=False)
    cluster.put("EndpointSlice", slice_of("web", gone, leaving))
    assert seen(cluster, "n1") == ["10.0.0.2"], "none is ready: hints do not count, in whichever zone"


def test_hints_for_the_node_go_before_those_for_its_zone() -> None:
    found = [
        endpoint("10.0.0.1", "a", hints=hint("z1", nodes=("n1",))),
        endpoint("10.0.0.2", "b", hints=hint("z1", nodes=("n2",))),
    ]
    cluster = web(*found, trafficDistribution="PreferSameNode")
    assert (seen(cluster, "n1"), seen(cluster, "n2")) == (["10.0.0.1"], ["10.0.0.2"])
    assert seen(cluster, "n4") == ["10.0.0.1", "10.0.0.2"], "none for the node: those for its zone"
    assert seen(cluster, "n3") == ["10.0.0.1", "10.0.0.2"], "nor for its zone: all"


def test_hints_that_come_and_go_change_what_the_address_is() -> None:
    plain = [endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b")]
    hinted = [endpoint("10.0.0.1", "a", hints=hint("z1")), endpoint("10.0.0.2", "b", hints=hint("z2"))]
    cluster = web(*plain)
    cluster.put("Service", service("front", "10.9.0.2"))
    cluster.put("TrafficPolicy", traffic_policy("p", "front", routes=[{"to": [{"service": "web"}]}]))
    expected = {"address/10.9.0.1:80", "address/10.9.0.2:80", WEB, "destination/shop/front:80"}
    for endpoints, name in ((hinted, "shop/web:80/ipv4/n1"), (plain, "shop/web:80")):
        changes = cluster.put("EndpointSlice", slice_of("web", *endpoints))
        assert expected | {f"{WEB}/ipv4/n1", f"{WEB}/ipv4/n2"} <= changes.keys
        assert leads_to(cluster, "10.9.0.1") == name
        (arm,) = told(cluster, leads_to(cluster, "10.9.0.2")).routes[0].to
        assert arm.destination == name


def test_hints_move_with_their_slice() -> None:
    cluster = web()
    cluster.put("Service", service("other", "10.9.0.2"))
    found = endpoint("10.0.0.1", "a", hints=hint("z1"))
    cluster.put("EndpointSlice", slice_of("web", found, name="s"))
    changes = cluster.put("EndpointSlice", slice_of("other", found, name="s"))
    assert {"address/10.9.0.1:80", "address/10.9.0.2:80"} <= changes.keys
    assert leads_to(cluster, "10.9.0.1") == "shop/web:80"
    assert leads_to(cluster, "10.9.0.2") == "shop/other:80/ipv4/n1"


def test_another_zone_of_a_node_is_a_change_for_it() -> None:
    found = [endpoint("10.0.0.1", "a", hints=hint("z1")), endpoint("10.0.0.2", "b", hints=hint("z2"))]
    cluster = web(*found)
    changes = cluster.put("Node", node("n1", zone="z2"))
    assert f"{WEB}/ipv4/n1" in changes.keys
    assert seen(cluster, "n1") == ["10.0.0.2"]
    assert not web(endpoint("10.0.0.1", "a")).put("Node", node("n1", zone="z2"))


# -- conditions (KEP-1669) ---------------------------------------


def test_terminating_endpoints_of_all_slices_serve_when_none_is_ready() -> None:
    leaving = endpoint("10.0.0.1", "a", ready=False, serving=True, terminating=True)
    cluster = web(leaving)
    cluster.put("EndpointSlice", slice_of("web", endpoint("10.0.0.2", "b"), name="web-2"))
    assert seen(cluster, "n1") == ["10.0.0.2"]
    cluster.put("EndpointSlice", slice_of("web", endpoint("10.0.0.2", "b", ready=False), name="web-2"))
    assert seen(cluster, "n1") == ["10.0.0.1"]


def test_conditions_that_are_not_there_mean_ready_and_serving() -> None:
    cluster = web({"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "a"}})
    assert seen(cluster, "n1") == ["10.0.0.1"]


# -- sessionAffinity ---------------------------------------


def affinity(cluster: Cluster, name: str = "shop/web:80") -> float | None:
    return told(cluster, name).settings.affinity_s


def sticky(seconds: int | None = None) -> dict[str, Any]:
    config = {} if seconds is None else {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}
    return {"sessionAffinity": "ClientIP", **config}


def test_affinity_is_told_with_its_time() -> None:
    cluster = web(endpoint("10.0.0.1", "a"))
    assert affinity(cluster) is None
    changes = cluster.put("Service", service("web", "10.9.0.1", **sticky()))
    assert changes.keys == {WEB}
    assert affinity(cluster) == 10_800
    changes = cluster.put("Service", service("web", "10.9.0.1", **sticky(60)))
    assert changes.keys == {WEB}
    assert affinity(cluster) == 60
    assert cluster.index.problems() == []


def test_affinity_holds_for_subsets_and_beside_policies() -> None:
    subsets = {
        "v1": {"labels": {"app": "web"}},
        "v2": {"labels": {"app": "web"}, "timeouts": {"request": "1s"}},
    }
    cluster = web(endpoint("10.0.0.1", "a"), **sticky(60))
    cluster.put("TrafficPolicy", traffic_policy("p", subsets=subsets, timeouts={"request": "9s"}))
    cluster.put("MeshPolicy", mesh_policy("m", overrides={"timeouts": {"connect": "3s"}}))
    found = told(cluster)
    assert (found.settings.affinity_s, found.settings.timeouts.connect_s) == (60, 3)
    assert found.subsets["v1"].settings is None, "as the destination"
    own = found.subsets["v2"].settings
    assert own is not None
    assert (own.affinity_s, own.timeouts.request_s, own.timeouts.connect_s) == (60, 1, 3)


def test_what_is_told_of_nodes_and_affinity_is_what_sidecars_accept() -> None:
    cluster = web(endpoint("10.0.0.1", "a", nodeName="n1"), internalTrafficPolicy="Local", **sticky(86_400))
    key = f"{WEB}/ipv4/n1"
    found = content(cluster.index, key, ("shop", "a"), MESH)
    assert found is not None
    assert read_content(Resource(key, version(found), encode_content(found)), "cluster.local") == found


# -- addresses ---------------------------------------


def test_both_families_have_their_endpoints_alone() -> None:
    """Whoever dials an IPv6 address is led to IPv6 endpoints, or to none."""
    cluster = Cluster()
    cluster.put("Pod", pod("p", "10.0.0.1", "fd00::1"))
    cluster.put("Service", service("web", "10.9.0.1", "fd09::1", externalIPs=["192.0.2.1", "2001:db8::1"]))
    cluster.put("EndpointSlice", slice_of("web", endpoint("10.0.0.1", "p"), name="s4"))
    assert (seen(cluster, "n1", "fd09::1"), seen(cluster, "n1", "2001:db8::1")) == ([], [])
    cluster.put("EndpointSlice", slice_of("web", endpoint("fd00::1", "p"), name="s6", family="IPv6"))
    for ip in ("fd09::1", "2001:db8::1"):
        assert seen(cluster, "n1", ip) == ["fd00::1"]
    for ip in ("10.9.0.1", "192.0.2.1"):
        assert seen(cluster, "n1", ip) == ["10.0.0.1"]
    six = told(cluster, "shop/web:80/ipv6")
    assert (six.family, six.addresses) == (Family.IPV6, ("fd09::1", "2001:db8::1"))


def test_the_nodes_own_endpoints_of_both_families() -> None:
    cluster = Cluster()
    cluster.put("Pod", pod("a", "10.0.0.1", "fd00::1", node="n1"), pod("b", "10.0.0.2", "fd00::2", node="n2"))
    cluster.put("Service", service("web", "10.9.0.1", "fd09::1", internalTrafficPolicy="Local"))
    for family, ips in (("IPv4", ("10.0.0.1", "10.0.0.2")), ("IPv6", ("fd00::1", "fd00::2"))):
        found = [endpoint(ip, name, nodeName=n) for ip, name, n in zip(ips, "ab", ("n1", "n2"), strict=True)]
        cluster.put("EndpointSlice", slice_of("web", *found, name=family, family=family))
    assert (seen(cluster, "n2"), seen(cluster, "n2", "fd09::1")) == (["10.0.0.2"], ["fd00::2"])


def test_load_balancer_addresses_by_their_ip_mode() -> None:
    """KEP-1860: with Proxy, traffic goes out to the load balancer; without a mode it is VIP."""
    ingress = [
        {"ip": "192.0.2.1"},
        {"ip": "192.0.2.2", "ipMode": "VIP"},
        {"ip": "192.0.2.3", "ipMode": "Proxy"},
    ]
    cluster = web(endpoint("10.0.0.1", "a"), ingress=ingress)
    assert [seen(cluster, "n1", ip) for ip in ("192.0.2.1", "192.0.2.2")] == [["10.0.0.1"]] * 2
    assert address(cluster.index, "192.0.2.3", 80, "n1") == AddressAnswer()


def test_a_manual_slice_may_mix_pods_and_what_is_outside() -> None:
    cluster = web(endpoint("10.0.0.1"), endpoint("192.0.2.7"), selector=None)
    found = {one.address: one for one in told(cluster).endpoints}
    assert (found["10.0.0.1"].tls, found["10.0.0.1"].workload) == (TlsMode.MESH, "a")
    assert (found["192.0.2.7"].tls, found["192.0.2.7"].identity) == (TlsMode.NONE, "")


def test_a_manual_slice_of_another_port_name_is_none_of_the_ports() -> None:
    cluster = web(selector=None, ports=[{"name": "http", "port": 80}, {"name": "admin", "port": 81}])
    cluster.put(
        "EndpointSlice",
        slice_of("web", endpoint("192.0.2.7"), port=9000, port_name="http"),
        slice_of("web", endpoint("192.0.2.8"), port=9001, port_name="other", name="web-2"),
    )
    (one,) = told(cluster).endpoints
    assert (one.address, one.port) == ("192.0.2.7", 9000)
    assert told(cluster, "shop/web:81").endpoints == ()


def test_an_external_name_is_nothing_of_the_meshs() -> None:
    """Its address is what its name is resolved to: outside, or another Service's."""
    cluster = web(endpoint("10.0.0.1", "a"))
    cluster.put("Service", service("alias", type="ExternalName", externalName="web.shop.svc.cluster.local"))
    assert destination(cluster.index, "shop/alias:80") is None
    assert seen(cluster, "n1") == ["10.0.0.1"]
