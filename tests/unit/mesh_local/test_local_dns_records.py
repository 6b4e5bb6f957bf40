"""Which names a cluster has."""

from __future__ import annotations

import pytest

from mesh_local.dns.objects import endpoint_slice
from mesh_local.dns.objects import service as dns_service
from mesh_local.dns.records import Zones, build, resolv_conf
from mesh_local.network.addressing import IPV4, IPV6, families
from mesh_local.network.services import plan
from tests.support.local_net import end, pod, service, slice_of

ZONES = Zones.of_cluster("cluster.local", families("dual"))
WEB = [(80, "TCP", "http")]
PODS = [(8080, "TCP", "http")]


def index(*services, slices=(), pods=()):
    return build(ZONES, services, slices, pods)


def test_cluster_ip_service():
    found = index(service("web", "10.96.0.20", "fd10:96::20", ports=WEB))
    name = "web.shop.svc.cluster.local."
    assert found.at(name) == {"A": ["10.96.0.20"], "AAAA": ["fd10:96::20"]}
    assert found.at(f"_http._tcp.{name}") == {"SRV": [f"0 100 80 {name}"]}
    assert found.at("20.0.96.10.in-addr.arpa.") == {"PTR": [name]}
    reverse = "0.2.0.0." + "0." * 20 + "6.9.0.0.0.1.d.f.ip6.arpa."
    assert found.at(reverse) == {"PTR": [name]}


def test_names_above_exist_without_records():
    found = index(service("web", "10.96.0.20", ports=WEB))
    for name in ("_tcp.web.shop.svc.", "shop.svc.", "svc.", ""):
        assert found.exists(f"{name}cluster.local.")
        assert "A" not in found.at(f"{name}cluster.local.")
    assert not found.exists("other.svc.cluster.local.")
    assert not found.exists("_udp.web.shop.svc.cluster.local.")


def test_unnamed_ports_have_no_srv():
    assert not index(service("web", "10.96.0.20")).exists("_tcp.web.shop.svc.cluster.local.")


def test_headless_service():
    found = index(
        service("db", "None", ports=[(5432, "TCP", "sql")]),
        slices=[
            slice_of(
                "db",
                end("10.244.0.2", hostname="db-0"),
                end("10.244.0.3"),
                end("10.244.0.4", ready=False),
                ports=[(5000, "TCP", "sql")],
            ),
            slice_of("db", end("fd10:244::2", hostname="db-0"), ports=[(5000, "TCP", "sql")], version=6),
        ],
    )
    name = "db.shop.svc.cluster.local."
    assert found.at(name) == {"A": ["10.244.0.2", "10.244.0.3"], "AAAA": ["fd10:244::2"]}
    assert found.at(f"db-0.{name}") == {"A": ["10.244.0.2"], "AAAA": ["fd10:244::2"]}
    assert found.at(f"10-244-0-3.{name}") == {"A": ["10.244.0.3"]}
    assert not found.exists(f"10-244-0-4.{name}")
    srv = [f"0 33 5000 db-0.{name}", f"0 33 5000 10-244-0-3.{name}"]
    assert found.at(f"_sql._tcp.{name}") == {"SRV": srv}
    assert found.at("2.0.244.10.in-addr.arpa.") == {"PTR": [f"db-0.{name}"]}


def test_headless_without_ready_endpoints_has_no_name():
    db = service("db", "None")
    slices = [slice_of("db", end("10.244.0.2", ready=False))]
    assert not index(db, slices=slices).exists("db.shop.svc.cluster.local.")
    db["spec"]["publishNotReadyAddresses"] = True
    assert index(db, slices=slices).at("db.shop.svc.cluster.local.") == {"A": ["10.244.0.2"]}


def test_endpoints_of_cluster_ip_services_have_no_names():
    found = index(service("web", "10.96.0.20"), slices=[slice_of("web", end("10.244.0.2", hostname="x"))])
    assert not found.exists("x.web.shop.svc.cluster.local.")
    assert not found.exists("2.0.244.10.in-addr.arpa.")


def test_external_name():
    found = index(service("out", type="ExternalName", externalName="WWW.example.com"))
    assert found.at("out.shop.svc.cluster.local.") == {"CNAME": ["www.example.com."]}


def test_pods_by_address():
    found = index(
        pods=[
            pod("a", "10.244.0.2", "fd10:244::2"),
            pod("done", "10.244.0.3", phase="Succeeded"),
            pod("pending", phase="Pending"),
        ]
    )
    assert found.at("10-244-0-2.shop.pod.cluster.local.") == {"A": ["10.244.0.2"]}
    assert found.at("fd10-244--2.shop.pod.cluster.local.") == {"AAAA": ["fd10:244::2"]}
    assert not found.exists("10-244-0-3.shop.pod.cluster.local.")
    assert not found.exists("10-244-0-2.other.pod.cluster.local.")


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        ("a.b.svc.cluster.local.", "cluster.local."),
        ("cluster.local.", "cluster.local."),
        ("notcluster.local.", ""),
        ("example.com.", ""),
        (".", ""),
        ("9.9.96.10.in-addr.arpa.", "96.10.in-addr.arpa."),
        ("1.244.10.in-addr.arpa.", "244.10.in-addr.arpa."),
        ("1.1.168.192.in-addr.arpa.", ""),
    ],
)
def test_zones(name, zone):
    assert ZONES.zone_of(name) == zone


def test_schema_and_server():
    found = index()
    assert found.at("dns-version.cluster.local.") == {"TXT": ['"1.1.0"']}
    assert found.at("ns.dns.cluster.local.") == {"A": ["10.96.0.10"], "AAAA": ["fd10:96::a"]}


def test_resolv_conf():
    assert resolv_conf("shop", ["10.96.0.10"], "cluster.local") == (
        "search shop.svc.cluster.local svc.cluster.local cluster.local\n"
        "nameserver 10.96.0.10\n"
        "options ndots:5\n"
    )


def test_the_dns_service_leads_to_the_node():
    both = families("dual")
    result = plan([dns_service(both)], [endpoint_slice(family) for family in both], both)
    assert result.texts[4].count("--to-destination 10.244.0.1:53") == 2
    assert result.texts[6].count("--to-destination [fd10:244::1]:53") == 2
    assert dns_service((IPV6,))["spec"]["ipFamilyPolicy"] == "SingleStack"
    assert (IPV4.dns, IPV6.dns) == tuple(dns_service(both)["spec"]["clusterIPs"])
