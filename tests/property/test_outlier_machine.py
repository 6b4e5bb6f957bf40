"""Whatever happens: somebody is always eligible, the share is kept, probes of an endpoint are far apart."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh_api.traffic import Outliers as Spec
from mesh_proxy.policy.balance import EndpointState
from mesh_proxy.policy.outlier import NEVER, Outliers

STATUSES = st.sampled_from([0, 200, 404, 500, 500, 500, 503, 503, None])


class OutlierMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.spec = Spec(consecutive_5xx=2)
        self.endpoints = tuple(EndpointState() for _ in range(4))
        self.outliers = Outliers(self.spec, self.endpoints)
        self.open = []
        self.probes = []

    @rule(seconds=st.sampled_from([0.0, 0.1, 5.0, 31.0, 400.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(choice=st.integers(0, 9))
    def a_request_begins(self, choice):
        if self.outliers.eligible:
            chosen = self.outliers.eligible[choice % len(self.outliers.eligible)]
            self.open.append((chosen, self.now))

    @rule()
    def a_request_finds_a_probe(self):
        endpoint = self.outliers.probe((), self.now)
        if endpoint is not None:
            assert endpoint in self.outliers.ejected
            assert endpoint.strikes.until <= self.now
            latest = max((begun for other, begun in self.probes if endpoint is other), default=-NEVER)
            assert self.now - latest >= self.spec.base_ejection_s, "one that lasts is joined by another"
            self.probes.append((endpoint, self.now))

    @precondition(lambda self: self.open)
    @rule(choice=st.integers(0, 99), status=STATUSES)
    def a_request_ends(self, choice, status):
        endpoint, begun = self.open.pop(choice % len(self.open))
        was_out = endpoint in self.outliers.ejected and begun <= endpoint.strikes.ejected_at
        self.end(endpoint, begun, status)
        if was_out:
            assert endpoint in self.outliers.ejected

    @precondition(lambda self: self.probes)
    @rule(choice=st.integers(0, 99), status=STATUSES)
    def a_probe_ends(self, choice, status):
        endpoint, begun = self.probes.pop(choice % len(self.probes))
        before = self.outliers.ejections
        if endpoint in self.outliers.ejected and begun < endpoint.strikes.until:
            self.end(endpoint, begun, status)
            assert endpoint in self.outliers.ejected, "another probe has failed since"
            return
        self.end(endpoint, begun, status)
        if status in (200, 404):
            assert endpoint not in self.outliers.ejected
        elif status is not None and endpoint in self.outliers.ejected:
            assert self.outliers.ejections == before + 1

    def end(self, endpoint, begun, status):
        if status is not None:
            self.outliers.observe(endpoint, status, begun, self.now)
        self.outliers.release(endpoint, begun)

    @rule(
        count=st.integers(0, 6),
        percent=st.sampled_from([0.0, 50.0, 100.0]),
        health=st.sampled_from([0.0, 60.0]),
    )
    def the_configuration_changes(self, count, percent, health):
        self.spec = Spec(consecutive_5xx=2, max_ejection_percent=percent, min_health_percent=health)
        new = tuple(EndpointState() for _ in range(max(0, count - len(self.endpoints))))
        self.endpoints = self.endpoints[:count] + new
        self.outliers.update(self.spec, self.endpoints)
        known = set(self.outliers.ejected)
        self.probes = [(endpoint, begun) for endpoint, begun in self.probes if endpoint in known]

    @invariant()
    def bounds(self):
        n = len(self.endpoints)
        out = self.outliers.ejected
        assert set(self.outliers.eligible) <= set(self.endpoints)
        assert bool(self.outliers.eligible) == bool(n)
        assert len(out) <= max(1, int(n * self.spec.max_ejection_percent / 100))
        assert len(out) < max(n, 1)
        panics = 100 * (n - len(out)) < self.spec.min_health_percent * n
        assert set(self.outliers.eligible) == set(self.endpoints) - (set() if panics else set(out))
        assert all(endpoint.strikes.ejected for endpoint in out)


OutlierMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
test_outliers = OutlierMachine.TestCase
