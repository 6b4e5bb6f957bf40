import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_proxy.policy.retry import IDEMPOTENT, Budget, Phase, RetryDecision, decide, why_not

METHODS = (
    b"GET",
    b"HEAD",
    b"OPTIONS",
    b"TRACE",
    b"PUT",
    b"DELETE",
    b"POST",
    b"PATCH",
    b"CONNECT",
    b"get",
    b"X",
)
CASES = list(itertools.product(Phase, METHODS, (True, False), range(1, 5), range(4)))


@pytest.mark.parametrize("phase", Phase)
def test_every_case(phase):
    for case in CASES:
        if case[0] is not phase:
            continue
        _, method, replayable, attempts, limit = case
        decision = decide(*case)
        allowed = phase in (Phase.NOT_CONNECTED, Phase.NOTHING_SENT) or (
            phase is Phase.SENT_NO_RESPONSE
            and method in (b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE")
        )
        assert decision.retry == (allowed and replayable and attempts <= limit), case
        assert decision.reason in {"tried", "not-retryable", "body-too-big", "limit"}, case
        assert (decision.reason == "tried") == decision.retry, case
        assert bool(decision.text) != decision.retry, case
        assert why_not(*case) == decision.text, case


def test_reasons():
    def reason(*case):
        return decide(*case).reason

    assert reason(Phase.RESPONSE_STARTED, b"GET", True, 1, 3) == "not-retryable"
    assert reason(Phase.SENT_NO_RESPONSE, b"POST", True, 1, 3) == "not-retryable"
    assert reason(Phase.SENT_NO_RESPONSE, b"PUT", False, 1, 3) == "body-too-big"
    assert reason(Phase.NOT_CONNECTED, b"POST", True, 4, 3) == "limit"
    assert reason(Phase.NOT_CONNECTED, b"POST", True, 1, 0) == "limit"
    assert reason(Phase.NOT_CONNECTED, b"POST", True, 1, 1) == "tried"


def test_a_decision_has_three_parts():
    retry, reason, text = decide(Phase.NOT_CONNECTED, b"GET", True, 1, 1)
    assert RetryDecision(retry, reason, text) == (True, "tried", "")
    assert b"POST" not in IDEMPOTENT


def spend(budget, now):
    count = 0
    while budget.withdraw(now):
        count += 1
        assert count < 100_000
    return count


def test_the_unconditional_part_refills():
    budget = Budget(0, 10)
    assert spend(budget, 100.0) == 10
    assert spend(budget, 100.05) == 0
    assert spend(budget, 100.5) == 5
    assert spend(budget, 1000.0) == 10
    assert spend(budget, 999.0) == 0  # a clock that went back


def test_a_share_of_the_requests():
    budget = Budget(20, 0)
    assert spend(budget, 0.0) == 0
    for _ in range(100):
        budget.deposit(5.0)
    assert spend(budget, 5.0) == 20


def test_both_parts_add_up():
    budget = Budget(10, 3)
    for _ in range(50):
        budget.deposit(0.5)
    assert spend(budget, 0.5) == 8


def test_five_deposits_of_a_fifth_are_one():
    budget = Budget(20, 0)
    for _ in range(4):
        budget.deposit(1.0)
    assert not budget.withdraw(1.0)
    budget.deposit(1.0)
    assert budget.withdraw(1.0)
    assert not budget.withdraw(1.0)


def test_deposits_expire_after_ten_seconds():
    budget = Budget(100, 0)
    for second in range(20):
        budget.deposit(second + 0.5)
    assert spend(budget, 19.9) == 10
    for second in range(20, 30):
        budget.deposit(float(second))
    assert spend(budget, 35.0) == 4
    budget.deposit(35.0)
    assert spend(budget, 10_000.0) == 0


def test_spending_takes_the_oldest_first():
    budget = Budget(100, 0)
    budget.deposit(0.0)
    budget.deposit(9.0)
    assert budget.withdraw(9.0)
    assert budget.withdraw(15.0)
    assert not budget.withdraw(15.0)


@pytest.mark.parametrize(("percent", "min_per_s"), [(0, 0), (0.0, 0)])
def test_no_budget_no_retries(percent, min_per_s):
    budget = Budget(percent, min_per_s)
    for _ in range(100):
        budget.deposit(1.0)
    assert not budget.withdraw(2.0)


steps = st.lists(st.tuples(st.floats(0, 3), st.integers(0, 30), st.integers(0, 30)), max_size=60)


@given(st.integers(0, 100), st.integers(0, 5), steps)
def test_retries_never_exceed_the_budget(percent, min_per_s, steps):
    budget = Budget(percent, min_per_s)
    now = 1_000.0
    requests = retries = 0
    for wait_s, deposits, withdrawals in steps:
        now += wait_s
        for _ in range(deposits):
            budget.deposit(now)
        requests += deposits
        retries += sum(budget.withdraw(now) for _ in range(withdrawals))
        assert retries <= requests * percent / 100 + min_per_s * (now - 1_000.0 + 1) + 1e-6
        assert budget._credit == sum(budget._slots) >= 0
        assert min(budget._slots) >= 0
