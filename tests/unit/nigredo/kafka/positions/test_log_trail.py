"""Trail of positions, stored until the log has confirmed them, and the detection of stalled partitions."""

from __future__ import annotations

from nigredo.kafka.positions.log_trail import BURST_S, POSITIONS_MAX, Place, Trail
from nigredo.log_position import LogPosition, Mark

AT: Place = ("topic", 0)


def position(offset: int, epoch: int | None = None) -> LogPosition:
    return LogPosition(offset + 1, "id", Mark.of(offset, 1_000, b"k", epoch))


def offsets(trail: Trail) -> list[int]:
    return [kept.asks_at for kept in trail.of(AT)]


def test_the_last_position_before_a_pause_is_kept_however_many_there_are() -> None:
    trail = Trail()
    for number in range(1000):
        trail.add(AT, position(number), number * 0.0001)
    trail.add(AT, position(1000), 5.0)
    trail.add(AT, position(1001), 5.1)

    assert offsets(trail) == [999, 1001]


def test_reading_without_a_pause_stores_a_position_per_burst() -> None:
    trail = Trail()
    for number in range(300):
        trail.add(AT, position(number), number * 0.01)

    assert len(offsets(trail)) == 300 * 0.01 / BURST_S
    assert offsets(trail)[-1] == 299


def test_another_leader_epoch_and_a_step_back_end_a_burst_at_once() -> None:
    trail = Trail()
    for at in (position(7, 1), position(8, 2), position(3, 2)):
        trail.add(AT, at, 1.0)

    assert offsets(trail) == [7, 8, 3]


def test_confirmed_positions_are_dropped_except_the_last_which_may_be_lost_from_then_on() -> None:
    trail = Trail()
    for number in range(3):
        trail.add(AT, position(number), number * 1.0)
    compared = trail.of(AT)
    trail.add(AT, position(3), 9.0)  # While the log was read.
    trail.confirmed(AT, compared)

    assert offsets(trail) == [2, 3]


def test_the_trail_is_bounded_and_reaches_as_far_back_as_before() -> None:
    trail = Trail()
    for number in range(10 * POSITIONS_MAX):
        trail.add(AT, position(number), number * 1.0)

    assert len(offsets(trail)) <= POSITIONS_MAX
    assert (offsets(trail)[0], offsets(trail)[-1]) == (0, 10 * POSITIONS_MAX - 1)
