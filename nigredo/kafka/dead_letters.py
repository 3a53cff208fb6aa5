"""Parks a record that a stage could not use, byte for byte, where an operator finds it with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from nigredo.avro.codec import Codec, Undecodable
from nigredo.clock import utc_now
from nigredo.errors import RecordRefused
from nigredo.kafka.materialized_view import Row
from nigredo.kafka.parking import Before, before
from nigredo.kafka.record import Record
from nigredo.kafka.topic_reader import TopicReader
from nigredo.observability import metrics
from nigredo.observability.instrument import OTHER
from nigredo.plural import counted
from schemas.events import DeadLetter, RecordHeader
from schemas.topics import DEAD_LETTERS, TOPICS

ERROR_MAX = 500
READ_DEADLINE_S = 30.0
LEFT_OUT = "is left out: too large"


class Origin(NamedTuple):
    """The place of a parked record, and the function that could not use it: together the key of its dead letter."""

    function: str
    topic: str
    partition: int
    offset: int

    @property
    def key(self) -> bytes:
        """The key under which it is parked, so that parking it again after a crash replaces it."""
        return f"{self.function}:{self.topic}:{self.partition}:{self.offset}".encode()

    @classmethod
    def of(cls, key: bytes | None) -> Origin | None:
        """Return the origin that a key names; None for a key of another form."""
        try:
            # A function's name may hold anything, a topic's no colon.
            function, topic, partition, offset = (key or b"").decode().rsplit(":", 3)
            return cls(function, topic, int(partition), int(offset))
        except ValueError:
            return None


class Publishes(Protocol):
    """What puts a record on a topic, and can be waited for until Kafka has it."""

    def publish(self, topic: str, *, key: bytes | None, value: bytes | None) -> Awaitable[object]:
        """Hand a record to Kafka."""


async def park(publisher: Publishes, codec: Codec, function: str, record: Record, reason: str, error: str) -> None:
    """Publish the record to the dead letters and return once Kafka has it. Raises DependencyDown."""
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
    key = Origin(function, record.topic, record.partition, record.offset).key
    try:
        await publisher.publish(DEAD_LETTERS, key=key, value=codec.encode(DEAD_LETTERS, letter))
    except RecordRefused:
        # A record near the broker's limit no longer fits with its reason around it: its place must do.
        told = f"{letter.error} (a value of {counted(len(record.value or b''), 'byte')} {LEFT_OUT})"
        small = replace(letter, error=told, value=None, headers=())
        await publisher.publish(DEAD_LETTERS, key=key, value=codec.encode(DEAD_LETTERS, small))
    metrics.RECORDS_PARKED.of(reason).inc()


def parked_before(reader: TopicReader, function: str, topic: str) -> Before:
    """Return which of the last records of a topic, before its group's positions, a function parked.

    Blocks. Raises DependencyDown.
    """
    standing: dict[int, set[int]] = {}
    for message in reader.read_to_end(DEAD_LETTERS, reader.partitions(DEAD_LETTERS), deadline_s=READ_DEADLINE_S):
        origin = Origin.of(message.key())
        if origin is not None and (origin.function, origin.topic) == (function, topic):
            offsets = standing.setdefault(origin.partition, set())
            (offsets.discard if message.value() is None else offsets.add)(origin.offset)
    # A function's group has its name.
    return before(standing, reader.committed(function, topic, reader.partitions(topic)))


class WaitingDeadLetters:
    """Counts the dead letters that wait, by topic and reason, as a `TopicView` hands them over.

    Keeps one small entry for each. The counts may be asked for from any thread.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._kept: dict[bytes, tuple[str, str]] = {}
        self._loaded = False
        self._counts: Mapping[tuple[str, str], int] | None = None

    @property
    def counts(self) -> Mapping[tuple[str, str], int] | None:
        """How many wait, by topic and reason; None until they were read."""
        return self._counts

    def document(self) -> Mapping[str, Any]:
        """Return the counts as the health document tells them."""
        counts = self._counts
        told = None if counts is None else [
            {"topic": topic, "reason": reason, "count": count} for (topic, reason), count in sorted(counts.items())
        ]  # fmt: skip
        return {"dead_letters": told}

    def begin(self) -> None:
        """Start afresh, as `TopicView` asks; the counts stand meanwhile."""
        self._kept, self._loaded = {}, False

    def apply(self, rows: Sequence[Row]) -> None:
        """Take what came."""
        for row in rows:
            if row.key is None:
                continue
            if row.value is None:
                self._kept.pop(row.key, None)
            else:
                self._kept[row.key] = self._described(row.key, row.value)
        if rows and self._loaded:
            self._count()

    def loaded(self) -> None:
        """Make the counts hold."""
        self._loaded = True
        self._count()

    def _described(self, key: bytes, value: bytes) -> tuple[str, str]:
        origin = Origin.of(key)
        try:
            letter = self._codec.decode(DEAD_LETTERS, value)
        except Undecodable:
            letter = None
        return (origin.topic if origin else OTHER, letter.reason if isinstance(letter, DeadLetter) else OTHER)

    def _count(self) -> None:
        counts = Counter(self._kept.values())
        told = Counter[tuple[str, str]]()
        for (topic, reason), count in counts.items():
            told[topic if topic in TOPICS else OTHER, reason if reason in metrics.PARKING_REASONS else OTHER] += count
        for topic, reason in {*told, *(self._counts or ())}:
            metrics.DEAD_LETTERS_WAITING.of(topic, reason).set(told[topic, reason])
        self._counts = dict(told)
