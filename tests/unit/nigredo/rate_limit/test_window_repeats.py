"""Repeated ids, and acceptances that are stored without being counted."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from nigredo.rate_limit.window import (
    ACCEPTED,
    EXEMPT_KEPT,
    RATE_LIMITED,
    REPEATED,
    judge,
    reset,
)
from schemas.events import LimitReset, RateLimitState, Submission
from tests.support.submission_logs import (
    HOUR,
    NETWORK,
    NOON,
    RESET,
    Anything,
    judge_all,
    limits,
    logs,
    outcomes,
    submission,
)


@st.composite
def logs_with_repeats(draw: st.DrawFn) -> list[tuple[Anything, datetime]]:
    """Draw submissions of which some are exempt, under so few ids that many come again, and resets between them."""
    at, log = NOON, list[tuple[Anything, datetime]]()
    for _ in range(draw(st.integers(1, 60))):
        at += timedelta(seconds=draw(st.integers(0, 1800)))
        lead_id = UUID(int=draw(st.integers(0, 7)))
        one = submission(limit=draw(limits), lead_id=lead_id, exempt=draw(st.booleans()))
        log.append((RESET if draw(st.integers(0, 5)) == 0 else one, at))
    return log


@given(logs_with_repeats())
def test_an_id_is_accepted_once_within_the_window_whether_it_was_exempt_or_its_network_freed(
    log: list[tuple[Anything, datetime]],
) -> None:
    accepted: dict[UUID, datetime] = {}

    for (event, at), (outcome, _) in zip(log, outcomes(log), strict=True):
        if isinstance(event, Submission):
            known = event.id in accepted and at - accepted[event.id] < HOUR
            assert (outcome == REPEATED) == known
            if outcome == ACCEPTED:
                accepted[event.id] = at


@given(logs(), st.data())
def test_exempt_submissions_between_others_change_no_verdict_of_theirs_and_no_count(
    log: list[tuple[Anything, datetime]], data: st.DataObject
) -> None:
    followed = data.draw(st.lists(st.booleans(), min_size=len(log), max_size=len(log)))
    mixed = list[tuple[Anything, datetime]]()
    for entry, by_an_exempt_one in zip(log, followed, strict=True):
        mixed += [entry, (submission(exempt=True), entry[1])] if by_an_exempt_one else [entry]

    among = [found for (event, _), found in zip(mixed, outcomes(mixed), strict=True) if not _is_exempt(event)]

    assert [_decided(*found) for found in among] == [_decided(*found) for found in outcomes(log)]


def _is_exempt(event: Anything) -> bool:
    return isinstance(event, Submission) and event.exempt


def _decided(outcome: str | None, state: RateLimitState | None) -> object:
    return outcome, [] if state is None else [kept.at for kept in state.accepted]


@given(st.lists(st.integers(0, 90), min_size=EXEMPT_KEPT, max_size=2 * EXEMPT_KEPT))
def test_of_exempt_submissions_the_newest_are_known_and_no_more_nor_any_outside_the_window(gaps_s: list[int]) -> None:
    at, log = NOON, list[tuple[Submission, datetime]]()
    for gap_s in gaps_s:
        at += timedelta(seconds=gap_s)
        log.append((submission(exempt=True), at))

    for number, verdict in enumerate(judge_all(log)):
        so_far = [(event.id, then) for event, then in log[: number + 1] if log[number][1] - then < HOUR]
        assert [(kept.id, kept.at) for kept in verdict.state.exempt] == so_far[-EXEMPT_KEPT:]


def test_an_id_that_still_counts_is_neither_accepted_nor_refused_again() -> None:
    event = submission(limit=1)

    first = judge(None, event, at=NOON, offset=0)
    again = judge(first.state, event, at=NOON + timedelta(minutes=5), offset=1)

    assert (first.outcome, again.outcome) == (ACCEPTED, REPEATED)
    assert again.state.accepted == first.state.accepted
    assert again.state.refused == 0
    assert again.state.input_offset == 1


def test_an_exempt_submission_is_accepted_and_not_counted() -> None:
    full = judge(None, submission(limit=1), at=NOON, offset=0)

    exempt = judge(full.state, submission(limit=1, exempt=True), at=NOON, offset=1)

    assert exempt.outcome == ACCEPTED
    assert exempt.state.accepted == full.state.accepted


def test_an_exempt_submission_that_comes_again_is_known_until_its_window_is_over() -> None:
    event = submission(exempt=True)
    late, over = NOON + HOUR - timedelta(milliseconds=1), NOON + HOUR

    verdicts = judge_all([(event, NOON), (event, late), (submission(), late), (event, late), (event, over)])

    assert [verdict.outcome for verdict in verdicts] == [ACCEPTED, REPEATED, ACCEPTED, REPEATED, ACCEPTED]


def test_what_was_exempt_stays_known_when_it_is_so_no_more_and_when_its_network_is_freed() -> None:
    event = submission(limit=1, exempt=True)
    full = judge(judge(None, event, at=NOON, offset=0).state, submission(limit=1), at=NOON, offset=1)

    no_more = judge(full.state, submission(limit=1, lead_id=event.id), at=NOON, offset=2)
    freed = reset(full.state, LimitReset(NETWORK, "test", NOON), at=NOON, offset=2)

    assert no_more.outcome == REPEATED
    assert judge(freed, event, at=NOON, offset=3).outcome == REPEATED
    assert judge(freed, submission(limit=1), at=NOON, offset=3).outcome == ACCEPTED


def test_of_what_counted_before_a_network_was_freed_the_newest_stay_known_and_no_more() -> None:
    full = judge_all([(submission(limit=200), NOON + timedelta(seconds=n)) for n in range(2 * EXEMPT_KEPT)])[-1].state

    freed = reset(full, RESET, at=full.updated_at, offset=full.input_offset + 1)

    assert freed is not None
    assert (freed.accepted, freed.exempt) == ((), full.accepted[-EXEMPT_KEPT:])


def test_a_refused_submission_that_comes_again_is_judged_by_its_own_time_and_is_one_lead_at_most() -> None:
    """A record may be sent twice, as after a crash of its producer: the limit holds, whichever is accepted."""
    first, second = submission(limit=1), submission(limit=1)
    log = [(first, NOON), (second, NOON), (second, NOON + HOUR / 2), (second, NOON + HOUR), (second, NOON + HOUR)]

    verdicts = judge_all(log)

    outcomes = [verdict.outcome for verdict in verdicts]
    assert outcomes == [ACCEPTED, RATE_LIMITED, RATE_LIMITED, ACCEPTED, REPEATED]
    assert [acceptance.id for acceptance in verdicts[-1].state.accepted] == [second.id]


def test_an_accepted_submission_that_comes_again_after_its_window_is_accepted_under_the_same_id() -> None:
    """The window no longer has the id; storage and webhook receivers deduplicate, by row id and `webhook-id`."""
    event = submission()

    verdicts = judge_all([(event, NOON), (event, NOON + HOUR - timedelta(seconds=1)), (event, NOON + HOUR)])

    assert [verdict.outcome for verdict in verdicts] == [ACCEPTED, REPEATED, ACCEPTED]
    assert [acceptance.id for acceptance in verdicts[-1].state.accepted] == [event.id]
