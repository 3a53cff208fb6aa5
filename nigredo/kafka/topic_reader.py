"""Reading a topic without a group: to its end by position, or a single record's place; blocking, for a thread.

"To the end" means the position passed the end that was recorded first. Offsets alone cannot tell: compaction and
transaction markers leave gaps, so the last offset may never be seen.
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
TOLD_EVERY_S = 3.0
READ_AHEAD: Mapping[str, int] = {
    "queued.max.messages.kbytes": 4096,
    # librdkafka's own second, after which it looks whether there is room again, made up most of a long reading.
    "fetch.queue.backoff.ms": 20,
}
"""How much a consumer that reads a whole topic fetches before it is asked for it."""
ASKING_KEPT_S = 5.0
"""For the questions of one look. Not for longer: after an outage a fresh client finds the cluster soonest."""


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """Where a group stands in one partition: what it committed, if it ever did, and where the log starts and ends."""

    topic: str
    partition: int
    committed: int | None
    start: int
    end: int


class LoadProgress:
    """How far a consumer has come in reading partitions to the ends that were recorded first."""

    def __init__(self, topic: str, ends: Mapping[int, int]) -> None:
        self._topic = topic
        self._ends = dict(ends)
        self._records = 0
        self._began = self._told = time.monotonic()

    def took(self, records: int) -> None:
        """Count records; every few seconds the log is told how many."""
        self._records += records
        if (now := time.monotonic()) - self._told >= TOLD_EVERY_S:
            self._told = now
            self._tell("a topic is being loaded")

    def over(self, consumer: Consumer) -> bool:
        """Say whether every end is reached."""
        # By position: compaction and transaction markers leave gaps, so the last offset may never be seen.
        for at in consumer.position([TopicPartition(self._topic, partition) for partition in self._ends]):
            if at.offset >= self._ends[at.partition]:
                del self._ends[at.partition]
        if not self._ends and self._told > self._began:
            self._tell("a topic is loaded")
            self._told = self._began
        return not self._ends

    def _tell(self, what: str) -> None:
        log.info(what, topic=self._topic, records=self._records, seconds=round(time.monotonic() - self._began, 1))


def _arrived(consumer: Consumer) -> list[Message]:
    """Return the records that have arrived, after waiting for the first one at most."""
    first = consumer.poll(POLL_S)
    return [] if first is None else [first, *consumer.consume(999, 0)]


def _offset(at: TopicPartition) -> int | None:
    return None if at.offset == OFFSET_INVALID else at.offset


def mark_of(message: Message) -> Mark:
    """Return what a record without an error is recognised by later."""
    _, timestamp_ms = message.timestamp()
    return Mark.of(message.offset() or 0, timestamp_ms, message.key(), message.leader_epoch())


class EndNotReached(DependencyDown):
    """There is more to read than the time allows, though Kafka answers."""


class TopicReader:
    """Plain reads of one cluster. No two calls share a client at a time, so it may be used from several threads."""

    def __init__(self, settings: Settings, component: str) -> None:
        self._settings = settings
        self._component = component
        self._kept_admin: AdminClient | None = None
        self._asking = KeptConsumer(self._consumer, for_s=ASKING_KEPT_S)

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
        """Yield every record of the partitions up to their present ends, oldest first within a partition.

        since: leaves out what is older by the records' own timestamps.
        offsets: where to begin in some of the partitions, instead of at their beginning.
        Raises DependencyDown when Kafka does not answer, or nothing came for as long as the deadline: however much
        there is, it is read. within_s: raises EndNotReached when there is more than can be read in that time.
        Whoever reads much is told of it in the log every few seconds.
        """
        offsets, latest = offsets or {}, None if within_s is None else time.monotonic() + within_s
        with self._asking.lend() as consumer:
            marks = {p: self._watermarks(consumer, topic, p) for p in partitions}
            open_partitions = {p for p, (start, end) in marks.items() if max(start, offsets.get(p, 0)) < end}
            starts = [
                # Not OFFSET_BEGINNING: before it knows a leader, librdkafka waits half a second to ask where that is.
                TopicPartition(topic, p, max(marks[p][0], offsets.get(p, 0)))
                for p in open_partitions
            ]
            if since is not None and starts:
                asked = [TopicPartition(topic, p, int(since.timestamp() * 1000)) for p in open_partitions]
                found = consumer.offsets_for_times(asked, timeout=CALL_TIMEOUT_S)
                if (error := next((at.error for at in found if at.error is not None), None)) is not None:
                    raise DependencyDown(describe_error(error))
                # A partition without a record that young is told as its end, where no position would ever show.
                starts = [at for at in found if at.offset >= 0]
                open_partitions = {at.partition for at in starts}
        if not starts:
            return
        with self._reading() as consumer:
            consumer.assign(starts)
            loading = LoadProgress(topic, {p: end for p, (_, end) in marks.items() if p in open_partitions})
            deadline = time.monotonic() + deadline_s
            while not loading.over(consumer):
                messages = _arrived(consumer)
                loading.took(len(messages))
                now = time.monotonic()
                if any(message.error() is None for message in messages):
                    deadline = now + deadline_s
                if latest is not None and now > latest:
                    raise EndNotReached(f"the end of {topic} was not reached in time")
                if now > deadline:
                    raise DependencyDown(f"nothing more of {topic} came, and its end was not reached")
                for message in messages:
                    if message.error() is None and (message.offset() or 0) < marks[message.partition() or 0][1]:
                        yield message

    def next_offset(self, topic: str, partition: int, offset: int, *, deadline_s: float) -> int:
        """Return the offset of the first record at or after `offset` that still exists.

        The end of the partition when there is none yet. Raises DependencyDown when Kafka does not tell in time.
        """
        low, high = self.watermarks(topic, partition)
        found = self._first_at(TopicPartition(topic, partition, max(low, offset)), high, deadline_s)
        return high if found is None else found.offset() or 0

    def now(self, topic: str, partition: int, asks_at: int, *, deadline_s: float) -> LogNow:
        """Return what the log has to compare a position with. Raises DependencyDown, also without such a topic."""
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
        """Return the first record from an offset of the log on; None when there is none before the end."""
        if at.offset >= end:
            return None
        deadline = time.monotonic() + deadline_s
        with self._reading() as consumer:
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
        """Return Kafka's own id of each topic: one deleted and made again under its name has another.

        Topics that do not exist are left out. Raises DependencyDown.
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
            self._kept_admin = None
            raise DependencyDown(describe_error(error.args[0])) from error
        except TimeoutError as error:
            self._kept_admin = None
            raise DependencyDown("Kafka does not answer") from error
        return ids

    def between(
        self, topic: str, partition: int, start: int, end: int, *, patience_s: float = PATIENCE_S
    ) -> Iterator[Message]:
        """Yield what is left of the offsets from `start` up to `end`, which must not lie past the partition's end.

        Raises DependencyDown when Kafka does not answer, or the reading came no further for `patience_s`.
        """
        low, _ = self.watermarks(topic, partition)
        position = max(low, start)
        if position >= end:
            return
        with self._reading() as consumer:
            consumer.assign([TopicPartition(topic, partition, position)])
            moved_at = time.monotonic()
            while position < end:
                for message in _arrived(consumer):
                    if message.error() is None and (message.offset() or 0) < end:
                        yield message
                (at,) = consumer.position([TopicPartition(topic, partition)])
                if at.offset > position:
                    position, moved_at = at.offset, time.monotonic()
                elif time.monotonic() - moved_at > patience_s:
                    raise DependencyDown(f"{topic} partition {partition} could not be read past offset {position}")

    def offset_at(self, topic: str, partition: int, at: datetime) -> int:
        """Return the first offset whose record is as young as `at`; the partition's end, before asked, when none is."""
        with self._asking.lend() as consumer:
            # Asked first: what is appended between the two questions is young, and stands from there on.
            _, end = self._watermarks(consumer, topic, partition)
            asked = [TopicPartition(topic, partition, int(at.timestamp() * 1000))]
            (found,) = consumer.offsets_for_times(asked, timeout=CALL_TIMEOUT_S)
            if found.error is not None:
                raise DependencyDown(describe_error(found.error))
            return int(found.offset) if found.offset >= 0 else end

    def topics(self) -> list[str]:
        """Return the names of all topics. Raises DependencyDown."""
        with self._asking.lend() as consumer:
            return sorted(consumer.list_topics(timeout=CALL_TIMEOUT_S).topics)

    def cluster_id(self) -> str:
        """Return the id of the cluster: one that lost its data has another. Raises DependencyDown."""
        with self._asking.lend() as consumer:
            found = consumer.list_topics(timeout=CALL_TIMEOUT_S).cluster_id
        if not found:
            raise DependencyDown("Kafka did not tell its cluster's id")
        return str(found)

    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset that exists and the one after the last. Raises DependencyDown."""
        with self._asking.lend() as consumer:
            return self._watermarks(consumer, topic, partition)

    def partitions(self, topic: str) -> list[int]:
        """Return the partitions of a topic. Raises DependencyDown, also when there is no such topic yet."""
        with self._asking.lend() as consumer:
            found = consumer.list_topics(topic, timeout=CALL_TIMEOUT_S).topics.get(topic)
            if found is None or found.error is not None or not found.partitions:
                raise DependencyDown(f"there is no topic {topic} yet")
            return sorted(found.partitions)

    def committed(self, group: str, topic: str, partitions: Sequence[int]) -> dict[int, int | None]:
        """Return the offset a group committed for each partition; None where it has none. Raises DependencyDown."""
        asked = [TopicPartition(topic, partition) for partition in partitions]
        return {at.partition: _offset(at) for at in self._committed(group, asked)}

    def offsets(self, group: str, asked: Sequence[TopicPartition]) -> list[TopicPartition]:
        """Return what a group committed, in the order asked, with its metadata. Raises DependencyDown."""
        return self._committed(group, asked)

    def positions(self, group: str, topic: str, partitions: Sequence[int]) -> dict[int, LogPosition | None]:
        """Return the position a group committed for each partition, with its proof; None where it has none.

        Raises DependencyDown.
        """
        return {
            at.partition: None if _offset(at) is None else from_metadata(at.offset, at.metadata)[0]
            for at in self._committed(group, [TopicPartition(topic, number) for number in partitions])
        }

    def standing(self, group: str, partitions: Mapping[str, Sequence[int]]) -> list[PartitionLag]:
        """Return where a group stands in partitions of topics, in the order given. Raises DependencyDown."""
        asked = [TopicPartition(topic, number) for topic, numbers in partitions.items() for number in numbers]
        if not asked:
            return []
        committed = self._committed(group, asked)
        with self._asking.lend() as consumer:
            found = []
            for at in committed:
                start, end = self._watermarks(consumer, at.topic, at.partition)
                found.append(PartitionLag(at.topic, at.partition, _offset(at), start, end))
            return found

    def _committed(self, group: str, asked: Sequence[TopicPartition]) -> list[TopicPartition]:
        try:
            return committed_offsets(self._admin, group, asked)
        except DependencyDown:
            self._kept_admin = None
            raise

    @property
    def _admin(self) -> AdminClient:
        # Kept: ids are compared every few seconds, and each client has a thread and a connection. Not past a failure:
        # after Kafka came back without its data, the coordinator that a client knew never answered again.
        admin = self._kept_admin
        if admin is None:
            admin = AdminClient(client_config(self._settings, self._settings.function(self._component)))
            self._kept_admin = admin
        return admin

    @contextmanager
    def _reading(self) -> Iterator[Consumer]:
        """Lend a fresh client: one that has read before may still know its position of then."""
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
            raise DependencyDown(f"Kafka did not tell where {topic} ends")
        return marks
