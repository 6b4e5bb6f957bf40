import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_api.traffic import Algorithm
from mesh_proxy.policy.balance import (
    DEFAULT_LATENCY_S,
    FAILURE_CAP_S,
    EndpointState,
    LeastLatency,
    LeastRequest,
    Random,
    RoundRobin,
    WarmUp,
    Weights,
    balancer,
    split,
)


def warm():
    return WarmUp(LeastLatency(), 30.0)


EVERY = pytest.mark.parametrize("make", [LeastLatency, LeastRequest, Random, RoundRobin, warm])


class Endpoint(EndpointState):
    __slots__ = ("name",)

    def __init__(self, name, weight=1):
        super().__init__(weight)
        self.name = name

    def __repr__(self):
        return self.name


def endpoints(*weights):
    return tuple(Endpoint(f"e{i}", weight) for i, weight in enumerate(weights))


def picks(balancer, among, count, now=0.0, excluded=(), rng=None):
    rng = rng or random.Random(1)
    return [balancer.pick(among, excluded, rng, now) for _ in range(count)]


@EVERY
def test_nobody_to_pick(make):
    balancer = make()
    (only,) = endpoints(1)
    assert picks(balancer, (), 1) == [None]
    assert picks(balancer, (only,), 1) == [only]
    assert picks(balancer, (only,), 1, excluded={only}) == [None]


@EVERY
@given(
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=8),
    excluded=st.sets(st.integers(0, 7)),
    failed=st.sets(st.integers(0, 7)),
    seed=st.integers(),
)
def test_excluded_endpoints_are_never_picked(make, weights, excluded, failed, seed):
    among = endpoints(*weights)
    balancer = make()
    for i in failed:
        if i < len(among):
            balancer.observe(among[i], 0.001, True, 0.0)
    out = {among[i] for i in excluded if i < len(among)}
    for choice in picks(balancer, among, 20, excluded=out, rng=random.Random(seed)):
        if len(out) == len(among):
            assert choice is None
        else:
            assert choice in set(among) - out


@EVERY
def test_endpoints_may_change_between_picks(make):
    balancer = make()
    among = endpoints(1, 1, 1, 1)
    rng = random.Random(1)
    for size in (4, 1, 3, 2, 4, 0, 2):
        choice = balancer.pick(among[:size], (), rng, 0.0)
        assert choice in among[:size] if size else choice is None


@EVERY
def test_equal_endpoints_share_the_load(make):
    balancer = make()
    among = endpoints(1, 1, 1, 1)
    rng = random.Random(1)
    counts = Counter()
    inflight = []
    for _ in range(4_000):
        choice = balancer.pick(among, (), rng, 0.0)
        choice.inflight += 1
        counts[choice.name] += 1
        inflight.append(choice)
        if len(inflight) > 32:
            inflight.pop(rng.randrange(32)).inflight -= 1
    assert all(800 < counts[e.name] < 1200 for e in among)


@EVERY
def test_a_failed_endpoint_rests_and_comes_back(make):
    balancer = make()
    among = endpoints(1, 1, 1)
    bad = among[0]
    balancer.observe(bad, 0.001, True, 100.0)
    assert bad.penalty_until == pytest.approx(100.1)
    assert bad not in picks(balancer, among, 200, now=100.05)
    for other in among[1:]:
        balancer.observe(other, 0.001, False, 200.0)
    assert bad in picks(balancer, among, 200, now=200.0)


@EVERY
def test_failures_in_a_row_rest_longer_and_a_success_forgives(make):
    balancer = make()
    (bad,) = endpoints(1)
    now, rests = 0.0, []
    for _ in range(12):
        balancer.observe(bad, 0.001, True, now)
        rests.append(bad.penalty_until - now)
        now = bad.penalty_until
    assert rests == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 10, 10])
    balancer.observe(bad, 0.001, False, now)
    assert bad.failures == 0
    assert bad.penalty_until < now
    balancer.observe(bad, 0.001, True, now)
    assert bad.penalty_until - now == pytest.approx(0.1)


@EVERY
def test_requests_that_fail_together_are_one_failure(make):
    balancer = make()
    (bad,) = endpoints(1)
    for _ in range(32):
        balancer.observe(bad, 0.001, True, 5.0)
    assert bad.failures == 1
    assert bad.ewma_s <= DEFAULT_LATENCY_S * 10


@EVERY
def test_when_everybody_failed_somebody_is_picked(make):
    balancer = make()
    for among in (endpoints(1, 1), endpoints(1, 1, 1), endpoints(1, 2, 3)):
        for endpoint in among:
            balancer.observe(endpoint, 0.001, True, 0.0)
        chosen = picks(balancer, among, 100, now=0.01)
        assert None not in chosen
        assert len(set(chosen)) > 1


def test_the_faster_one_is_preferred():
    balancer = LeastLatency()
    fast, slow = endpoints(1, 1)
    for step in range(100):
        balancer.observe(fast, 0.001, False, float(step))
        balancer.observe(slow, 0.010, False, float(step))
    assert set(picks(balancer, (fast, slow), 50, now=99.0)) == {fast}
    fast.inflight = 20
    assert set(picks(balancer, (fast, slow), 50, now=99.0)) == {slow}


def test_latency_rises_at_once_and_falls_slowly():
    balancer = LeastLatency()
    (endpoint,) = endpoints(1)
    balancer.observe(endpoint, 2.0, False, 1.0)
    assert endpoint.ewma_s == 2.0
    balancer.observe(endpoint, 0.0, False, 11.0)
    assert endpoint.ewma_s == pytest.approx(2.0 / 2.718281828)
    before = endpoint.ewma_s
    balancer.observe(endpoint, 0.0, False, 5.0)  # a clock that went back
    assert endpoint.ewma_s == before
    assert endpoint.ewma_at == 11.0


def test_a_fast_failure_does_not_look_fast():
    balancer = LeastLatency()
    good, bad = endpoints(1, 1)
    now = 0.0
    for _ in range(200):
        now += 0.5
        balancer.observe(good, 0.005, False, now)
        balancer.observe(bad, 0.0001, True, now)
    assert bad.ewma_s == FAILURE_CAP_S
    assert set(picks(balancer, (good, bad), 50, now=now)) == {good}


def test_a_failure_keeps_a_latency_that_is_worse():
    balancer = LeastLatency()
    (endpoint,) = endpoints(1)
    balancer.observe(endpoint, 8.0, True, 1.0)
    assert endpoint.ewma_s == 8.0


def test_an_endpoint_left_alone_is_tried_again():
    balancer = LeastLatency()
    fast, slow = endpoints(1, 1)
    balancer.observe(slow, 1.0, False, 0.0)
    now = 0.0
    while slow not in picks(balancer, (fast, slow), 1, now=now):
        now += 1.0
        balancer.observe(fast, 0.005, False, now)
        assert now < 120
    assert now > 10


def test_weight_shares_load():
    balancer = LeastLatency()
    light, heavy = endpoints(1, 3)
    light.inflight = 1
    heavy.inflight = 4
    assert set(picks(balancer, (light, heavy), 20)) == {heavy}


def test_pairs_are_chosen_evenly():
    balancer = LeastLatency()
    among = endpoints(*[1] * 5)
    counts = Counter(e.name for e in picks(balancer, among, 10_000))
    assert all(1_700 < counts[e.name] < 2_300 for e in among)


def test_equal_turns():
    among = endpoints(2, 2, 2)
    assert [e.name for e in picks(RoundRobin(), among, 7)] == ["e0", "e1", "e2"] * 2 + ["e0"]
    assert [e.name for e in picks(RoundRobin(), among, 4, excluded=[among[1]])] == ["e0", "e2"] * 2


def test_weighted_turns_are_smooth():
    names = "".join(e.name[1] for e in picks(RoundRobin(), endpoints(5, 1, 1), 14))
    assert names == "0010200" * 2


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_weighted_turns_are_exact(weights):
    among = endpoints(*weights)
    counts = Counter(e.name for e in picks(RoundRobin(), among, 2 * sum(weights)))
    assert [counts[e.name] for e in among] == [2 * weight for weight in weights]


class Fixed:
    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


@pytest.mark.parametrize(
    ("point", "index"), [(0.0, 0), (0.0999, 0), (0.1, 2), (0.5, 2), (0.8999, 2), (0.9, 3), (0.9999999, 3)]
)
def test_split_picks_by_weight(point, index):
    assert split(Weights([10, 0, 80, 10]), Fixed(point)) == index
    assert split([10, 0, 80, 10], Fixed(point)) == index


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=10).filter(any), st.integers())
def test_an_arm_of_weight_0_is_never_picked(weights, seed):
    rng = random.Random(seed)
    prepared = Weights(weights)
    assert all(weights[split(prepared, rng)] for _ in range(50))


def test_split_follows_the_weights():
    rng = random.Random(7)
    counts = Counter(split(Weights([90, 10]), rng) for _ in range(10_000))
    assert 800 < counts[1] < 1_200


@pytest.mark.parametrize("weights", [[], [0], [0, 0], [1, -1], [-1, 2]])
def test_weights_are_checked(weights):
    with pytest.raises(ValueError, match="sum above 0"):
        Weights(weights)


def test_a_random_number_of_1_is_not_a_random_number():
    with pytest.raises(ValueError, match="below 1"):
        split(Weights([1]), Fixed(1.0))


def test_the_balancer_that_is_asked_for():
    kinds = {algorithm: type(balancer(algorithm, None)) for algorithm in Algorithm}
    assert kinds == {
        Algorithm.LEAST_LATENCY: LeastLatency,
        Algorithm.LEAST_REQUEST: LeastRequest,
        Algorithm.RANDOM: Random,
        Algorithm.ROUND_ROBIN: RoundRobin,
    }
    assert all(type(balancer(algorithm, 5.0)) is WarmUp for algorithm in Algorithm)


def test_fewer_requests_are_preferred():
    busy, idle = endpoints(1, 1)
    busy.inflight = 3
    busy.ewma_s, idle.ewma_s = 0.001, 1.0
    assert set(picks(LeastRequest(), (busy, idle), 30)) == {idle}
    light, heavy = endpoints(1, 4)
    light.inflight, heavy.inflight = 1, 5
    assert set(picks(LeastRequest(), (light, heavy), 30)) == {heavy}


def test_chance_follows_the_weights():
    among = endpoints(1, 2, 5)
    counts = Counter(e.name for e in picks(Random(), among, 8_000))
    assert [round(counts[e.name] / 1000) for e in among] == [1, 2, 5]
    assert Counter(e.name for e in picks(Random(), among, 600, excluded=[among[2]])).keys() == {"e0", "e1"}


@pytest.mark.parametrize("make", [LeastLatency, LeastRequest, Random, RoundRobin])
@pytest.mark.parametrize(("age_s", "share"), [(0.0, 0.1), (3.0, 0.1), (15.0, 0.5), (24.0, 0.8), (30.0, 1.0)])
def test_the_share_of_a_new_endpoint_grows(make, age_s, share):
    among = endpoints(*[1] * 10)
    among[3].since = 100.0
    chosen = picks(WarmUp(make(), 30.0), among, 10_000, now=100.0 + age_s)
    assert abs(chosen.count(among[3]) / 1000 - share) < 0.12


def test_being_idle_does_not_make_a_new_endpoint_warm():
    old, new = endpoints(1, 1)
    old.inflight = 9
    new.since = 100.0
    chosen = picks(WarmUp(LeastLatency(), 30.0), (old, new), 2_000, now=100.0)
    assert 140 < chosen.count(new) < 260


def test_new_endpoints_serve_where_nobody_else_can():
    balancer = WarmUp(LeastLatency(), 30.0)
    old, new, newer = endpoints(1, 1, 1)
    new.since = newer.since = 100.0
    assert None not in picks(balancer, (new, newer), 200, now=100.0)
    assert set(picks(balancer, (new,), 50, now=100.0)) == {new}
    assert set(picks(balancer, (old, new), 50, now=100.0, excluded=[old])) == {new}
    balancer.observe(old, 0.001, True, 100.0)
    assert set(picks(balancer, (old, new), 50, now=100.05)) == {new}
