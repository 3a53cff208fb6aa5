"""The rate limit's one decision: a pure function of a network's window and the next record about it.

The clock is the broker's append time of the record, never a machine's own, and never runs backwards within a network.
So the same log gives the same verdicts, whoever judges it and how often.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from schemas.events import Acceptance, LimitReset, RateLimitState, RefusalCount, RejectionRelease, Submission
from schemas.immutable import immutable

ACCEPTED = "accepted"
RATE_LIMITED = "rate_limited"
DUPLICATE = "duplicate"
SPAM = "spam"
REPEATED = "repeated"
"""A lead id accepted within the window, once more: done already, nothing to write."""

EXEMPT_KEPT = 50
"""Acceptances that a window knows without counting them: exempt ones have no limit, what is kept of them has."""


@immutable
class Verdict:
    """What becomes of a submission. `outcome` is `accepted`, `repeated`, or the reason of the refusal."""

    outcome: str
    retry_at: datetime | None
    """From when the limit would let the next one through; only of a `rate_limited` one."""
    state: RateLimitState


def judge(state: RateLimitState | None, submission: Submission, *, at: datetime, offset: int) -> Verdict:
    """Decide one submission.

    state: the network's window so far; None for a network never seen, or forgotten since nothing counts any more.
    at: the record's append time. offset: where it stands in its partition.
    """
    now, counted, exempt, refused = _still_known(state, submission.window_s, at)
    outcome, retry_at = ACCEPTED, None
    if _knows(counted, submission) or _knows(exempt, submission):
        outcome = REPEATED
    elif submission.edge_verdict is not None:
        # Two posts of one form within seconds are one person's one wish: refused, but not held against him.
        outcome, refused = submission.edge_verdict, refused + (submission.edge_verdict != DUPLICATE)
    elif submission.exempt:
        exempt = (*exempt, Acceptance(submission.id, now))[-EXEMPT_KEPT:]
    elif len(counted) < submission.limit:
        counted = (*counted, Acceptance(submission.id, now))
    else:
        outcome, refused = RATE_LIMITED, refused + 1
    if outcome == RATE_LIMITED:
        retry_at = _retry_at(counted, submission)
    network, limit, window_s = submission.client_network, submission.limit, submission.window_s
    after = RateLimitState(network, limit, window_s, counted, refused, now, offset, exempt=exempt)
    return Verdict(outcome, retry_at, after)


def reset(state: RateLimitState | None, command: LimitReset, *, at: datetime, offset: int) -> RateLimitState | None:
    """Free a network: nothing that came before counts. None when there was nothing to free.

    The newest acceptances stay known, as those that were exempt are: a repeat of one is no second lead.
    """
    if state is None:
        return None
    known = sorted((*state.exempt, *state.accepted), key=lambda acceptance: acceptance.at)
    now = max(at, state.updated_at)
    return replace(
        state, accepted=(), refused=0, exempt=tuple(known[-EXEMPT_KEPT:]), updated_at=now, input_offset=offset
    )


def count_refusals(
    state: RateLimitState | None, refusals: RefusalCount, *, at: datetime, offset: int
) -> RateLimitState | None:
    """Add refusals whose contents were not kept. None when the network's window is unknown: then nothing counts."""
    if state is None:
        return None
    before = _advanced(state, refusals.client_network, state.limit, state.window_s, at, offset)
    return replace(before, refused=before.refused + refusals.count)


def pass_release(
    state: RateLimitState | None, command: RejectionRelease, *, at: datetime, offset: int
) -> RateLimitState | None:
    """Let a release by: it is outside the limit and counts for nothing. None when the network's window is unknown."""
    if state is None:
        return None
    return _advanced(state, command.client_network, state.limit, state.window_s, at, offset)


def forgettable(state: RateLimitState, now: datetime) -> bool:
    """Say whether the state decides nothing any more: every acceptance in it, counted or not, is out of its window."""
    window = timedelta(seconds=state.window_s)
    known = (*state.accepted, *state.exempt)
    return now - state.updated_at >= window and all(now - acceptance.at >= window for acceptance in known)


def _advanced(
    state: RateLimitState, network: str, limit: int, window_s: int, at: datetime, offset: int
) -> RateLimitState:
    """Move a window on to a record's time: what is older than the window counts no more."""
    now, counted, exempt, refused = _still_known(state, window_s, at)
    return RateLimitState(network, limit, window_s, counted, refused, now, offset, exempt=exempt)


def _still_known(
    state: RateLimitState | None, window_s: int, at: datetime
) -> tuple[datetime, tuple[Acceptance, ...], tuple[Acceptance, ...], int]:
    """Return the time, which never goes back, and what of a window is no older: counted, exempt, and refused since."""
    if state is None:
        return at, (), (), 0
    now, window = max(at, state.updated_at), timedelta(seconds=window_s)
    counted, exempt = _within(state.accepted, window, now), _within(state.exempt, window, now)
    return now, counted, exempt, state.refused if counted else 0


def _within(acceptances: tuple[Acceptance, ...], window: timedelta, now: datetime) -> tuple[Acceptance, ...]:
    # Most networks are not exempt: for them there is nothing to build.
    return acceptances and tuple(acceptance for acceptance in acceptances if now - acceptance.at < window)


def _knows(acceptances: tuple[Acceptance, ...], submission: Submission) -> bool:
    return bool(acceptances) and any(acceptance.id == submission.id for acceptance in acceptances)


def _retry_at(counted: tuple[Acceptance, ...], submission: Submission) -> datetime | None:
    """Return when fewer than the limit will count; None when that is so already."""
    if len(counted) < submission.limit:
        return None
    return counted[-submission.limit].at + timedelta(seconds=submission.window_s)
