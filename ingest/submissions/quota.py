"""What the limit leaves a client, for the answer's headers."""

from __future__ import annotations

from datetime import datetime
from math import ceil

from nigredo.rate_limit.window import SPAM, Verdict
from schemas.events import Acceptance, Submission
from schemas.immutable import immutable


@immutable
class Quota:
    """What the limit leaves a client network: how many more within the window, and when the next one comes free."""

    limit: int
    window_s: int
    remaining: int
    reset_s: int
    """Seconds until the oldest counted submission counts no more; 0 when none counts."""

    @classmethod
    def of(cls, verdict: Verdict, submission: Submission, at: datetime) -> Quota:
        """Return what a verdict leaves."""
        limit, window_s, counted = submission.limit, submission.window_s, verdict.state.accepted
        if verdict.outcome == SPAM and not submission.exempt:
            # A program learns nothing from its first answer: it looks like that to a form which counts.
            counted = (*counted, Acceptance(submission.id, at))
        # Whole seconds, rounded up: who comes back a second early is refused again.
        reset_s = window_s + ceil((counted[0].at - at).total_seconds()) if counted else 0
        return cls(limit, window_s, max(0, limit - len(counted)), max(0, reset_s))
