"""Rate limit decision, compared with the definition of the limit."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from nigredo.rate_limit.window import (
    ACCEPTED,
    DUPLICATE,
    RATE_LIMITED,
    forgettable,
    judge,
)
from tests.support.submission_logs import HOUR, NOON, accepted_times, gaps, judge_all, limits, log_of, submission


@given(gaps, limits)
def test_no_hour_holds_more_acceptances_than_the_limit(gaps_s: list[int], limit: int) -> None:
    log = log_of(gaps_s, limit)

    accepted = accepted_times(log, judge_all(log))

    for start in accepted:
        assert sum(start <= at < start + HOUR for at in accepted) <= limit


@given(gaps, limits)
def test_a_submission_is_refused_only_when_the_limit_is_reached(gaps_s: list[int], limit: int) -> None:
    log = log_of(gaps_s, limit)
    accepted: list[datetime] = []

    for (_, at), verdict in zip(log, judge_all(log), strict=True):
        full = sum(at - earlier < HOUR for earlier in accepted) >= limit
        assert verdict.outcome == (RATE_LIMITED if full else ACCEPTED)
        if not full:
            accepted.append(at)


@given(gaps, limits)
def test_waiting_exactly_as_told_is_enough_and_less_is_not(gaps_s: list[int], limit: int) -> None:
    log = log_of(gaps_s, limit)
    for offset, verdict in enumerate(judge_all(log)):
        if verdict.outcome == RATE_LIMITED:
            assert verdict.retry_at is not None
            after, before = verdict.retry_at, verdict.retry_at - timedelta(milliseconds=1)
            assert judge(verdict.state, submission(limit=limit), at=after, offset=offset + 1).outcome == ACCEPTED
            if before >= verdict.state.updated_at:
                early = judge(verdict.state, submission(limit=limit), at=before, offset=offset + 1)
                assert early.outcome == RATE_LIMITED


@given(gaps, limits, st.data())
def test_the_same_log_gives_the_same_verdicts_from_wherever_it_is_read_again(
    gaps_s: list[int], limit: int, data: st.DataObject
) -> None:
    log = log_of(gaps_s, limit)
    first = judge_all(log)
    crash_at = data.draw(st.integers(0, len(log) - 1))

    state = first[crash_at - 1].state if crash_at else None
    again = []
    for offset in range(crash_at, len(log)):
        again.append(judge(state, log[offset][0], at=log[offset][1], offset=offset))
        state = again[-1].state

    assert again == first[crash_at:]


@given(gaps)
def test_the_state_never_holds_more_than_the_limit_nor_anything_outside_the_window(gaps_s: list[int]) -> None:
    for verdict in judge_all(log_of(gaps_s, 3)):
        assert len(verdict.state.accepted) <= 3
        assert all(verdict.state.updated_at - kept.at < HOUR for kept in verdict.state.accepted)


def test_a_clock_that_goes_back_never_opens_the_window() -> None:
    first = judge(None, submission(limit=1), at=NOON, offset=0)

    earlier = judge(first.state, submission(limit=1), at=NOON - timedelta(hours=5), offset=1)

    assert earlier.outcome == RATE_LIMITED
    assert earlier.state.updated_at == NOON


def test_a_limit_lowered_between_records_holds_at_once_and_a_raised_one_too() -> None:
    log = [(submission(limit=5), NOON + timedelta(minutes=n)) for n in range(4)]
    state = judge_all(log)[-1].state

    lowered = judge(state, submission(limit=2), at=NOON + timedelta(minutes=5), offset=4)
    raised = judge(lowered.state, submission(limit=5), at=NOON + timedelta(minutes=6), offset=5)

    assert lowered.outcome == RATE_LIMITED
    # The third of the four counted ones must leave before fewer than two are left.
    assert lowered.retry_at == NOON + timedelta(minutes=2) + HOUR
    assert raised.outcome == ACCEPTED


def test_a_refusal_at_the_edge_is_counted_and_never_accepted() -> None:
    verdict = judge(None, submission(edge=RATE_LIMITED), at=NOON, offset=0)

    assert verdict.outcome == RATE_LIMITED
    assert (verdict.state.accepted, verdict.state.refused) == ((), 1)


def test_a_double_click_is_refused_but_not_held_against_the_person() -> None:
    verdict = judge(None, submission(edge=DUPLICATE), at=NOON, offset=0)

    assert verdict.outcome == DUPLICATE
    assert verdict.state.refused == 0


def test_a_state_is_forgettable_once_its_window_is_over() -> None:
    state = judge(None, submission(), at=NOON, offset=0).state

    assert not forgettable(state, NOON + HOUR - timedelta(milliseconds=1))
    assert forgettable(state, NOON + HOUR)
    exempt = judge(None, submission(exempt=True), at=NOON, offset=0).state
    assert not forgettable(exempt, NOON + HOUR - timedelta(milliseconds=1))
    assert forgettable(exempt, NOON + HOUR)
    assert judge(state, submission(limit=1), at=NOON + HOUR, offset=1).outcome == ACCEPTED
