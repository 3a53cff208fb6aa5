"""Dead letters: park a record that a stage could not use, byte for byte with the reason, and count those that wait."""

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
    """Position of a parked record and the function that could not use it: together the key of its dead letter."""

    function: str
    topic: str
    partition: int
    offset: int

    @property
    def key(self) -> bytes:
        """Key `function:topic:partition:offset` of the dead letter, so that parking again after a crash replaces it."""
        return f"{self.function}:{self.topic}:{self.partition}:{self.offset}".encode()

    @classmethod
    def of(cls, key: bytes | None) -> Origin | None:
        """Return the origin in a dead letter's key; None for a key of another form."""
        try:
            # A function's name may hold anything, a topic's no colon.
            function, topic, partition, offset = (key or b"").decode().rsplit(":", 3)
            return cls(function, topic, int(partition), int(offset))
        except ValueError:
            return None


class Publishes(Protocol):
    """A producer whose acknowledgement can be awaited."""

    def publish(self, topic: str, *, key: bytes | None, value: bytes | None) -> Awaitable[object]:
        """Produce a record; the result resolves once Kafka has acknowledged."""


async def park(publisher: Publishes, codec: Codec, function: str, record: Record, reason: str, error: str) -> None:
    """Publish a record to the dead-letter topic and return once Kafka has acknowledged. Raises DependencyDown.

    function: the consumer group's name. reason: the metric's label. error: cut to `ERROR_MAX` characters.
    A record that is too large for a dead letter is published without value and headers.
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
    key = Origin(function, record.topic, record.partition, record.offset).key
    try:
        await publisher.publish(DEAD_LETTERS, key=key, value=codec.encode(DEAD_LETTERS, letter))
    except RecordRefused:
        # A record near the broker's size limit does not fit together with its reason, so its position must suffice.
        shortened = f"{letter.error} (a value of {counted(len(record.value or b''), 'byte')} {LEFT_OUT})"
        small = replace(letter, error=shortened, value=None, headers=())
        await publisher.publish(DEAD_LETTERS, key=key, value=codec.encode(DEAD_LETTERS, small))
    metrics.RECORDS_PARKED.of(reason).inc()


def parked_before(reader: TopicReader, function: str, topic: str) -> Before:
    """Return a function's parking history of a topic, before its group's committed positions.

    Blocks. Raises DependencyDown.
    """
    parked: dict[int, set[int]] = {}
    for message in reader.read_to_end(DEAD_LETTERS, reader.partitions(DEAD_LETTERS), deadline_s=READ_DEADLINE_S):
        origin = Origin.of(message.key())
        if origin is not None and (origin.function, origin.topic) == (function, topic):
            offsets = parked.setdefault(origin.partition, set())
            (offsets.discard if message.value() is None else offsets.add)(origin.offset)
    # A function's consumer group has the function's name.
    return before(parked, reader.committed(function, topic, reader.partitions(topic)))


class WaitingDeadLetters:
    """Counts the waiting dead letters by topic and reason, as the state of a `MaterializedView`.

    Stores topic and reason of each letter. The counts may be read from any thread.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._labels: dict[bytes, tuple[str, str]] = {}
        self._loaded = False
        self._counts: Mapping[tuple[str, str], int] | None = None

    @property
    def counts(self) -> Mapping[tuple[str, str], int] | None:
        """Number of waiting dead letters by (topic, reason); None until the topic is loaded."""
        return self._counts

    def document(self) -> Mapping[str, Any]:
        """Return the counts for the health document."""
        counts = self._counts
        listed = None if counts is None else [
            {"topic": topic, "reason": reason, "count": count} for (topic, reason), count in sorted(counts.items())
        ]  # fmt: skip
        return {"dead_letters": listed}

    def begin(self) -> None:
        """Start a load; the previous counts stay current until `loaded`."""
        self._labels, self._loaded = {}, False

    def apply(self, rows: Sequence[Row]) -> None:
        """Apply dead letters and their tombstones."""
        for row in rows:
            if row.key is None:
                continue
            if row.value is None:
                self._labels.pop(row.key, None)
            else:
                self._labels[row.key] = self._labels_of(row.key, row.value)
        if rows and self._loaded:
            self._count()

    def loaded(self) -> None:
        """Make the loaded counts current."""
        self._loaded = True
        self._count()

    def _labels_of(self, key: bytes, value: bytes) -> tuple[str, str]:
        origin = Origin.of(key)
        try:
            letter = self._codec.decode(DEAD_LETTERS, value)
        except Undecodable:
            letter = None
        return (origin.topic if origin else OTHER, letter.reason if isinstance(letter, DeadLetter) else OTHER)

    def _count(self) -> None:
        counts = Counter(self._labels.values())
        known = Counter[tuple[str, str]]()
        for (topic, reason), count in counts.items():
            known[topic if topic in TOPICS else OTHER, reason if reason in metrics.PARKING_REASONS else OTHER] += count
        for topic, reason in {*known, *(self._counts or ())}:
            metrics.DEAD_LETTERS_WAITING.of(topic, reason).set(known[topic, reason])
        self._counts = dict(known)
