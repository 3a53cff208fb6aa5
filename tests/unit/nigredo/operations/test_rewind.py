"""Target offset of a rewind: never forward past existing records, never before the log's start; gaps are counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nigredo.operations.rewind import goes_to

offsets = st.integers(0, 1000)


@given(offsets, offsets, offsets)
def test_a_partition_moves_forward_only_to_the_start_of_the_log_and_every_deleted_offset_counts(
    wanted: int, stands_at: int, low: int
) -> None:
    target, gone = goes_to(wanted, stands_at, low)

    asked = range(wanted, max(stands_at, low)) if wanted < stands_at else range(stands_at, max(stands_at, low))
    assert set(range(target, stands_at)) == {offset for offset in asked if low <= offset < stands_at}
    assert gone == sum(offset < low for offset in asked)
    assert target <= max(stands_at, low)


def test_a_partition_whose_next_record_was_deleted_continues_at_the_start_of_the_log() -> None:
    assert goes_to(wanted=10, stands_at=20, low=50) == (50, 40)
    assert goes_to(wanted=50, stands_at=20, low=50) == (50, 30)
