"""Simulation of the rate limit for submissions that were not sent. No I/O; by the limiter's own function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from uuid import uuid4

from nigredo.control.state import Control
from nigredo.networks import Address, within
from nigredo.rate_limit.window import ACCEPTED, RATE_LIMITED, judge
from schemas.events import Contact, RateLimitState, Submission

BLOCKED = "blocked"
MAINTENANCE = "maintenance"
NOBODY = Contact("", "", "", {})


@dataclass(frozen=True, slots=True)
class Simulated:
    """Result of a simulation."""

    counted: int
    """Acceptances already counted in the window."""
    verdicts: list[str]
    """Verdict on each submission: the limiter's, or `blocked` or `maintenance`, with which ingest refuses before it."""
    next_at: datetime | None
    """Time from which another submission would be accepted after these; None while ingest refuses all."""


def simulated(
    state: RateLimitState | None, address: Address, network: str, count: int, control: Control, *, at: datetime
) -> Simulated:
    """Judge `count` submissions of an address, all at the time `at`.

    state: the window that the limiter wrote last; None for a network without a window.
    """
    settings = control.settings
    form = Submission(
        id=uuid4(),
        client_network=network,
        ip_address=str(address),
        user_agent=None,
        form_id=None,
        source=None,
        contact=NOBODY,
        taken_at=at,
        limit=settings.rate_limit_per_hour,
        window_s=settings.rate_limit_window_s,
        exempt=within(address, settings.rate_limit_exempt),
        edge_verdict=None,
    )
    offset = 0 if state is None else state.input_offset + 1
    first = judge(state, form, at=at, offset=offset)
    counted = len(first.state.accepted) - (first.outcome == ACCEPTED and not form.exempt)
    if control.blocked.cover(address) or settings.maintenance_mode:
        verdict_at_ingest = BLOCKED if control.blocked.cover(address) else MAINTENANCE
        return Simulated(counted, [verdict_at_ingest] * count, None)
    verdicts = []
    for step in range(count):
        verdict = judge(state, _another(form), at=at, offset=offset + step)
        verdicts.append(verdict.outcome)
        state = verdict.state
    after = judge(state, _another(form), at=at, offset=offset + count)
    return Simulated(counted, verdicts, after.retry_at if after.outcome == RATE_LIMITED else at)


def _another(form: Submission) -> Submission:
    return replace(form, id=uuid4())
