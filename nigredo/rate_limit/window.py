"""Rate limit decision: a function of a network's window and the network's next record. Pure.

The clock is the broker's append time of the record, not the wall clock, and never runs backwards within a network. So
every replay of the same log gives the same verdicts.
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
"""A repeated lead id, accepted within the window already: nothing to write."""

EXEMPT_KEPT = 50
"""Most uncounted acceptances stored in a window: exempt submissions are unlimited, so their storage is bounded."""


@immutable
class Verdict:
    """Result for one submission. `outcome` is `accepted`, `repeated`, or the reason of the refusal."""

    outcome: str
    retry_at: datetime | None
    """Time from which the limit accepts the next submission; only for `rate_limited`."""
    state: RateLimitState
    """The network's window after this submission."""


def judge(state: RateLimitState | None, submission: Submission, *, at: datetime, offset: int) -> Verdict:
    """Return the verdict on one submission.

    state: the network's window so far; None for a new network, or one evicted because nothing in it counted any more.
    at: the record's append time (UTC). offset: the record's offset in its partition.
    """
    now, counted, exempt, refused = _unexpired(state, submission.window_s, at)
    outcome, retry_at = ACCEPTED, None
    if _contains(counted, submission) or _contains(exempt, submission):
        outcome = REPEATED
    elif submission.edge_verdict is not None:
        # Two posts of one form within seconds are one intent of one person: refused, but not counted against them.
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
    """Return the window after a reset, in which no earlier submission counts; None when there was no window.

    The newest acceptances stay stored uncounted, as exempt ones are, so that a repeated id makes no second lead.
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
    """Return the window plus refusals whose contents were not stored; None, counting nothing, without a window."""
    if state is None:
        return None
    advanced = _advanced(state, refusals.client_network, state.limit, state.window_s, at, offset)
    return replace(advanced, refused=advanced.refused + refusals.count)


def pass_release(
    state: RateLimitState | None, command: RejectionRelease, *, at: datetime, offset: int
) -> RateLimitState | None:
    """Return the window after a release, which is outside the limit and not counted; None without a window."""
    if state is None:
        return None
    return _advanced(state, command.client_network, state.limit, state.window_s, at, offset)


def forgettable(state: RateLimitState, now: datetime) -> bool:
    """Return whether the window may be evicted: every acceptance in it, counted or not, has expired."""
    window = timedelta(seconds=state.window_s)
    known = (*state.accepted, *state.exempt)
    return now - state.updated_at >= window and all(now - acceptance.at >= window for acceptance in known)


def _advanced(
    state: RateLimitState, network: str, limit: int, window_s: int, at: datetime, offset: int
) -> RateLimitState:
    """Return the window at a record's time, without the acceptances that expired by then."""
    now, counted, exempt, refused = _unexpired(state, window_s, at)
    return RateLimitState(network, limit, window_s, counted, refused, now, offset, exempt=exempt)


def _unexpired(
    state: RateLimitState | None, window_s: int, at: datetime
) -> tuple[datetime, tuple[Acceptance, ...], tuple[Acceptance, ...], int]:
    """Return the window's time, which never goes back, its unexpired counted and exempt acceptances, and its refusals.

    The refusals are 0 when no counted acceptance is left.
    """
    if state is None:
        return at, (), (), 0
    now, window = max(at, state.updated_at), timedelta(seconds=window_s)
    counted, exempt = _within(state.accepted, window, now), _within(state.exempt, window, now)
    return now, counted, exempt, state.refused if counted else 0


def _within(acceptances: tuple[Acceptance, ...], window: timedelta, now: datetime) -> tuple[Acceptance, ...]:
    # An empty tuple is returned as it is, because most networks have no exempt acceptances.
    return acceptances and tuple(acceptance for acceptance in acceptances if now - acceptance.at < window)


def _contains(acceptances: tuple[Acceptance, ...], submission: Submission) -> bool:
    return bool(acceptances) and any(acceptance.id == submission.id for acceptance in acceptances)


def _retry_at(counted: tuple[Acceptance, ...], submission: Submission) -> datetime | None:
    """Return the time at which fewer acceptances than the limit count; None when that is the case already."""
    if len(counted) < submission.limit:
        return None
    return counted[-submission.limit].at + timedelta(seconds=submission.window_s)
