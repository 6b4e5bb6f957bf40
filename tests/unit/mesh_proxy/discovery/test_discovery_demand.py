"""Which keys a sidecar wants: bounded, least recently used first, and not too many new ones at once."""

import pytest

from mesh_api.discovery import MAX_KEYS, address_key
from mesh_proxy.discovery import demand as module
from mesh_proxy.discovery.demand import Bucket, Demand
from mesh_proxy.net.addr import Addr


def addr(n):
    return Addr(f"10.0.{n >> 8}.{n & 255}", 80)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNKNOWN", 4)
    monkeypatch.setattr(module, "MAX_KNOWN", 3)
    monkeypatch.setattr(module, "MAX_PEERS", 2)


def test_the_bounds_fit_into_the_protocols(monkeypatch):
    monkeypatch.undo()
    burst = module.NEW_BURST  # may be wanted before the oldest are given up
    assert 1 + module.MAX_UNKNOWN + module.MAX_KNOWN + module.MAX_PEERS + burst < MAX_KEYS


def test_what_is_said():
    demand = Demand()
    assert demand.take() == (["workload"], [])
    assert not demand.changed
    assert demand.address(addr(1), 0.0)
    assert demand.address(addr(1), 0.0)
    assert demand.peer("10.0.0.9", 0.0)
    assert demand.take() == ([address_key(*addr(1)), "pod/10.0.0.9"], [])


def test_a_scanner_pushes_out_its_own():
    demand = Demand()
    demand.address(addr(0), 0.0)
    demand.learnt(addr(0), True)
    for n in range(1, 11):
        demand.address(addr(n), 0.0)
        demand.evict()
    assert demand.wants(address_key(*addr(0)))
    assert [n for n in range(11) if demand.wants(address_key(*addr(n)))] == [0, 7, 8, 9, 10]
    subscribe, unsubscribe = demand.take()
    assert len(subscribe) == 6
    assert len(unsubscribe) == 6
    assert len(demand) == 6


def test_used_ones_stay():
    demand = Demand()
    for n in range(4):
        demand.address(addr(n), 0.0)
    assert demand.use(address_key(*addr(0)))
    demand.address(addr(4), 0.0)
    assert demand.evict() == [address_key(*addr(1))]
    assert not demand.use(address_key(*addr(1)))


def test_known_addresses_and_callers_have_bounds_of_their_own():
    demand = Demand()
    for n in range(4):
        demand.address(addr(n), 0.0)
        demand.learnt(addr(n), True)
    for n in range(3):
        demand.peer(f"10.0.0.{n}", 0.0)
    assert demand.evict() == [address_key(*addr(0)), "pod/10.0.0.0"]
    assert demand.counts() == {"mesh": 3, "outside": 0, "callers": 2}
    demand.learnt(addr(3), False)
    assert demand.counts() == {"mesh": 2, "outside": 1, "callers": 2}


def test_given_up_and_wanted_again_before_it_was_said():
    demand = Demand()
    demand.address(addr(0), 0.0)
    demand.take()
    for n in range(1, 5):
        demand.address(addr(n), 0.0)
    demand.evict()
    demand.address(addr(0), 0.0)
    subscribe, unsubscribe = demand.take()
    assert address_key(*addr(0)) in subscribe
    assert unsubscribe == []


def test_everything_for_a_new_stream():
    demand = Demand()
    demand.address(addr(1), 0.0)
    demand.address(addr(2), 0.0)
    demand.learnt(addr(2), True)
    demand.peer("10.0.0.9", 0.0)
    assert list(demand.everything()) == [
        "workload",
        address_key(*addr(2)),
        "pod/10.0.0.9",
        address_key(*addr(1)),
    ]
    assert not demand.changed


def test_asking_again():
    demand = Demand()
    demand.address(addr(1), 0.0)
    demand.take()
    demand.again(address_key(*addr(1)))
    demand.again(address_key(*addr(2)))
    assert demand.take() == ([address_key(*addr(1))], [])


def test_new_ones_are_rationed(monkeypatch):
    monkeypatch.setattr(module, "NEW_BURST", 3.0)
    monkeypatch.setattr(module, "NEW_PER_S", 2.0)
    demand = Demand()
    assert [demand.address(addr(n), 10.0) for n in range(5)] == [True, True, True, False, False]
    assert demand.address(addr(0), 10.0), "one that is wanted costs nothing"
    assert demand.peer("10.0.0.9", 10.0), "callers are counted by themselves"
    assert demand.address(addr(3), 10.5)
    assert not demand.address(addr(4), 10.5)


def test_a_bucket_never_holds_more_than_its_burst():
    bucket = Bucket(1.0, 2.0)
    assert [bucket.take(1000.0) for _ in range(3)] == [True, True, False]
