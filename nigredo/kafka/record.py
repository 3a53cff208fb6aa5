"""Consumed record of a topic, independent of the client library that read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

from confluent_kafka import Message

from nigredo.clock import from_ms
from nigredo.log_position import LogPosition, Mark


@dataclass(frozen=True, slots=True)
class Record:
    """A consumed record with its topic-partition and offset.

    timestamp: by the topic's clock, which is the append time or the producer's time (UTC).
    `repr` omits key, value and headers, so that a person's data cannot enter a log with an exception.
    """

    topic: str
    partition: int
    offset: int
    timestamp: datetime
    key: bytes | None = field(repr=False)
    value: bytes | None = field(repr=False)
    headers: Sequence[tuple[str, bytes | None]] = field(repr=False)

    @property
    def next_offset(self) -> int:
        """Offset to commit once this record is processed."""
        return self.offset + 1

    def position(self, topic_id: str) -> LogPosition:
        """Return the position after this record, with the record itself as its proof."""
        last = Mark.of(self.offset, round(self.timestamp.timestamp() * 1000), self.key)
        return LogPosition(self.next_offset, topic_id, last)


def record_of(message: Message) -> Record:
    """Return the record in a librdkafka message, which must not carry an error."""
    _, timestamp_ms = message.timestamp()
    return Record(
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        from_ms(max(0, timestamp_ms)),
        message.key(),
        message.value(),
        tuple(cast("list[tuple[str, bytes | None]]", message.headers() or [])),
    )
