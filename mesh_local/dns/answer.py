"""From a query's bytes to the answer's. dnspython shuffles each set of records, which spreads clients."""

from collections.abc import Iterable
from typing import Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from mesh_local.dns.records import TTL, Index

_HEADER: Final = 12
_PLAIN_UDP: Final = 512  # RFC 1035 4.2.1
_EDNS_UDP: Final = 1232  # the limit of DNS flag day 2020: never fragmented
_TCP: Final = 65535
_CNAMES: Final = 8
_QUERY_FLAG: Final = 0x80  # QR, in the third byte


def answer(wire: bytes, index: Index, *, tcp: bool) -> bytes | None:
    """The response, or None for what deserves none: fragments, and responses (they might loop).

    Names outside the cluster are REFUSED: there is no uplink and nothing is forwarded. But names of one
    label do not exist: resolvers ask for them last, and a mistyped Service name is no passing failure.
    """
    if len(wire) < _HEADER or wire[2] & _QUERY_FLAG:
        return None
    try:
        query = dns.message.from_wire(wire)
    except (dns.exception.DNSException, ValueError):
        return _header_only(wire, dns.rcode.FORMERR)
    if query.opcode() != dns.opcode.QUERY:
        return _header_only(wire, dns.rcode.NOTIMP)
    if len(query.question) != 1 or query.answer or query.authority:
        return _header_only(wire, dns.rcode.FORMERR)
    response = dns.message.make_response(query, our_payload=_EDNS_UDP)
    if query.edns > 0:
        response.set_rcode(dns.rcode.BADVERS)
    else:
        _fill(response, index)
    limit = _TCP if tcp else _PLAIN_UDP
    if not tcp and query.edns == 0:
        limit = max(_PLAIN_UDP, min(query.payload, _EDNS_UDP))
    return response.to_wire(max_size=limit, prefer_truncation=True)


def _header_only(wire: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """An answer to what could not be parsed: its id, opcode and RD, and no section."""
    return bytes([*wire[:2], _QUERY_FLAG | (wire[2] & 0x79), rcode]) + bytes(8)


def _fill(response: dns.message.Message, index: Index) -> None:
    question = response.question[0]
    name, type_ = question.name, question.rdtype
    text = _text(name)
    zone = index.zones.zone_of(text)
    if question.rdclass != dns.rdataclass.IN or type_ in (dns.rdatatype.AXFR, dns.rdatatype.IXFR):
        response.set_rcode(dns.rcode.REFUSED)
        return
    if not zone:
        labels = len(name) - 1  # without the root
        response.set_rcode(dns.rcode.NXDOMAIN if labels == 1 else dns.rcode.REFUSED)
        return
    response.flags |= dns.flags.AA
    for _ in range(_CNAMES):
        found = index.at(text)
        target = found.get("CNAME")
        if not target or type_ in (dns.rdatatype.CNAME, dns.rdatatype.ANY):
            break
        _add(response.answer, name, "CNAME", target)
        name, text = dns.name.from_text(target[0]), target[0]
        zone = index.zones.zone_of(text)
        if not zone:  # the rest is for a resolver that can reach it
            return
    else:
        response.set_rcode(dns.rcode.SERVFAIL)  # ExternalName Services in a circle
        return
    found = index.at(text)
    kind = dns.rdatatype.to_text(type_)
    if type_ == dns.rdatatype.ANY and found:
        kind = next(iter(found))  # RFC 8482 4.1: one of the sets is enough
    if kind in found:
        _add(response.answer, name, kind, found[kind])
        if kind == "SRV":
            _add_targets(response, index, found[kind])
        return
    if not index.exists(text):
        response.set_rcode(dns.rcode.NXDOMAIN)
    _add(response.authority, dns.name.from_text(zone), "SOA", index.at(zone)["SOA"])


def _text(name: dns.name.Name) -> str:
    return name.to_text().lower()


def _add(section: list[dns.rrset.RRset], name: dns.name.Name, kind: str, values: Iterable[str]) -> None:
    section.append(dns.rrset.from_text_list(name, TTL, "IN", kind, list(values)))


def _add_targets(response: dns.message.Message, index: Index, values: Iterable[str]) -> None:
    """The addresses of SRV targets, which save their clients a question."""
    for target in sorted({value.split()[3] for value in values}):
        for kind in ("A", "AAAA"):
            if kind in index.at(target):
                _add(response.additional, dns.name.from_text(target), kind, index.at(target)[kind])
