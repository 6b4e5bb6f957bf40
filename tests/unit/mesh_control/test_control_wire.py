"""Reading objects: what is kept, what is left out with a reason, what is refused."""

import msgspec
import pytest

from injector.netinit import plan
from mesh_api import names
from mesh_api.keys import Family
from mesh_api.sidecar import Protocol
from mesh_control.index.declared import port_ranges, protocol_of, workload_of
from mesh_control.index.objects import Affinity, Refused, each, in_ranges
from mesh_control.index.wire import decode
from mesh_proxy.pool.services import NEVER_CAPTURED
from tests.support.control_objects import endpoint, namespace, node, pod, raw, read, service, slice_of


def test_ports_that_are_never_captured_are_those_of_the_rules():
    assert names.NEVER_CAPTURED == plan.NEVER_INBOUND == NEVER_CAPTURED


@pytest.mark.parametrize(
    ("app_protocol", "name", "expected"),
    [
        (None, "http", Protocol.HTTP),
        (None, "http-web", Protocol.HTTP),
        (None, "httpx", Protocol.AUTO),
        (None, "web-http", Protocol.AUTO),
        (None, "tcp-db", Protocol.TCP),
        (None, "mysql", Protocol.TCP),
        (None, "https", Protocol.TCP),
        (None, "tls-x", Protocol.TCP),
        (None, "ws", Protocol.HTTP),
        (None, "grpc-web", Protocol.HTTP),
        (None, "grpc-web-x", Protocol.HTTP),
        (None, "http2", Protocol.HTTP2),
        (None, "http2-x", Protocol.HTTP2),
        (None, "h2c", Protocol.HTTP2),
        (None, "h2c-x", Protocol.HTTP2),
        (None, "grpc", Protocol.HTTP2),
        (None, "grpc-api", Protocol.HTTP2),
        (None, "grpc-webs", Protocol.HTTP2),
        (None, "grpcs", Protocol.AUTO),
        (None, "HTTP", Protocol.AUTO),
        (None, "-http", Protocol.AUTO),
        (None, "", Protocol.AUTO),
        ("HTTP", "tcp", Protocol.HTTP),
        ("kubernetes.io/ws", "", Protocol.HTTP),
        ("kubernetes.io/wss", "", Protocol.TCP),
        ("kubernetes.io/h2c", "http", Protocol.HTTP2),
        ("kubernetes.io/H2C", "", Protocol.HTTP2),
        ("http2", "http", Protocol.HTTP2),
        ("gRPC", "tcp", Protocol.HTTP2),
        ("grpc-web", "grpc", Protocol.HTTP),
        ("mongo", "http", Protocol.TCP),
        ("redis", "http", Protocol.TCP),
        ("mysql", "http", Protocol.TCP),
        ("tls", "http", Protocol.TCP),
        ("HTTPS", "http", Protocol.TCP),
        # appProtocol is a whole name, not a prefix
        ("http-x", "http", Protocol.AUTO),
        ("grpc-x", "grpc", Protocol.AUTO),
        ("kubernetes.io/http", "http", Protocol.AUTO),
        ("example.com/own", "http", Protocol.AUTO),
        ("", "http", Protocol.HTTP),
    ],
)
def test_app_protocol_goes_before_the_ports_name(app_protocol, name, expected):
    assert protocol_of(app_protocol, name) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("none", ()),
        ("80", ((80, 80),)),
        (" 443 , 80 ", ((80, 80), (443, 443))),
        ("8000-8010,8005:8020,8021", ((8000, 8021),)),
    ],
)
def test_port_lists(text, expected):
    assert port_ranges(text) == expected


@pytest.mark.parametrize("text", ["0", "65536", "9-8", "a", "80,,90", "*", "٣", "1-65535"])
def test_bad_port_lists(text):
    with pytest.raises(ValueError, match="expected"):
        port_ranges(text)


@pytest.mark.parametrize(
    ("owner", "template_hash", "expected"),
    [
        (("", ""), "", ("", "p")),
        (("ReplicaSet", "web-5d9c7"), "5d9c7", ("Deployment", "web")),
        (("ReplicaSet", "standalone"), "", ("ReplicaSet", "standalone")),
        (("StatefulSet", "db"), "", ("StatefulSet", "db")),
        (("Job", "backup-29384756"), "", ("CronJob", "backup")),
        (("Job", "migrate-2"), "", ("Job", "migrate-2")),
        (("Own", "thing"), "", ("Own", "thing")),
    ],
)
def test_workload_by_owner(owner, template_hash, expected):
    assert workload_of("p", *owner, template_hash) == expected


def test_a_pod_keeps_what_is_used():
    owners = [
        {"kind": "Other", "name": "x"},
        {"kind": "ReplicaSet", "name": "web-77", "controller": True, "uid": "u"},
    ]
    found = read(
        "Pod",
        pod("web-77-a", "10.0.0.1", "FD00::1", labels={"pod-template-hash": "77"}, ownerReferences=owners),
    )
    assert found.ips == ("10.0.0.1", "fd00::1")
    assert (found.workload, found.service_account, found.node) == ("web", "web", "n1")
    assert found.injected
    assert not found.problems


def test_our_sidecar_needs_container_and_annotation():
    with_both = pod("p", "10.0.0.1")
    assert read("Pod", with_both).injected
    without_annotation = pod("p", "10.0.0.1")
    without_annotation["metadata"]["annotations"] = {}
    assert not read("Pod", without_annotation).injected
    without_container = pod("p", "10.0.0.1")
    without_container["spec"]["initContainers"] = []
    assert not read("Pod", without_container).injected
    plain_init = pod("p", "10.0.0.1")
    del plain_init["spec"]["initContainers"][0]["restartPolicy"]
    assert not read("Pod", plain_init).injected
    as_container = pod("p", "10.0.0.1")
    as_container["spec"]["containers"].append(as_container["spec"].pop("initContainers")[0])
    assert read("Pod", as_container).injected
    assert not read("Pod", pod("p", "10.0.0.1", host_network=True)).injected


def test_captured_ports_by_annotation():
    found = read("Pod", pod("p", annotations={names.EXCLUDE_INBOUND_PORTS: "9000-9001"}))
    assert [in_ranges(found.captured, port) for port in (80, 8999, 9000, 9001, 9002)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert not in_ranges(found.captured, 15020)
    assert not in_ranges(found.captured, 15021)
    only = read(
        "Pod",
        pod("p", annotations={names.INCLUDE_INBOUND_PORTS: "80,90", names.EXCLUDE_INBOUND_PORTS: "90"}),
    )
    assert each(only.captured) == (80,)
    assert read("Pod", pod("p", annotations={names.INCLUDE_INBOUND_PORTS: "none"})).captured == ()


def test_what_the_network_init_was_told_goes_before_annotations():
    later = {names.EXCLUDE_INBOUND_PORTS: "80"}
    found = read("Pod", pod("p", annotations=later, env={"TRIOMESH_EXCLUDE_INBOUND_PORTS": "90"}))
    assert in_ranges(found.captured, 80)
    assert not in_ranges(found.captured, 90)


def test_a_port_list_that_cannot_be_read_excludes_nothing():
    found = read("Pod", pod("p", annotations={names.EXCLUDE_INBOUND_PORTS: "80,x"}))
    assert in_ranges(found.captured, 80)
    assert found.problems == (
        "triomesh.dev/exclude-inbound-ports is ignored: expected ports such as 80,443,8000-8010, got 'x'",
    )


def test_conditions_that_are_absent():
    def conditions(**said):
        (found,) = read("EndpointSlice", slice_of("web", endpoint("10.0.0.1", **said))).endpoints
        return found.ready, found.serving, found.terminating

    assert conditions() == (True, True, False)
    assert conditions(ready=None) == (True, True, False)
    assert conditions(ready=False) == (False, False, False)
    assert conditions(ready=False, serving=True, terminating=True) == (False, True, True)
    assert conditions(ready=True, serving=False) == (True, False, False)


def test_a_slice_leaves_out_what_cannot_be_used():
    bad = slice_of(
        "web", endpoint("10.0.0.300"), endpoint("fd00::1"), endpoint("10.0.0.1"), endpoint("::ffff:1.2.3.4")
    )
    bad["ports"].append({"name": "dns", "port": 53, "protocol": "UDP"})
    bad["ports"].append({"name": "all", "port": None, "protocol": "TCP"})
    found = read("EndpointSlice", bad)
    assert [one.address for one in found.endpoints] == ["10.0.0.1"]
    assert found.ports == (("", 8080),)
    assert [problem.split(":")[0] for problem in found.problems] == [
        "endpoints[0].addresses",
        "endpoints[1].addresses",
        "endpoints[3].addresses",
    ]
    names_only = read("EndpointSlice", slice_of("web", endpoint("example.com"), family="FQDN"))
    assert names_only.endpoints == ()
    assert names_only.problems == ("addressType: expected IPv4 or IPv6, got 'FQDN'",)


def test_null_lists_are_empty():
    found = read("EndpointSlice", slice_of("web", endpoints=None, ports=None))
    assert (found.endpoints, found.ports) == ((), ())


def test_a_service_keeps_what_is_used():
    made = service(
        "web",
        "10.9.0.1",
        "fd09::1",
        ports=[
            {"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ],
        externalIPs=["192.0.2.1"],
        ingress=[
            {"ip": "192.0.2.2", "ipMode": "VIP"},
            {"ip": "192.0.2.3", "ipMode": "Proxy"},
            {"hostname": "x"},
        ],
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
        internalTrafficPolicy="Local",
        publishNotReadyAddresses=True,
    )
    found = read("Service", made)
    assert [(port.name, port.port, port.protocol) for port in found.ports] == [("http", 80, Protocol.HTTP)]
    assert found.families == (Family.IPV4, Family.IPV6)
    assert found.cluster_ips == ("10.9.0.1", "fd09::1")
    assert (found.external_ips, found.load_balancer_ips) == (("192.0.2.1",), ("192.0.2.2",))
    assert found.affinity == Affinity(60)
    assert (found.node_local, found.publish_not_ready) == (True, True)
    assert found.problems == ()
    assert found.selects
    assert not read("Service", service("x", "10.9.0.2", selector=None)).selects
    assert read("Service", service("x", "10.9.0.3", sessionAffinity="ClientIP")).affinity == Affinity(10_800)


def test_external_name_is_no_destination_and_says_so():
    found = read("Service", service("x", type="ExternalName", externalName="example.com"))
    assert (found.ports, found.cluster_ips) == ((), ())
    assert "ExternalName" in found.problems[0]


def test_nodes_and_namespaces():
    assert read("Node", node("n1", "10.0.0.0/24", "fd00::/64", zone="z")).pod_cidrs == (
        "10.0.0.0/24",
        "fd00::/64",
    )
    assert read("Node", node("n1", "rubbish")).problems
    assert read("Namespace", namespace("shop", opaque_ports="3306")).opaque_ports == ((3306, 3306),)
    assert read("Namespace", namespace("shop")).opaque_ports is None


@pytest.mark.parametrize(
    ("kind", "obj", "where"),
    [
        ("Pod", {"metadata": {"name": "p", "namespace": "shop"}, "spec": {}}, "containers"),
        ("Pod", {"metadata": {"name": "p", "namespace": "shop"}, "spec": {"containers": "x"}}, "containers"),
        ("Service", {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 70000}]}}, "ports"),
        ("EndpointSlice", {"metadata": {"name": "s"}, "addressType": 4}, "addressType"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(kind, obj, where):
    found = read(kind, obj)
    assert isinstance(found, Refused)
    assert (found.kind, found.name) == (kind, obj["metadata"]["name"])
    assert where in found.problems[0]


def test_a_bad_part_of_the_metadata_does_not_hide_the_name():
    found = read(
        "Pod", {"metadata": {"name": "p", "namespace": "shop", "labels": 7}, "spec": {"containers": []}}
    )
    assert isinstance(found, Refused)
    assert found.key == ("shop", "p")


DEEP = b'{"x": ' + b"[" * 100_000


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"{}", b'{"metadata": {"name": ""}}', b"\xff", b'{"metadata":{"name":"\xff"}}', DEEP],
)
def test_what_has_no_name_is_an_error(data):
    with pytest.raises(msgspec.MsgspecError):
        decode("Pod", data)


def test_any_buffer_is_read():
    data = raw(node("n1"))
    assert decode("Node", memoryview(data)) == decode("Node", msgspec.Raw(data)) == decode("Node", data)
