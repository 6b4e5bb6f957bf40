"""EndpointSlices and Endpoints of a Service."""

from datetime import UTC, datetime, timedelta

from mesh_local.controllers.decisions.endpoints import endpoints_of, subsets_of
from mesh_local.controllers.decisions.slices import TRIGGER_TIME, TriggerTimes, endpoint_slices
from mesh_local.machinery.objects import annotations_of, name_of, rfc3339

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def service(**spec):
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "t", "uid": "s", "creationTimestamp": rfc3339(NOW)},
        "spec": {"selector": {"app": "web"}, "ports": ports, "ipFamilies": ["IPv4"], **spec},
    }


def pod(name, ip="10.0.0.1", *, ready=True, deleting=False, phase="Running", ports=(), **spec):
    ips = [ip] if isinstance(ip, str) else list(ip)
    metadata = {"name": name, "namespace": "t", "uid": name}
    if deleting:
        metadata["deletionTimestamp"] = rfc3339(NOW)
    said = {"type": "Ready", "status": str(ready), "lastTransitionTime": rfc3339(NOW)}
    status = {"phase": phase, "podIP": ips[0], "podIPs": [{"ip": i} for i in ips], "conditions": [said]}
    if not ips[0]:
        status = {"phase": "Pending"}
    containers = [{"name": "c", "ports": list(ports)}]
    return {
        "metadata": metadata,
        "spec": {"nodeName": "n", "containers": containers, **spec},
        "status": status,
    }


def stored(planned, *names):
    """Slices as the server keeps what was created."""
    for s, name in zip(planned, names, strict=True):
        s["metadata"]["name"] = name
    return planned


def conditions(plan):
    (s,) = plan.create + plan.update
    return [tuple(e["conditions"].values()) for e in s["endpoints"]]


def test_no_pods_make_one_empty_slice():
    plan = endpoint_slices(service(), [], [], NOW)
    (s,) = plan.create
    assert s == {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "generateName": "web-",
            "namespace": "t",
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": "web",
            },
            "ownerReferences": [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "name": "web",
                    "uid": "s",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
            "annotations": {TRIGGER_TIME: "2026-01-01T00:00:00Z"},
        },
        "addressType": "IPv4",
        "endpoints": None,
        "ports": None,
    }
    again = endpoint_slices(service(), [], stored([s], "web-a"), None)
    assert (again.create, again.update, again.delete) == ([], [], [])


def test_conditions_ready_serving_terminating():
    pods = [
        pod("a"),
        pod("b", ready=False),
        pod("c", deleting=True),
        pod("d", ready=False, deleting=True),
    ]
    assert conditions(endpoint_slices(service(), pods, [], None)) == [
        (True, True, False),
        (False, False, False),
        (False, True, True),
        (False, False, True),
    ]


def test_published_pods_are_ready_but_do_not_serve():
    published = service(publishNotReadyAddresses=True)
    plan = endpoint_slices(published, [pod("a", ready=False), pod("b", deleting=True)], [], None)
    assert conditions(plan) == [(True, False, False), (True, True, True)]


def test_ended_pods_and_pods_without_address_are_left_out():
    pods = [pod("a", phase="Succeeded"), pod("b", phase="Failed"), pod("c", ip="")]
    (s,) = endpoint_slices(service(), pods, [], None).create
    assert s["endpoints"] is None


def test_empty_slice_is_filled_and_emptied_in_place():
    existing = stored(endpoint_slices(service(), [], [], None).create, "web-a")
    plan = endpoint_slices(service(), [pod("a")], existing, NOW)
    (filled,) = plan.update
    assert (plan.create, plan.delete, name_of(filled)) == ([], [], "web-a")
    assert filled["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]
    emptied = endpoint_slices(service(), [], [filled], None)
    (s,) = emptied.update
    assert (s["endpoints"], s["ports"], emptied.delete) == (None, None, [])
    assert TRIGGER_TIME not in annotations_of(s)


def test_endpoints_keep_their_place():
    (s,) = endpoint_slices(service(), [pod("a"), pod("b"), pod("c")], [], None).create
    plan = endpoint_slices(service(), [pod("d"), pod("c"), pod("a")], stored([s], "web-a"), None)
    (s,) = plan.update
    assert [e["targetRef"]["name"] for e in s["endpoints"]] == ["a", "c", "d"]


def test_named_ports_that_differ_make_several_slices():
    named = service(ports=[{"name": "m", "port": 80, "targetPort": "metrics", "protocol": "TCP"}])

    def with_port(name, number):
        return pod(name, ports=[{"name": "metrics", "containerPort": number, "protocol": "TCP"}])

    pods = [with_port("a", 1), with_port("b", 2), with_port("c", 1), pod("none")]
    plan = endpoint_slices(named, pods, [], None)
    found = {
        (s["ports"][0]["port"] if s["ports"] else None): [e["targetRef"]["name"] for e in s["endpoints"]]
        for s in plan.create
    }
    assert found == {1: ["a", "c"], 2: ["b"], None: ["none"]}


def test_named_port_of_a_sidecar_counts():
    named = service(ports=[{"name": "m", "port": 80, "targetPort": "metrics", "protocol": "TCP"}])
    port = {"name": "metrics", "containerPort": 7, "protocol": "TCP"}
    sidecar = pod("a", initContainers=[{"name": "s", "restartPolicy": "Always", "ports": [port]}])
    (s,) = endpoint_slices(named, [sidecar], [], None).create
    assert s["ports"] == [{"name": "m", "protocol": "TCP", "port": 7}]


def test_at_most_a_hundred_endpoints_in_a_slice():
    pods = [pod(f"p{i}", f"10.0.{i // 200}.{i % 200 + 1}") for i in range(250)]
    plan = endpoint_slices(service(), pods, [], None)
    assert [len(s["endpoints"]) for s in plan.create] == [100, 100, 50]
    existing = stored(plan.create, "a", "b", "c")
    fewer = endpoint_slices(service(), pods[:200], existing, None)
    assert [name_of(s) for s in fewer.delete] == ["c"]
    more = endpoint_slices(service(), [*pods, pod("new", "10.1.0.1")], existing, None)
    assert [(name_of(s), len(s["endpoints"])) for s in more.update] == [("c", 51)]
    assert not more.create


def test_each_family_has_its_slices():
    dual = service(ipFamilies=["IPv6", "IPv4"])
    plan = endpoint_slices(dual, [pod("a", ip=("10.0.0.1", "fd00::1"))], [], None)
    found = {s["addressType"]: s["endpoints"][0]["addresses"] for s in plan.create}
    assert found == {"IPv4": ["10.0.0.1"], "IPv6": ["fd00::1"]}
    single = endpoint_slices(service(), [pod("a")], stored(plan.create, "six", "four"), None)
    assert [name_of(s) for s in single.delete] == ["six"]


def test_headless_service_without_ports():
    headless = service(clusterIP="None", ports=[])
    (s,) = endpoint_slices(headless, [pod("a", hostname="h", subdomain="web")], [], None).create
    assert s["ports"] == []
    assert s["endpoints"][0]["hostname"] == "h"
    assert s["metadata"]["labels"]["service.kubernetes.io/headless"] == ""


def test_trigger_time_is_the_earliest_new_readiness():
    times, s = TriggerTimes(), service()
    late, later = pod("a"), pod("b")
    late["status"]["conditions"][0]["lastTransitionTime"] = rfc3339(NOW + timedelta(seconds=5))
    later["status"]["conditions"][0]["lastTransitionTime"] = rfc3339(NOW + timedelta(seconds=9))
    assert times.next(s, []) == NOW
    assert times.next(s, [later, late]) == NOW + timedelta(seconds=5)
    assert times.next(s, [late, later]) is None


def test_subsets_part_ready_from_not_ready_and_leave_out_terminating():
    pods = [
        pod("b", "10.0.0.10"),
        pod("a", "10.0.0.9"),
        pod("c", "10.0.0.3", ready=False),
        pod("d", deleting=True),
    ]
    (subset,) = subsets_of(service(), pods)
    assert [a["ip"] for a in subset["addresses"]] == ["10.0.0.9", "10.0.0.10"]
    assert [a["ip"] for a in subset["notReadyAddresses"]] == ["10.0.0.3"]
    assert subset["ports"] == [{"name": "http", "port": 8080, "protocol": "TCP"}]


def test_endpoints_are_written_only_when_they_change():
    first = endpoints_of(service(), [pod("a")], None, NOW)
    assert annotations_of(first) == {TRIGGER_TIME: "2026-01-01T00:00:00Z"}
    assert endpoints_of(service(), [pod("a")], first, NOW) is None
    empty = endpoints_of(service(), [], first, None)
    assert "subsets" not in empty
    assert annotations_of(empty) == {}


def test_endpoints_are_capped():
    pods = [pod(f"p{i}", f"10.{i // 200}.0.{i % 200 + 1}") for i in range(1005)]
    found = endpoints_of(service(), pods, None, None)
    assert len(found["subsets"][0]["addresses"]) == 1000
    assert annotations_of(found)["endpoints.kubernetes.io/over-capacity"] == "truncated"
