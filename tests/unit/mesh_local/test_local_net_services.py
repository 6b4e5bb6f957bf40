"""Services as iptables rules: the whole text once, then rule by rule."""

from __future__ import annotations

from collections import Counter

from mesh_local.network.addressing import IPV4, IPV6
from mesh_local.network.services import UdpFlow, plan
from tests.support.local_net import end, service, slice_of

GOLDEN_V6 = """\
*nat
:TM-SERVICES - [0:0]
:TM-SVC-{svc} - [0:0]
:TM-SEP-{one} - [0:0]
:TM-SEP-{two} - [0:0]
-A PREROUTING -j TM-SERVICES
-A OUTPUT -j TM-SERVICES
-A POSTROUTING -m mark --mark 0x4000/0x4000 -j SNAT --to-source fd10:244::1
-A TM-SERVICES -d fd10:96::20/128 -p tcp -m tcp --dport 80 -m comment --comment "shop/web:http" \
-j TM-SVC-{svc}
-A TM-SVC-{svc} -m statistic --mode random --probability 0.5000000000 -j TM-SEP-{one}
-A TM-SVC-{svc} -j TM-SEP-{two}
-A TM-SEP-{one} -s fd10:244::2/128 -j MARK --set-xmark 0x4000/0x4000
-A TM-SEP-{one} -p tcp -m tcp -j DNAT --to-destination [fd10:244::2]:8080
-A TM-SEP-{two} -s fd10:244::3/128 -j MARK --set-xmark 0x4000/0x4000
-A TM-SEP-{two} -p tcp -m tcp -j DNAT --to-destination [fd10:244::3]:8080
COMMIT
*filter
:TM-REFUSE - [0:0]
-A INPUT -m conntrack --ctstate NEW -j TM-REFUSE
-A FORWARD -m conntrack --ctstate NEW -j TM-REFUSE
-A OUTPUT -m conntrack --ctstate NEW -j TM-REFUSE
-A FORWARD -m conntrack --ctstate NEW -o void0 -j REJECT --reject-with icmp6-no-route
-A OUTPUT -m conntrack --ctstate NEW -o void0 -m conntrack ! --ctstate DNAT \
-j REJECT --reject-with icmp6-no-route
-A TM-REFUSE -d fd10:96::30/128 -p udp -m udp --dport 53 -m comment --comment "shop/idle has no endpoints" \
-j REJECT --reject-with icmp6-port-unreachable
-A TM-REFUSE -d fd10:96::/112 -p tcp -j REJECT --reject-with tcp-reset
-A TM-REFUSE -d fd10:96::/112 -j REJECT --reject-with icmp6-port-unreachable
COMMIT
"""


def v4(*objects, slices=()):
    return plan(objects, slices, (IPV4,)).texts[4]


def targets(text: str) -> list[str]:
    """Where connections may end up."""
    return [line.rsplit(" ", 1)[1] for line in text.splitlines() if "-j DNAT" in line]


def test_the_whole_text():
    web = service("web", "10.96.0.20", "fd10:96::20", ports=[(80, "TCP", "http")])
    idle = service("idle", "fd10:96::30", ports=[(53, "UDP", "")])
    slices = [
        slice_of("web", end("fd10:244::3"), end("fd10:244::2"), ports=[(8080, "TCP", "http")], version=6),
        slice_of("web", end("10.244.0.2"), ports=[(8080, "TCP", "http")]),
    ]
    expected = GOLDEN_V6.format(svc="Y3Q7GQFP4JVFLV7I", one="Y36RF2ZUX52OWA4B", two="HY2AUOLO7QIU44WL")
    assert plan([web, idle], slices, (IPV4, IPV6)).texts[6] == expected


def test_order_of_objects_does_not_matter():
    services = [service("b", "10.96.0.2"), service("a", "10.96.0.1")]
    slices = [slice_of("a", end("10.244.0.3"), end("10.244.0.2")), slice_of("b", end("10.244.0.2"))]
    assert v4(*services, slices=slices) == v4(*services[::-1], slices=slices[::-1])


def test_each_endpoint_is_as_likely():
    text = v4(service("a", "10.96.0.1"), slices=[slice_of("a", *(end(f"10.244.0.{i}") for i in (2, 3, 4)))])
    chances = [
        line.split("--probability ")[1].split()[0] for line in text.splitlines() if "statistic" in line
    ]
    assert chances == ["0.3333333333", "0.5000000000"]


def test_ready_endpoints_only():
    slices = [slice_of("a", end("10.244.0.2"), end("10.244.0.3", ready=False), end("10.244.0.4", ready=None))]
    assert targets(v4(service("a", "10.96.0.1"), slices=slices)) == ["10.244.0.2:8080", "10.244.0.4:8080"]


def test_serving_while_terminating_only_if_none_is_ready():
    leaving = end("10.244.0.2", ready=False, serving=True, terminating=True)
    gone = end("10.244.0.3", ready=False, serving=False, terminating=True)
    not_yet = end("10.244.0.4", ready=False, serving=False)
    a = service("a", "10.96.0.1")
    assert targets(v4(a, slices=[slice_of("a", leaving, gone, not_yet)])) == ["10.244.0.2:8080"]
    assert targets(v4(a, slices=[slice_of("a", leaving, end("10.244.0.9"))])) == ["10.244.0.9:8080"]


def test_no_endpoints_is_refused_as_the_protocol_knows_it():
    text = v4(service("a", "10.96.0.1", ports=[(80, "TCP", "t"), (53, "UDP", "u")]))
    refusals = [line for line in text.splitlines() if "has no endpoints" in line]
    assert [line.rsplit(" ", 1)[1] for line in refusals] == ["tcp-reset", "icmp-port-unreachable"]
    assert "DNAT --to" not in text


def test_ports_go_by_name_and_protocol():
    ports = [(80, "TCP", "web"), (81, "TCP", "admin"), (80, "UDP", "quic")]
    mixed = [
        slice_of("a", end("10.244.0.2"), ports=[(8080, "TCP", "web"), (9000, "TCP", "admin")]),
        slice_of("a", end("10.244.0.3"), ports=[(8081, "TCP", "web"), (4433, "UDP", "quic")]),
    ]
    found = Counter(targets(v4(service("a", "10.96.0.1", ports=ports), slices=mixed)))
    assert found == Counter(["10.244.0.2:8080", "10.244.0.3:8081", "10.244.0.2:9000", "10.244.0.3:4433"])


def test_an_endpoint_in_two_slices_counts_once_and_as_ready():
    slices = [slice_of("a", end("10.244.0.2", ready=False)), slice_of("a", end("10.244.0.2"))]
    assert targets(v4(service("a", "10.96.0.1"), slices=slices)) == ["10.244.0.2:8080"]


def test_slices_of_other_services_and_namespaces_do_not_count():
    slices = [slice_of("a", end("10.244.0.2"), namespace="other"), slice_of("b", end("10.244.0.3"))]
    assert targets(v4(service("a", "10.96.0.1"), slices=slices)) == []


def test_headless_and_external_name_have_no_rules():
    objects = [service("h", "None"), service("e", type="ExternalName", externalName="example.com")]
    slices = [slice_of("h", end("10.244.0.2"))]
    assert v4(*objects, slices=slices) == v4()


def test_external_load_balancer_and_node_addresses():
    a = service("a", "10.96.0.1", type="LoadBalancer", externalIPs=["192.0.2.1", "2001:db8::1"])
    a["spec"]["ports"][0]["nodePort"] = 30080
    a["spec"]["loadBalancerSourceRanges"] = ["10.244.0.0/24", "2001:db8::/32"]
    a["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"ip": "192.0.2.3", "ipMode": "Proxy"}]}}
    text = v4(a, slices=[slice_of("a", end("10.244.0.2"))])
    reached = [line.split(" -p ")[0] for line in text.splitlines() if line.startswith("-A TM-SERVICES")]
    assert reached == [
        "-A TM-SERVICES -d 10.96.0.1/32",
        "-A TM-SERVICES -d 192.0.2.1/32",
        "-A TM-SERVICES -s 10.244.0.0/24 -d 192.0.2.2/32",
        "-A TM-SERVICES -d 10.244.0.1/32",
    ]
    assert "--dport 30080" in text


def test_affinity_asks_every_endpoint_before_it_chooses():
    config = {"clientIP": {"timeoutSeconds": 60}}
    a = service("a", "10.96.0.1", sessionAffinity="ClientIP", sessionAffinityConfig=config)
    lines = v4(a, slices=[slice_of("a", end("10.244.0.2"), end("10.244.0.3"))]).splitlines()
    asked = [i for i, line in enumerate(lines) if "--rcheck --seconds 60 --reap" in line]
    chosen = next(i for i, line in enumerate(lines) if "statistic" in line)
    assert len(asked) == 2
    assert max(asked) < chosen
    assert sum("--set --rsource" in line and "DNAT" in line for line in lines) == 2


def test_sctp_is_refused_and_said():
    result = plan(
        [service("a", "10.96.0.1", ports=[(1, "SCTP", "s"), (80, "TCP", "t")])],
        [slice_of("a", end("10.244.0.2"), ports=[(1, "SCTP", "s"), (80, "TCP", "t")])],
        (IPV4, IPV6),
    )
    assert result.refused == ("Service shop/a:s: protocol SCTP is not supported",)
    assert targets(result.texts[4]) == ["10.244.0.2:80"]


def test_udp_translations_are_told():
    result = plan(
        [service("a", "10.96.0.1", ports=[(53, "UDP", "")]), service("b", "10.96.0.2")],
        [slice_of("a", end("10.244.0.2"), ports=[(5353, "UDP", "")]), slice_of("b", end("10.244.0.2"))],
        (IPV4,),
    )
    assert result.udp == {UdpFlow("10.96.0.1", 53, "10.244.0.2", 5353)}


def test_what_is_not_an_address_is_left_out():
    a = service("a", "10.96.0.1", externalIPs=["192.0.2.1 -j ACCEPT"])
    text = v4(a, slices=[slice_of("a", end("10.244.0.2\n-A INPUT -j DROP"))])
    assert "ACCEPT" not in text
    assert "DROP" not in text
    a = service("a", "10.96.0.1", type="LoadBalancer", externalIPs=["fd00::1%\n-A INPUT -j DROP"])
    a["spec"]["loadBalancerSourceRanges"] = ["10.0.0.0/8 -j ACCEPT", "fd00::%\n-A X/64", " 10.1.2.3/8 "]
    a["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.2"}, {"ip": "fd00::2%\n-A INPUT -j DROP"}]}}
    slices = [slice_of("a", end("10.244.0.2"))]
    result = plan([a], slices, (IPV4, IPV6))
    for text in result.texts.values():
        assert "ACCEPT" not in text
        assert "DROP" not in text
        assert "%" not in text
    assert "-A TM-SERVICES -s 10.0.0.0/8 -d 192.0.2.2/32" in result.texts[4]
