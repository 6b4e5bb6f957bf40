"""The configurations of the bench's peers."""

from pathlib import Path

import msgspec
import pytest

from bench.cases import CASES
from bench.envoy import envoy_config
from bench.modes import Mode
from bench.peers import ENVOY, HAPROXY, HYPER, PEERS, Layout, snapshot
from bench.pki import Pki, create
from mesh_api.sidecar import Protocol, validate


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return create(tmp_path_factory.mktemp("pki"))


def _layout(keys: Pki, mode: Mode, destinations: int = 1) -> Layout:
    return Layout(Path("/nowhere"), keys, mode, 16001, False, destinations)


@pytest.mark.parametrize("destinations", [1, 100])
def test_our_configurations_are_valid(keys: Pki, destinations: int) -> None:
    layout = _layout(keys, "http", destinations)
    made = snapshot("client", layout)
    assert not list(validate(made))
    assert len({destination.addresses for destination in made.destinations}) == destinations
    assert not list(validate(snapshot("server", layout)))


def test_http2_is_declared_on_both_sides(keys: Pki) -> None:
    for mode in ("http2", "grpc"):
        layout = _layout(keys, mode)
        (destination,) = snapshot("client", layout).destinations
        assert destination.protocol is Protocol.HTTP2
        assert snapshot("server", layout).inbound.protocols == {"16001": Protocol.HTTP2}


def test_envoy_speaks_http2_with_mtls_between(keys: Pki) -> None:
    for side in ("client", "server"):
        config = envoy_config(keys, side, "http2", 1, 2, 3, policy=False, destinations=1)
        text = msgspec.json.encode(config)
        assert text.count(b'"alpn_protocols":["h2"]') == 1
        (cluster,) = config["static_resources"]["clusters"]
        assert "typed_extension_protocol_options" in cluster
        assert ("transport_socket" in cluster) is (side == "client")
        assert b'"codec_type":"HTTP2"' in text


def test_envoy_has_a_cluster_for_each_of_many_destinations(keys: Pki) -> None:
    config = envoy_config(keys, "client", "http", 1, 2, 3, policy=False, destinations=100)
    clusters = config["static_resources"]["clusters"]
    assert len({cluster["name"] for cluster in clusters}) == 100
    (listener,) = config["static_resources"]["listeners"]
    text = msgspec.json.encode(listener["filter_chains"])
    assert all(f'"domains":["{cluster["name"]}"]'.encode() in text for cluster in clusters)


def test_http2_is_compared_with_envoy_and_our_other_engine() -> None:
    by_mode = {case.mode: case.among(PEERS) for case in CASES}
    assert by_mode["http2"] == by_mode["grpc"] == [ENVOY, HYPER]
    assert by_mode["http"] == by_mode["tcp"] == [ENVOY, HAPROXY]
