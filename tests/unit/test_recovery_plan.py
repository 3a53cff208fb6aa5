"""The plan of a recovery: nothing unhandled is skipped, and no limit is broken by judging again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nigredo.known_windows import OF_NO_RECORD
from nigredo.log_position import LogNow, LogPosition, Mark
from nigredo.recovery_plan import CLOCKS_DIFFER_MS, Stored, Unhandled, disagreement, first_unhandled, lowered
from nigredo.window import ACCEPTED, REPEATED, judge
from schemas.events import Acceptance, RateLimitState
from tests.unit.judging import submission

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
LAST = Mark.of(9, 1_800_000_000_000, b"192.0.2.1", 3)
POSITION = LogPosition(10, "topic-id", LAST)


def stored(now: LogNow, position: LogPosition | None = POSITION) -> Stored:
    return Stored("limiter", "nigredo.submissions", 0, position, now)


def test_a_position_that_the_log_bears_out_needs_no_recovery() -> None:
    assert disagreement(stored(LogNow("topic-id", 0, 10, LAST))) is None


@pytest.mark.parametrize(
    "now", [LogNow("topic-id", 0, 5), LogNow("topic-id", 0, 50, Mark.of(9, LAST.timestamp_ms + 5, b"another", 3))]
)
def test_of_a_log_that_was_cut_or_set_back_only_what_is_as_young_as_the_last_record_handled_is_searched(
    now: LogNow,
) -> None:
    found = disagreement(stored(now))

    assert found is not None
    assert found.search_from_ms == LAST.timestamp_ms - CLOCKS_DIFFER_MS
    assert "nigredo recover" in found.reason


@pytest.mark.parametrize(
    ("now", "position"),
    [
        (LogNow("another-id", 0, 50), POSITION),  # Nothing in it was ever handled.
        (LogNow("topic-id", 20, 50, Mark.of(20, 5, b"k")), POSITION),  # Deleted unread: the rest was not handled.
        (LogNow("topic-id", 0, 50), None),
        (LogNow("topic-id", 0, 5), LogPosition(10)),  # An older release's, without a proof.
    ],
)
def test_where_no_time_is_known_all_of_the_log_is_searched(now: LogNow, position: LogPosition | None) -> None:
    found = disagreement(stored(now, position))

    assert found is not None
    assert found.search_from_ms is None


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.booleans()), max_size=30))
def test_nothing_before_the_restart_is_unhandled_and_nothing_is_restarted_early(
    log: list[tuple[int, bool, bool]],
) -> None:
    """log: of each record its distance to the one before, whether it has an id, and whether it was handled."""
    records, handled, offset = [], set(), 0
    for gap, has_id, done in log:
        offset += gap
        records.append(Unhandled(offset, b"%d" % offset if has_id else None))
        if has_id and done:
            handled.add(b"%d" % offset)

    restart = first_unhandled(records, handled, end=offset + 1)

    assert all(record.id is None or record.id in handled for record in records if record.offset < restart)
    assert restart == offset + 1 or any(record.offset == restart and record.id not in handled for record in records)


@given(st.integers(0, 12), st.integers(1, 10), st.integers(0, 100), st.integers(0, 100))
def test_a_lowered_window_lets_records_be_judged_again_without_accepting_more(
    accepted: int, limit: int, input_offset: int, restart: int
) -> None:
    accepted = min(accepted, limit)
    ids = [UUID(int=number) for number in range(accepted)]
    state = RateLimitState(
        "192.0.2.1",
        limit,
        3600,
        tuple(Acceptance(known, NOON + timedelta(seconds=number)) for number, known in enumerate(ids)),
        0,
        NOON + timedelta(minutes=1),
        input_offset,
    )

    after = lowered(state, restart)

    if after is None:
        assert input_offset < restart
        return
    assert after.input_offset == OF_NO_RECORD
    assert (after.accepted, after.updated_at) == (state.accepted, state.updated_at)
    outcomes = []
    for number, known in enumerate([*ids, *(UUID(int=100 + n) for n in range(limit + 2))]):
        verdict = judge(after, submission(lead_id=known, limit=limit), at=NOON, offset=restart + number)
        after = verdict.state
        outcomes.append(verdict.outcome)
    assert outcomes[:accepted] == [REPEATED] * accepted
    assert outcomes.count(ACCEPTED) == limit - accepted
