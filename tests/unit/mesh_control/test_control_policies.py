"""Policies in the index, in what sidecars are told, and in their own status."""

import msgspec
import pytest

from mesh_api.discovery import WORKLOAD_KEY, Resource, encode_content, led_to, read_content
from mesh_api.sidecar import EgressMode, MtlsMode, TlsMode
from mesh_api.traffic import WeightedTarget
from mesh_control.compile import Mesh, address, content, destination, workload
from mesh_control.compile import pod as pod_content
from mesh_control.compile.conditions import Condition, Status, merged, status
from tests.support.control_objects import (
    Cluster,
    endpoint,
    mesh_policy,
    pod,
    read,
    service,
    slice_of,
    traffic_policy,
)

MESH = Mesh(trust_domain="cluster.local", bundle_pem="PEM")
LATER = "2026-01-02T00:00:00Z"
WEB, API = "destination/shop/web:80", "destination/shop/api:80"
STATEFUL = {"ownerReferences": [{"kind": "StatefulSet", "name": "db", "controller": True}]}


def cluster(*policies, mesh=(), **web):
    """Services web (pods a and b) and api (pod c); policies of both kinds."""
    found = Cluster()
    found.put(
        "Pod",
        pod("a", "10.0.0.1", labels={"version": "v1"}),
        pod("b", "10.0.0.2", labels={"version": "v2"}),
        pod("c", "10.0.0.3", **STATEFUL),
    )
    found.put("Service", service("web", *web.pop("ips", ("10.9.0.1",)), **web), service("api", "10.9.0.2"))
    found.put(
        "EndpointSlice",
        slice_of("web", endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b")),
        slice_of("api", endpoint("10.0.0.3", "c")),
    )
    found.put("TrafficPolicy", *policies)
    found.put("MeshPolicy", *mesh)
    return found


def web(found, name="shop/web:80"):
    return destination(found.index, name)


def own(found, name="a"):
    return workload(found.index, "shop", name, MESH)


def said(found, kind, name, namespace="shop"):
    """The conditions of a policy, as type: (status, reason, message)."""
    now = status(found.index, (kind, (namespace, name)))
    return {one.type: (one.status, one.reason, one.message) for one in now.conditions}


# -- TrafficPolicy ---------------------------------------


def test_a_policy_changes_its_destination_and_nothing_else():
    found = cluster()
    changes = found.put("TrafficPolicy", traffic_policy("p", timeouts={"request": "2s"}))
    assert changes.keys == {WEB}
    assert changes.policies == {("TrafficPolicy", ("shop", "p"))}
    assert (web(found).settings.timeouts.request_s, web(found).policy) == (2.0, "shop/p")
    assert web(found, "shop/api:80").policy == ""
    changes = found.index.delete("TrafficPolicy", "shop", "p")
    assert changes.keys == {WEB}
    assert web(found).policy == ""


def test_every_family_port_and_node_of_the_service_changes():
    ports = [{"name": "", "port": 80}, {"name": "x", "port": 81}]
    found = cluster(ips=("10.9.0.1", "fd09::1"), ports=ports, internalTrafficPolicy="Local")
    changes = found.put("TrafficPolicy", traffic_policy("p", timeouts={"request": "2s"}))
    names = {f"destination/shop/web:{port}" for port in (80, 81)}
    expected = names | {f"{name}/ipv6" for name in names}
    expected |= {f"{name}/{family}/n1" for name in names for family in ("ipv4", "ipv6")}
    assert changes.keys == expected


def test_the_same_policy_again_changes_nothing():
    found = cluster(traffic_policy("p"))
    before = found.index.generation
    again = traffic_policy("p")
    again["metadata"]["resourceVersion"] = "99"
    again["status"] = {"conditions": []}
    assert not found.put("TrafficPolicy", again)
    assert found.index.generation == before


def test_of_two_the_oldest_holds_whole_and_the_other_takes_over():
    old = traffic_policy("z", timeouts={"request": "2s"})
    new = traffic_policy("a", created=LATER, timeouts={"connect": "3s"})
    found = cluster(new, old)
    assert (web(found).policy, web(found).settings.timeouts.connect_s) == ("shop/z", 1.0)
    older = "TrafficPolicy shop/z is older and holds for the same target"
    assert said(found, "TrafficPolicy", "a")["Conflicted"] == ("True", "OlderPolicy", older)
    assert said(found, "TrafficPolicy", "a")["Programmed"][:2] == ("False", "Conflicted")
    assert said(found, "TrafficPolicy", "z")["Conflicted"][0] == "False"
    assert found.index.conflicted("TrafficPolicy") == 1
    (problem,) = found.index.problems()
    assert problem.reason == "shop/z is older and holds for the same target"
    changes = found.index.delete("TrafficPolicy", "shop", "z")
    assert changes.keys == {WEB}
    assert ("TrafficPolicy", ("shop", "a")) in changes.policies
    assert (web(found).policy, web(found).settings.timeouts.connect_s) == ("shop/a", 3.0)
    assert said(found, "TrafficPolicy", "a")["Programmed"][0] == "True"


def test_of_the_same_age_the_name_decides():
    found = cluster(traffic_policy("b"), traffic_policy("a"))
    assert web(found).policy == "shop/a"


def test_a_policy_that_moves_to_another_service():
    found = cluster(traffic_policy("p"), traffic_policy("q", created=LATER))
    changes = found.put("TrafficPolicy", traffic_policy("p", "api", generation=2))
    assert changes.keys == {WEB, API}
    assert (web(found).policy, web(found, "shop/api:80").policy) == ("shop/q", "shop/p")


def test_an_invalid_policy_leaves_the_last_good_one_in_force():
    found = cluster(traffic_policy("p", timeouts={"request": "2s"}), traffic_policy("q", "api"))
    changes = found.put("TrafficPolicy", traffic_policy("p", generation=2, timeouts={"request": "2"}))
    assert not changes.keys
    assert changes.policies == {("TrafficPolicy", ("shop", "p"))}
    assert web(found).settings.timeouts.request_s == 2.0
    kind, reason, message = said(found, "TrafficPolicy", "p")["Accepted"]
    assert (kind, reason) == ("False", "Invalid")
    assert message.startswith("spec.timeouts.request: expected a duration with its unit")
    assert message.endswith("what it said before (generation 1) stays in force")
    assert said(found, "TrafficPolicy", "p")["Programmed"][0] == "True"
    now = status(found.index, ("TrafficPolicy", ("shop", "p")))
    assert {now.observed_generation, *(one.observed_generation for one in now.conditions)} == {2}
    assert web(found, "shop/api:80").policy == "shop/q", "one bad resource never stops another"
    mended = found.put("TrafficPolicy", traffic_policy("p", generation=3, timeouts={"request": "2s"}))
    assert mended.policies == {("TrafficPolicy", ("shop", "p"))}
    assert said(found, "TrafficPolicy", "p")["Accepted"][0] == "True"


def test_an_invalid_policy_of_which_no_good_one_is_known():
    found = cluster(traffic_policy("p", rubbish=1))
    assert web(found).policy == ""
    assert said(found, "TrafficPolicy", "p")["Accepted"] == (
        "False",
        "Invalid",
        "spec.rubbish: unknown field. Until it is mended, no earlier version of it is known, "
        "so it is as if it were not there",
    )
    assert said(found, "TrafficPolicy", "p")["Programmed"][:2] == ("False", "Invalid")


@pytest.mark.parametrize("listed", [False, True])
def test_of_another_object_with_the_same_name_nothing_stays(listed):
    found = cluster(traffic_policy("p"))
    bad = read("TrafficPolicy", traffic_policy("p", created=LATER, rubbish=1))
    changes = found.index.replace("TrafficPolicy", [bad]) if listed else found.index.apply(bad)
    assert changes.keys == {WEB}
    assert web(found).policy == ""


def test_subsets_and_routes():
    routes = [{"to": [{"subset": "v1", "weight": 9}, {"subset": "v2"}], "timeout": "1s"}]
    subsets = {"v1": {"labels": {"version": "v1"}}, "v2": {"labels": {"version": "v2"}}}
    found = cluster(traffic_policy("p", subsets=subsets, routes=routes))
    assert set(web(found).subsets) == {"v1", "v2"}
    assert web(found).routes[0].to == (WeightedTarget("v1", weight=9), WeightedTarget("v2"))
    assert [one.labels["version"] for one in web(found).endpoints] == ["v1", "v2"]
    assert said(found, "TrafficPolicy", "p")["Programmed"] == ("True", "Programmed", "")


def test_a_subset_without_pods_is_accepted_and_said():
    found = cluster(traffic_policy("p", subsets={"v3": {"labels": {"version": "v3"}}}))
    assert said(found, "TrafficPolicy", "p")["Accepted"][0] == "True"
    message = said(found, "TrafficPolicy", "p")["Programmed"][2]
    assert message == (
        "No endpoint has the labels of subset v3: requests that are led there are answered with 503"
    )
    changes = found.put("Pod", pod("a", "10.0.0.1", labels={"version": "v3"}))
    assert ("TrafficPolicy", ("shop", "p")) in changes.policies
    assert said(found, "TrafficPolicy", "p")["Programmed"][2] == ""


def arms(*to):
    return [{"to": list(to)}]


def test_an_arm_leads_to_another_service_of_the_same_family():
    found = cluster(traffic_policy("p", routes=arms({"service": "api", "port": 80}, {"service": "web"})))
    (route,) = web(found).routes
    assert route.to == (WeightedTarget(destination="shop/api:80"), WeightedTarget())
    assert led_to(web(found)) == (API,)
    six = cluster(traffic_policy("p", routes=arms({"service": "api"})), ips=("10.9.0.1", "fd09::1"))
    six.put("Service", service("api", "10.9.0.2", "fd09::2"))
    assert web(six, "shop/web:80/ipv6").routes[0].to[0].destination == "shop/api:80/ipv6"


def test_an_arm_to_what_does_not_exist_leads_nowhere_else():
    found = cluster(traffic_policy("p", routes=arms({"service": "none"}, {"service": "api", "port": 81})))
    assert [arm.destination for arm in web(found).routes[0].to] == ["shop/none:80", "shop/api:81"]
    assert destination(found.index, "shop/none:80") is None
    assert said(found, "TrafficPolicy", "p")["ResolvedRefs"] == (
        "False",
        "BackendNotFound",
        "There is no Service shop/none, port 81 of Service shop/api: "
        "requests that are led there are answered with 503",
    )
    changes = found.put("Service", service("none", "10.9.0.3"))
    assert ("TrafficPolicy", ("shop", "p")) in changes.policies
    assert "none" not in said(found, "TrafficPolicy", "p")["ResolvedRefs"][2]


def test_an_arm_to_a_service_that_differs_by_node():
    """The caller's node is in the key of the destination, and so in the answer about the address."""
    found = cluster(traffic_policy("p", routes=arms({"service": "api"})))
    assert address(found.index, "10.9.0.1", 80, "n1").destination == "shop/web:80"
    changes = found.put("Service", service("api", "10.9.0.2", internalTrafficPolicy="Local"))
    assert {WEB, f"{WEB}/ipv4/n1", "address/10.9.0.1:80", API} <= changes.keys
    assert address(found.index, "10.9.0.1", 80, "n1").destination == "shop/web:80/ipv4/n1"
    assert web(found, "shop/web:80/ipv4/n1").routes[0].to[0].destination == "shop/api:80/ipv4/n1"
    changes = found.index.delete("TrafficPolicy", "shop", "p")
    assert {f"{WEB}/ipv4/n1", "address/10.9.0.1:80"} <= changes.keys
    assert web(found, "shop/web:80/ipv4/n1") is None


def test_an_arm_to_a_service_of_the_other_family():
    """Who came by IPv6 is led to a Service that has IPv4 only, as long as it has."""
    found = cluster(traffic_policy("p", routes=arms({"service": "api"})), ips=("10.9.0.1", "fd00::9:1"))

    def leads(name):
        return web(found, name).routes[0].to[0].destination

    assert leads("shop/web:80") == "shop/api:80"
    assert leads("shop/web:80/ipv6") == "shop/api:80"
    changes = found.put("Service", service("api", "10.9.0.2", "fd00::9:2"))
    assert {f"{WEB}/ipv6", f"{API}/ipv6"} <= changes.keys
    assert leads("shop/web:80/ipv6") == "shop/api:80/ipv6"


@pytest.mark.parametrize(("service_name", "why"), [("none", "There is no Service shop/none"), ("out", "TCP")])
def test_a_target_that_is_no_destination(service_name, why):
    found = cluster(traffic_policy("p", service_name))
    found.put("Service", service("out", type="ExternalName", externalName="example.com"))
    state, reason, message = said(found, "TrafficPolicy", "p")["Programmed"]
    assert (state, reason) == ("False", "TargetNotFound")
    assert why in message
    assert said(found, "TrafficPolicy", "p")["Accepted"][0] == "True"


def test_without_tls_every_endpoint_is_plaintext():
    found = cluster(traffic_policy("p", tls={"mode": "disable"}))
    assert {(one.tls, one.identity) for one in web(found).endpoints} == {(TlsMode.NONE, "")}
    assert web(found, "shop/api:80").endpoints[0].tls is TlsMode.MESH


def test_a_headless_services_policy_is_for_its_pods():
    subsets = {"v2": {"labels": {"version": "v2"}, "circuitBreaker": {"maxRequests": 3}}}
    found = cluster(ips=())
    changes = found.put(
        "TrafficPolicy", traffic_policy("p", subsets=subsets, circuitBreaker={"maxRequests": 9})
    )
    assert changes.keys == {WEB, "pod/10.0.0.1", "pod/10.0.0.2"}
    limits = [pod_content(found.index, ip).settings.breaker.max_requests for ip in ("10.0.0.1", "10.0.0.2")]
    assert limits == [9, 3]
    found.put("Service", service("other"))
    found.put("EndpointSlice", slice_of("other", endpoint("10.0.0.1", "a")))
    changes = found.put("TrafficPolicy", traffic_policy("q", "other"))
    assert "pod/10.0.0.1" in changes.keys
    assert pod_content(found.index, "10.0.0.1").settings.breaker.max_requests is None, "two: none holds"
    assert pod_content(found.index, "10.0.0.2").settings.breaker.max_requests == 3


# -- MeshPolicy ---------------------------------------


def test_the_meshs_mode_and_what_is_more_specific():
    found = cluster(mesh=[mesh_policy("m", defaults={"mtls": {"mode": "STRICT"}})])
    assert own(found).inbound.mtls is MtlsMode.STRICT
    changes = found.put(
        "MeshPolicy",
        mesh_policy(
            "db",
            "shop",
            targetRefs=[{"kind": "StatefulSet", "name": "db"}],
            defaults={"mtls": {"mode": "PERMISSIVE"}},
        ),
    )
    assert changes.keys == {"workload/shop/c"}
    assert own(found, "c").inbound.mtls is MtlsMode.PERMISSIVE
    assert own(found).inbound.mtls is MtlsMode.STRICT
    changes = found.put(
        "MeshPolicy",
        mesh_policy("m", generation=2, overrides={"mtls": {"mode": "STRICT"}}, defaults={}),
    )
    assert changes.keys == {"workload/shop/c"}, "only what is another now"
    assert own(found, "c").inbound.mtls is MtlsMode.STRICT


def test_egress_and_access_log():
    found = cluster()
    settings = {"egress": {"mode": "refuse"}, "accessLog": "all"}
    changes = found.put("MeshPolicy", mesh_policy("m", "shop", defaults=settings))
    assert changes.keys == {f"{WORKLOAD_KEY}/shop/{name}" for name in "abc"}
    assert (own(found).egress, own(found).access_log) == (EgressMode.REFUSE, True)
    assert not found.put("MeshPolicy", mesh_policy("m", "other", defaults=settings)).keys


def test_a_port_without_mtls_is_plaintext_for_its_callers_too():
    found = cluster()
    changes = found.put(
        "MeshPolicy", mesh_policy("m", "shop", defaults={"mtls": {"ports": {"8080": "DISABLE"}}})
    )
    assert changes.keys == {
        WEB,
        API,
        *(f"pod/10.0.0.{n}" for n in (1, 2, 3)),
        *(f"workload/shop/{name}" for name in "abc"),
    }
    assert own(found).inbound.port_mtls == {"8080": MtlsMode.DISABLE}
    assert {one.tls for one in web(found).endpoints} == {TlsMode.NONE}
    assert 8080 in pod_content(found.index, "10.0.0.1").plaintext_ports
    found.put(
        "MeshPolicy",
        mesh_policy(
            "m", "shop", generation=2, defaults={"mtls": {"mode": "DISABLE", "ports": {"8080": "STRICT"}}}
        ),
    )
    assert {one.tls for one in web(found).endpoints} == {TlsMode.MESH}
    assert pod_content(found.index, "10.0.0.1").captured_ports == (8080,)
    found.put("MeshPolicy", mesh_policy("m", "shop", generation=3, defaults={"mtls": {"mode": "DISABLE"}}))
    assert pod_content(found.index, "10.0.0.1").tls is TlsMode.NONE
    assert address(found.index, "10.0.0.1", 80).pod == "10.0.0.1"


def test_timeouts_of_a_namespace_and_who_wins():
    found = cluster(traffic_policy("p", "api", timeouts={"request": "2s"}))
    changes = found.put("MeshPolicy", mesh_policy("m", "shop", defaults={"timeouts": {"request": "9s"}}))
    assert {WEB, API} <= changes.keys
    assert not [key for key in changes.keys if key.startswith("workload")]

    def times():
        return [web(found, name).settings.timeouts.request_s for name in ("shop/web:80", "shop/api:80")]

    assert times() == [9.0, 2.0]
    found.put("MeshPolicy", mesh_policy("all", overrides={"timeouts": {"request": "1s"}}))
    assert times() == [1.0, 1.0]


def test_of_two_mesh_policies_the_oldest_holds():
    found = cluster(
        mesh=[
            mesh_policy("new", created=LATER, defaults={"mtls": {"mode": "DISABLE"}}),
            mesh_policy("old", defaults={"mtls": {"mode": "STRICT"}}),
        ]
    )
    assert own(found).inbound.mtls is MtlsMode.STRICT
    conflicted = said(found, "MeshPolicy", "new", "triomesh-system")["Conflicted"]
    assert conflicted[2] == "MeshPolicy triomesh-system/old is older and holds for the same target"
    found.index.delete("MeshPolicy", "triomesh-system", "old")
    assert own(found).inbound.mtls is MtlsMode.DISABLE
    assert web(found).endpoints[0].tls is TlsMode.NONE


def test_an_invalid_mesh_policy_does_not_open_the_mesh():
    found = cluster(mesh=[mesh_policy("m", defaults={"mtls": {"mode": "STRICT"}})])
    found.put("MeshPolicy", mesh_policy("m", generation=2, defaults={"mtls": {"mode": "SOME"}}))
    assert own(found).inbound.mtls is MtlsMode.STRICT
    assert said(found, "MeshPolicy", "m", "triomesh-system")["Accepted"][0] == "False"


def test_a_workload_that_is_not_there_is_said():
    refs = [{"kind": "Deployment", "name": "none"}, {"kind": "StatefulSet", "name": "db"}]
    found = cluster(mesh=[mesh_policy("m", "shop", targetRefs=refs)])
    assert said(found, "MeshPolicy", "m")["Programmed"][2] == "No pod belongs to Deployment none"


def test_contents_with_policies_are_what_their_readers_accept():
    found = cluster(
        traffic_policy(
            "p",
            subsets={"v1": {"labels": {"version": "v1"}, "outliers": {"interval": "3s"}}},
            routes=arms({"subset": "v1"}, {"service": "none"}),
        ),
        mesh=[mesh_policy("m", defaults={"mtls": {"mode": "DISABLE", "ports": {"8080": "STRICT"}}})],
    )
    for key in (WORKLOAD_KEY, "pod/10.0.0.1", WEB):
        one = content(found.index, key, ("shop", "a"), MESH)
        assert read_content(Resource(key, "", encode_content(one)), "cluster.local") == one


# -- status ---------------------------------------


NOW = "2026-02-01T00:00:00Z"


def test_a_status_is_written_only_where_it_differs():
    found = cluster(traffic_policy("p"))
    wanted = status(found.index, ("TrafficPolicy", ("shop", "p")))
    first = merged(wanted, Status(), NOW)
    assert [one.type for one in first.conditions] == ["Accepted", "Conflicted", "ResolvedRefs", "Programmed"]
    assert {one.last_transition_time for one in first.conditions} == {NOW}
    assert merged(wanted, first, "later") is None


def test_a_condition_keeps_its_time_while_its_status_stays():
    found = cluster(traffic_policy("p"))
    first = merged(status(found.index, ("TrafficPolicy", ("shop", "p"))), Status(), NOW)
    foreign = Condition("Theirs", "True", "Because", "", 1, "2025-01-01T00:00:00Z")
    first = msgspec.structs.replace(first, conditions=(*first.conditions, foreign))
    found.put("TrafficPolicy", traffic_policy("p", generation=2, rubbish=1))
    second = merged(status(found.index, ("TrafficPolicy", ("shop", "p"))), first, LATER)
    times = {one.type: one.last_transition_time for one in second.conditions}
    assert times == {
        "Accepted": LATER,
        "Conflicted": NOW,
        "ResolvedRefs": NOW,
        "Programmed": NOW,
        "Theirs": "2025-01-01T00:00:00Z",
    }
    assert second.observed_generation == 2


def test_of_a_policy_that_does_not_exist_nothing_is_said():
    assert status(cluster().index, ("TrafficPolicy", ("shop", "p"))) is None
