import pytest

from mesh_api import traffic
from mesh_proxy.policy.breaker import Breaker
from mesh_proxy.policy.fault import Fault


class Rolls:
    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)


@pytest.mark.parametrize(
    ("spec", "take", "give", "limit"),
    [
        ({"max_requests": 2}, "begin", "end", "maxRequests (2) is reached"),
        ({"max_connections": 2}, "connect", "closed", "maxConnections (2) is reached"),
        ({"max_pending": 2}, "wait", "waited", "maxPendingRequests (2) is reached"),
    ],
)
def test_a_limit_is_reached_and_left(spec, take, give, limit):
    breaker = Breaker(traffic.Breaker(**spec))
    ask, done = getattr(breaker, take), getattr(breaker, give)
    assert [ask(), ask(), ask(), ask()] == ["", "", limit, limit]
    done()
    assert [ask(), ask()] == ["", limit]
    done()
    done()
    assert (breaker.requests, breaker.connections, breaker.pending) == (0, 0, 0)


def test_only_pending_is_limited_by_default():
    breaker = Breaker(traffic.Breaker())
    for _ in range(1024):
        assert breaker.begin() == breaker.connect() == breaker.wait() == ""
    assert breaker.begin() == breaker.connect() == ""
    assert breaker.wait() == "maxPendingRequests (1024) is reached"


def test_0_lets_nothing_through():
    breaker = Breaker(traffic.Breaker(max_requests=0))
    assert breaker.begin() == "maxRequests (0) is reached"


def test_new_limits_keep_the_counts():
    breaker = Breaker(traffic.Breaker())
    breaker.begin()
    breaker.begin()
    breaker.update(traffic.Breaker(max_requests=2, max_requests_per_connection=7))
    assert breaker.begin()
    assert breaker.max_requests_per_connection == 7
    breaker.end()
    assert not breaker.begin()


def test_faults_by_chance():
    spec = traffic.Fault(
        delay=traffic.Delay(percent=25, fixed_s=2.0), abort=traffic.Abort(percent=10, status=429)
    )
    fault = Fault(spec)
    assert [fault.delay_s(Rolls(roll)) for roll in (0.0, 0.2499, 0.25, 0.99)] == [2.0, 2.0, 0.0, 0.0]
    assert fault.abort(Rolls(0.0999)).status == 429
    assert fault.abort(Rolls(0.1)) is None


def test_no_chance_needs_no_number():
    fault = Fault(traffic.Fault(abort=traffic.Abort(percent=0)))
    assert fault.delay_s(Rolls()) == 0.0
    assert fault.abort(Rolls()) is None
    assert Fault(traffic.Fault(abort=traffic.Abort(percent=100))).abort(Rolls(0.999999)) is not None
