"""Resets, releases and counted refusals between submissions, and their effect on verdicts and windows."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from nigredo.rate_limit.window import (
    ACCEPTED,
    RATE_LIMITED,
    count_refusals,
    judge,
    reset,
)
from schemas.events import LimitReset, RefusalCount, RejectionRelease, Submission
from tests.support.submission_logs import HOUR, NETWORK, NOON, Anything, logs, outcomes, step, submission


@given(logs())
def test_with_resets_and_releases_a_submission_is_refused_exactly_when_the_definition_says_so(
    log: list[tuple[Anything, datetime]],
) -> None:
    counted: list[datetime] = []
    for (event, at), (outcome, state) in zip(log, outcomes(log), strict=True):
        counted = [earlier for earlier in counted if at - earlier < HOUR]
        if isinstance(event, LimitReset):
            counted = []
        if isinstance(event, Submission):
            assert outcome == (ACCEPTED if len(counted) < event.limit else RATE_LIMITED)
            counted += [at] if outcome == ACCEPTED else []
        if state is not None:
            assert [kept.at for kept in state.accepted] == counted


@given(logs())
def test_a_release_changes_no_verdict_and_never_the_count_of_what_is_accepted(
    log: list[tuple[Anything, datetime]],
) -> None:
    without = [entry for entry in log if not isinstance(entry[0], RejectionRelease)]

    assert [outcome for outcome, _ in outcomes(log) if outcome] == [o for o, _ in outcomes(without) if o]


@given(logs(), st.data())
def test_a_log_with_resets_and_releases_read_again_from_anywhere_gives_the_same_verdicts(
    log: list[tuple[Anything, datetime]], data: st.DataObject
) -> None:
    """The limiter reads the log so: it skips every record at or below the window's input offset."""
    first = outcomes(log)
    durable, committed = data.draw(st.integers(0, len(log) - 1)), data.draw(st.integers(0, len(log) - 1))
    state = first[durable][1]

    for offset in range(min(committed, durable + 1), len(log)):
        if state is not None and offset <= state.input_offset:
            continue
        outcome, state = step(state, *log[offset], offset)
        assert (outcome, state) == first[offset]


@given(logs())
def test_a_known_window_moves_its_offset_on_with_every_record(log: list[tuple[Anything, datetime]]) -> None:
    for offset, (_, state) in enumerate(outcomes(log)):
        assert state is None or state.input_offset == offset


def test_a_reset_frees_the_network() -> None:
    full = judge(None, submission(limit=1), at=NOON, offset=0)

    freed = reset(full.state, LimitReset(NETWORK, "test", NOON), at=NOON + timedelta(seconds=1), offset=1)
    after = judge(freed, submission(limit=1), at=NOON + timedelta(seconds=2), offset=2)

    assert after.outcome == ACCEPTED
    assert reset(None, LimitReset(NETWORK, "test", NOON), at=NOON, offset=0) is None


def test_refusals_that_come_as_a_number_are_counted() -> None:
    state = judge(None, submission(), at=NOON, offset=0).state
    command = RefusalCount(NETWORK, 100, NOON, NOON)

    counted = count_refusals(state, command, at=NOON + timedelta(minutes=1), offset=1)

    assert counted is not None
    assert counted.refused == 100
    assert counted.accepted == state.accepted
    assert count_refusals(None, command, at=NOON, offset=0) is None
