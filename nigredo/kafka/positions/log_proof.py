"""Comparison of a consumer's positions with the log, by reading their records again. Blocks: call in a thread.

Only the records prove that the log is still the one that was read: no client notices every broker restart (librdkafka
reports equal errors once in 30 s), and leader epochs repeat on a disk that was set back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from nigredo.errors import DependencyDown
from nigredo.kafka.kept_consumer import KeptConsumer
from nigredo.kafka.positions.log_trail import Place
from nigredo.kafka.publisher import client_config
from nigredo.kafka.topic_reader import TopicReader, mark_of
from nigredo.log_position import LogNow, LogPosition
from nigredo.log_position import compare as compare_position
from nigredo.settings import Settings

NEAR_MAX = 300
"""Longest distance, in offsets, that is read through to the next position; beyond it the consumer seeks."""
READ_DEADLINE_S = 10.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of a comparison: by partition, the first position that the log contradicts, if any, and the log end."""

    disproved: Mapping[Place, LogPosition]
    ends: Mapping[Place, int]


class LogProof:
    """Compares positions with the log, by one reused client. Thread-safe."""

    def __init__(self, settings: Settings, component: str) -> None:
        config = client_config(settings, settings.function(component)) | {
            "group.id": f"{settings.function(component)}-proof",  # Required by the client; never joined.
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            # Where the requested records no longer exist, the first existing record and the end must become visible.
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 20,
            # Small fetches, because the records after the requested ones are not needed.
            "queued.min.messages": 1,
            "fetch.queue.backoff.ms": 20,
            "fetch.message.max.bytes": 65_536,
        }
        self._reader = TopicReader(settings, component)
        self._client = KeptConsumer(partial(Consumer, config))
        self._closed = threading.Event()

    def close(self) -> None:
        """Abort a comparison in flight, which raises DependencyDown."""
        self._closed.set()

    def disproved(self, positions: Mapping[Place, Sequence[LogPosition]]) -> Mapping[Place, LogPosition]:
        """Return, by partition, the first position that the log contradicts. Raises DependencyDown."""
        return self.compare(positions).disproved

    def compare(self, positions: Mapping[Place, Sequence[LogPosition]]) -> Comparison:
        """Compare positions with the log. Raises DependencyDown when Kafka does not answer or a topic is missing."""
        ids = self._reader.topic_ids(sorted({topic for topic, _ in positions}))
        disproved: dict[Place, LogPosition] = {}
        to_read: dict[Place, list[LogPosition]] = {}
        for topic_partition, trail in positions.items():
            if topic_partition[0] not in ids:
                raise DependencyDown(f"there is no topic {topic_partition[0]}")
            other = next(
                (position for position in trail if position.topic_id not in (None, ids[topic_partition[0]])), None
            )
            if other is not None:
                disproved[topic_partition] = other
            elif trail:
                to_read[topic_partition] = sorted(trail, key=lambda position: position.asks_at)
        found = self._read(
            {topic_partition: [position.asks_at for position in trail] for topic_partition, trail in to_read.items()}
        )
        for topic_partition, trail in to_read.items():
            suspects = (at for at in trail if not _borne_out(at, found[topic_partition][at.asks_at]))
            # A suspect is compared once more, with the topic id and log start that only the broker can report.
            if (first := next(filter(lambda at: not self._confirmed(topic_partition, at), suspects), None)) is not None:
                disproved[topic_partition] = first
        return Comparison(
            disproved,
            {topic_partition: max(now.end for now in found[topic_partition].values()) for topic_partition in to_read},
        )

    def _confirmed(self, topic_partition: Place, position: LogPosition) -> bool:
        now = self._reader.now(*topic_partition, position.asks_at, deadline_s=READ_DEADLINE_S)
        # Retention that deletes records already read is no loss, so the log start is moved back to the position.
        return compare_position(position, replace(now, start=min(now.start, position.next_offset))).believed

    def _read(self, asked: Mapping[Place, Sequence[int]]) -> dict[Place, dict[int, LogNow]]:
        """Return the log's state at each offset of each partition. asked: ascending offsets. Raises DependencyDown."""
        if not asked:
            return {}
        with self._client.lend() as consumer:
            found = self._read_by(
                consumer,
                {topic_partition: _Reading(topic_partition, offsets) for topic_partition, offsets in asked.items()},
            )
            consumer.unassign()
        return found

    def _read_by(self, consumer: Consumer, readings: Mapping[Place, _Reading]) -> dict[Place, dict[int, LogNow]]:
        consumer.assign(
            [TopicPartition(*topic_partition, reading.next) for topic_partition, reading in readings.items()]
        )
        left, deadline = set(readings), time.monotonic() + READ_DEADLINE_S
        while left:
            if self._closed.is_set() or time.monotonic() > deadline:
                raise DependencyDown("the records of the positions could not be read again")
            message = consumer.poll(POLL_S)
            if message is None or (topic_partition := (message.topic() or "", message.partition() or 0)) not in left:
                continue
            reading = readings[topic_partition]
            seek = reading.take(consumer, message)
            if reading.over:
                left.discard(topic_partition)
            elif seek:
                consumer.seek(TopicPartition(*topic_partition, reading.next))
        return {topic_partition: reading.found for topic_partition, reading in readings.items()}


class _Reading:
    """Look-up of one partition's offsets, in ascending order."""

    def __init__(self, topic_partition: Place, offsets: Sequence[int]) -> None:
        self.found: dict[int, LogNow] = {}
        self._topic_partition = topic_partition
        self._left = deque(dict.fromkeys(offsets))
        self._sought = self._left[0]

    @property
    def over(self) -> bool:
        """Whether every offset was looked up."""
        return not self._left

    @property
    def next(self) -> int:
        """The offset to look up next."""
        return self._left[0]

    def take(self, consumer: Consumer, message: Message) -> bool:
        """Process a record or the partition's end; return whether to seek the next offset. Raises KafkaException."""
        at, error = message.offset() or 0, message.error()
        if error is not None:
            if error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            return self._none_after(at)
        _, end = consumer.get_watermark_offsets(TopicPartition(*self._topic_partition), cached=True)
        now = LogNow("", 0, max(at + 1, end), mark_of(message))
        if at < self._sought:
            # The log ends before the requested offset, so the consumer was reset to the log start.
            return self._none_after(now.end)
        while self._left and self._left[0] <= at:
            self.found[self._left.popleft()] = now
        if not self._left or self._left[0] - at <= NEAR_MAX:
            return False
        self._sought = self._left[0]
        return True

    def _none_after(self, end: int) -> bool:
        while self._left:
            self.found[self._left.popleft()] = LogNow("", 0, end)
        return False


def _borne_out(position: LogPosition, now: LogNow) -> bool:
    return compare_position(replace(position, topic_id=None), now).believed
