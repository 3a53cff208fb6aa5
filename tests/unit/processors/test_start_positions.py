"""Start positions of the persister and the limiter, depending on the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from nigredo.log_position import LogNow, LogPosition, Mark, PositionRefused
from nigredo.observability.health import Health
from nigredo.settings import Settings
from processors.persistence.persister import Persister
from processors.rate_limit.limiter import grown
from schemas.topics import DELIVERIES, LEADS, RATE_LIMITS, SUBMISSIONS

LAST = Mark.of(9, 1_800_000_000_000, b"k")
STORED = LogPosition(10, "first", LAST)
OTHER = Mark.of(9, 1_800_000_000_000, b"another")


def begins(stored: LogPosition | None, now: LogNow, topic: str = LEADS) -> LogPosition:
    return Persister(Settings.from_environment({}), Health("test"))._start(topic, 0, stored, now)


def test_the_persister_continues_at_a_position_that_the_log_confirms() -> None:
    assert begins(STORED, LogNow("first", 0, 20, LAST)) == STORED


def test_a_position_without_a_proof_gets_one() -> None:
    assert begins(LogPosition(10, "first"), LogNow("first", 0, 20, LAST)) == STORED


@pytest.mark.parametrize(
    ("stored", "now"),
    [
        (None, LogNow("first", 3, 20)),  # An emptied database, or a recreated topic.
        (STORED, LogNow("first", 3, 8)),  # A log that lost its tail.
        (STORED, LogNow("first", 3, 20, OTHER)),  # A log that was set back and written on.
    ],
    ids=["no row", "past the end", "another record"],
)
def test_the_persister_reads_all_of_a_log_that_contradicts_its_position(
    stored: LogPosition | None, now: LogNow
) -> None:
    assert begins(stored, now) == LogPosition(3, "first")


def test_leads_that_were_deleted_unread_stop_the_persister() -> None:
    with pytest.raises(PositionRefused, match="offsets 10 to 14 were deleted unread; repair it with: nigredo recover"):
        begins(STORED, LogNow("first", 15, 20, Mark.of(15, LAST.timestamp_ms + 1, b"k")))


def test_records_that_expired_by_retention_do_not_stop_the_persister() -> None:
    now = LogNow("first", 15, 20, Mark.of(15, LAST.timestamp_ms + 1, b"k"))

    assert begins(STORED, now, DELIVERIES) == LogPosition(15, "first")


class Cluster:
    """A cluster with these partitions of submissions and windows.

    window_ends: end offset by windows partition. committed: the limiter's offset by submissions partition.
    """

    def __init__(self, submissions: int, window_ends: Sequence[int], committed: Mapping[int, int]) -> None:
        self._submissions = submissions
        self._window_ends = window_ends
        self._committed = committed

    def partitions(self, topic: str) -> list[int]:
        return list(range({SUBMISSIONS: self._submissions, RATE_LIMITS: len(self._window_ends)}[topic]))

    def committed(self, _: str, __: str, partitions: Sequence[int]) -> dict[int, int | None]:
        return {number: self._committed.get(number) for number in partitions}

    def watermarks(self, _: str, partition: int) -> tuple[int, int]:
        return (0, self._window_ends[partition])


def refused(cluster: Cluster) -> list[int]:
    """Return the partitions that wait because partitions were added."""
    partitions = cluster.partitions(SUBMISSIONS)
    return [number for number in partitions if grown(cast(Any, cluster), "limiter", number) is not None]


def test_partitions_that_are_all_judged_wait_for_nothing() -> None:
    assert refused(Cluster(2, [5, 5], {0: 9, 1: 9})) == []


def test_of_partitions_that_were_doubled_the_new_ones_wait() -> None:
    """After doubling, a key stays or moves to a new partition."""
    assert refused(Cluster(4, [5, 5], {0: 9, 1: 9})) == [2, 3]
    assert refused(Cluster(4, [5, 5, 0, 0], {0: 9, 1: 9})) == [2, 3]


def test_all_partitions_wait_when_their_number_was_not_multiplied() -> None:
    """Without a multiple, keys move among the old partitions too."""
    assert refused(Cluster(3, [5, 5, 0], {0: 9, 1: 9})) == [0, 1, 2]


def test_lost_offsets_of_partitions_with_windows_are_no_growth() -> None:
    assert refused(Cluster(2, [5, 5], {0: 9})) == []
    assert refused(Cluster(2, [5, 5], {})) == []
