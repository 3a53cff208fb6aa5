"""Parks a record that a stage could not use, byte for byte, where an operator finds it with the reason."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from typing import Protocol

from nigredo import metrics
from nigredo.clock import utc_now
from nigredo.errors import RecordRefused
from nigredo.record import Record
from schemas.codec import Codec
from schemas.events import DeadLetter, RecordHeader
from schemas.topics import DEAD_LETTERS

ERROR_MAX = 500


class Publishes(Protocol):
    """What puts a record on a topic, and can be waited for until Kafka has it."""

    def publish(self, topic: str, *, key: bytes | None, value: bytes | None) -> Awaitable[object]:
        """Hand a record to Kafka."""


async def park(publisher: Publishes, codec: Codec, function: str, record: Record, reason: str, error: str) -> None:
    """Publish the record to the dead letters and return once Kafka has it. Raises DependencyDown.

    The key is the record's place, so that parking it again after a crash replaces it rather than doubling it.
    """
    letter = DeadLetter(
        function=function,
        reason=reason,
        error=error[:ERROR_MAX],
        origin_topic=record.topic,
        origin_partition=record.partition,
        origin_offset=record.offset,
        origin_timestamp=record.timestamp,
        key=record.key,
        value=record.value,
        headers=tuple(RecordHeader(name, value) for name, value in record.headers),
        parked_at=utc_now(),
    )
    key = f"{function}:{record.topic}:{record.partition}:{record.offset}".encode()
    try:
        await publisher.publish(DEAD_LETTERS, key=key, value=codec.encode(DEAD_LETTERS, letter))
    except RecordRefused:
        # A record near the broker's limit no longer fits with its reason around it: its place must do.
        told = f"{letter.error} (a value of {len(record.value or b'')} bytes is left out: too large)"
        small = replace(letter, error=told, value=None, headers=())
        await publisher.publish(DEAD_LETTERS, key=key, value=codec.encode(DEAD_LETTERS, small))
    metrics.RECORDS_PARKED.of(reason).inc()
