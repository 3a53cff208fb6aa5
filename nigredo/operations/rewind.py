"""The true offset reset of a group: its members leave, its offsets are set back, its members come back; blocking.

Offsets of the sink are Kafka's; those of the persister stand in the database, beside the rows they belong to. Whatever
fails in between, the members come back: what keeps them away has an end.
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
"""Forward only to the start of the log. Without the proof, as a group's offset that is set by hand: it is believed."""


@dataclass(frozen=True, slots=True)
class RewindTarget:
    """Where to go back to: exactly one of a time, offsets by topic and partition, or the earliest there is."""

    at: datetime | None = None
    offsets: Mapping[tuple[str, int], int] | None = None
    earliest: bool = False


@dataclass(frozen=True, slots=True)
class PartitionRewind:
    """What a rewind does to one partition."""

    topic: str
    partition: int
    stands_at: int
    goes_to: int
    records: int
    """How many come again, counted: compaction leaves fewer than the offsets say."""
    gone: int
    """Offsets that were asked for and that retention has deleted: nothing can bring them again."""


def goes_to(wanted: int, stands_at: int, low: int) -> tuple[int, int]:
    """Return where a partition goes, and how many of the offsets before that are gone.

    Never before the log's start, and forward only to it: a group that stands before it can go nowhere else.
    """
    target = min(wanted, stands_at)
    return max(target, low), max(0, low - target)


class Offsets(Protocol):
    """Where a group's offsets are kept."""

    def standing(self) -> Mapping[tuple[str, int], int]:
        """Return the next offset of each partition that has one. Raises DependencyDown."""

    def set_back(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Set these, none of them forward but over what is gone, while the group has no members.

        Raises DependencyDown.
        """


class KafkaOffsets:
    """Those of a group that delivers leads. Set without our metadata: then all is sent again (docs/adr/0008)."""

    def __init__(self, settings: Settings, group: str) -> None:
        self._settings = settings
        self._group = group
        self._reader = TopicReader(settings, COMPONENT)

    def standing(self) -> Mapping[tuple[str, int], int]:
        """Return the committed offsets. Raises DependencyDown."""
        committed = self._reader.committed(self._group, LEADS, self._reader.partitions(LEADS))
        return {(LEADS, partition): offset for partition, offset in committed.items() if offset is not None}

    def set_back(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Commit them for the group. Raises DependencyDown."""
        # Another rewind may have gone further back since the plan was made.
        standing, wanted = self.standing(), {}
        for (topic, partition), offset in offsets.items():
            stands_at, (low, _) = standing.get((topic, partition), offset), self._reader.watermarks(topic, partition)
            wanted[partition] = min(offset, stands_at) if stands_at >= low else offset
        commit_offsets(self._settings, self._group, LEADS, wanted)


class DatabaseOffsets:
    """Those of the persister, in `nigredo.stream_offsets`, for the topics as they are now.

    A row of another topic, or of a partition that its topic does not have, moves nothing and is left alone.
    """

    def __init__(self, settings: Settings, topics: Collection[str] = STORED) -> None:
        self._settings = settings
        self._topics = list(topics)
        self._reader = TopicReader(settings, COMPONENT)

    def standing(self) -> Mapping[tuple[str, int], int]:
        """Return what is stored. Raises DependencyDown."""
        found = self._query(STANDING, (self._topics,))
        ids = self._reader.topic_ids(sorted({topic for topic, _, _, _ in found}))
        known = {(topic, ids[topic], partition) for topic in ids for partition in self._reader.partitions(topic)}
        return {(topic, partition): at for topic, topic_id, partition, at in found
                if (topic, topic_id, partition) in known}  # fmt: skip

    def set_back(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Store them, all or none. Raises DependencyDown."""
        topics = sorted({topic for topic, _ in offsets})
        ids = self._reader.topic_ids(topics)
        if gone := [topic for topic in topics if topic not in ids]:
            raise DependencyDown(f"there is no topic {gone[0]} any more")
        starts = {place: self._reader.watermarks(*place)[0] for place in offsets}
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
    """One group's reset. Every call may raise DependencyDown."""

    def __init__(self, settings: Settings, group: str, offsets: Offsets, actor: str) -> None:
        self._settings = settings
        self._group = group
        self._offsets = offsets
        self._reader = TopicReader(settings, COMPONENT)
        self._actor = actor

    def plan(self, to: RewindTarget) -> list[PartitionRewind]:
        """Return what each partition does. Raises ConfigurationError for a place that there is not."""
        standing = self._offsets.standing()
        if not standing:
            raise ConfigurationError(f"group {self._group} has no offsets: it never began")
        for place, offset in (to.offsets or {}).items():
            if place not in standing:
                raise ConfigurationError(f"group {self._group} does not read {place[0]} partition {place[1]}")
            if offset > max(standing[place], self._reader.watermarks(*place)[0]):
                raise ConfigurationError(
                    f"{place[0]} partition {place[1]} stands at {standing[place]}: to go on to {offset} would skip "
                    "records, and a rewind only goes back"
                )
        return [self._step(topic, partition, at, to) for (topic, partition), at in sorted(standing.items())]

    def _step(self, topic: str, partition: int, stands_at: int, to: RewindTarget) -> PartitionRewind:
        low, end = self._reader.watermarks(topic, partition)
        if to.earliest:
            wanted = 0
        elif to.at is not None:
            wanted = self._reader.offset_at(topic, partition, to.at)
            if wanted == low > 0 and not self._begins_before(topic, partition, low, to.at):
                wanted = 0  # As far back as anybody could say: what was there at that time is deleted.
        else:
            wanted = (to.offsets or {}).get((topic, partition), stands_at)
        target, gone = goes_to(wanted, stands_at, low)
        # A topic that was made anew, or restored, may end before the place where the group stands.
        again = self._reader.between(topic, partition, target, min(stands_at, end))
        return PartitionRewind(topic, partition, stands_at, target, sum(1 for _ in again), gone)

    def _begins_before(self, topic: str, partition: int, low: int, at: datetime) -> bool:
        """Say whether the first record that is left is not younger than `at`, so that nothing after it is missing."""
        for message in self._reader.between(topic, partition, low, low + 1):
            return from_ms(max(0, message.timestamp()[1])) <= at
        return False

    def do(self, steps: Sequence[PartitionRewind], tell: Callable[[str], None]) -> None:
        """Set the offsets back. Raises DependencyDown; the members come back in any case."""
        wanted = {(step.topic, step.partition): step.goes_to for step in steps if step.goes_to != step.stands_at}
        note = " ".join(f"{topic}:{partition}:{offset}" for (topic, partition), offset in wanted.items())
        with drained(self._settings, self._group, self._actor, tell, note=note) as in_time:
            in_time()
            self._offsets.set_back(wanted)
            tell("set the offsets back")
