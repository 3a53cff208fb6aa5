"""Check of a committed position against the log, before the sink reads a partition from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from confluent_kafka import OFFSET_INVALID, TopicPartition

from nigredo.log_position import (
    REPAIR,
    LogNow,
    LogPosition,
    compare,
    from_metadata,
    kept,
    proven,
    refusal,
    to_metadata,
)

Look: TypeAlias = Callable[[str, int, int], LogNow]
"""Returns a partition's current log, with the first record at or after an offset. Raises DependencyDown."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A position that the log confirms, with its proof, the sink's fields of the commit metadata, and the log's end."""

    position: LogPosition
    fields: Mapping[str, str]
    end: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A position that the log contradicts: reading on from there would skip leads or send them again."""

    reason: str
    keep: TopicPartition | None = None
    """Offset to commit instead, so that the position stays refused when the log grows; None if none is needed."""


def check(group: str, committed: TopicPartition, look: Look) -> Admitted | Refused:
    """Compare a committed offset and its metadata with the log. Raises DependencyDown when Kafka is unavailable."""
    topic, partition = committed.topic, committed.partition
    if committed.offset == OFFSET_INVALID:
        return Refused(f"{group} has no offset for {topic} partition {partition}; repair it with: {REPAIR}")
    position, fields = from_metadata(committed.offset, committed.metadata)
    now = look(topic, partition, position.asks_at)
    finding = compare(position, now)
    if not finding.believed:
        keep = kept(position, now)
        offset = (
            None if keep is None else TopicPartition(topic, partition, keep.next_offset, to_metadata(keep, **fields))
        )
        return Refused(refusal(group, topic, partition, position, now, finding), offset)
    return Admitted(proven(position, now), fields, now.end)
