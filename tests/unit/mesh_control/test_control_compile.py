"""What sidecars are told, rule by rule."""

import pytest

from mesh_api.discovery import AddressAnswer, Resource, encode_content, read_content
from mesh_api.keys import DestinationName, Family, parse_destination
from mesh_api.sidecar import MtlsMode, Protocol, TlsMode
from mesh_control.compile import (
    Compiler,
    Mesh,
    address,
    content,
    destination,
    version,
    workload,
)
from mesh_control.compile import (
    pod as pod_content,
)
from mesh_control.index.changes import Changes
from tests.support.control_objects import Cluster, endpoint, namespace, node, pod, read, service, slice_of

MESH = Mesh(trust_domain="cluster.local", bundle_pem="PEM")
WEB = "spiffe://cluster.local/ns/shop/sa/web"


def web(*endpoints, pods=(), **more):
    """A cluster with Service web (10.9.0.1:80) and these endpoints."""
    cluster = Cluster()
    cluster.put("Pod", *pods)
    cluster.put("Service", service("web", "10.9.0.1", **more))
    cluster.put("EndpointSlice", slice_of("web", *endpoints))
    return cluster


def addresses(cluster, name="shop/web:80"):
    return [f"{one.address}:{one.port}" for one in destination(cluster.index, name).endpoints]


def only(cluster, name="shop/web:80"):
    (found,) = destination(cluster.index, name).endpoints
    return found


# -- endpoints ---------------------------------------


def test_an_endpoint_of_the_mesh():
    cluster = web(endpoint("10.0.0.1", "p"), pods=[pod("p", "10.0.0.1", labels={"version": "2"})])
    found = only(cluster)
    assert (found.address, found.port, found.tls, found.identity) == ("10.0.0.1", 8080, TlsMode.MESH, WEB)
    assert (found.workload, found.labels) == ("p", {"version": "2"})


def test_a_pod_without_sidecar_is_plaintext():
    found = only(web(endpoint("10.0.0.1", "p"), pods=[pod("p", "10.0.0.1", sidecar=False)]))
    assert (found.tls, found.identity) == (TlsMode.NONE, "")


def test_an_excluded_port_is_plaintext():
    said = {"triomesh.dev/exclude-inbound-ports": "8080"}
    assert (
        only(web(endpoint("10.0.0.1", "p"), pods=[pod("p", "10.0.0.1", annotations=said)])).tls
        is TlsMode.NONE
    )


@pytest.mark.parametrize("port", [15020, 15021])
def test_the_sidecars_metrics_and_health_are_plaintext(port):
    cluster = web(pods=[pod("p", "10.0.0.1")])
    cluster.put("EndpointSlice", slice_of("web", endpoint("10.0.0.1", "p"), port=port))
    assert only(cluster).tls is TlsMode.NONE


def test_a_pod_that_is_not_known_yet_is_no_endpoint():
    """It may have a sidecar: never plaintext because its watch is late."""
    cluster = web(endpoint("10.0.0.1", "p"))
    assert addresses(cluster) == []
    changes = cluster.put("Pod", pod("p", "10.0.0.1"))
    assert "destination/shop/web:80" in changes.keys
    assert only(cluster).tls is TlsMode.MESH


def test_a_pod_whose_address_is_not_known_yet_is_no_endpoint():
    assert addresses(web(endpoint("10.0.0.1", "p"), pods=[pod("p", phase="Pending")])) == []


def test_the_sidecar_need_not_be_ready_for_mtls():
    cluster = web(
        endpoint("10.0.0.1", "p"),
        pods=[pod("p", "10.0.0.1", phase="Pending")],
        publishNotReadyAddresses=True,
    )
    assert only(cluster).tls is TlsMode.MESH


def test_not_ready_is_left_out():
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]
    cluster = web(endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b", ready=False), pods=pods)
    assert addresses(cluster) == ["10.0.0.1:8080"]


def test_terminating_endpoints_serve_when_no_other_is_ready():
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]
    leaving = endpoint("10.0.0.1", "a", ready=False, serving=True, terminating=True)
    assert addresses(web(leaving, endpoint("10.0.0.2", "b"), pods=pods)) == ["10.0.0.2:8080"]
    assert addresses(web(leaving, endpoint("10.0.0.2", "b", ready=False), pods=pods)) == ["10.0.0.1:8080"]
    gone = endpoint("10.0.0.1", "a", ready=False, serving=False, terminating=True)
    assert addresses(web(gone, pods=pods)) == []


def test_a_deleted_pod_drains_and_leaves_in_the_same_step():
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]
    cluster = web(endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b"), pods=pods)
    assert not workload(cluster.index, "shop", "a", MESH).draining
    changes = cluster.put("Pod", pod("a", "10.0.0.1", deletionTimestamp="2026-01-01T00:00:00Z"))
    assert changes == Changes(frozenset({"destination/shop/web:80", "workload/shop/a"}))
    assert addresses(cluster) == ["10.0.0.2:8080"]
    assert workload(cluster.index, "shop", "a", MESH).draining
    # the last one serves on while it terminates
    cluster.put("Pod", pod("b", "10.0.0.2", deletionTimestamp="2026-01-01T00:00:00Z"))
    assert addresses(cluster) == ["10.0.0.1:8080", "10.0.0.2:8080"]


def test_published_not_ready_addresses_stay_while_the_slice_says_ready():
    cluster = web(
        endpoint("10.0.0.1", "a"),
        endpoint("10.0.0.2", "b"),
        pods=[pod("a", "10.0.0.1", deletionTimestamp="2026-01-01T00:00:00Z"), pod("b", "10.0.0.2")],
        publishNotReadyAddresses=True,
    )
    assert addresses(cluster) == ["10.0.0.1:8080", "10.0.0.2:8080"]


def test_slices_are_merged_without_repetition():
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]
    cluster = web(endpoint("10.0.0.2", "b"), endpoint("10.0.0.1", "a", ready=False), pods=pods)
    cluster.put("EndpointSlice", slice_of("web", endpoint("10.0.0.1", "a"), name="web-2"))
    cluster.put("EndpointSlice", slice_of("other", endpoint("10.0.0.3"), name="other-1"))
    assert addresses(cluster) == ["10.0.0.1:8080", "10.0.0.2:8080"]
    cluster.index.delete("EndpointSlice", "shop", "web-2")
    assert addresses(cluster) == ["10.0.0.2:8080"]


@pytest.mark.parametrize("order", [1, -1])
def test_slices_that_disagree_about_an_endpoint_give_the_same_in_any_order(order):
    cluster = web(pods=TWO, internalTrafficPolicy="Local")
    slices = [
        slice_of("web", endpoint("10.0.0.1", "a", nodeName=node_name), name=f"web-{node_name}")
        for node_name in ("n1", "n2")
    ]
    cluster.put("EndpointSlice", *slices[::order])
    assert addresses(cluster, "shop/web:80/ipv4/n1") == []
    assert addresses(cluster, "shop/web:80/ipv4/n2") == ["10.0.0.1:8080"]


def test_an_endpoint_without_reference_declares_nothing_for_the_hosts_network():
    cluster = web(
        endpoint("172.16.0.1"),
        pods=[pod("p", "172.16.0.1", host_network=True)],
        ports=[{"port": 80, "appProtocol": "http"}],
    )
    assert workload(cluster.index, "shop", "p", MESH).inbound.protocols == {}


def test_named_target_ports_may_differ_between_pods():
    cluster = Cluster()
    cluster.put("Pod", pod("a", "10.0.0.1"), pod("b", "10.0.0.2"))
    ports = [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "admin", "port": 90}]
    cluster.put("Service", service("web", "10.9.0.1", ports=ports))
    cluster.put(
        "EndpointSlice",
        slice_of("web", endpoint("10.0.0.1", "a"), port=8080, port_name="http", name="s1"),
        slice_of("web", endpoint("10.0.0.2", "b"), port=9090, port_name="http", name="s2"),
    )
    assert addresses(cluster) == ["10.0.0.1:8080", "10.0.0.2:9090"]
    assert addresses(cluster, "shop/web:90") == []


def test_families_are_kept_apart():
    cluster = Cluster()
    cluster.put("Pod", pod("p", "10.0.0.1", "fd00::1"))
    cluster.put("Service", service("web", "10.9.0.1", "fd09::1"))
    cluster.put(
        "EndpointSlice",
        slice_of("web", endpoint("10.0.0.1", "p"), name="s4"),
        slice_of("web", endpoint("fd00::1", "p"), name="s6", family="IPv6"),
    )
    four, six = (destination(cluster.index, name) for name in ("shop/web:80", "shop/web:80/ipv6"))
    assert (four.addresses, six.addresses) == (("10.9.0.1",), ("fd09::1",))
    assert (four.family, six.family) == (Family.IPV4, Family.IPV6)
    assert [one.address for one in four.endpoints] == ["10.0.0.1"]
    assert [one.address for one in six.endpoints] == ["fd00::1"]
    assert address(cluster.index, "10.9.0.1", 80) == AddressAnswer(destination="shop/web:80")
    assert address(cluster.index, "fd09::1", 80) == AddressAnswer(destination="shop/web:80/ipv6")


def test_a_change_of_one_family_is_none_of_the_other():
    cluster = Cluster()
    cluster.put("Service", service("web", "10.9.0.1", "fd09::1"))
    changes = cluster.put("EndpointSlice", slice_of("web", endpoint("192.0.2.1")))
    assert changes.keys == {"destination/shop/web:80"}


def test_what_does_not_exist():
    cluster = web()
    for name in ("shop/web:81", "shop/web:80/ipv6", "shop/other:80", "other/web:80", "shop/web:80/ipv4/n1"):
        assert destination(cluster.index, name) is None
    assert pod_content(cluster.index, "10.0.0.9") is None
    assert workload(cluster.index, "shop", "nobody", MESH) is None


def test_a_service_without_selector_reaches_addresses_outside():
    found = only(web(endpoint("192.0.2.1"), selector=None))
    assert (found.address, found.tls, found.workload) == ("192.0.2.1", TlsMode.NONE, "")


def test_an_endpoint_without_reference_is_found_by_address():
    cluster = web(endpoint("10.0.0.1"), pods=[pod("p", "10.0.0.1")], selector=None)
    assert only(cluster).identity == WEB


def test_an_endpoint_without_reference_in_the_pods_range_waits_for_its_pod():
    cluster = web(endpoint("10.0.0.1"), selector=None)
    assert only(cluster).tls is TlsMode.NONE
    changes = cluster.put("Node", node("n1", "10.0.0.0/24"))
    assert "destination/shop/web:80" in changes.keys
    assert addresses(cluster) == []


def test_pods_on_the_hosts_network_are_plaintext_at_their_port():
    cluster = web(endpoint("172.16.0.1", "p"), pods=[pod("p", "172.16.0.1", host_network=True)])
    found = only(cluster)
    assert (found.tls, found.workload) == (TlsMode.NONE, "p")
    assert address(cluster.index, "172.16.0.1", 8080) == AddressAnswer()
    assert pod_content(cluster.index, "172.16.0.1") is None


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_pod_is_dropped_at_once(phase):
    cluster = web(endpoint("10.0.0.1", "p"), pods=[pod("p", "10.0.0.1")])
    changes = cluster.put("Pod", pod("p", "10.0.0.1", phase=phase))
    assert changes.keys == {"destination/shop/web:80", "pod/10.0.0.1", "workload/shop/p"}
    assert addresses(cluster) == []
    assert address(cluster.index, "10.0.0.1", 8080) == AddressAnswer()
    assert workload(cluster.index, "shop", "p", MESH).draining


def test_a_reused_address_belongs_to_the_newest_running_pod():
    cluster = web(endpoint("10.0.0.1", "old"), pods=[pod("old", "10.0.0.1")])
    new = {"account": "db", "creationTimestamp": "2026-01-02T00:00:00Z"}
    cluster.put("Pod", pod("new", "10.0.0.1", phase="Pending", **new))
    assert pod_content(cluster.index, "10.0.0.1").name == "old"
    changes = cluster.put("Pod", pod("new", "10.0.0.1", **new))
    assert {"pod/10.0.0.1", "destination/shop/web:80"} <= changes.keys
    assert pod_content(cluster.index, "10.0.0.1").identity.endswith("/sa/db")
    assert addresses(cluster) == []  # the slice still means the old pod: not the new one's identity
    reasons = {problem.reason for problem in cluster.index.problems()}
    assert reasons == {"address 10.0.0.1 belongs to the newer pod shop/new"}
    cluster.index.delete("Pod", "shop", "new")
    assert addresses(cluster) == ["10.0.0.1:8080"]


# -- protocols ---------------------------------------


def protocol_seen(cluster, name="shop/web:80"):
    return destination(cluster.index, name).protocol


def test_declared_protocol_on_both_sides():
    cluster = web(
        endpoint("10.0.0.1", "p"),
        pods=[pod("p", "10.0.0.1")],
        ports=[{"name": "", "port": 80, "appProtocol": "http"}],
    )
    assert protocol_seen(cluster) is Protocol.HTTP
    assert workload(cluster.index, "shop", "p", MESH).inbound.protocols == {"8080": Protocol.HTTP}
    assert pod_content(cluster.index, "10.0.0.1").opaque_ports == ()


@pytest.mark.parametrize("where", ["service", "namespace", "pod"])
def test_opaque_ports(where):
    cluster = web(
        endpoint("10.0.0.1", "p"),
        pods=[pod("p", "10.0.0.1")],
        ports=[{"name": "", "port": 80, "appProtocol": "http"}],
    )
    ports = [{"name": "", "port": 80, "appProtocol": "http"}]
    if where == "service":
        said = {"triomesh.dev/opaque-ports": "80"}
        changes = cluster.put("Service", service("web", "10.9.0.1", ports=ports, annotations=said))
    elif where == "namespace":
        changes = cluster.put("Namespace", namespace("shop", opaque_ports="80,8080"))
    else:
        said = {"triomesh.dev/opaque-ports": "8080"}
        changes = cluster.put("Pod", pod("p", "10.0.0.1", annotations=said))
    assert changes.keys == {"destination/shop/web:80", "pod/10.0.0.1", "workload/shop/p"}
    assert protocol_seen(cluster) is Protocol.TCP
    assert workload(cluster.index, "shop", "p", MESH).inbound.protocols["8080"] is Protocol.TCP
    assert 8080 in pod_content(cluster.index, "10.0.0.1").opaque_ports


def test_an_annotation_of_its_own_goes_before_the_namespaces():
    cluster = web(annotations={"triomesh.dev/opaque-ports": "none"})
    cluster.put("Namespace", namespace("shop", opaque_ports="80"))
    assert protocol_seen(cluster) is Protocol.AUTO


def test_services_that_contradict_each_other_declare_nothing():
    cluster = web(
        endpoint("10.0.0.1", "p"), pods=[pod("p", "10.0.0.1")], ports=[{"port": 80, "appProtocol": "http"}]
    )
    cluster.put("Service", service("raw", "10.9.0.2", ports=[{"port": 80, "appProtocol": "tcp"}]))
    cluster.put("EndpointSlice", slice_of("raw", endpoint("10.0.0.1", "p")))
    assert workload(cluster.index, "shop", "p", MESH).inbound.protocols == {}
    assert protocol_seen(cluster) is Protocol.HTTP
    assert protocol_seen(cluster, "shop/raw:80") is Protocol.TCP


# -- addresses ---------------------------------------


def test_a_service_is_reached_at_all_its_addresses_but_not_at_node_ports():
    cluster = web(
        externalIPs=["192.0.2.1"],
        ingress=[{"ip": "192.0.2.2"}],
        ports=[{"port": 80, "nodePort": 30080}],
    )
    there = AddressAnswer(destination="shop/web:80")
    for ip in ("10.9.0.1", "192.0.2.1", "192.0.2.2"):
        assert address(cluster.index, ip, 80) == there
    assert address(cluster.index, "192.0.2.1", 30080) == AddressAnswer()
    assert destination(cluster.index, "shop/web:80").addresses == ("10.9.0.1", "192.0.2.2", "192.0.2.1")


def test_a_pod_by_its_own_address():
    cluster = Cluster()
    cluster.put(
        "Pod", pod("db-0", "10.0.0.1", "fd00::1", phase="Pending"), pod("x", "10.0.0.2", sidecar=False)
    )
    assert address(cluster.index, "10.0.0.1", 5432) == AddressAnswer(pod="10.0.0.1")
    assert address(cluster.index, "10.0.0.2", 5432) == AddressAnswer()
    found = pod_content(cluster.index, "fd00::1")
    assert (found.name, found.addresses, found.identity) == ("db-0", ("fd00::1",), WEB)
    assert found.plaintext_ports == (15020, 15021)
    assert pod_content(cluster.index, "10.0.0.2") is None


def test_a_pod_that_captures_few_ports_names_those():
    cluster = Cluster()
    cluster.put("Pod", pod("p", "10.0.0.1", annotations={"triomesh.dev/include-inbound-ports": "80,90"}))
    found = pod_content(cluster.index, "10.0.0.1")
    assert (found.captured_ports, found.plaintext_ports) == ((80, 90), ())
    cluster.put("Pod", pod("p", "10.0.0.1", annotations={"triomesh.dev/include-inbound-ports": "none"}))
    assert pod_content(cluster.index, "10.0.0.1") is None
    assert address(cluster.index, "10.0.0.1", 80) == AddressAnswer()


def test_an_address_of_the_cluster_without_known_owner_has_no_answer():
    cluster = Cluster(networks=("10.9.0.0/16",))
    assert address(cluster.index, "10.0.0.1", 80) == AddressAnswer()
    assert cluster.put("Node", node("n1", "10.0.0.0/24")).networks
    assert address(cluster.index, "10.0.0.1", 80) is None
    assert address(cluster.index, "10.9.3.3", 80) is None
    changes = cluster.put("Pod", pod("p", "10.0.0.1"))
    assert changes.covers("address/10.0.0.1:80", ("shop", "x"))
    assert address(cluster.index, "10.0.0.1", 80) == AddressAnswer(pod="10.0.0.1")


def test_a_nodes_own_address_is_no_pods():
    cluster = web(endpoint("10.244.0.1"), selector=None)
    cluster.put("Node", node("n1", "10.244.0.0/24", ips=("10.244.0.1",)))
    assert addresses(cluster) == ["10.244.0.1:8080"]
    assert address(cluster.index, "10.244.0.1", 6443) == AddressAnswer()
    changes = cluster.put("Node", node("n1", "10.244.0.0/24"))
    assert changes.networks
    assert "destination/shop/web:80" in changes.keys
    assert addresses(cluster) == []


def test_a_cluster_ip_at_another_port_has_no_answer():
    cluster = web()
    assert address(cluster.index, "10.9.0.1", 81) is None


def test_headless_services_have_no_address_of_their_own():
    cluster = Cluster()
    cluster.put("Pod", pod("db-0", "10.0.0.1"))
    cluster.put("Service", service("db"))
    cluster.put("EndpointSlice", slice_of("db", endpoint("10.0.0.1", "db-0")))
    assert destination(cluster.index, "shop/db:80").addresses == ()
    assert addresses(cluster, "shop/db:80") == ["10.0.0.1:8080"]
    assert address(cluster.index, "10.0.0.1", 8080) == AddressAnswer(pod="10.0.0.1")


def test_two_services_that_claim_one_address():
    cluster = web(externalIPs=["192.0.2.1"])
    older = service("other", "10.9.0.2", externalIPs=["192.0.2.1"], created="2025-01-01T00:00:00Z")
    changes = cluster.put("Service", older)
    assert {"address/192.0.2.1:80", "destination/shop/web:80"} <= changes.keys
    assert address(cluster.index, "192.0.2.1", 80).destination == "shop/other:80"
    assert destination(cluster.index, "shop/web:80").addresses == ("10.9.0.1",)
    assert [problem.reason for problem in cluster.index.problems()] == [
        "address 192.0.2.1 port 80 belongs to Service shop/other"
    ]
    thief = service("thief", "10.9.0.3", externalIPs=["10.9.0.1"], created="2024-01-01T00:00:00Z")
    cluster.put("Service", thief)
    assert address(cluster.index, "10.9.0.1", 80).destination == "shop/web:80"


def test_an_external_ip_cannot_take_over_a_pod():
    cluster = web(externalIPs=["10.0.0.1"])
    assert address(cluster.index, "10.0.0.1", 80).destination == "shop/web:80"
    changes = cluster.put("Pod", pod("p", "10.0.0.1"))
    assert {"destination/shop/web:80", "address/10.0.0.1:80", "pod/10.0.0.1"} <= changes.keys
    assert address(cluster.index, "10.0.0.1", 80) == AddressAnswer(pod="10.0.0.1")
    assert destination(cluster.index, "shop/web:80").addresses == ("10.9.0.1",)


TWO = [pod("a", "10.0.0.1", node="n1"), pod("b", "10.0.0.2", node="n2")]

# -- names ---------------------------------------


@pytest.mark.parametrize(
    "text", ["shop/web:80", "shop/web:80/ipv6", "shop/web:65535/ipv4/node-1.example", "shop/web:80/ipv6/n"]
)
def test_destination_names_read_as_they_are_written(text):
    assert str(parse_destination(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "web:80",
        "shop/web",
        "shop/web:0",
        "shop/web:080",
        "shop/web:80/",
        "shop/web:80/ipv4",
        "shop/web:80/ipv5",
        "shop/web:80/ipv6/",
        "shop/web:80/ipv6/n/x",
        "/web:80",
        "shop/:80",
        "shop/web:65536",
        "shop/web:٨٠",
    ],
)
def test_other_spellings_are_refused(text):
    with pytest.raises(ValueError, match="expected NAMESPACE/NAME:PORT"):
        parse_destination(text)


def test_the_longest_name_is_a_key():
    longest = DestinationName("n" * 63, "s" * 63, 65535, Family.IPV6, "h" * 253)
    key = f"destination/{longest}"
    assert content(Cluster().index, key, ("shop", "p"), MESH) is None


# -- index ---------------------------------------


def test_an_update_of_what_nobody_uses_changes_nothing():
    cluster = web(endpoint("10.0.0.1", "p"), pods=[pod("p", "10.0.0.1")])
    again = pod("p", "10.0.0.1", resourceVersion="99", managedFields=[{"manager": "kubelet"}])
    again["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    again["metadata"]["annotations"]["other.example/x"] = "y"
    before = cluster.index.generation
    assert not cluster.put("Pod", again)
    assert cluster.index.generation == before


def test_what_is_not_used_by_sidecars_is_no_change():
    cluster = web(endpoint("10.0.0.1", "p", nodeName="n1"), pods=[pod("p", "10.0.0.1")])
    assert not cluster.put("EndpointSlice", slice_of("web", endpoint("10.0.0.1", "p", nodeName="n2")))
    assert not cluster.put(
        "Pod", pod("p", "10.0.0.1", phase="Running", creationTimestamp="2026-02-02T00:00:00Z")
    )


def test_relist_deletes_what_is_gone():
    cluster = web(endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b"), pods=TWO)
    changes = cluster.index.replace("Pod", [read("Pod", TWO[1])])
    assert changes.keys == {"destination/shop/web:80", "pod/10.0.0.1", "workload/shop/a"}
    assert not cluster.index.replace("Pod", [read("Pod", TWO[1])])


def test_of_a_refused_object_the_last_good_state_stays():
    cluster = web(endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b"), pods=TWO)
    broken = read("Pod", {"metadata": {"name": "a", "namespace": "shop"}, "spec": {}})
    assert not cluster.index.apply(broken)
    assert len(addresses(cluster)) == 2
    assert not cluster.index.replace("Pod", [broken, read("Pod", TWO[1])])
    assert len(addresses(cluster)) == 2
    (problem,) = cluster.index.problems()
    assert (problem.kind, problem.namespace, problem.name) == ("Pod", "shop", "a")
    assert problem.reason.startswith("cannot be read: ")
    cluster.put("Pod", TWO[0])
    assert cluster.index.problems() == []


def test_one_bad_object_stops_no_other():
    cluster = web(endpoint("10.0.0.300", "a"), endpoint("10.0.0.2", "b"), pods=TWO)
    assert addresses(cluster) == ["10.0.0.2:8080"]
    (problem,) = cluster.index.problems()
    assert problem.reason == "endpoints[0].addresses: expected an IP address, got '10.0.0.300'"


def test_what_is_declared_without_effect_is_listed():
    cluster = web(type="ExternalName", externalName="example.com")
    (problem,) = cluster.index.problems()
    assert (problem.kind, problem.name) == ("Service", "web")
    assert problem.reason.startswith("type ExternalName: ")


# -- contents ---------------------------------------


def test_a_sidecars_own_configuration():
    cluster = web(endpoint("10.0.0.1", "p"), pods=[pod("p", "10.0.0.1", "fd00::1")])
    found = workload(cluster.index, "shop", "p", MESH)
    assert (found.workload.name, found.workload.service_account) == ("p", "web")
    assert found.workload.addresses == ("10.0.0.1", "fd00::1")
    assert found.workload.labels == {"app": "web"}
    assert (found.bundle_pem, found.inbound.mtls, found.access_log) == ("PEM", MtlsMode.PERMISSIVE, False)


def test_contents_are_what_their_readers_accept():
    cluster = web(endpoint("10.0.0.1", "p"), pods=[pod("p", "10.0.0.1")])
    for key in (
        "workload",
        "address/10.9.0.1:80",
        "address/10.0.0.1:80",
        "pod/10.0.0.1",
        "destination/shop/web:80",
    ):
        found = content(cluster.index, key, ("shop", "p"), MESH)
        assert read_content(Resource(key, version(found), encode_content(found)), "cluster.local") == found


def test_versions_are_those_of_the_content():
    first, second = (web(endpoint("10.0.0.1", "p"), pods=[pod("p", "10.0.0.1")]) for _ in range(2))
    assert version(destination(first.index, "shop/web:80")) == version(
        destination(second.index, "shop/web:80")
    )
    second.put("Pod", pod("p", "10.0.0.1", labels={"version": "2"}))
    assert version(destination(first.index, "shop/web:80")) != version(
        destination(second.index, "shop/web:80")
    )


def test_contents_are_compiled_once_until_something_changes():
    cluster = web(endpoint("10.0.0.1", "a"), pods=TWO)
    compiler = Compiler(cluster.index, MESH)
    first = compiler.lookup("destination/shop/web:80", ("shop", "a"))
    assert compiler.lookup("destination/shop/web:80", ("shop", "b")) is first
    cluster.put("EndpointSlice", slice_of("web", endpoint("10.0.0.2", "b")))
    assert compiler.lookup("destination/shop/web:80", ("shop", "a")) != first


@pytest.mark.parametrize("key", ["", "pods/1", "address/x", "destination/x", "workload/shop/p"])
def test_what_is_no_key(key):
    with pytest.raises(ValueError, match="expected"):
        content(Cluster().index, key, ("shop", "p"), MESH)
