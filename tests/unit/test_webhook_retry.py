"""What follows from an attempt."""

from __future__ import annotations

import pytest

from nigredo.backoff import Backoff
from sinks.webhook.retry import DEAD_AFTER, DELIVERED, GIVE_UP_AFTER_S, REFUSED, RETRY, Next, after


def decide(
    outcome: str,
    *,
    number: int = 1,
    failing_for_s: float = 1.0,
    others_succeed: bool = True,
    retry_after_s: float = 0.0,
) -> Next:
    return after(
        outcome,
        Backoff(first_s=0.5, longest_s=60.0),
        number=number,
        failing_for_s=failing_for_s,
        others_succeed=others_succeed,
        retry_after_s=retry_after_s,
    )


def test_delivered_is_done() -> None:
    assert decide(DELIVERED) == Next(done=True)


def test_a_refused_lead_is_given_up_after_a_few_attempts() -> None:
    assert not decide(REFUSED, number=DEAD_AFTER - 1).dead
    assert decide(REFUSED, number=DEAD_AFTER).dead


def test_a_failing_lead_is_tried_for_a_day() -> None:
    assert not decide(RETRY, number=1000, failing_for_s=GIVE_UP_AFTER_S).dead
    assert decide(RETRY, number=1000, failing_for_s=GIVE_UP_AFTER_S + 1).dead


@pytest.mark.parametrize("outcome", [REFUSED, RETRY])
def test_nothing_is_given_up_while_the_endpoint_takes_nothing_at_all(outcome: str) -> None:
    decision = decide(outcome, number=1000, failing_for_s=10 * GIVE_UP_AFTER_S, others_succeed=False)

    assert not decision.dead
    assert decision.retry_in_s > 0


def test_no_attempt_comes_sooner_than_asked() -> None:
    assert decide(RETRY, retry_after_s=30).retry_in_s == 30
