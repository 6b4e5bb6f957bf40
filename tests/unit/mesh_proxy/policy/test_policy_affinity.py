"""Session affinity: which endpoint is kept, for how long, and what ends it."""

import random

import pytest

from mesh_api.traffic import Algorithm, Settings
from mesh_proxy.policy.affinity import Sticky, chosen_by
from mesh_proxy.policy.balance import Balancer, EndpointState, LeastLatency, RoundRobin

RNG = random.Random(3)
Endpoints = tuple[EndpointState, ...]


def among(count: int) -> Endpoints:
    return tuple(EndpointState() for _ in range(count))


def sticky(seconds: float = 60, algorithm: Algorithm = Algorithm.ROUND_ROBIN) -> Balancer:
    return chosen_by(Settings(algorithm=algorithm, affinity_s=seconds))


def test_without_affinity_the_algorithm_chooses() -> None:
    assert isinstance(chosen_by(Settings()), LeastLatency)
    assert isinstance(chosen_by(Settings(algorithm=Algorithm.ROUND_ROBIN)), RoundRobin)
    assert isinstance(sticky(), Sticky)


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_one_choice_is_kept(algorithm: Algorithm) -> None:
    balancer, ends = sticky(60, algorithm), among(5)
    assert len({balancer.pick(ends, (), RNG, float(i)) for i in range(100)}) == 1


def test_different_sidecars_choose_differently() -> None:
    ends = among(5)
    chosen = {chosen_by(Settings(affinity_s=60)).pick(ends, (), random.Random(i), 0.0) for i in range(50)}
    assert chosen == set(ends)


def test_each_request_begins_its_time_anew() -> None:
    balancer, ends = sticky(60), among(2)
    first = balancer.pick(ends, (), RNG, 0.0)
    assert [balancer.pick(ends, (), RNG, now) for now in (59.0, 118.0, 177.0)] == [first] * 3
    assert balancer.pick(ends, (), RNG, 237.0) is not first, "nobody has asked for 60 s: turns go on"


def test_an_endpoint_that_is_gone_or_ejected_is_given_up() -> None:
    balancer, ends = sticky(), among(3)
    first = balancer.pick(ends, (), RNG, 0.0)
    left = tuple(end for end in ends if end is not first)
    second = balancer.pick(left, (), RNG, 1.0)
    assert second in left
    assert balancer.pick(ends, (), RNG, 2.0) is second, "what came back is not taken for it"
    assert balancer.pick((), (), RNG, 3.0) is None
    assert balancer.pick(ends, (), RNG, 4.0) is second, "none for a moment: it is still kept"


def test_a_retry_goes_elsewhere_and_changes_nothing() -> None:
    balancer, ends = sticky(), among(3)
    first = balancer.pick(ends, (), RNG, 0.0)
    assert first is not None
    assert balancer.pick(ends, (first,), RNG, 0.1) not in (first, None)
    assert balancer.pick(ends, ends, RNG, 0.2) is None
    assert balancer.pick(ends, (), RNG, 0.3) is first


def test_a_failure_alone_does_not_end_it() -> None:
    balancer, ends = sticky(), among(3)
    first = balancer.pick(ends, (), RNG, 0.0)
    assert first is not None
    balancer.observe(first, 0.01, True, 0.1)
    assert first.penalty_until > 0.1
    assert balancer.pick(ends, (), RNG, 0.1) is first


def test_a_probe_of_another_is_only_for_who_is_bound_to_none() -> None:
    balancer, ends = sticky(), among(3)
    assert not balancer.holds(ends, 0.0)
    first = balancer.pick(ends, (), RNG, 0.0)
    assert balancer.holds(ends, 1.0)
    assert not balancer.holds(tuple(end for end in ends if end is not first), 1.0)
    assert not balancer.holds(ends, 60.0)
    for algorithm in Algorithm:
        assert not chosen_by(Settings(algorithm=algorithm, warmup_s=1)).holds(ends, 0.0)
