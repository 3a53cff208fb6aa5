"""Recovery plan: no unhandled record is skipped, and judging submissions again exceeds no limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nigredo.log_position import LogNow, LogPosition, Mark
from nigredo.operations.recovery.plan import OUT_OF_ORDER_MAX, Logged, Stored, disagreement, first_unhandled, lowered
from nigredo.rate_limit.latest_windows import OF_NO_RECORD
from nigredo.rate_limit.window import ACCEPTED, REPEATED, judge
from schemas.events import Acceptance, RateLimitState
from sinks.webhook.consumer.partitions import INHERITED_MAX, WINDOW_MAX
from tests.support.submission_logs import submission

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
LAST = Mark.of(9, 1_800_000_000_000, b"192.0.2.1", 3)
POSITION = LogPosition(10, "topic-id", LAST)


def stored(now: LogNow, position: LogPosition | None = POSITION) -> Stored:
    return Stored("limiter", "nigredo.submissions", 0, position, now)


def test_a_position_that_agrees_with_the_log_needs_no_recovery() -> None:
    assert disagreement(stored(LogNow("topic-id", 0, 10, LAST))) is None


@pytest.mark.parametrize(
    "now", [LogNow("topic-id", 0, 5), LogNow("topic-id", 0, 50, Mark.of(9, LAST.timestamp_ms + 5, b"another", 3))]
)
def test_in_a_log_that_was_cut_or_set_back_no_record_from_the_stored_offset_on_was_handled(now: LogNow) -> None:
    found = disagreement(stored(now))

    assert found is not None
    assert found.handled_before == POSITION.next_offset
    assert "nigredo recover" in found.reason


@pytest.mark.parametrize(
    ("now", "position"),
    [
        (LogNow("another-id", 0, 50), POSITION),
        (LogNow("topic-id", 20, 50, Mark.of(20, 5, b"k")), POSITION),
        (LogNow("topic-id", 0, 50), None),
    ],
)
def test_a_position_of_another_log_or_a_lost_one_proves_no_record_unhandled(
    now: LogNow, position: LogPosition | None
) -> None:
    found = disagreement(stored(now, position))

    assert found is not None
    assert found.handled_before is None


def newest_first(log: Sequence[Logged], taken: list[int]) -> Iterator[Logged]:
    for record in reversed(log):
        taken.append(record.offset)
        yield record


@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=30),
    st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=30),
)
def test_the_restart_is_the_first_unhandled_record_of_a_log_that_was_cut_and_has_grown_again(
    kept: list[tuple[int, bool]], grown: list[tuple[int, bool]]
) -> None:
    """Each drawn pair: a record's distance to the previous record, and whether a result with its id is still found."""
    log, offset = [], 0
    for gap, known in kept:
        offset += gap
        log.append(Logged(offset, known, known))  # Every one was handled, but some results were deleted since.
    cut = offset
    for gap, again in grown:
        offset += gap
        log.append(Logged(offset, again, False))
    taken = list[int]()

    restart = first_unhandled(newest_first(log, taken), offset + 1)

    wanted = next((record.offset for record in log if record.offset > cut and not record.handled), offset + 1)
    assert restart <= wanted
    proofs = [record.offset for record in log if record.proof]
    if proofs:
        assert restart > proofs[-1], "nothing that is proven comes again"
        assert min(taken) == proofs[-1], "nothing older is read"


@given(
    st.lists(st.booleans(), max_size=40),
    st.integers(1, 6),
    st.lists(st.booleans(), max_size=10),
)
def test_leads_that_were_delivered_out_of_order_hide_none_that_is_open(
    done: list[bool], out_of_order_max: int, grown: list[bool]
) -> None:
    """A sender finishes at most `out_of_order_max` leads above an open one, so lower flags are set to true."""
    for at in range(len(done)):
        if any(done[at + out_of_order_max :]):
            done[at] = True
    log = [Logged(offset, known, known) for offset, known in enumerate(done)]
    log += [Logged(len(done) + offset, known, False) for offset, known in enumerate(grown)]

    restart = first_unhandled(reversed(log), len(log), out_of_order_max=out_of_order_max)

    assert all(record.handled for record in log[:restart])
    assert restart == len(log) or not log[restart].handled


def test_a_sender_finishes_no_more_above_an_open_lead_than_recovery_looks_back() -> None:
    assert OUT_OF_ORDER_MAX >= INHERITED_MAX > WINDOW_MAX


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
