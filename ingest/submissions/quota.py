"""Remaining quota of a client network, for the `RateLimit` headers of an answer."""

from __future__ import annotations

from datetime import datetime
from math import ceil

from nigredo.rate_limit.window import SPAM, Verdict
from schemas.events import Acceptance, Submission
from schemas.immutable import immutable


@immutable
class Quota:
    """A client network's quota: how many more submissions fit into the window, and when the next slot is free."""

    limit: int
    window_s: int
    remaining: int
    reset_s: int
    """Seconds until the oldest counted submission leaves the window; 0 when none counts."""

    @classmethod
    def of(cls, verdict: Verdict, submission: Submission, at: datetime) -> Quota:
        """Return the quota that remains after a verdict at `at`."""
        limit, window_s, counted = submission.limit, submission.window_s, verdict.state.accepted
        if verdict.outcome == SPAM and not submission.exempt:
            # Counted as if it were accepted, so that the first answer does not tell a program that it was recognised.
            counted = (*counted, Acceptance(submission.id, at))
        # Whole seconds, rounded up: a client that came back a second early would be refused again.
        reset_s = window_s + ceil((counted[0].at - at).total_seconds()) if counted else 0
        return cls(limit, window_s, max(0, limit - len(counted)), max(0, reset_s))
