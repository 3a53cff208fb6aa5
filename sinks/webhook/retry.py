"""What follows from an attempt: a decision, given the clock, that never waits and never sends. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from nigredo.backoff import Backoff

DELIVERED = "delivered"
RETRY = "retry"
REFUSED = "refused"
"""The receiver says that it will never take it: the lead's fault, or that of a secret or a route gone wrong."""

DEAD_AFTER = 3
"""A refused lead is given up after this many attempts."""
GIVE_UP_AFTER_S = 24 * 3600.0
"""A lead that fails for so long is given up too."""


@dataclass(frozen=True, slots=True)
class Next:
    """What to do now: nothing more (`done`), bury the lead (`dead`), or the next attempt in `retry_in_s`."""

    done: bool = False
    dead: bool = False
    retry_in_s: float = 0.0


def after(
    outcome: str, backoff: Backoff, *, number: int, failing_for_s: float, others_succeed: bool, retry_after_s: float
) -> Next:
    """Decide what follows from attempt `number` of a lead.

    failing_for_s: since its first attempt. others_succeed: whether the endpoint took another lead since then; without
    that nothing is given up, since a wrong secret or route would bury everything. retry_after_s: what the receiver
    asked for; never sooner.
    """
    if outcome == DELIVERED:
        return Next(done=True)
    spent = number >= DEAD_AFTER if outcome == REFUSED else failing_for_s > GIVE_UP_AFTER_S
    if spent and others_succeed:
        return Next(dead=True)
    return Next(retry_in_s=max(backoff.next_wait_s(), retry_after_s))
