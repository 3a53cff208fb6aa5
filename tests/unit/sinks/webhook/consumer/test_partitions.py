"""Assigned partitions: since when deliveries count for the next owner of a committed offset."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from nigredo.clock import utc_now
from nigredo.log_position import LogPosition, from_metadata
from sinks.webhook.consumer.partitions import CLOCKS_DIFFER, INHERITED_MAX, Partition

LONG_AGO = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def counted_since(partition: Partition, watermark: int) -> datetime:
    _, fields = from_metadata(watermark, partition.metadata(LogPosition(watermark)))
    return datetime.fromtimestamp(int(fields["since"]) / 1000, UTC)


def test_deliveries_of_an_earlier_process_count_until_its_last_record_is_passed() -> None:
    """After two restarts behind one waiting lead, deliveries above it from before the first still count."""
    partition = Partition(LONG_AGO, own_from=120)
    partition.take(100)

    assert counted_since(partition, 100) == LONG_AGO
    assert counted_since(partition, 119) == LONG_AGO
    assert counted_since(partition, 120) > utc_now() - CLOCKS_DIFFER - timedelta(seconds=30)


def test_a_long_backlog_need_not_be_passed_because_an_earlier_process_was_at_most_a_window_ahead() -> None:
    partition = Partition(LONG_AGO, own_from=10_000_000)
    for offset in range(INHERITED_MAX):
        partition.take(offset * 2)
        del partition.begun[offset * 2]

    last = (INHERITED_MAX - 1) * 2
    assert counted_since(partition, last - 1) == LONG_AGO
    assert counted_since(partition, last) > LONG_AGO


def test_deliveries_count_since_the_oldest_record_in_flight() -> None:
    partition = Partition(LONG_AGO, own_from=0)
    partition.take(5)
    first = partition.begun[5]
    partition.take(6)

    assert abs(counted_since(partition, 5) - (first - CLOCKS_DIFFER)) < timedelta(milliseconds=2)
