"""Reader of topics without a consumer group: whole partitions, ranges, single records, watermarks. Blocking calls.

"To the end" means that the consumer's position passed the end offset recorded at the start. The offset of a record
cannot decide this, because compaction and transaction markers leave gaps: the last offset may never arrive.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from confluent_kafka import (
    OFFSET_INVALID,
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from nigredo.errors import DependencyDown
from nigredo.kafka.consumer_groups import committed_offsets
from nigredo.kafka.kept_consumer import KeptConsumer
from nigredo.kafka.publisher import client_config, describe_error
from nigredo.log_position import LogNow, LogPosition, Mark, from_metadata
from nigredo.observability.logs import get_logger
from nigredo.settings import Settings

log = get_logger()

CALL_TIMEOUT_S = 5.0
POLL_S = 0.2
PATIENCE_S = 30.0
PROGRESS_EVERY_S = 3.0
READ_AHEAD: Mapping[str, int] = {
    "queued.max.messages.kbytes": 4096,
    # librdkafka's default of one second before it fetches into freed space again made up most of a long read.
    "fetch.queue.backoff.ms": 20,
}
"""librdkafka settings for prefetching, for a consumer that reads a whole topic."""
QUERY_CLIENT_REUSED_S = 5.0
"""Reuse of the client for metadata queries: long enough for one survey of a cluster, no longer, because after an outage
a fresh client finds the cluster soonest."""


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """A group's progress in one partition: committed offset (None before the first commit), log start and log end."""

    topic: str
    partition: int
    committed: int | None
    start: int
    end: int


class LoadProgress:
    """Progress of a consumer that reads partitions up to end offsets recorded beforehand."""

    def __init__(self, topic: str, ends: Mapping[int, int]) -> None:
        self._topic = topic
        self._ends = dict(ends)
        self._records = 0
        self._started_at = self._logged_at = time.monotonic()

    def took(self, records: int) -> None:
        """Count records that were read, and log the progress every `PROGRESS_EVERY_S`."""
        self._records += records
        if (now := time.monotonic()) - self._logged_at >= PROGRESS_EVERY_S:
            self._logged_at = now
            self._log("loading topic")

    def over(self, consumer: Consumer) -> bool:
        """Return whether the consumer's position has reached every end."""
        # By position: compaction and transaction markers leave gaps, so the last offset may never be seen.
        for at in consumer.position([TopicPartition(self._topic, partition) for partition in self._ends]):
            if at.offset >= self._ends[at.partition]:
                del self._ends[at.partition]
        if not self._ends and self._logged_at > self._started_at:
            self._log("topic loaded")
            self._logged_at = self._started_at
        return not self._ends

    def _log(self, event: str) -> None:
        seconds = round(time.monotonic() - self._started_at, 1)
        log.info(event, topic=self._topic, records=self._records, seconds=seconds)


def _poll(consumer: Consumer) -> list[Message]:
    """Return the records fetched so far, after waiting at most `POLL_S` for the first."""
    first = consumer.poll(POLL_S)
    return [] if first is None else [first, *consumer.consume(999, 0)]


def _offset(at: TopicPartition) -> int | None:
    return None if at.offset == OFFSET_INVALID else at.offset


def mark_of(message: Message) -> Mark:
    """Return the mark by which a record, received without an error, is recognised later."""
    _, timestamp_ms = message.timestamp()
    return Mark.of(message.offset() or 0, timestamp_ms, message.key(), message.leader_epoch())


class EndNotReached(DependencyDown):
    """The partition's end was not reached within the time limit, although Kafka answers: try again with more time."""


class TopicReader:
    """Reads topics of one cluster. Thread-safe, because no two calls share a consumer at a time."""

    def __init__(self, settings: Settings, component: str) -> None:
        self._settings = settings
        self._component = component
        self._cached_admin: AdminClient | None = None
        self._query_client = KeptConsumer(self._consumer, for_s=QUERY_CLIENT_REUSED_S)

    def read_to_end(
        self,
        topic: str,
        partitions: Sequence[int],
        *,
        deadline_s: float,
        since: datetime | None = None,
        offsets: Mapping[int, int] | None = None,
        within_s: float | None = None,
    ) -> Iterator[Message]:
        """Yield every record of the partitions up to their current ends, in offset order within a partition.

        deadline_s: the longest wait for the next record; the whole read may take longer.
        since: skips records whose own timestamp is older.
        offsets: start offsets by partition; partitions not named are read from the log start.
        within_s: time limit of the whole read.
        Raises DependencyDown when Kafka does not answer or no record arrives for `deadline_s`, and EndNotReached when
        `within_s` has passed. Progress of a long read is logged every few seconds.
        """
        offsets, latest = offsets or {}, None if within_s is None else time.monotonic() + within_s
        with self._query_client.lend() as consumer:
            marks = {p: self._watermarks(consumer, topic, p) for p in partitions}
            open_partitions = {p for p, (start, end) in marks.items() if max(start, offsets.get(p, 0)) < end}
            starts = [
                # Not OFFSET_BEGINNING: librdkafka waits half a second to look it up when the leader is not known yet.
                TopicPartition(topic, p, max(marks[p][0], offsets.get(p, 0)))
                for p in open_partitions
            ]
            if since is not None and starts:
                asked = [TopicPartition(topic, p, int(since.timestamp() * 1000)) for p in open_partitions]
                found = consumer.offsets_for_times(asked, timeout=CALL_TIMEOUT_S)
                if (error := next((at.error for at in found if at.error is not None), None)) is not None:
                    raise DependencyDown(describe_error(error))
                # Without a record that young Kafka returns OFFSET_END (-1), at which no position is ever reported.
                starts = [at for at in found if at.offset >= 0]
                open_partitions = {at.partition for at in starts}
        if not starts:
            return
        with self._fresh_consumer() as consumer:
            consumer.assign(starts)
            loading = LoadProgress(topic, {p: end for p, (_, end) in marks.items() if p in open_partitions})
            deadline = time.monotonic() + deadline_s
            while not loading.over(consumer):
                messages = _poll(consumer)
                loading.took(len(messages))
                now = time.monotonic()
                if any(message.error() is None for message in messages):
                    deadline = now + deadline_s
                if latest is not None and now > latest:
                    raise EndNotReached(f"the end of {topic} was not reached in time")
                if now > deadline:
                    raise DependencyDown(f"no more records of {topic} arrived, and its end was not reached")
                for message in messages:
                    if message.error() is None and (message.offset() or 0) < marks[message.partition() or 0][1]:
                        yield message

    def next_offset(self, topic: str, partition: int, offset: int, *, deadline_s: float) -> int:
        """Return the offset of the first record at or after `offset` that still exists.

        Returns the partition's end when there is no such record yet. Raises DependencyDown when Kafka does not answer
        within `deadline_s`.
        """
        low, high = self.watermarks(topic, partition)
        found = self._first_at(TopicPartition(topic, partition, max(low, offset)), high, deadline_s)
        return high if found is None else found.offset() or 0

    def now(self, topic: str, partition: int, asks_at: int, *, deadline_s: float) -> LogNow:
        """Return the state of the log that a position is compared with (`nigredo.log_position.compare`).

        asks_at: the offset to read. Raises DependencyDown, also when the topic does not exist.
        """
        topic_id = self.topic_ids([topic]).get(topic)
        if topic_id is None:
            raise DependencyDown(f"there is no topic {topic}")
        low, high = self.watermarks(topic, partition)
        found = self._first_at(TopicPartition(topic, partition, max(low, asks_at)), high, deadline_s)
        if found is None:
            return LogNow(topic_id, low, high)
        kind, _ = found.timestamp()
        return LogNow(topic_id, low, high, mark_of(found), kind == TIMESTAMP_LOG_APPEND_TIME)

    def _first_at(self, at: TopicPartition, end: int, deadline_s: float) -> Message | None:
        """Return the first record at or after an offset; None when there is none before `end`."""
        if at.offset >= end:
            return None
        deadline = time.monotonic() + deadline_s
        with self._fresh_consumer() as consumer:
            consumer.assign([at])
            while time.monotonic() < deadline:
                message = consumer.poll(POLL_S)
                if message is not None and message.error() is None:
                    return message
                (position,) = consumer.position([TopicPartition(at.topic, at.partition)])
                if position.offset >= end:
                    return None
        raise DependencyDown(f"{at.topic} partition {at.partition} cannot be read")

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        """Return Kafka's id of each topic; a topic deleted and created again under the same name has a new id.

        Topics that do not exist are omitted. Raises DependencyDown.
        """
        if not topics:
            return {}
        ids = {}
        try:
            asked = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=CALL_TIMEOUT_S)
            for topic, answer in asked.items():
                try:
                    ids[topic] = str(answer.result(CALL_TIMEOUT_S + 2).topic_id)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
        except KafkaException as error:
            self._cached_admin = None
            raise DependencyDown(describe_error(error.args[0])) from error
        except TimeoutError as error:
            self._cached_admin = None
            raise DependencyDown("Kafka does not answer") from error
        return ids

    def between(
        self, topic: str, partition: int, start: int, end: int, *, patience_s: float = PATIENCE_S
    ) -> Iterator[Message]:
        """Yield the records that still exist from offset `start` up to, but not including, `end`.

        end: at most the partition's end. Raises DependencyDown when Kafka does not answer or the position does not
        advance for `patience_s`.
        """
        low, _ = self.watermarks(topic, partition)
        position = max(low, start)
        if position >= end:
            return
        with self._fresh_consumer() as consumer:
            consumer.assign([TopicPartition(topic, partition, position)])
            moved_at = time.monotonic()
            while position < end:
                for message in _poll(consumer):
                    if message.error() is None and (message.offset() or 0) < end:
                        yield message
                (at,) = consumer.position([TopicPartition(topic, partition)])
                if at.offset > position:
                    position, moved_at = at.offset, time.monotonic()
                elif time.monotonic() - moved_at > patience_s:
                    raise DependencyDown(f"{topic} partition {partition} could not be read past offset {position}")

    def offset_at(self, topic: str, partition: int, at: datetime) -> int:
        """Return the first offset whose timestamp is `at` or later; the partition's end at the call when there is none.

        Raises DependencyDown.
        """
        with self._query_client.lend() as consumer:
            # The end comes first: a record appended between the two requests is young and lies at or after this end.
            _, end = self._watermarks(consumer, topic, partition)
            asked = [TopicPartition(topic, partition, int(at.timestamp() * 1000))]
            (found,) = consumer.offsets_for_times(asked, timeout=CALL_TIMEOUT_S)
            if found.error is not None:
                raise DependencyDown(describe_error(found.error))
            return int(found.offset) if found.offset >= 0 else end

    def topics(self) -> list[str]:
        """Return the names of all topics. Raises DependencyDown."""
        with self._query_client.lend() as consumer:
            return sorted(consumer.list_topics(timeout=CALL_TIMEOUT_S).topics)

    def cluster_id(self) -> str:
        """Return the cluster's id, which is new after the cluster lost its data. Raises DependencyDown."""
        with self._query_client.lend() as consumer:
            found = consumer.list_topics(timeout=CALL_TIMEOUT_S).cluster_id
        if not found:
            raise DependencyDown("Kafka did not report its cluster's id")
        return str(found)

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """Return log start (the first offset that exists) and log end (the next offset). Raises DependencyDown."""
        with self._query_client.lend() as consumer:
            return self._watermarks(consumer, topic, partition)

    def partitions(self, topic: str) -> list[int]:
        """Return the partition numbers of a topic. Raises DependencyDown, also when the topic does not exist yet."""
        with self._query_client.lend() as consumer:
            found = consumer.list_topics(topic, timeout=CALL_TIMEOUT_S).topics.get(topic)
            if found is None or found.error is not None or not found.partitions:
                raise DependencyDown(f"there is no topic {topic} yet")
            return sorted(found.partitions)

    def committed(self, group: str, topic: str, partitions: Sequence[int]) -> dict[int, int | None]:
        """Return a group's committed offset of each partition; None without a commit. Raises DependencyDown."""
        asked = [TopicPartition(topic, partition) for partition in partitions]
        return {at.partition: _offset(at) for at in self._committed(group, asked)}

    def offsets(self, group: str, asked: Sequence[TopicPartition]) -> list[TopicPartition]:
        """Return a group's committed offsets with their metadata, in the order of `asked`. Raises DependencyDown."""
        return self._committed(group, asked)

    def positions(self, group: str, topic: str, partitions: Sequence[int]) -> dict[int, LogPosition | None]:
        """Return a group's committed position of each partition, with its proof; None without a commit.

        Raises DependencyDown.
        """
        return {
            at.partition: None if _offset(at) is None else from_metadata(at.offset, at.metadata)[0]
            for at in self._committed(group, [TopicPartition(topic, number) for number in partitions])
        }

    def standing(self, group: str, partitions: Mapping[str, Sequence[int]]) -> list[PartitionLag]:
        """Return a group's lag in each partition of the topics, in the order given. Raises DependencyDown."""
        asked = [TopicPartition(topic, number) for topic, numbers in partitions.items() for number in numbers]
        if not asked:
            return []
        committed = self._committed(group, asked)
        with self._query_client.lend() as consumer:
            found = []
            for at in committed:
                start, end = self._watermarks(consumer, at.topic, at.partition)
                found.append(PartitionLag(at.topic, at.partition, _offset(at), start, end))
            return found

    def _committed(self, group: str, asked: Sequence[TopicPartition]) -> list[TopicPartition]:
        try:
            return committed_offsets(self._admin, group, asked)
        except DependencyDown:
            self._cached_admin = None
            raise

    @property
    def _admin(self) -> AdminClient:
        # Cached, because topic ids are compared every few seconds and each client has a thread and a connection.
        # Dropped on a failure: after Kafka lost its data, the coordinator cached by an old client never answered again.
        admin = self._cached_admin
        if admin is None:
            admin = AdminClient(client_config(self._settings, self._settings.function(self._component)))
            self._cached_admin = admin
        return admin

    @contextmanager
    def _fresh_consumer(self) -> Iterator[Consumer]:
        """Lend a fresh consumer, because a used one may still have the position of its earlier assignment."""
        consumer = self._consumer()
        try:
            yield consumer
        except KafkaException as error:
            raise DependencyDown(describe_error(error.args[0])) from error
        finally:
            consumer.close()

    def _consumer(self) -> Consumer:
        return Consumer(
            client_config(self._settings, self._settings.function(self._component))
            | {
                "group.id": f"{self._settings.function(self._component)}-reader",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
                **READ_AHEAD,
            }
        )

    @staticmethod
    def _watermarks(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
        marks: tuple[int, int] | None = consumer.get_watermark_offsets(
            TopicPartition(topic, partition), timeout=CALL_TIMEOUT_S
        )
        if marks is None:
            raise DependencyDown(f"Kafka did not report the end of {topic}")
        return marks
