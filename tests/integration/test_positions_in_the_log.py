"""Stored positions beside a real broker whose topics are deleted, made again, trimmed and grown."""

from __future__ import annotations

from uuid import uuid4

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from nigredo.kafka.consumer_groups import commit_offsets
from nigredo.kafka.topic_reader import TopicReader
from nigredo.log_position import Finding, LogNow, LogPosition, compare, from_metadata, proven
from nigredo.operations.rewind import DatabaseOffsets
from nigredo.testing import Stack, eventually
from sinks.webhook.consumer.positions import Admitted, Refused, check

DEADLINE_S = 30.0
CALL_S = 10


class Topic:
    """A topic of one partition, to be damaged."""

    def __init__(self, stack: Stack) -> None:
        self.name = f"test-{uuid4()}"
        self._config = stack.client_config()
        self._admin = AdminClient(self._config)
        self.reader = TopicReader(stack.settings(role="admin"), "test")
        self.make()

    def make(self) -> None:
        def made() -> bool:
            created = self._admin.create_topics([NewTopic(self.name, num_partitions=1, replication_factor=1)])
            try:
                created[self.name].result(CALL_S)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                return False  # The one that was deleted is there for a moment yet.
            return True

        eventually(made, within_s=60, what="the topic")

    def delete(self) -> None:
        self._admin.delete_topics([self.name])[self.name].result(CALL_S)

    def trim(self, offset: int) -> None:
        at = TopicPartition(self.name, 0, offset)
        self._admin.delete_records([at])[at].result(CALL_S)

    def write(self, records: int) -> None:
        producer = Producer(self._config)
        for number in range(records):
            producer.produce(self.name, key=f"k{number}".encode(), value=b"v", partition=0)
        assert producer.flush(DEADLINE_S) == 0

    def now(self, asks_at: int) -> LogNow:
        return self.reader.now(self.name, 0, asks_at, deadline_s=DEADLINE_S)

    def position(self, next_offset: int) -> LogPosition:
        """Return a position that the log proves."""
        at = LogPosition(next_offset)
        return proven(at, self.now(at.asks_at))

    def found(self, position: LogPosition) -> Finding:
        return compare(position, self.now(position.asks_at))


@pytest.fixture
def topic(stack: Stack) -> Topic:
    return Topic(stack)


def test_a_topic_made_again_is_told_however_far_it_has_grown(topic: Topic) -> None:
    topic.write(5)
    position = topic.position(3)
    assert topic.found(position) is Finding.AGREES

    topic.delete()
    topic.make()
    topic.write(10)

    assert topic.found(position) is Finding.OTHER_TOPIC


def test_records_deleted_from_the_start_are_told_where_they_were_not_read(topic: Topic) -> None:
    topic.write(10)
    behind, ahead = topic.position(3), topic.position(8)

    topic.trim(5)

    assert topic.found(behind) is Finding.TRIMMED
    assert topic.found(ahead) is Finding.AGREES


def test_everything_deleted_after_it_was_read_is_no_loss(topic: Topic) -> None:
    topic.write(4)
    position = topic.position(4)

    topic.trim(4)

    assert topic.found(position) is Finding.AGREES


def test_a_group_that_an_older_release_left_past_the_end_stays_refused_when_the_log_has_grown(
    stack: Stack, topic: Topic
) -> None:
    topic.write(3)
    settings, group = stack.settings(role="admin"), f"test-{uuid4()}"
    commit_offsets(settings, group, topic.name, {0: 5}, {0: "1796013316402"})

    def checked() -> Admitted | Refused:
        (committed,) = topic.reader.offsets(group, [TopicPartition(topic.name, 0)])
        return check(group, committed, lambda _, __, at: topic.now(at))

    first = checked()
    assert isinstance(first, Refused)
    assert first.keep is not None
    commit_offsets(settings, group, topic.name, {0: first.keep.offset}, {0: first.keep.metadata})
    topic.write(10)

    second = checked()

    assert isinstance(second, Refused)
    assert second.keep is None
    assert from_metadata(5, first.keep.metadata)[1] == {"since": "1796013316402"}


def test_a_persister_before_the_start_of_the_log_is_set_forward_to_it_and_no_other_one_is(
    stack: Stack, topic: Topic
) -> None:
    topic.write(10)
    topic_id = topic.now(0).topic_id
    offsets = DatabaseOffsets(stack.settings(role="admin"), [topic.name])

    def set_to(target: int, stood_at: int) -> int:
        stack.rows("DELETE FROM nigredo.stream_offsets WHERE topic_id = %s RETURNING 1", topic_id)
        stack.rows(
            "INSERT INTO nigredo.stream_offsets (topic_id, partition, topic, next_offset) VALUES (%s, 0, %s, %s) "
            "RETURNING 1", topic_id, topic.name, stood_at,
        )  # fmt: skip
        offsets.set_back({(topic.name, 0): target})
        return offsets.standing()[topic.name, 0]

    assert set_to(6, stood_at=3) == 3
    topic.trim(6)
    assert set_to(6, stood_at=3) == 6
    assert set_to(6, stood_at=8) == 6
    assert set_to(9, stood_at=8) == 8
    stack.rows("DELETE FROM nigredo.stream_offsets WHERE topic_id = %s RETURNING 1", topic_id)
