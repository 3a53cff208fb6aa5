"""Since when deliveries count for whoever goes on from a committed offset."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from nigredo.clock import utc_now
from nigredo.log_position import LogPosition, from_metadata
from sinks.webhook.consumer.partitions import CLOCKS_DIFFER, INHERITED_MAX, Partition

LONG_AGO = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def told(partition: Partition, watermark: int) -> datetime:
    _, fields = from_metadata(watermark, partition.metadata(LogPosition(watermark)))
    return datetime.fromtimestamp(int(fields["since"]) / 1000, UTC)


def test_what_an_earlier_process_did_counts_until_all_of_it_is_passed() -> None:
    """Two restarts behind one lead that waits, and what was delivered above it before the first is still known."""
    partition = Partition(LONG_AGO, own_from=120)
    partition.take(100)

    assert told(partition, 100) == LONG_AGO
    assert told(partition, 119) == LONG_AGO
    assert told(partition, 120) > utc_now() - CLOCKS_DIFFER - timedelta(seconds=30)


def test_an_earlier_process_did_not_get_far_ahead_so_a_long_backlog_need_not_be_passed() -> None:
    partition = Partition(LONG_AGO, own_from=10_000_000)
    for offset in range(INHERITED_MAX):
        partition.take(offset * 2)
        del partition.begun[offset * 2]

    last = (INHERITED_MAX - 1) * 2
    assert told(partition, last - 1) == LONG_AGO
    assert told(partition, last) > LONG_AGO


def test_the_oldest_that_is_in_hand_says_since_when() -> None:
    partition = Partition(LONG_AGO, own_from=0)
    partition.take(5)
    first = partition.begun[5]
    partition.take(6)

    assert abs(told(partition, 5) - (first - CLOCKS_DIFFER)) < timedelta(milliseconds=2)
