"""Delay queue: order, replacement by key, and the limit per call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from sinks.webhook.dispatch.delay_queue import Delayed, DelayQueue
from sinks.webhook.model import Ticket

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
PLACE = ("nigredo.webhook-retries.fibonacci.1m", 0)


def delayed(offset: int, key: bytes | None = None) -> Delayed[int]:
    return Delayed(Ticket(1, PLACE, offset), key or str(offset).encode(), offset)


@given(st.lists(st.integers(0, 100), max_size=50), st.lists(st.integers(0, 120), max_size=20))
def test_each_attempt_is_returned_once_never_before_it_is_due_and_the_most_overdue_first(
    due: list[int], looks: list[int]
) -> None:
    queue: DelayQueue[int] = DelayQueue()
    for offset, seconds in enumerate(due):
        queue.put(delayed(offset), NOON + timedelta(seconds=seconds))
    came: list[int] = []
    for look in [*sorted(looks), 1000]:
        found = [each.item for each in queue.due(NOON + timedelta(seconds=look), 1000)]
        assert all(due[offset] <= look for offset in found)
        assert [due[offset] for offset in found] == sorted(due[offset] for offset in found)
        came += found

    assert sorted(came) == list(range(len(due)))
    assert len(queue) == 0


def test_a_newer_attempt_replaces_an_older_one_of_the_same_key() -> None:
    queue: DelayQueue[int] = DelayQueue()
    queue.put(delayed(1, b"lead"), NOON)

    older = queue.put(delayed(2, b"lead"), NOON)

    assert older is not None
    assert older.item == 1
    assert [each.item for each in queue.due(NOON, 10)] == [2]


def test_a_cancelled_attempt_is_not_returned() -> None:
    queue: DelayQueue[int] = DelayQueue()
    queue.put(delayed(1), NOON)

    assert queue.cancel(PLACE, b"1") is not None
    assert queue.cancel(PLACE, b"1") is None
    assert queue.due(NOON, 10) == []


def test_no_more_attempts_are_returned_than_asked_for() -> None:
    queue: DelayQueue[int] = DelayQueue()
    for offset in range(5):
        queue.put(delayed(offset), NOON)

    assert len(queue.due(NOON, 2)) == 2
    assert queue.due(NOON, -1) == []
    assert len(queue) == 3
