"""Attempts that wait for their time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from sinks.webhook.dispatch.delay_queue import Delayed, DelayQueue
from sinks.webhook.model import Ticket

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
PLACE = ("nigredo.webhook-retries.fibonacci.1m", 0)


def waits(offset: int, key: bytes | None = None) -> Delayed[int]:
    return Delayed(Ticket(1, PLACE, offset), key or str(offset).encode(), offset)


@given(st.lists(st.integers(0, 100), max_size=50), st.lists(st.integers(0, 120), max_size=20))
def test_each_comes_once_never_before_its_time_and_the_most_overdue_first(due: list[int], looks: list[int]) -> None:
    waiting: DelayQueue[int] = DelayQueue()
    for offset, seconds in enumerate(due):
        waiting.put(waits(offset), NOON + timedelta(seconds=seconds))
    came: list[int] = []
    for look in [*sorted(looks), 1000]:
        found = [each.what for each in waiting.due(NOON + timedelta(seconds=look), 1000)]
        assert all(due[offset] <= look for offset in found)
        assert [due[offset] for offset in found] == sorted(due[offset] for offset in found)
        came += found

    assert sorted(came) == list(range(len(due)))
    assert len(waiting) == 0


def test_a_newer_one_of_the_same_key_takes_the_place_of_the_older() -> None:
    waiting: DelayQueue[int] = DelayQueue()
    waiting.put(waits(1, b"lead"), NOON)

    older = waiting.put(waits(2, b"lead"), NOON)

    assert older is not None
    assert older.what == 1
    assert [each.what for each in waiting.due(NOON, 10)] == [2]


def test_one_that_was_taken_out_does_not_come() -> None:
    waiting: DelayQueue[int] = DelayQueue()
    waiting.put(waits(1), NOON)

    assert waiting.cancel(PLACE, b"1") is not None
    assert waiting.cancel(PLACE, b"1") is None
    assert waiting.due(NOON, 10) == []


def test_no_more_come_than_there_is_room_for() -> None:
    waiting: DelayQueue[int] = DelayQueue()
    for offset in range(5):
        waiting.put(waits(offset), NOON)

    assert len(waiting.due(NOON, 2)) == 2
    assert waiting.due(NOON, -1) == []
    assert len(waiting) == 3
