"""Queries and answers on the wire."""

from __future__ import annotations

import random

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest

from mesh_local.dns.answer import answer
from mesh_local.dns.records import Zones, build
from mesh_local.network.addressing import families
from tests.support.local_net import end, service, slice_of

NAME = "web.shop.svc.cluster.local."
MANY = [end(f"10.244.{i // 200}.{i % 200 + 2}") for i in range(300)]
INDEX = build(
    Zones.of_cluster("cluster.local", families("dual")),
    [
        service("web", "10.96.0.20", ports=[(80, "TCP", "http")]),
        service("many", "None"),
        service("few", "None"),
        service("out", type="ExternalName", externalName="www.example.com"),
        service("alias", type="ExternalName", externalName="web.shop.svc.cluster.local"),
        service("dead", type="ExternalName", externalName="gone.shop.svc.cluster.local"),
        service("ring", type="ExternalName", externalName="ring.shop.svc.cluster.local"),
    ],
    [slice_of("many", *MANY), slice_of("few", *MANY[:40])],
    [],
)


def ask(name, type_="A", *, tcp=False, edns=None, **options):
    query = dns.message.make_query(name, type_, use_edns=edns, **options)
    wire = answer(query.to_wire(), INDEX, tcp=tcp)
    response = dns.message.from_wire(wire)
    assert query.is_response(response)
    return response


def records(response):
    return sorted(f"{rrset.name} {rdata.to_text()}" for rrset in response.answer for rdata in rrset)


def test_address():
    response = ask(NAME)
    assert records(response) == [f"{NAME} 10.96.0.20"]
    assert response.answer[0].ttl == 5
    assert response.flags & dns.flags.AA
    assert response.flags & dns.flags.RD
    assert not response.flags & dns.flags.RA
    assert response.edns == -1


def test_case_of_the_question_is_kept():
    assert str(ask("WeB.shop.SVC.cluster.local.").answer[0].name) == "WeB.shop.SVC.cluster.local."


@pytest.mark.parametrize(
    ("name", "rcode"),
    [
        (NAME, dns.rcode.NOERROR),
        ("shop.svc.cluster.local.", dns.rcode.NOERROR),
        ("cluster.local.", dns.rcode.NOERROR),
        ("none.shop.svc.cluster.local.", dns.rcode.NXDOMAIN),
        ("a.web.shop.svc.cluster.local.", dns.rcode.NXDOMAIN),
        ("1.0.96.10.in-addr.arpa.", dns.rcode.NXDOMAIN),
    ],
)
def test_negative_answers_carry_the_soa(name, rcode):
    response = ask(name, "AAAA")
    assert response.rcode() == rcode
    assert not response.answer
    [soa] = response.authority
    assert soa.rdtype == dns.rdatatype.SOA
    assert (soa.ttl, soa[0].minimum) == (5, 5)


@pytest.mark.parametrize(
    "name", ["example.com.", ".", "www.example.com.cluster.localx.", "8.8.8.8.in-addr.arpa."]
)
def test_names_outside_are_refused(name):
    response = ask(name)
    assert response.rcode() == dns.rcode.REFUSED
    assert not response.flags & dns.flags.AA
    assert not response.authority


def test_names_of_one_label_do_not_exist():
    response = ask("wbe.")
    assert response.rcode() == dns.rcode.NXDOMAIN
    assert not response.flags & dns.flags.AA


@pytest.mark.parametrize("type_", ["AXFR", "IXFR"])
def test_transfers_are_refused(type_):
    assert ask("cluster.local.", type_).rcode() == dns.rcode.REFUSED


def test_other_classes_are_refused():
    assert ask("cluster.local.", rdclass=dns.rdataclass.CH).rcode() == dns.rcode.REFUSED


def test_srv_brings_addresses():
    response = ask(f"_http._tcp.{NAME}", "SRV")
    assert records(response) == [f"_http._tcp.{NAME} 0 100 80 {NAME}"]
    assert [str(rrset[0]) for rrset in response.additional] == ["10.96.0.20"]


def test_pointer_soa_txt_any():
    assert records(ask("20.0.96.10.in-addr.arpa.", "PTR")) == [f"20.0.96.10.in-addr.arpa. {NAME}"]
    assert len(ask("cluster.local.", "SOA").answer) == 1
    assert records(ask("dns-version.cluster.local.", "TXT")) == ['dns-version.cluster.local. "1.1.0"']
    assert len(ask(NAME, "ANY").answer) == 1


def test_aliases():
    assert records(ask("out.shop.svc.cluster.local.")) == ["out.shop.svc.cluster.local. www.example.com."]
    assert ask("out.shop.svc.cluster.local.", "AAAA").rcode() == dns.rcode.NOERROR
    inside = ask("alias.shop.svc.cluster.local.")
    assert records(inside) == [f"alias.shop.svc.cluster.local. {NAME}", f"{NAME} 10.96.0.20"]
    dead = ask("dead.shop.svc.cluster.local.")
    assert dead.rcode() == dns.rcode.NXDOMAIN
    assert len(dead.answer) == 1
    assert ask("ring.shop.svc.cluster.local.").rcode() == dns.rcode.SERVFAIL
    assert len(ask("ring.shop.svc.cluster.local.", "CNAME").answer) == 1


def test_addresses_come_in_changing_order():
    query = dns.message.make_query("few.shop.svc.cluster.local.", "A").to_wire()
    firsts = {str(dns.message.from_wire(answer(query, INDEX, tcp=True)).answer[0][0]) for _ in range(20)}
    assert len(firsts) > 5


def test_large_answers_are_truncated_to_what_the_client_takes():
    few = "few.shop.svc.cluster.local."  # about 700 bytes
    plain = ask(few)
    assert plain.flags & dns.flags.TC
    assert len(plain.to_wire()) <= 512
    assert not ask(few, edns=0, payload=1232).flags & dns.flags.TC
    assert ask(few, edns=0, payload=600).flags & dns.flags.TC
    many = "many.shop.svc.cluster.local."  # about 5 KB: too large even if the client would take it
    assert ask(many, edns=0, payload=65535).flags & dns.flags.TC
    complete = ask(many, tcp=True)
    assert not complete.flags & dns.flags.TC
    assert len(complete.answer[0]) == 300


def test_edns_is_answered_with_edns():
    response = ask(NAME, edns=0, payload=4096)
    assert (response.edns, response.payload) == (0, 1232)
    assert ask(NAME, edns=1).rcode() == dns.rcode.BADVERS


def raw(wire):
    return answer(wire, INDEX, tcp=False)


def test_fragments_and_responses_get_no_answer():
    query = dns.message.make_query(NAME, "A")
    assert raw(b"") is None
    assert raw(query.to_wire()[:11]) is None
    assert raw(dns.message.make_response(query).to_wire()) is None


def test_malformed_queries_are_format_errors():
    query = dns.message.make_query(NAME, "A")
    wire = query.to_wire()
    for bad in (wire[:-1], wire + b"x", wire[:4] + bytes(8), wire[:12] + b"\xc0\x0c" + wire[-4:]):
        response = raw(bad)
        assert response[:2] == wire[:2]
        assert response[3] & 0x0F == dns.rcode.FORMERR
        assert len(response) == 12


def test_other_operations_are_not_implemented():
    for opcode in range(1, 16):
        wire = bytearray(dns.message.make_query(NAME, "A").to_wire())
        wire[2] |= opcode << 3
        assert raw(bytes(wire))[3] & 0x0F in (dns.rcode.NOTIMP, dns.rcode.FORMERR)
        assert raw(bytes(wire))[2] >> 3 & 0x0F == opcode


def test_no_bytes_can_upset_it():
    rng = random.Random(7)
    good = dns.message.make_query(NAME, "A", use_edns=0).to_wire()
    for _ in range(3000):
        wire = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            wire[rng.randrange(len(wire))] = rng.randrange(256)
        response = raw(bytes(wire[: rng.randrange(len(wire) + 1)] if rng.random() < 0.3 else wire))
        assert response is None or response[:2] == bytes(wire[:2])
