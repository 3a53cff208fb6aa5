"""Retry policy: decides after an attempt whether to stop, dead-letter the lead or retry, and after which wait. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.topics import RETRY_DELAYS_S
from sinks.webhook.model import Outcome

JITTER = 0.2
"""Random share added to or taken from every wait, so that leads that failed together are not retried together."""
IN_PLACE_LONGEST_S = 10.0
"""Longest wait in memory. A longer one is spent in a retry topic, where the lead holds no offset back."""
SPENT_SHARE = 0.8
"""Share of the schedule's total time that must pass before a lead is given up, however many attempts were made."""


@dataclass(frozen=True, slots=True)
class EndpointState:
    """State of the endpoint, as far as the decision about a failed lead depends on it."""

    closed: bool
    """Whether the breaker is closed. While it is open, no lead is given up, and the breaker times the next attempt."""
    others_fail: bool
    """Whether other leads failed too since the receiver last accepted one."""
    accepted_others: bool
    """Whether the receiver accepted another lead since the first attempt of this one."""


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """Decision after an attempt: stop (`done`), dead-letter the lead (`dead`), or retry in `retry_in_s` seconds."""

    done: bool = False
    dead: bool = False
    retry_in_s: float = 0.0


def decide_retry(
    outcome: Outcome,
    schedule_s: Sequence[float],
    *,
    number: int,
    failing_for_s: float,
    endpoint: EndpointState,
    retry_after_s: float,
    uniform: Callable[[float, float], float] = random.uniform,
) -> RetryDecision:
    """Decide what follows from attempt `number` of a lead.

    schedule_s: the waits before the second, third, … attempt. failing_for_s: seconds since the first attempt.
    retry_after_s: wait requested by the receiver; the next attempt is never earlier.
    """
    if outcome == Outcome.DELIVERED:
        return RetryDecision(done=True)
    asked_s = retry_after_s * uniform(1.0, 1.0 + JITTER)
    if not endpoint.closed:
        return RetryDecision(retry_in_s=asked_s)
    # A lead that is refused alone is the cause itself; when others fail too, the endpoint is the cause.
    if outcome == Outcome.REFUSED and not endpoint.others_fail:
        return RetryDecision(dead=True)
    spent = number > len(schedule_s) and failing_for_s >= SPENT_SHARE * sum(schedule_s)
    if spent and endpoint.accepted_others:
        return RetryDecision(dead=True)
    wait_s = schedule_s[min(number, len(schedule_s)) - 1] * uniform(1.0 - JITTER, 1.0 + JITTER)
    return RetryDecision(retry_in_s=max(wait_s, asked_s))


def delay_for(wait_s: float) -> str:
    """Return the retry topic for a wait: the longest delay that does not exceed the wait, else the shortest delay."""
    fitting = [delay for delay, delay_s in RETRY_DELAYS_S.items() if delay_s <= wait_s]
    return fitting[-1] if fitting else next(iter(RETRY_DELAYS_S))
