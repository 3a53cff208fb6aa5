"""One record of a topic as the log has it, whichever client read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from confluent_kafka import Message

from nigredo.clock import from_ms


@dataclass(frozen=True, slots=True)
class Record:
    """A record and its place. `timestamp` is the topic's own clock: the append time, or the producer's."""

    topic: str
    partition: int
    offset: int
    timestamp: datetime
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


def record_of(message: Message) -> Record:
    """Return the record in a message of librdkafka that carries no error."""
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
