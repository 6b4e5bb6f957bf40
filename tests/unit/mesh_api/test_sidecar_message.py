import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_api.keys import Family
from mesh_api.sidecar import (
    ConfigError,
    Destination,
    Endpoint,
    Pod,
    Snapshot,
    TlsMode,
    Workload,
    decode_snapshot,
    encode_snapshot,
    is_spiffe_id,
    validate,
)

ID = "spiffe://cluster.local/ns/shop/sa/a"
WORKLOAD_PART = Workload(name="a", namespace="shop")
WORKLOAD = {"name": "a", "namespace": "shop"}


def full():
    return Snapshot(
        workload=Workload(name="a", namespace="shop", addresses=("10.0.0.1", "fd00::1")),
        destinations=(
            Destination(
                name="d",
                namespace="shop",
                port=80,
                addresses=("10.1.0.1",),
                endpoints=(Endpoint(address="10.0.0.2", port=8080, tls=TlsMode.MESH, identity=ID),),
            ),
        ),
        pods=(Pod(name="p", namespace="shop", addresses=("10.0.0.2",), identity=ID),),
    )


def refused(**parts):
    with pytest.raises(ConfigError) as info:
        decode_snapshot(json.dumps({"workload": WORKLOAD, **parts}).encode())
    return info.value


def destination(**fields):
    return {"name": "d", "namespace": "shop", "port": 80, "addresses": ["10.1.0.1"], **fields}


def endpoint(**fields):
    return {"address": "10.0.0.2", "port": 8080, "tls": "mesh", "identity": ID, **fields}


def test_round_trip():
    assert decode_snapshot(encode_snapshot(full())) == full()
    assert list(validate(full())) == []


@pytest.mark.parametrize(
    ("parts", "path", "expected"),
    [
        ({"destinations": [destination(port=0)]}, "$.destinations[0].port", ">= 1"),
        ({"destinations": [destination(port=65536)]}, "$.destinations[0].port", "<= 65535"),
        ({"destinations": [destination(port="80")]}, "$.destinations[0].port", "int"),
        (
            {"destinations": [destination(addresses=["x.y"])]},
            "$.destinations[0].addresses[0]",
            "an IP address",
        ),
        (
            {"destinations": [destination(addresses=["FD00::1"])]},
            "$.destinations[0].addresses[0]",
            "'fd00::1'",
        ),
        ({"destinations": [destination(addresses=["010.0.0.1"])]}, "$.destinations[0].addresses[0]", "an IP"),
        (
            {"destinations": [destination(endpoints=[endpoint(identity="")])]},
            "$.destinations[0].endpoints[0].identity",
            "spiffe://cluster.local/",
        ),
        (
            {"destinations": [destination(endpoints=[endpoint(identity=ID.replace("cluster", "other"))])]},
            "$.destinations[0].endpoints[0].identity",
            "spiffe://cluster.local/",
        ),
        (
            {"destinations": [destination(endpoints=[endpoint(weight=0)])]},
            "$.destinations[0].endpoints[0].weight",
            ">= 1",
        ),
        (
            {"destinations": [destination(routes=[{"to": [{"subset": "v2"}]}])]},
            "$.destinations[0].routes[0].to[0].subset",
            "'v2'",
        ),
        (
            {"destinations": [destination(routes=[{"to": [{"weight": 0}]}])]},
            "$.destinations[0].routes[0].to",
            "sum above 0",
        ),
        (
            {"destinations": [destination(), destination(name="e")]},
            "$.destinations[1].addresses",
            "belongs to $.destinations[0]",
        ),
        (
            {"destinations": [destination(), destination(addresses=["10.1.0.2"])]},
            "$.destinations[1]",
            "$.destinations[0]",
        ),
        ({"inbound": {"portMtls": {"0": "STRICT"}}}, "$.inbound.portMtls.0", "a port"),
        ({"inbound": {"portMtls": {"080": "STRICT"}}}, "$.inbound.portMtls.080", "a port"),
        ({"inbound": {"portMtls": {"": "STRICT"}}}, "$.inbound.portMtls.", "a port"),
        ({"inbound": {"portMtls": {"²": "STRICT"}}}, "$.inbound.portMtls.²", "a port"),
        ({"inbound": {"protocols": {"99999": "tcp"}}}, "$.inbound.protocols.99999", "a port"),
        ({"inbound": {"mtls": "strict"}}, "$.inbound.mtls", "'strict'"),
        (
            {"pods": [{"name": "p", "namespace": "n", "addresses": ["10.0.0.1"], "identity": ""}]},
            "$.pods[0].identity",
            "spiffe://",
        ),
        (
            {"destinations": [destination(settings={"timeouts": {"connectS": 0}})]},
            "$.destinations[0].settings.timeouts.connectS",
            "> 0",
        ),
        ({"surprise": 1}, "$", "surprise"),
    ],
)
def test_refusals_say_where_and_what(parts, path, expected):
    error = refused(**parts)
    assert error.path == path
    assert expected in error.expected
    assert "\n" not in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (ID, True),
        ("spiffe://d/ns/a/sa/b", True),
        ("spiffe://d/ns/a/sa/", False),
        ("spiffe://d/ns/a/sa/b/c", False),
        ("spiffe:///ns/a/sa/b", False),
        ("https://d/ns/a/sa/b", False),
        ("spiffe://d/sa/a/ns/b", False),
        ("spiffe://d/ns/a/sa/" + "b" * 3000, False),
    ],
)
def test_spiffe_ids(text, good):
    assert is_spiffe_id(text) is good


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
GOOD = json.loads(encode_snapshot(full()))


def places(value, at=()):
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*at, key))


@given(st.sampled_from(list(places(GOOD))[1:]), json_values)
@settings(max_examples=300, deadline=None)
def test_one_value_replaced_by_anything(place, value):
    """Either a snapshot that its own encoding gives again, or a ConfigError; nothing else."""
    message = json.loads(json.dumps(GOOD))
    inner = message
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        snapshot = decode_snapshot(json.dumps(message).encode())
    except ConfigError:
        pass
    else:
        assert decode_snapshot(encode_snapshot(snapshot)) == snapshot


@given(st.binary(max_size=200) | st.binary(max_size=20).map(lambda cut: encode_snapshot(full())[:-5] + cut))
@settings(max_examples=200, deadline=None)
def test_any_bytes(data):
    try:
        decode_snapshot(data)
    except ConfigError:
        pass


def test_a_destination_of_one_family_has_addresses_of_no_other():
    def errors(family, *addresses):
        endpoints = tuple(Endpoint(address=address, port=80) for address in addresses[1:])
        destination = Destination(
            name="d", namespace="shop", port=80, addresses=addresses[:1], family=family, endpoints=endpoints
        )
        return [
            error.expected
            for error in validate(Snapshot(workload=WORKLOAD_PART, destinations=(destination,)))
        ]

    assert errors(Family.IPV4, "10.1.0.1", "10.0.0.1") == []
    assert errors(None, "10.1.0.1", "fd00::1") == []
    assert errors(Family.IPV4, "10.1.0.1", "fd00::1") == [
        "expected addresses of family ipv4 only, got 'fd00::1'"
    ]
    assert errors(Family.IPV6, "10.1.0.1", "fd00::1") == [
        "expected addresses of family ipv6 only, got '10.1.0.1'"
    ]


def test_the_families_of_a_services_port_are_two_destinations():
    halves = tuple(
        Destination(name="d", namespace="shop", port=80, addresses=(address,), family=family)
        for address, family in (("10.1.0.1", Family.IPV4), ("fd00::1", Family.IPV6))
    )
    assert list(validate(Snapshot(workload=WORKLOAD_PART, destinations=halves))) == []
    twice = next(validate(Snapshot(workload=WORKLOAD_PART, destinations=(halves[0], halves[0]))))
    assert "the same one" in twice.expected
