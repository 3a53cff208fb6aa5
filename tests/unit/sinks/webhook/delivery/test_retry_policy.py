"""Retry policy: when a lead is done, dead or retried, and after which wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nigredo.settings import Settings
from schemas.topics import RETRY_DELAYS_S
from sinks.webhook.delivery.retry_policy import JITTER, EndpointState, RetryDecision, decide_retry, delay_for
from sinks.webhook.model import Outcome

SCHEDULE_S = Settings.from_environment({}).webhook_retry_schedule
DAY_S = 86_400.0
HEALTHY = EndpointState(closed=True, others_fail=False, accepted_others=True)


def decide(
    outcome: Outcome,
    *,
    number: int = 1,
    failing_for_s: float = 1.0,
    endpoint: EndpointState = HEALTHY,
    retry_after_s: float = 0.0,
) -> RetryDecision:
    return decide_retry(
        outcome,
        SCHEDULE_S,
        number=number,
        failing_for_s=failing_for_s,
        endpoint=endpoint,
        retry_after_s=retry_after_s,
    )


def test_delivered_is_done() -> None:
    assert decide(Outcome.DELIVERED) == RetryDecision(done=True)


def test_a_lead_that_is_refused_alone_is_dead_at_once() -> None:
    assert decide(Outcome.REFUSED) == RetryDecision(dead=True)


def test_a_lead_that_is_refused_like_others_is_retried() -> None:
    """A wrong secret or route makes the receiver refuse every lead."""
    decision = decide(Outcome.REFUSED, endpoint=EndpointState(closed=True, others_fail=True, accepted_others=True))

    assert not decision.dead
    assert decision.retry_in_s > 0


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.RETRY, Outcome.BLOCKED])
def test_no_lead_is_given_up_while_the_breaker_is_open(outcome: Outcome) -> None:
    open_breaker = EndpointState(closed=False, others_fail=False, accepted_others=True)

    assert not decide(outcome, number=1000, failing_for_s=10 * DAY_S, endpoint=open_breaker).dead


def test_a_failing_lead_is_retried_for_a_day_by_default() -> None:
    assert 0.9 * DAY_S < sum(SCHEDULE_S) < 1.1 * DAY_S
    assert not decide(Outcome.RETRY, number=len(SCHEDULE_S), failing_for_s=DAY_S).dead
    assert decide(Outcome.RETRY, number=len(SCHEDULE_S) + 1, failing_for_s=DAY_S).dead


def test_attempts_faster_than_the_schedule_do_not_shorten_it() -> None:
    assert not decide(Outcome.RETRY, number=1000, failing_for_s=3600).dead


def test_no_lead_expires_while_the_receiver_accepts_no_lead_at_all() -> None:
    accepts_nothing = EndpointState(closed=True, others_fail=True, accepted_others=False)

    decision = decide(Outcome.RETRY, number=1000, failing_for_s=10 * DAY_S, endpoint=accepts_nothing)

    assert not decision.dead
    assert decision.retry_in_s > 3600


@given(
    st.sampled_from([Outcome.RETRY, Outcome.REFUSED, Outcome.BLOCKED]),
    st.integers(1, 50),
    st.floats(0, 1e6),
    st.floats(0, DAY_S),
    st.builds(EndpointState, st.booleans(), st.booleans(), st.booleans()),
)
def test_no_attempt_is_earlier_than_the_receiver_asked(
    outcome: Outcome, number: int, failing_for_s: float, asked_s: float, endpoint: EndpointState
) -> None:
    decision = decide(outcome, number=number, failing_for_s=failing_for_s, endpoint=endpoint, retry_after_s=asked_s)

    assert not decision.done
    assert decision.dead or decision.retry_in_s >= asked_s


@given(st.integers(1, len(SCHEDULE_S)))
def test_waits_follow_the_schedule_with_jitter(number: int) -> None:
    wait_s = decide(Outcome.RETRY, number=number).retry_in_s

    planned_s = SCHEDULE_S[number - 1]
    assert planned_s * (1 - JITTER) <= wait_s <= planned_s * (1 + JITTER)


@given(st.floats(0.001, 10 * DAY_S))
def test_a_wait_is_spent_in_the_retry_topic_with_the_longest_delay_that_does_not_exceed_it(wait_s: float) -> None:
    delay_s = RETRY_DELAYS_S[delay_for(wait_s)]

    assert delay_s <= max(wait_s, 60.0)
    assert not any(delay_s < other <= wait_s for other in RETRY_DELAYS_S.values())
