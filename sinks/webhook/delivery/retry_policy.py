"""What follows from an attempt: a decision, given the clock, that never waits and never sends. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schemas.topics import RETRY_DELAYS_S
from sinks.webhook.model import Outcome

JITTER = 0.2
"""Waits differ by so much either way, so that leads that failed together do not come back together."""
IN_PLACE_LONGEST_S = 10.0
"""A longer wait is made in a retry topic, where it holds no offset back."""
SPENT_SHARE = 0.8
"""A lead is not given up before so much of its schedule's time has passed, however often it was tried meanwhile."""


@dataclass(frozen=True, slots=True)
class EndpointState:
    """How the endpoint does, as far as the fate of a lead that failed depends on it."""

    closed: bool
    """Whether its breaker is closed. While it is not, nothing is given up, and the breaker says when to go on."""
    others_fail: bool
    """Whether other leads failed too since the endpoint last took one."""
    took_others: bool
    """Whether it took another lead since this one's first attempt."""


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """What to do now: nothing more (`done`), bury the lead (`dead`), or the next attempt in `retry_in_s`."""

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

    schedule_s: the waits before the second, third, … attempt. failing_for_s: since its first attempt. retry_after_s:
    what the receiver asked for; never sooner.
    """
    if outcome == Outcome.DELIVERED:
        return RetryDecision(done=True)
    asked_s = retry_after_s * uniform(1.0, 1.0 + JITTER)
    if not endpoint.closed:
        return RetryDecision(retry_in_s=asked_s)
    # A single lead is refused for what it is; when others are too, it is for what the endpoint became.
    if outcome == Outcome.REFUSED and not endpoint.others_fail:
        return RetryDecision(dead=True)
    spent = number > len(schedule_s) and failing_for_s >= SPENT_SHARE * sum(schedule_s)
    if spent and endpoint.took_others:
        return RetryDecision(dead=True)
    wait_s = schedule_s[min(number, len(schedule_s)) - 1] * uniform(1.0 - JITTER, 1.0 + JITTER)
    return RetryDecision(retry_in_s=max(wait_s, asked_s))


def delay_for(wait_s: float) -> str:
    """Return which of the retry topics a wait is made in: the longest that is not longer, else the shortest."""
    fitting = [delay for delay, delay_s in RETRY_DELAYS_S.items() if delay_s <= wait_s]
    return fitting[-1] if fitting else next(iter(RETRY_DELAYS_S))
