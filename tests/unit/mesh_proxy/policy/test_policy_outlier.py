import pytest

from mesh_api.traffic import Outliers as Spec
from mesh_proxy.policy.balance import EndpointState
from mesh_proxy.policy.outlier import NEVER, Outliers


class Endpoint(EndpointState):
    __slots__ = ("name",)

    def __init__(self, name):
        super().__init__()
        self.name = name

    def __repr__(self):
        return self.name


def cluster(count=4, **spec):
    among = tuple(Endpoint(f"e{i}") for i in range(count))
    return among, Outliers(Spec(**spec), among)


def attempt(outliers, endpoint, status, now, begun=None):
    begun = now if begun is None else begun
    outliers.observe(endpoint, status, begun, now)
    outliers.release(endpoint, begun)


def fail(outliers, endpoint, now, times=5, status=503):
    for _ in range(times):
        attempt(outliers, endpoint, status, now)


def test_a_success_holds_nothing_against_an_endpoint():
    among, outliers = cluster()
    attempt(outliers, among[0], 200, 1.0)
    attempt(outliers, among[0], 404, 1.0)
    assert among[0].strikes is None
    assert outliers.eligible is not None
    assert outliers.eligible == among
    assert outliers.due == NEVER


@pytest.mark.parametrize(
    ("spec", "statuses", "ejected"),
    [
        ({}, [500] * 4, False),
        ({}, [500] * 5, True),
        ({}, [599, 503, 0, 500, 502], True),
        ({}, [500] * 4 + [200] + [500] * 4, False),
        ({}, [500] * 4 + [404] + [500], False),
        ({"consecutive_5xx": 0}, [500] * 50, False),
        ({"consecutive_5xx": 0}, [0] * 5, True),
        ({"consecutive_5xx": 0}, [0] * 4 + [500] + [0] * 4, False),
        ({"consecutive_5xx": 0, "consecutive_local": 0}, [0, 500] * 50, False),
        ({"consecutive_gateway": 3}, [502, 503, 504], True),
        ({"consecutive_gateway": 3}, [502, 0, 504], True),
        ({"consecutive_gateway": 3}, [502, 503, 500, 504], False),
        ({"consecutive_5xx": 0, "consecutive_local": 0, "consecutive_gateway": 2}, [500] * 9, False),
        ({"consecutive_5xx": 1}, [500], True),
    ],
)
def test_failures_in_a_row(spec, statuses, ejected):
    among, outliers = cluster(**spec)
    for status in statuses:
        attempt(outliers, among[1], status, 10.0)
    assert outliers.ejected == ((among[1],) if ejected else ())
    assert outliers.eligible == ((among[0], *among[2:]) if ejected else among)
    assert outliers.ejections == ejected


def test_old_failures_are_forgotten():
    among, outliers = cluster()
    fail(outliers, among[0], 0.0, times=4)
    fail(outliers, among[0], 10.1, times=1)
    assert not outliers.ejected
    fail(outliers, among[0], 20.0, times=4)
    assert outliers.ejected == (among[0],)


def test_one_probe_at_a_time_decides():
    among, outliers = cluster()
    fail(outliers, among[0], 100.0)
    assert outliers.due == 130.0
    assert outliers.probe((), 129.9) is None
    assert outliers.probe((among[0],), 130.0) is None
    assert outliers.probe((), 130.0) is among[0]
    assert outliers.due == 160.0
    assert outliers.probe((), 159.9) is None
    assert among[0] not in outliers.eligible
    attempt(outliers, among[0], 200, 131.0, begun=130.0)
    assert outliers.eligible == among
    assert not outliers.ejected


def test_a_probe_that_lasts_does_not_keep_its_endpoint_out():
    among, outliers = cluster()
    fail(outliers, among[0], 100.0)
    assert outliers.probe((), 130.0) is among[0]
    assert outliers.probe((), 160.0) is among[0], "the first is a stream, say"
    outliers.release(among[0], 130.0)
    assert outliers.probe((), 170.0) is None, "the second is still under way"
    attempt(outliers, among[0], 200, 171.0, begun=160.0)
    assert outliers.eligible == among


def test_a_late_verdict_of_an_earlier_probe():
    among, outliers = cluster()
    fail(outliers, among[0], 100.0)
    for begun in (130.0, 160.0):
        assert outliers.probe((), begun) is among[0]
    attempt(outliers, among[0], 500, 165.0, begun=160.0)
    attempt(outliers, among[0], 200, 166.0, begun=130.0)
    assert outliers.ejected == (among[0],), "a later one has failed since"
    assert outliers.probe((), 225.0) is among[0]
    assert outliers.probe((), 255.0) is among[0]
    attempt(outliers, among[0], 200, 256.0, begun=225.0)
    assert not outliers.ejected


def test_each_ejected_endpoint_has_its_own_probe():
    among, outliers = cluster()
    fail(outliers, among[0], 100.0)
    fail(outliers, among[1], 101.0)
    assert outliers.probe((), 140.0) is among[0]
    assert outliers.due == 131.0
    assert outliers.probe((), 140.0) is among[1]
    assert outliers.probe((), 140.0) is None


def test_a_failed_probe_ejects_for_longer_to_a_bound():
    among, outliers = cluster()
    fail(outliers, among[0], 0.0)
    times = []
    now = 0.0
    for _ in range(12):
        times.append(outliers.due - now)
        now = outliers.due
        assert outliers.probe((), now) is among[0]
        attempt(outliers, among[0], 500, now)
    assert times == pytest.approx([30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300])


def test_a_base_over_the_bound_is_kept():
    among, outliers = cluster(base_ejection_s=400.0)
    fail(outliers, among[0], 0.0)
    assert outliers.due == 400.0
    assert outliers.probe((), 400.0) is among[0]
    attempt(outliers, among[0], 500, 400.0)
    assert outliers.due == 800.0


def test_a_probe_without_a_verdict_lets_the_next_one_try():
    among, outliers = cluster()
    fail(outliers, among[0], 0.0)
    assert outliers.probe((), 30.0) is among[0]
    outliers.release(among[0], 12.0)  # an old request that ends now
    assert outliers.probe((), 31.0) is None
    outliers.release(among[0], 30.0)
    assert outliers.probe((), 31.0) is among[0]


def test_what_was_under_way_at_an_ejection_counts_no_more():
    among, outliers = cluster()
    for status in (500, 500, 500, 500, 500, 500, 0, 200):
        attempt(outliers, among[0], status, 10.0, begun=5.0)
    assert outliers.due == 40.0
    assert outliers.ejections == 1
    assert outliers.probe((), 40.0) is among[0]
    attempt(outliers, among[0], 500, 41.0, begun=9.0)
    attempt(outliers, among[0], 200, 41.0, begun=9.0)
    assert outliers.ejected == (among[0],)
    attempt(outliers, among[0], 200, 42.0, begun=40.0)
    for _ in range(9):
        attempt(outliers, among[0], 500, 43.0, begun=9.0)
    assert not outliers.ejected


def test_ejections_in_a_row_are_forgiven_with_time():
    def ejected_for(wait_s):
        among, outliers = cluster()
        fail(outliers, among[0], 0.0)
        outliers.probe((), 30.0)
        attempt(outliers, among[0], 500, 30.0)  # two in a row: until 90
        outliers.probe((), 90.0)
        attempt(outliers, among[0], 200, 90.0)
        fail(outliers, among[0], 90.0 + wait_s)
        return outliers.due - 90.0 - wait_s

    assert [ejected_for(wait_s) for wait_s in (1.0, 29.0, 31.0, 61.0, 1000.0)] == [90, 90, 60, 30, 30]


def test_nothing_is_held_against_who_is_forgiven():
    among, outliers = cluster()
    fail(outliers, among[0], 0.0)
    outliers.probe((), 30.0)
    attempt(outliers, among[0], 200, 30.0)
    attempt(outliers, among[0], 200, 59.0)
    assert among[0].strikes is not None
    attempt(outliers, among[0], 200, 60.0)
    assert among[0].strikes is None


@pytest.mark.parametrize(
    ("count", "percent", "most"),
    [(1, 100, 0), (2, 0, 1), (2, 100, 1), (3, 50, 1), (4, 50, 2), (10, 0, 1), (10, 25, 2), (10, 100, 9)],
)
def test_the_share_is_bounded_and_the_last_stays(count, percent, most):
    among, outliers = cluster(count, max_ejection_percent=float(percent))
    for endpoint in among:
        fail(outliers, endpoint, 1.0, times=9)
    assert len(outliers.ejected) == most
    assert len(outliers.eligible) == count - most


def test_below_the_healthy_share_all_are_used_and_none_is_ejected():
    among, outliers = cluster(4, max_ejection_percent=100.0, min_health_percent=75.0)
    fail(outliers, among[0], 1.0)
    assert outliers.eligible == among[1:]
    fail(outliers, among[1], 1.0)
    assert len(outliers.ejected) == 2
    assert outliers.eligible == among
    fail(outliers, among[2], 1.0)
    assert len(outliers.ejected) == 2
    attempt(outliers, among[0], 200, 2.0)  # used, but not as a probe
    assert among[0] in outliers.ejected
    assert outliers.probe((), 31.0) is among[0]
    attempt(outliers, among[0], 200, 31.0)
    assert outliers.eligible == (among[0], *among[2:])


def test_known_endpoints_stay_ejected_through_a_change():
    among, outliers = cluster(4)
    fail(outliers, among[0], 1.0)
    fail(outliers, among[1], 2.0)
    more = (*among, Endpoint("new"))
    outliers.update(Spec(), more)
    assert outliers.eligible == more[2:]
    outliers.update(Spec(), among[:3])  # only one of three may be out: the one nearest to its return is back
    assert outliers.eligible == (among[0], among[2])
    assert among[0].strikes is None
    outliers.update(Spec(), among[1:2])
    assert outliers.eligible == among[1:2]
    outliers.update(Spec(), ())
    assert outliers.eligible == ()
    assert outliers.due == NEVER


def test_turning_it_off_brings_everybody_back():
    among, outliers = cluster()
    fail(outliers, among[0], 1.0)
    outliers.update(Spec(consecutive_5xx=0, consecutive_local=0), among)
    assert outliers.eligible == among


def test_an_answer_of_an_endpoint_that_has_gone():
    among, outliers = cluster(3)
    outliers.update(Spec(), among[1:])
    fail(outliers, among[0], 1.0, times=20)
    assert not outliers.ejected
    assert outliers.eligible == among[1:]
