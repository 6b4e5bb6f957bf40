"""When the soak calls a process leaky, and what it configures."""

import random

import pytest

from bench.soak import Sample, growth
from bench.soak_config import KINDS, LASTING, Servers, client_snapshot, dialled_by_mesh, server_snapshot
from mesh_api.sidecar import decode_snapshot, encode_snapshot


def _samples(*rss: float, fds: int = 30) -> list[Sample]:
    return [Sample(float(i), value, fds) for i, value in enumerate(rss)]


def test_flat_memory_passes() -> None:
    assert growth(_samples(*[35.0] * 30), 30) == ""


def test_a_rise_of_the_warm_up_passes() -> None:
    assert growth(_samples(*[20.0] * 10, *[60.0, 61.0] * 10), 30) == ""


def test_a_steady_rise_fails() -> None:
    rising = [40.0 + 0.5 * i for i in range(30)]
    assert "memory rose by 9.5 MB after 10 s, allowed are 6.6" in growth(_samples(*rising), 30)


def test_a_single_peak_is_no_rise() -> None:
    assert growth(_samples(*[40.0] * 20, 60.0, *[40.0] * 9), 30) == ""


def test_more_descriptors_fail() -> None:
    samples = [*_samples(*[35.0] * 28), Sample(28.0, 35.0, 95), Sample(29.0, 35.0, 95)]
    assert "descriptors grew from 30 to 95" in growth(samples, 30)


def test_no_samples_are_no_pass() -> None:
    assert growth([], 30) != ""
    assert growth(_samples(1.0), 30) != ""


@pytest.mark.parametrize("seed", range(50))
def test_every_configuration_is_valid_and_leads_somewhere(seed: int) -> None:
    rng = random.Random(seed)
    ports = (16001, 16002, 16003, 16004, 16005)
    reachable = dialled_by_mesh(ports)
    for servers in (Servers(17000), Servers(17000, 18000)):
        snapshot = client_snapshot(servers, rng)
        assert decode_snapshot(encode_snapshot(snapshot)) == snapshot
        assert len(snapshot.destinations) == len(KINDS)
        for destination in snapshot.destinations:
            assert destination.endpoints
            for endpoint in destination.endpoints:
                assert endpoint.address in reachable
                assert endpoint.port in (servers.lasting, servers.passing)
            versions = {endpoint.labels["version"] for endpoint in destination.endpoints}
            assert {arm.subset for route in destination.routes for arm in route.to} <= versions
    own = server_snapshot(ports, rng)
    assert decode_snapshot(encode_snapshot(own)) == own
    assert len(reachable) == LASTING * len(KINDS)
