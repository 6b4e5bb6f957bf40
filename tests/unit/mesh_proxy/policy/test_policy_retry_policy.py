import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_api.traffic import Backoff, Retries, RetryOn
from mesh_proxy.policy.http_date import http_date, retry_after_s
from mesh_proxy.policy.retry import Phase, RetryPolicy, decide

NOON = 784_111_777.0
"""Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110."""


class Fixed:
    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


@pytest.mark.parametrize("phase", Phase)
def test_the_default_is_the_safe_set(phase):
    for limit in (0, 1, 3):
        policy = RetryPolicy(Retries(attempts=limit))
        for method, kept, attempts in itertools.product((b"GET", b"POST", b"PUT"), (True, False), (1, 2, 4)):
            assert policy.decide(phase, method, kept, attempts) == decide(
                phase, method, kept, attempts, limit
            )
    assert not policy.by_response
    assert policy.pause_s(3, Fixed(0.9)) == 0.0


@pytest.mark.parametrize(
    ("on", "no_answer"),
    [
        (RetryOn.CONNECT_FAILURE, False),
        (RetryOn.REFUSED_STREAM, False),
        (RetryOn.RESET_BEFORE_REQUEST, False),
        (RetryOn.GATEWAY_ERROR, True),
        (RetryOn.SERVER_ERROR, True),
        (RetryOn.TOO_MANY_REQUESTS, False),
        (RetryOn.GRPC_UNAVAILABLE, False),
    ],
)
def test_which_failures_each_word_adds_to_what_was_not_processed(on, no_answer):
    policy = RetryPolicy(Retries(on=(on,)))
    unprocessed = {Phase.NOT_CONNECTED, Phase.NOTHING_SENT}
    more = {Phase.SENT_NO_RESPONSE} if no_answer else set()
    assert {p for p in Phase if policy.decide(p, b"GET", True, 1).retry} == unprocessed | more
    assert {p for p in Phase if policy.decide(p, b"POST", True, 1).retry} == unprocessed


def test_named_methods_replace_the_idempotent_ones():
    policy = RetryPolicy(Retries(on=(RetryOn.SERVER_ERROR, RetryOn.CONNECT_FAILURE), methods=("POST",)))
    assert policy.decide(Phase.SENT_NO_RESPONSE, b"POST", True, 1).retry
    assert (
        policy.decide(Phase.SENT_NO_RESPONSE, b"GET", True, 1).text
        == "the retry policy is not for this method"
    )
    assert policy.decide(Phase.NOT_CONNECTED, b"GET", True, 1).retry
    assert policy.decide_response(500, b"POST", True, 1).retry
    assert not policy.decide_response(500, b"GET", True, 1).retry


@pytest.mark.parametrize(
    ("on", "retried"),
    [
        (RetryOn.CONNECT_FAILURE, set()),
        (RetryOn.GATEWAY_ERROR, {502, 503, 504}),
        (RetryOn.SERVER_ERROR, set(range(500, 600))),
        (RetryOn.TOO_MANY_REQUESTS, {429}),
    ],
)
def test_which_responses_are_retried(on, retried):
    policy = RetryPolicy(Retries(on=(on,)))
    assert {s for s in range(200, 600) if policy.decide_response(s, b"GET", True, 1) is not None} == retried
    assert policy.by_response == bool(retried)


def test_grpc_unavailable():
    policy = RetryPolicy(Retries(on=(RetryOn.GRPC_UNAVAILABLE,), methods=("POST",)))
    assert policy.by_response
    assert policy.decide_response(200, b"POST", True, 1, b"14", grpc=True).retry
    assert policy.decide_response(200, b"POST", True, 1, b"13", grpc=True) is None
    assert policy.decide_response(503, b"POST", True, 1) is None


def test_only_a_call_of_grpc_needs_no_method():
    policy = RetryPolicy(Retries(on=(RetryOn.GRPC_UNAVAILABLE,)))
    assert policy.decide_response(200, b"POST", True, 1, b"14", grpc=True).retry
    assert not policy.decide_response(200, b"POST", True, 1, b"14").retry
    assert policy.decide_response(200, b"GET", True, 1, b"14").retry


def test_responses_keep_the_limit_and_the_body():
    policy = RetryPolicy(Retries(attempts=2, on=(RetryOn.SERVER_ERROR,)))
    assert policy.decide_response(500, b"GET", True, 2).retry
    assert policy.decide_response(500, b"GET", True, 3).reason == "limit"
    assert policy.decide_response(500, b"GET", False, 1).reason == "body-too-big"


def test_pauses_double_up_to_a_bound():
    policy = RetryPolicy(
        Retries(attempts=10, on=(RetryOn.SERVER_ERROR,), backoff=Backoff(base_s=0.1, max_s=0.5))
    )
    pauses = [policy.pause_s(attempts, Fixed(0.5)) for attempts in (1, 2, 3, 4, 10)]
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.25, 0.25])
    assert policy.pause_s(1, Fixed(0.0)) == 0.0
    assert RetryPolicy(Retries(backoff=Backoff(base_s=0.2))).pause_s(1, Fixed(0.5)) == pytest.approx(0.1)


@given(st.integers(1, 11), st.integers(0, 2**32))
def test_a_pause_is_between_nothing_and_its_bound(attempts, seed):
    policy = RetryPolicy(Retries(on=(RetryOn.SERVER_ERROR,)))
    assert 0 <= policy.pause_s(attempts, random.Random(seed)) < min(0.025 * 2 ** (attempts - 1), 0.25)


def test_retry_after():
    ready = RetryPolicy(Retries(on=(RetryOn.TOO_MANY_REQUESTS,), honor_retry_after=True))
    assert ready.pause_s(1, Fixed(0.5), b"2") == 2.0
    assert ready.pause_s(1, Fixed(0.5), b"30") == 30.0
    assert ready.pause_s(1, Fixed(0.5), b"31") < 0
    assert ready.pause_s(1, Fixed(0.5), b"Sun, 06 Nov 1994 08:49:37 GMT", NOON - 4) == 4.0
    assert ready.pause_s(1, Fixed(0.5), b"soon") == pytest.approx(0.0125)
    deaf = RetryPolicy(Retries(on=(RetryOn.TOO_MANY_REQUESTS,)))
    assert deaf.pause_s(1, Fixed(0.5), b"2") == pytest.approx(0.0125)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        (b"Sun, 06 Nov 1994 08:49:37 GMT", NOON),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", NOON),
        (b"Sun Nov  6 08:49:37 1994", NOON),
        (b"Sun, 06 Nov 1994 08:49:60 GMT", NOON + 23),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        (b"Sun, 06 Nov 1994 08:49:61 GMT", None),
        (b"Sun, 06 Nov 1994 24:49:37 GMT", None),
        (b"Sun, 31 Feb 1994 08:49:37 GMT", None),
        (b"Sun, 06 nov 1994 08:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 08:49:37 CET", None),
        (b"Sun, 06 Nov 0000 08:49:37 GMT", None),
        (b"", None),
    ],
)
def test_dates(text, at):
    assert http_date(text, NOON) == at


def test_a_short_year_is_within_fifty_years():
    now = 1_800_000_000.0  # 2027
    assert http_date(b"Wednesday, 06-Nov-75 08:49:37 GMT", now) > now
    assert http_date(b"Sunday, 06-Nov-94 08:49:37 GMT", now) == NOON


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"0", 0.0),
        (b" 120 ", 120.0),
        (b"-1", None),
        (b"1.5", None),
        (b"1" * 10, 1_111_111_111.0),
        (b"9" * 400, float("inf")),
        (b"Sun Nov  6 08:49:30 1994", 0.0),
    ],
)
def test_seconds_and_dates_of_the_past(value, seconds):
    assert retry_after_s(value, NOON) == seconds
