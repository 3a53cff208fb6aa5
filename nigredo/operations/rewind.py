"""Offset reset of a consumer group: its members leave, its offsets are set back, its members rejoin; blocking.

Senders have their offsets in Kafka; the persister has its offsets in PostgreSQL, beside the rows they belong to. The
members rejoin after any failure in between, because the entry that keeps them away expires.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import psycopg

from nigredo.clock import from_ms
from nigredo.errors import ConfigurationError, DependencyDown
from nigredo.kafka.consumer_groups import commit_offsets
from nigredo.kafka.topic_reader import TopicReader
from nigredo.operations.group_drain import drained
from nigredo.postgres.pool import describe
from nigredo.settings import Settings
from schemas.topics import LEADS, STORED

COMPONENT = "rewind"
STANDING = b"""
SELECT topic, topic_id, partition, next_offset FROM nigredo.stream_offsets WHERE topic = ANY(%s) ORDER BY 1, 3
"""
SET_BACK = b"""
UPDATE nigredo.stream_offsets SET
    next_offset = CASE WHEN next_offset < %s THEN %s ELSE LEAST(next_offset, %s) END, last_offset = NULL
WHERE topic_id = %s AND partition = %s
"""
"""Sets an offset back, or forward to the start of the log only. The proof is removed, because a position without a
proof is believed, like an offset that an operator set."""


@dataclass(frozen=True, slots=True)
class RewindTarget:
    """Target of a rewind: exactly one of a time, offsets by (topic, partition), or the start of the log."""

    at: datetime | None = None
    offsets: Mapping[tuple[str, int], int] | None = None
    earliest: bool = False


@dataclass(frozen=True, slots=True)
class PartitionRewind:
    """Rewind of one partition from the committed offset `stands_at` to the offset `goes_to`."""

    topic: str
    partition: int
    stands_at: int
    goes_to: int
    records: int
    """Records to be processed again, counted, because compaction leaves fewer than the offsets say."""
    gone: int
    """Requested offsets that retention has deleted: no rewind can repeat them."""


def goes_to(wanted: int, stands_at: int, low: int) -> tuple[int, int]:
    """Return a partition's target offset, and the number of requested offsets that retention has deleted.

    wanted: requested offset. stands_at: committed offset. low: start of the log. The target is never before the start
    of the log, and beyond the committed offset only when that lies before the start.
    """
    target = min(wanted, stands_at)
    return max(target, low), max(0, low - target)


class Offsets(Protocol):
    """Store of a group's offsets."""

    def standing(self) -> Mapping[tuple[str, int], int]:
        """Return the next offset of each (topic, partition) that has one. Raises DependencyDown."""

    def set_back(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Set offsets while the group has no members; forward only past deleted records. Raises DependencyDown."""


class KafkaOffsets:
    """Offsets of a sender's group, in Kafka. Set without metadata, so that all leads are sent again (docs/adr/0008)."""

    def __init__(self, settings: Settings, group: str) -> None:
        self._settings = settings
        self._group = group
        self._reader = TopicReader(settings, COMPONENT)

    def standing(self) -> Mapping[tuple[str, int], int]:
        """Return the group's committed offsets. Raises DependencyDown."""
        committed = self._reader.committed(self._group, LEADS, self._reader.partitions(LEADS))
        return {(LEADS, partition): offset for partition, offset in committed.items() if offset is not None}

    def set_back(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Commit the offsets for the group, or its own where those are lower. Raises DependencyDown."""
        # Another rewind may have set the group further back since the plan was made.
        standing, wanted = self.standing(), {}
        for (topic, partition), offset in offsets.items():
            stands_at, (low, _) = standing.get((topic, partition), offset), self._reader.watermarks(topic, partition)
            wanted[partition] = min(offset, stands_at) if stands_at >= low else offset
        commit_offsets(self._settings, self._group, LEADS, wanted)


class DatabaseOffsets:
    """Offsets of the persister, in `nigredo.stream_offsets`, for the present topics.

    A row for another topic id, or for a partition that the topic does not have, is ignored.
    """

    def __init__(self, settings: Settings, topics: Collection[str] = STORED) -> None:
        self._settings = settings
        self._topics = list(topics)
        self._reader = TopicReader(settings, COMPONENT)

    def standing(self) -> Mapping[tuple[str, int], int]:
        """Return the stored next offsets. Raises DependencyDown."""
        found = self._query(STANDING, (self._topics,))
        ids = self._reader.topic_ids(sorted({topic for topic, _, _, _ in found}))
        known = {(topic, ids[topic], partition) for topic in ids for partition in self._reader.partitions(topic)}
        return {(topic, partition): at for topic, topic_id, partition, at in found
                if (topic, topic_id, partition) in known}  # fmt: skip

    def set_back(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Store the offsets in one transaction. Raises DependencyDown."""
        topics = sorted({topic for topic, _ in offsets})
        ids = self._reader.topic_ids(topics)
        if missing := [topic for topic in topics if topic not in ids]:
            raise DependencyDown(f"there is no topic {missing[0]} any more")
        starts = {(topic, partition): self._reader.watermarks(topic, partition)[0] for topic, partition in offsets}
        try:
            with self._connect() as connection, connection.transaction():
                for (topic, partition), offset in sorted(offsets.items()):
                    connection.execute(SET_BACK, (starts[topic, partition], offset, offset, ids[topic], partition))
        except psycopg.Error as error:
            raise DependencyDown(describe(error)) from error

    def _query(self, statement: bytes, values: Sequence[object]) -> list[tuple[str, str, int, int]]:
        try:
            with self._connect() as connection:
                return connection.execute(statement, values).fetchall()
        except psycopg.Error as error:
            raise DependencyDown(describe(error)) from error

    def _connect(self) -> psycopg.Connection[tuple[str, str, int, int]]:
        return psycopg.connect(
            self._settings.database_url,
            autocommit=True,
            connect_timeout=max(2, round(self._settings.db_pool_timeout_s)),
            application_name=self._settings.function(COMPONENT),
            options="-c statement_timeout=30000",
        )


class Rewind:
    """Offset reset of one group. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, group: str, offsets: Offsets, actor: str) -> None:
        self._settings = settings
        self._group = group
        self._offsets = offsets
        self._reader = TopicReader(settings, COMPONENT)
        self._actor = actor

    def plan(self, to: RewindTarget) -> list[PartitionRewind]:
        """Return the rewind of each partition. Raises ConfigurationError for an offset that cannot be set."""
        standing = self._offsets.standing()
        if not standing:
            raise ConfigurationError(f"group {self._group} has no offsets: it never began")
        for (topic, partition), offset in (to.offsets or {}).items():
            at = standing.get((topic, partition))
            if at is None:
                raise ConfigurationError(f"group {self._group} does not read {topic} partition {partition}")
            if offset > max(at, self._reader.watermarks(topic, partition)[0]):
                raise ConfigurationError(
                    f"{topic} partition {partition} is at {at}: a move forward to {offset} would skip records, and a "
                    "rewind only moves back"
                )
        return [self._step(topic, partition, at, to) for (topic, partition), at in sorted(standing.items())]

    def _step(self, topic: str, partition: int, stands_at: int, to: RewindTarget) -> PartitionRewind:
        low, end = self._reader.watermarks(topic, partition)
        if to.earliest:
            wanted = 0
        elif to.at is not None:
            wanted = self._reader.offset_at(topic, partition, to.at)
            if wanted == low > 0 and not self._begins_before(topic, partition, low, to.at):
                wanted = 0  # Retention has deleted the records of that time, so all deleted offsets count as gone.
        else:
            wanted = (to.offsets or {}).get((topic, partition), stands_at)
        target, gone = goes_to(wanted, stands_at, low)
        # A topic that was created again, or restored, may end before the group's committed offset.
        again = self._reader.between(topic, partition, target, min(stands_at, end))
        return PartitionRewind(topic, partition, stands_at, target, sum(1 for _ in again), gone)

    def _begins_before(self, topic: str, partition: int, low: int, at: datetime) -> bool:
        """Return whether the log's first record is not younger than `at`, so that no record since then is missing."""
        for message in self._reader.between(topic, partition, low, low + 1):
            return from_ms(max(0, message.timestamp()[1])) <= at
        return False

    def do(self, steps: Sequence[PartitionRewind], report: Callable[[str], None]) -> None:
        """Set the offsets back. Raises DependencyDown; the members rejoin in any case.

        report: called with each step as a line for the operator.
        """
        wanted = {(step.topic, step.partition): step.goes_to for step in steps if step.goes_to != step.stands_at}
        note = " ".join(f"{topic}:{partition}:{offset}" for (topic, partition), offset in wanted.items())
        with drained(self._settings, self._group, self._actor, report, note=note) as in_time:
            in_time()
            self._offsets.set_back(wanted)
            report("set the offsets back")
